"""Addresses and layouts of arrays, which a step that was bound before looks at again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import is_
from typing import Any

import numpy as np

from ..arrays.array import Array
from ..arrays.checks import Written
from ..arrays.libraries.torch import is_tensor, torch_layout
from ..backends import Look, Reader
from ..backends.choice import host_backend


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
def _looker() -> Reader:
    return host_backend().array_reader() or _ask


def look(arrays: tuple[Any, ...], _looker: Callable[[], Reader] = _looker) -> Look | None:
    """Looks where NumPy arrays are; nothing of them is kept.

    Layouts are equal where dtypes, shapes, strides, alignment and being writable are. None among the arrays stands for
    itself; subclasses and arrays of other libraries give None, for they may have memory of another kind.
    """
    return _looker()(arrays)


def look_at(views: Sequence[Array | None]) -> Look:
    """The layouts and addresses of views of any arrays."""
    layouts = tuple(None if a is None else (a.dtype, a.shape, a.given_strides, a.place.device) for a in views)
    return layouts, np.array([0 if a is None else a.address for a in views], np.uint64).tobytes()


@dataclass(frozen=True)
class Watched:
    """Arrays of a step that others can change: those of NumPy become read-only, tensors of torch are put elsewhere.

    Attributes
    ----------
    written : Written
        Those of NumPy, which steps themselves look at.
    tensors : tuple
        Tensors, by weak references, with their layouts and what they are called.
    """

    written: Written = ()
    tensors: tuple[tuple[weakref.ref[Any], Any, str], ...] = ()

    @classmethod
    def of(cls, arrays: Sequence[tuple[Any, str]]) -> Watched:
        """Select those arrays that others can change, with their names."""
        written = [(x, name, "updated in place") for x, name in arrays if isinstance(x, np.ndarray)]
        tensors = [(weakref.ref(x), torch_layout(x), name) for x, name in arrays if is_tensor(x)]
        return cls(tuple(written), tuple(tensors))

    def beside(self, other: Watched) -> Watched:
        """All arrays of both."""
        return Watched((*self.written, *other.written), self.tensors + other.tensors)

    def moved(self) -> str:
        """Say which tensor has other memory than it had, in words for an error; nothing where none has."""
        for ref, layout, name in self.tensors:
            tensor = ref()
            if tensor is None or torch_layout(tensor) != layout:
                return f"{name}: found a tensor that has other memory than at bind, expected the same: bind again"
        return ""


NONE_WATCHED = Watched()


class Same:
    """Knows arrays again by their identities, for as long as all of them live.

    Parameters
    ----------
    arrays : sequence of array or None
        The arrays.
    forgotten : callable, optional
        Is called when one of them ends.

    Raises
    ------
    TypeError
        No weak reference can be made to one.
    """

    def __init__(self, arrays: Sequence[Any], forgotten: Callable[[], Any] | None = None) -> None:
        self._ids = list(map(id, arrays))
        self._forgotten = forgotten
        self._refs = [weakref.ref(x) for x in arrays if x is not None]
        self._watched = False
        if forgotten is not None:
            self._watch(arrays)

    def are(self, arrays: Sequence[Any]) -> bool:
        """Return whether these are the arrays."""
        return list(map(id, arrays)) == self._ids and (self._watched or self._watch(arrays))

    def _watch(self, arrays: Sequence[Any]) -> bool:
        """Compare the arrays themselves, and if they are the same, trust their identities until one of them ends."""
        given = [x for x in arrays if x is not None]
        if not all(map(is_, given, [ref() for ref in self._refs])):
            return False
        self._ids = ids = list(map(id, arrays))
        forgotten = self._forgotten

        def forget(_: Any) -> None:
            ids.clear()
            if forgotten is not None:
                forgotten()

        self._refs = [weakref.ref(x, forget) for x in given]
        self._watched = True
        return True


class Places:
    """The layouts and addresses of arrays that tables name; arrays of the same layouts elsewhere can take their place.

    Parameters
    ----------
    found : pair
        The layouts of the arrays as they are now, and the addresses, as a `Look` or as lists.
    move : callable, optional
        Writes other addresses into the tables; by default the arrays stay where they are.
    apart : callable, optional
        Tells whether arrays at some addresses share no memory that they may not share; by default they may share any.
    """

    def __init__(
        self,
        found: tuple[Any, Any],
        move: Callable[[np.ndarray], None] | None = None,
        apart: Callable[[np.ndarray], bool] | None = None,
    ) -> None:
        self._layouts, self.addresses = found
        self._move = move
        self._apart = apart

    @property
    def can_move(self) -> bool:
        """True where arrays elsewhere can take their place."""
        return self._move is not None

    def take(self, found: tuple[Any, Any]) -> bool:
        """Takes over arrays; False for those of other layouts, and where they may share memory."""
        layouts, addresses = found
        if layouts != self._layouts:
            return False
        if addresses != self.addresses:
            if self._move is None:
                return False
            at = np.frombuffer(addresses, np.uint64) if type(addresses) is bytes else np.array(addresses, np.uint64)
            if self._apart is not None and not self._apart(at):
                return False
            self._move(at)
            self.addresses = addresses
        return True


class ApartFromThose:
    """Tells whether arrays that move share memory with none of those that stay.

    Parameters
    ----------
    staying : sequence of Array
        Those that stay, which share no memory with each other.
    moving : sequence of Array or None
        Those that move, C-contiguous.
    """

    def __init__(self, staying: Sequence[Array], moving: Sequence[Array | None]) -> None:
        extents = np.array(sorted(array.extent() for array in staying), np.uint64).reshape(-1, 2)
        self._low, self._high = np.append(extents[:, 0], np.iinfo(np.uint64).max), extents[:, 1].copy()
        self._sizes = np.array([0 if a is None else a.size * a.dtype.itemsize for a in moving], np.uint64)

    def __call__(self, at: np.ndarray) -> bool:
        """Return whether they share none, at these addresses."""
        after = np.searchsorted(self._high, at, "right")  # the first array that ends behind
        return not (self._low[after] < at + self._sizes).any()


class ApartFromEachOther:
    """Tells whether no two arrays have a byte between them.

    False for what interleaves, and for gradients that share memory, as they may.

    Parameters
    ----------
    arrays : sequence of Array
        The arrays.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        extents = [(low - array.address, high - array.address) for array in arrays for low, high in (array.extent(),)]
        self._begins, self._ends = [low for low, _ in extents], [high for _, high in extents]
        self._order = list(range(len(arrays)))

    def __call__(self, addresses: np.ndarray) -> bool:
        """Return whether they have none, at these addresses."""
        return self._are(addresses.tolist())

    def _are(self, at: Sequence[int]) -> bool:
        end = 0
        for i in self._order:
            if at[i] + self._begins[i] < end:
                break
            end = at[i] + self._ends[i]
        else:
            return True
        before, self._order = self._order, sorted(self._order, key=lambda i: at[i] + self._begins[i])
        return self._order != before and self._are(at)


class Columns:
    """Addresses in tables that follow arrays, wherever these are."""

    def __init__(self) -> None:
        self._columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, column: np.ndarray, which: Any, at: np.ndarray) -> None:
        """Has columns of a table follow: of each address, `which` array it is in; `at` is where these are now."""
        which = np.asarray(which, np.intp)
        self._columns.append((column, which, column - at[which]))

    def put(self, at: np.ndarray) -> None:
        """Writes the addresses for arrays that are there."""
        for column, which, beyond in self._columns:
            np.add(at[which], beyond, out=column)
