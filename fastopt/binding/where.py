"""Where arrays are now, and how they are laid out: what a step looks at that was bound before."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from operator import is_
from typing import Any

import numpy as np

from ..arrays.array import Array
from ..backends.choice import load_backend
from ..errors import BackendUnavailable

#: Layouts that can be compared and be keys, and the addresses as bytes of uint64.
Look = tuple[Hashable, bytes]


def _ask(arrays: Sequence[Any]) -> Look | None:
    """Looks by asking each array, which takes ten times as long."""
    layouts, addresses = [], []
    for x in arrays:
        if x is not None and type(x) is not np.ndarray:
            return None
        layouts.append(None if x is None else (x.dtype, x.flags.num & 0x0501, x.shape, x.strides))
        addresses.append(0 if x is None else x.ctypes.data)
    return tuple(layouts), np.array(addresses, np.uint64).tobytes()


@cache
def _looker() -> Callable[[Sequence[Any]], Look | None]:
    try:
        native: Any = load_backend("native")
    except BackendUnavailable:
        return _ask
    return native.read_arrays if native.can_read_arrays() else _ask


def look(arrays: Sequence[Any], _looker: Callable[[], Callable[[Sequence[Any]], Look | None]] = _looker) -> Look | None:
    """Looks where NumPy arrays are; nothing of them is kept.

    Layouts are equal where dtypes, shapes, strides, alignment and being writable are. None among the arrays stands for
    itself; subclasses and arrays of other libraries give None, for they may have memory of another kind.
    """
    return _looker()(arrays)


def look_at(views: Sequence[Array | None]) -> Look:
    """The layouts and addresses of views of any arrays."""
    layouts = tuple(None if a is None else (a.dtype, a.shape, a.given_strides, a.place.device) for a in views)
    return layouts, np.array([0 if a is None else a.address for a in views], np.uint64).tobytes()


class Same:
    """Knows arrays again by their identities, for as long as all of them live.

    Raises
    ------
    TypeError
        No weak reference can be made to one.
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._ids = list(map(id, arrays))
        self._refs = [weakref.ref(x) for x in arrays if x is not None]
        self._watched = False

    def are(self, arrays: Sequence[Any]) -> bool:
        """Whether these are the arrays."""
        return list(map(id, arrays)) == self._ids and (self._watched or self._watch(arrays))

    def _watch(self, arrays: Sequence[Any]) -> bool:
        """Whether what has the identities are the arrays themselves; then their identities do until one ends."""
        given = [x for x in arrays if x is not None]
        if not all(map(is_, given, [ref() for ref in self._refs])):
            return False
        self._ids = ids = list(map(id, arrays))

        def forget(_: Any) -> None:
            ids.clear()

        self._refs = [weakref.ref(x, forget) for x in given]
        self._watched = True
        return True


class Columns:
    """Addresses in tables that follow arrays, wherever these are."""

    def __init__(self) -> None:
        self._columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, column: np.ndarray, which: Any, at: np.ndarray) -> None:
        """Has a table's column follow: of each address there, `which` array it is in; `at` is where these are now."""
        which = np.asarray(which, np.intp)
        self._columns.append((column, which, column - at[which]))

    def put(self, at: np.ndarray) -> None:
        """Writes the addresses for arrays that are there."""
        for column, which, beyond in self._columns:
            np.add(at[which], beyond, out=column)
