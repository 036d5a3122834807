"""Norms of gradients and what limits make of them, on the device: a step's scale that no host waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numba.cuda import types

from ...arrays.libraries import driver
from ...jobs.job import NORM_BLOCK, Gradients, RowJob
from .compiler import Plain, integers, ptx_of, put_scales_in, squares_of
from .kernels import ADDERS, LIMBS, LIMITERS, NO_LIMIT, NORM, OF_ALL, OF_EACH, PART_SUMS, SCALES, THREADS
from .lookups import Summed

NOT_CAPTURABLE = (
    "the step is being captured in a CUDA graph, whose replays would all repeat this one step: construct the optimizer "
    "of fastopt.torch with capturable=True"
)

_BEGIN, _ADD = Plain("begin_limits", (*integers(3), types.float64)), Plain("add_exactly", integers(5))
_LIMIT = Plain("limit_norms", (*integers(3), types.float64, *integers(2)))


class Scale:
    """The scale of a step's gradients, and whether it is skipped: on the device.

    Attributes
    ----------
    cells : int
        The address of the cells, as kernels have them.
    group_of : numpy.ndarray, int32, or None
        The number of each parameter's scale; None: all have the first.
    """

    def __init__(
        self,
        memory: driver.Memory,
        device: driver.Device,
        group_of: np.ndarray | None,
        event: driver.Event | None,
    ) -> None:
        self.cells, self.group_of = memory.address, group_of
        self._memory, self._device, self._event = memory, device, event  # and no gradients
        self._undo: list[Callable[[], None]] = []

    def undoing(self, undo: Callable[[], None]) -> None:
        """Has something called where the step turns out to have been skipped."""
        self._undo.append(undo)

    @property
    def counted(self) -> bool:
        """True where the host has counted the step."""
        return bool(self._undo)

    def _fetch(self, at: int, kind: type[np.generic]) -> float:
        into = np.empty(1, kind)
        self._device.fetch(self.cells + at, into, self._event)
        return float(into[0])

    @cached_property
    def _norm_now(self) -> float:
        return self._fetch(NORM, np.float64)

    def norm(self) -> float:
        """The global norm, once it is there; of a step that a graph records, the last replay's."""
        return self._norm_now if self._event is not None else self._fetch(NORM, np.float64)

    def skipped(self) -> bool:
        """Whether the step was skipped, once that is known: then what it counted is taken back."""
        found = self._fetch(0, np.float32) != 0
        undo, self._undo = self._undo, []
        for call in reversed(undo):
            if found:
                call()
        return found


class _Room:
    """Tables of gradients on the device, and places for their sums and what becomes of these."""

    def __init__(
        self, device: driver.Device, tables: Sequence[Gradients | RowJob], each: bool, cells: int, stream: int
    ) -> None:
        self._device, self._cells = device, cells
        self._tables = [table for table in tables if isinstance(table, Gradients)]
        self._rows = [Summed(table) for table in tables if isinstance(table, RowJob)]
        blocks = [_prefix(-(-np.diff(table.offsets) // NORM_BLOCK)) for table in self._tables]
        self._counts = [int(own[-1]) for own in blocks]
        of_arrays = [_by_array(table, own) for table, own in zip(self._tables, blocks, strict=True)]
        sums = np.concatenate([*of_arrays, np.array([rows.blocks for rows in self._rows], np.int64)])
        firsts = _prefix(sums if each else [sums.sum()])
        parts = _prefix(-(-np.diff(firsts) // PART_SUMS))
        self._groups, self._parts = len(parts) - 1, int(parts[-1])
        words: list[np.ndarray] = []
        for table, own in zip(self._tables, blocks, strict=True):
            words += [table.addresses[:, 0], table.strides[:, 0], table.offsets, own]
        words += [firsts, parts]
        at = 8 * np.cumsum([0, *map(len, words)])
        end, room = int(at[-1]), 8 * (int(firsts[-1]) + LIMBS * self._parts)
        self._memory = memory = device.allocate(end + room, stream)
        device.upload(np.concatenate([part.astype(np.int64) for part in words]).view(np.uint64), memory.address, stream)
        self._at = (memory.address + at).tolist()
        self._sent = self._addresses()
        self._kernels()

    def _addresses(self) -> list[bytes]:
        return [table.addresses.tobytes() for table in self._tables]

    def _kernels(self) -> None:
        device, sums = self._device, self._at[-1]
        firsts, parts = self._at[-3:-1]
        limbs = sums + 8 * (sum(self._counts) + sum(rows.blocks for rows in self._rows))
        self._squares = []
        for k, (table, count) in enumerate(zip(self._tables, self._counts, strict=True)):
            kind = squares_of(table.dtype)
            kernel = device.kernel(ptx_of(kind, device.capability), kind.name, 7, THREADS)
            kernel.arguments[:] = *self._at[4 * k : 4 * k + 4], sums, len(table.addresses), count
            self._squares.append((kernel, -(-16 * count // THREADS)))
            sums += 8 * count
        for rows in self._rows:
            rows.make_ready(sums)
            sums += 8 * rows.blocks
        self._begin, self._add, self._limit = (
            device.kernel(ptx_of(kind, device.capability), kind.name, len(kind.arguments), threads)
            for kind, threads in ((_BEGIN, 1), (_ADD, ADDERS), (_LIMIT, LIMITERS))
        )
        self._begin.arguments[0] = self._cells
        self._add.arguments[:] = self._at[-1], firsts, parts, self._groups, limbs
        self._limit.arguments[:3] = limbs, parts, self._cells

    def run(
        self, stream: int, capturing: bool, scale: float, limit: float, which: int, check: bool, amp: tuple[int, int]
    ) -> None:
        """Puts all on a stream; a graph records with it where gradients are."""
        self._memory.used_on(stream)
        addresses = self._addresses()
        for k, (table, now, sent) in enumerate(zip(self._tables, addresses, self._sent, strict=True)):
            if capturing or now != sent:
                self._device.upload(np.ascontiguousarray(table.addresses[:, 0]), self._at[4 * k], stream)
        self._sent = addresses
        self._begin.arguments[1:3] = amp
        self._begin.arguments[3:].view(np.float64)[0] = scale
        self._begin.launch(1, stream)
        if which == NO_LIMIT and not check:  # there is nothing to read gradients for
            return
        for kernel, blocks in self._squares:
            if blocks:
                kernel.launch(blocks, stream)
        for rows in self._rows:
            rows.run(stream)
        self._add.launch(self._parts, stream)
        self._limit.arguments[3:4].view(np.float64)[0] = limit
        self._limit.arguments[4:] = which, check
        self._limit.launch(self._groups, stream)


def words_of(table: np.ndarray) -> np.ndarray:
    """A table of int32 as words, the last filled up."""
    words = np.zeros(-(-table.size // 2), np.uint64)
    words.view(np.int32)[: table.size] = table
    return words


def _prefix(counts: np.ndarray | Sequence[int]) -> np.ndarray:
    """Sums of the counts before each, and of all."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _by_array(table: Gradients, blocks: np.ndarray) -> np.ndarray:
    """The number of sums of each array."""
    return np.bincount(table.array_of, np.diff(blocks), len(table.places)).astype(np.int64)


class Norms:
    """Limits of gradients' norms, on the device.

    Parameters
    ----------
    tables : sequence of Gradients or RowJob
        The gradients, which have an element: the next step may have others' addresses there. Those of some rows, whose
        lookups are added up, are behind the others.
    parameters : sequence of numpy.ndarray
        The number of the parameter of each array, by table.
    each : bool
        Whether each array has a norm of its own, or all have one.
    recorded : bool
        Whether graphs may record steps.
    """

    def __init__(
        self, tables: Sequence[Gradients | RowJob], parameters: Sequence[np.ndarray], each: bool, recorded: bool
    ) -> None:
        self._tables, self._each, self._recorded = tables, each, recorded
        self._current_stream = driver.stream_of(tables[0].place)
        self._device = driver.device_of(tables[0].place.number)
        self._rooms: list[_Room] = []  # for steps as they come, and for those that graphs record
        self._cells: driver.Memory | None = None
        self._group_of = None
        found = np.concatenate(parameters)
        self._arrays = len(found)
        if each:
            self._group_of = np.zeros(int(found.max()) + 1, np.int32)
            self._group_of[found] = np.arange(len(found))

    def __call__(self, scale: float, limit: float | None, check: bool, amp: tuple[int, int] = (0, 0)) -> Scale:
        """Puts on the caller's stream what finds the scale.

        Parameters
        ----------
        scale : float
            Of all gradients.
        limit : float or None
            Of norms.
        check : bool
            Whether a step with gradients that are not finite is skipped.
        amp : tuple of int
            The addresses of float32 numbers: what gradients are to be divided by, and whether to skip; 0: none.

        Raises
        ------
        RuntimeError
            A graph is being captured, and the step is not one for that, or the first.
        """
        stream = self._current_stream()
        capturing = driver.is_capturing(stream)
        if capturing and not self._recorded:
            raise RuntimeError(NOT_CAPTURABLE)
        if capturing and self._cells is None:
            raise RuntimeError(
                "a CUDA graph is being captured before the first step that limits norms, which allocates: do one step "
                "before it"
            )
        if self._cells is None:
            groups = self._arrays if self._each else 1
            cells = self._device.allocate(SCALES + 8 * groups, stream)
            self._rooms = [
                _Room(self._device, self._tables, self._each, cells.address, stream) for _ in range(1 + self._recorded)
            ]
            self._cells = cells
        self._cells.used_on(stream)
        which = NO_LIMIT if limit is None else OF_EACH if self._each else OF_ALL
        most = np.inf if limit is None else limit
        self._rooms[int(capturing)].run(stream, capturing, scale, most, which, check, amp)
        # Of replays the host knows nothing: it then waits for all that the device does.
        event = None if self._recorded else self._device.event(stream)
        return Scale(self._cells, self._device, self._group_of, event)


class PutScales:
    """Puts a scale into rows of coefficients."""

    def __init__(self, device: driver.Device, dtype: np.dtype, rows: int, row_bytes: int) -> None:
        kind = put_scales_in(dtype)
        self._kernel = device.kernel(ptx_of(kind, device.capability), kind.name, 5, THREADS)
        self._kernel.arguments[:2] = rows, row_bytes
        self._device, self._sent = device, b""
        self._memory: driver.Memory | None = None

    def allocate(self, count: int, stream: int) -> None:
        """Has memory for the numbers of so many parameters' scales."""
        if self._memory is None:
            self._memory = self._device.allocate(4 * count + 4, stream)
        self._memory.used_on(stream)

    def launch(self, stream: int, scale: Scale, count: int, parameters: np.ndarray, capturing: bool = False) -> None:
        """Puts it into so many rows; where each parameter has its own, these are those of `parameters`.

        A graph records which; memory for that must be there then.
        """
        arguments = self._kernel.arguments
        arguments[2:] = count, 0, scale.cells
        if scale.group_of is not None:
            numbers = scale.group_of[parameters]
            self.allocate(len(numbers), stream)
            assert self._memory is not None
            if capturing or numbers.tobytes() != self._sent:
                self._sent = numbers.tobytes()
                self._device.upload(words_of(numbers), self._memory.address, stream)
            arguments[3] = self._memory.address
        self._kernel.launch(-(-count // THREADS), stream)
