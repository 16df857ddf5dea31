"""What a primary knows, as JSON and back: for the process that takes its place."""

from __future__ import annotations

import base64
import binascii
import collections.abc
import enum
import types
import typing
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, NewType, TypeVar

Fd = NewType("Fd", int)
"""A file descriptor that the next process has too, under the same number."""

_LISTS = (list, tuple, set, frozenset, deque)
_DICTS = (dict, Counter, OrderedDict)
_T = TypeVar("_T")


class InvalidState(ValueError):
    """It is not what is wanted: another version has written it; the text says where."""


def encode(value: Any) -> Any:
    """Return ``value`` in what JSON has: data classes by their fields, bytes as base64, dicts as lists of pairs.

    What has the type `Any` comes back as it is then: no tuple, and no dict.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, enum.Enum):
        return encode(value.value)
    if is_dataclass(value):
        return {one.name: encode(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return [[encode(key), encode(one)] for key, one in value.items()]
    if isinstance(value, set | frozenset):
        return sorted(map(encode, value))
    if isinstance(value, _LISTS):
        return [encode(one) for one in value]
    raise TypeError(f"{type(value).__name__} cannot be carried")


def decode(kind: type[_T], data: Any) -> _T:
    """Return the value of the type ``kind`` that `encode` has made ``data`` of.

    A field that ``data`` lacks gets its default.

    Raises:
        InvalidState: ``data`` does not fit; it has a field that ``kind`` lacks, or a value of another type.
    """
    return typing.cast("_T", _decode(kind, data, kind.__name__))


def find_fds(value: Any) -> list[int]:
    """Return every `Fd` of a data class, however deep."""
    return list(_find(type(value), value))


def _decode(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    if kind is Fd:
        kind = int
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in arguments:
            return None
        (kind,) = (one for one in arguments if one is not type(None))
        return _decode(kind, data, where)
    if origin in (tuple, collections.abc.Sequence):
        return _decode_tuple(arguments, _expect(list, data, where), where)
    if origin in _LISTS:
        return origin(_decode(arguments[0], one, where) for one in _expect(list, data, where))
    if origin in _DICTS:
        values = arguments[1] if len(arguments) > 1 else int
        pairs = [_decode_tuple((arguments[0], values), pair, where) for pair in _expect(list, data, where)]
        return origin(dict(pairs))
    if is_dataclass(origin):
        return _decode_fields(origin, _expect(dict, data, where), where)
    return _decode_one(origin, data, where)


def _decode_one(kind: Any, data: Any, where: str) -> Any:
    try:
        if kind is bytes:
            return base64.b64decode(_expect(str, data, where), validate=True)
        if issubclass(kind, enum.Enum):
            return kind(data)
    except (ValueError, binascii.Error) as exc:
        raise InvalidState(f"{where}: {exc}") from exc
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    return _expect(kind, data, where)


def _decode_tuple(arguments: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    values = _expect(list, data, where)
    if len(arguments) == 1 or arguments[1:] == (Ellipsis,):
        return tuple(_decode(arguments[0], one, where) for one in values)
    if len(values) != len(arguments):
        raise InvalidState(f"{where}: {len(values)} values, {len(arguments)} are wanted")
    return tuple(_decode(one, value, where) for one, value in zip(arguments, values, strict=True))


def _decode_fields(kind: Any, data: dict[str, Any], where: str) -> Any:
    known = {one.name: one for one in fields(kind)}
    if unknown := sorted(data.keys() - known.keys()):
        raise InvalidState(f"{where} has {', '.join(unknown)}, which this version does not know")
    value = object.__new__(kind)
    for name, one in known.items():
        if name in data:
            found = _decode(_hints(kind)[name], data[name], f"{where}.{name}")
        elif one.default is not MISSING:
            found = one.default
        elif one.default_factory is not MISSING:
            found = one.default_factory()
        else:
            raise InvalidState(f"{where} lacks {name}")
        object.__setattr__(value, name, found)
    return value


def _expect(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise InvalidState(f"{where}: {type(data).__name__} instead of {kind.__name__}")
    return data


def _find(kind: Any, value: Any) -> Iterator[int]:
    if value is None:
        return
    if kind is Fd:
        yield value
        return
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        for one in arguments:
            if one is not type(None):
                yield from _find(one, value)
    elif isinstance(origin, type) and is_dataclass(origin):
        for name, hint in _hints(origin).items():
            yield from _find(hint, getattr(value, name))
    elif origin in _DICTS:
        for one in value.values():
            yield from _find(arguments[-1], one)
    elif origin in _LISTS:
        for at, one in enumerate(value):
            yield from _find(arguments[min(at, len(arguments) - 1)] if origin is tuple else arguments[0], one)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}
