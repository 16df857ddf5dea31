"""What a primary knows, as JSON and back: for the process that takes its place."""

from __future__ import annotations

import base64
import enum
import functools
import types
import typing
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, NewType, TypeVar

Fd = NewType("Fd", int)
"""A file descriptor that the next process has too, under the same number."""

_LISTS = (list, tuple, set, frozenset, deque)
_DICTS = (dict, Counter, OrderedDict)
_PLAIN = frozenset({type(None), bool, int, float, str})
_T = TypeVar("_T")
_Decoder = Callable[[Any], Any]


class InvalidState(ValueError):
    """It is not what is wanted: another version has written it; the text says where.

    Args:
        fault: What is wrong.
        path: The fields that lead to it.
    """

    def __init__(self, fault: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(f"{'.'.join(path)}{fault}")
        self.fault = fault
        self.path = path


def encode(value: Any) -> Any:
    """Return ``value`` in what JSON has: data classes by their fields, bytes as base64, dicts as lists of pairs.

    What has the type `Any` comes back as it is then: no tuple, and no dict.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is bytes:
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, enum.Enum):
        return value.value
    if is_dataclass(value):
        return {one.name: encode(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return [[encode(key), encode(one)] for key, one in value.items()]
    if isinstance(value, set | frozenset):
        return sorted(map(encode, value))
    if isinstance(value, _LISTS):
        return [one if type(one) in _PLAIN else encode(one) for one in value]
    raise TypeError(f"{kind.__name__} cannot be carried")


def decode(kind: type[_T], data: Any) -> _T:
    """Return the value of the type ``kind`` that `encode` has made ``data`` of.

    A field that ``data`` lacks gets its default.

    Raises:
        InvalidState: ``data`` does not fit; it has a field that ``kind`` lacks, or a value of another type.
    """
    try:
        return typing.cast("_T", _decoder(typing.cast("Any", kind))(data))
    except InvalidState as exc:
        raise InvalidState(exc.fault, (kind.__name__, *exc.path)) from exc


def find_fds(value: Any) -> list[int]:
    """Return every `Fd` of a data class, however deep."""
    return list(_find(type(value), value))


@cache
def _decoder(kind: Any) -> _Decoder:
    """Return what decodes values of ``kind``: it is made once, there may be very many values."""
    if kind is Any:
        return lambda data: data
    if kind is Fd:
        kind = int
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (one for one in arguments if one is not type(None))
        some = _decoder(kind)
        return lambda data: None if data is None else some(data)
    if origin is tuple and arguments[1:] != (Ellipsis,):
        return functools.partial(_decode_tuple, tuple(map(_decoder, arguments)))
    if origin in _LISTS:
        return functools.partial(_decode_list, origin, _decoder(arguments[0]))
    if origin in _DICTS:
        values = arguments[1] if len(arguments) > 1 else int
        return functools.partial(_decode_dict, origin, _decoder(arguments[0]), _decoder(values))
    if is_dataclass(origin):
        return functools.partial(_decode_fields, origin)
    if issubclass(origin, enum.Enum):
        return functools.partial(_decode_enum, origin)
    return _decode_bytes if origin is bytes else functools.partial(_expect, origin)


def _decode_list(kind: Any, one: _Decoder, data: Any) -> Any:
    return kind(map(one, _expect(list, data)))


def _decode_tuple(ones: tuple[_Decoder, ...], data: Any) -> tuple[Any, ...]:
    values = _expect(list, data)
    if len(values) != len(ones):
        raise InvalidState(f": {len(values)} values, {len(ones)} are wanted")
    return tuple(one(value) for one, value in zip(ones, values, strict=True))


def _decode_dict(kind: Any, key: _Decoder, value: _Decoder, data: Any) -> Any:
    pairs = _expect(list, data)
    for pair in pairs:
        if type(pair) is not list or len(pair) != 2:
            raise InvalidState(": pairs are wanted")
    return kind({key(first): value(second) for first, second in pairs})


def _decode_bytes(data: Any) -> bytes:
    text = _expect(str, data)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as exc:
        raise InvalidState(f": {exc}") from exc


def _decode_enum(kind: Any, data: Any) -> Any:
    try:
        return kind(data)
    except ValueError as exc:
        raise InvalidState(f": {exc}") from exc


def _decode_fields(kind: Any, data: Any) -> Any:
    known = {one.name: one for one in fields(kind)}
    if unknown := sorted(_expect(dict, data).keys() - known.keys()):
        raise InvalidState(f" has {', '.join(unknown)}, which this version does not know")
    value = object.__new__(kind)
    for name, one in known.items():
        if name in data:
            try:
                found = _decoder(_hints(kind)[name])(data[name])
            except InvalidState as exc:
                raise InvalidState(exc.fault, (name, *exc.path)) from exc
        elif one.default is not MISSING:
            found = one.default
        elif one.default_factory is not MISSING:
            found = one.default_factory()
        else:
            raise InvalidState(f" lacks {name}")
        object.__setattr__(value, name, found)
    return value


def _expect(kind: Any, data: Any) -> Any:
    if type(data) is kind:
        return data
    if kind is float and type(data) is int:
        return float(data)
    raise InvalidState(f": {type(data).__name__} instead of {kind.__name__}")


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
