"""Which files count when they change: patterns that include and exclude them, as uvicorn understands them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

INCLUDED = ("*.py",)
EXCLUDED = (".*", ".py[cod]", ".sw.*", "~*")


@dataclass(frozen=True, slots=True)
class WatchRules:
    """Patterns of files, matched from the right of a path (``*.py``, ``static/*.css``), and folders.

    Attributes:
        includes: A file counts that one of them matches,
        excludes: and none of these,
        folders: and that is in none of these. A file that ends with a pattern word for word counts all the same.
    """

    includes: tuple[str, ...]
    excludes: tuple[str, ...]
    folders: tuple[PurePath, ...] = ()

    def counts(self, path: PurePath) -> bool:
        """Say whether a change of the file ``path`` counts."""
        matching = [pattern for pattern in self.includes if path.match(pattern)]
        if not matching:
            return False
        if any(str(path).endswith(pattern) for pattern in matching):
            return True
        if any(folder in path.parents for folder in self.folders):
            return False
        return not any(path.match(pattern) for pattern in self.excludes)


def make_rules(include: Iterable[str], exclude: Iterable[str], folders: Iterable[PurePath] = ()) -> WatchRules:
    """Return the rules of what a person has given; a default that is given for the other side falls.

    Args:
        include: Patterns of ``--reload-include``.
        exclude: Patterns of ``--reload-exclude`` that are no folders.
        folders: Those that are, absolute.
    """
    include, exclude = tuple(include), tuple(exclude)
    return WatchRules(
        includes=(*(one for one in INCLUDED if one not in exclude), *include),
        excludes=(*(one for one in EXCLUDED if one not in include), *exclude),
        folders=tuple(folders),
    )


def outermost(folders: Iterable[PurePath]) -> list[PurePath]:
    """Return the absolute ``folders`` without those that are in another one of them, each once, in order."""
    unique = sorted(set(folders))
    return [folder for folder in unique if not any(other in folder.parents for other in unique)]


def describe_changes(paths: Iterable[PurePath], base: PurePath) -> str:
    """Return which files have changed, for one line: the first of them, relative to ``base`` where it is below that."""
    first, *others = sorted(paths)
    name = str(first.relative_to(base) if first.is_relative_to(base) else first)
    return name + (f" and {len(others)} more" if others else "")
