"""Internal. Values that are made when they are first asked for: to make every class takes a fifth of an import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

_T = TypeVar("_T")


class OnDemand(Mapping[str, _T]):
    """A mapping whose names are known and whose values are made, once each.

    Parameters
    ----------
    names : iterable of str
        The keys.
    make : callable
        Makes the value of a name.
    """

    def __init__(self, names: Iterable[str], make: Callable[[str], _T]) -> None:
        self._names, self._make, self._made = dict.fromkeys(names), make, dict[str, _T]()

    def __getitem__(self, name: str) -> _T:
        if name not in self._made and name in self._names:
            self._made.setdefault(name, self._make(name))  # of two threads that ask at once, one makes the value
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
