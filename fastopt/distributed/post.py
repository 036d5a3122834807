"""Internal. Parcels between two ranks, each of which may end at any time: numbers and arrays, without waiting."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from ..arrays.dtypes import BFLOAT16, dtype_name, numpy_dtype
from ..arrays.libraries import floats_of
from ..binding.sparse import RowSparse
from ..errors import BackendUnavailable
from .world import RankDied

_copy: Callable[[np.ndarray, np.ndarray], None] = np.copyto
with suppress(BackendUnavailable):
    from ..backends.native import copy as _copy

#: The most bytes of a message.
PIECE = 1 << 20
_NUMBERS = 7  # that a parcel begins with; behind them is how long the forms of its arrays are, -1: as before
_POLLS = 200  # looks at what may come before a rest


class Lost(RankDied):
    """The other rank of a message has ended.

    Attributes
    ----------
    rank : int
        Its number.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(f"found rank {rank} ended before its time")
        self.rank = rank

    def __reduce__(self) -> tuple[Any, ...]:
        return Lost, (self.rank,)


class Rest:
    """Rests between looks at what may come: longer ones, the longer nothing comes.

    Parameters
    ----------
    longest : float
        The seconds of the longest.
    """

    def __init__(self, longest: float) -> None:
        self._longest, self._looks = longest, 0

    def after(self, something: bool) -> None:
        """Rest after a look that found something, or nothing."""
        self._looks = 0 if something else self._looks + 1
        if self._looks > _POLLS:
            time.sleep(min(20e-6 * 2.0 ** min(self._looks - _POLLS, 20), self._longest))
        elif not something:
            os.sched_yield()


class Channel:
    """Messages of this rank: each call returns at once.

    Parameters
    ----------
    mpi : module
        mpi4py's.
    communicator : object
        One whose messages are these alone.

    Attributes
    ----------
    rank : int
        The number of this rank.
    lost : set of int
        The ranks that have ended.
    """

    def __init__(self, mpi: Any, communicator: Any) -> None:
        self._mpi, self._comm = mpi, communicator
        self.rank: int = communicator.Get_rank()
        self.lost: set[int] = set()

    def send(self, to: int, memory: np.ndarray) -> Any:
        """Begin to send bytes."""
        self._check(to)
        try:
            return self._comm.Isend([memory, self._mpi.BYTE], to)
        except self._mpi.Exception as error:
            raise self._lost(error, to) from None

    def receive(self, source: int, memory: np.ndarray) -> Any:
        """Begin to receive bytes."""
        self._check(source)
        try:
            return self._comm.Irecv([memory, self._mpi.BYTE], source)
        except self._mpi.Exception as error:
            raise self._lost(error, source) from None

    def done(self, requests: list[Any], other: int) -> bool:
        """Take messages that are done off the end of a list; tell whether all were."""
        self._check(other)
        try:
            while requests and requests[-1].Test():
                requests.pop()
        except self._mpi.Exception as error:
            raise self._lost(error, other) from None
        return not requests

    def _check(self, rank: int) -> None:
        if rank in self.lost:
            raise Lost(rank)

    def _lost(self, error: Any, rank: int) -> Exception:
        if error.Get_error_class() != self._mpi.ERR_PROC_FAILED:
            return error
        self.lost.add(rank)
        return Lost(rank)


class Sender:
    """Parcels to a rank, of which one is under way at a time.

    Parameters
    ----------
    channel : Channel
        What carries them.
    to : int
        The rank.
    """

    def __init__(self, channel: Channel, to: int) -> None:
        self._to, self._channel = to, channel
        self._numbers = np.zeros(_NUMBERS + 1, np.int64)
        self._forms = b""  # those of the last arrays, which the other rank knows
        self._items: tuple[Any, ...] = ()
        self._memory: list[np.ndarray] = []
        self._requests: list[Any] = []

    def send(self, numbers: Sequence[int], items: Sequence[Any] = ()) -> None:
        """Begin to send numbers, and arrays, rows or None, which stay as they are until the parcel is there.

        Raises
        ------
        Lost
            The rank has ended.
        """
        self._begin(numbers, items)
        for memory in self._memory:
            self._send(memory)
        self._requests.reverse()  # those that are done first are asked first

    def send_copied(
        self, numbers: Sequence[int], items: Sequence[Any], pairs: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> None:
        """Fill items, by pairs of a part and what is to be there, in order; send each piece as soon as it is full.

        Raises
        ------
        Lost
            The rank has ended; all has been copied.
        """
        lost: Lost | None = None
        try:
            self._begin(numbers, items)
        except Lost as error:
            lost = error
        pieces = deque(piece for memory in self._memory for piece in _pieces(memory))
        full = 0  # the bytes that are there of what has not been sent
        for own, array in pairs:
            for memory, source in zip(_pieces(_bytes(own)), _pieces(_bytes(array)), strict=True):
                _copy(memory, source)
                full += memory.size
                while lost is None and pieces and pieces[0].size <= full:
                    full -= pieces[0].size
                    try:
                        self._send(pieces.popleft())
                    except Lost as error:
                        lost = error
        if lost is not None:
            raise lost
        self._requests.reverse()  # those that are done first are asked first

    def _begin(self, numbers: Sequence[int], items: Sequence[Any]) -> None:
        """Send all but the arrays."""
        rest = Rest(1e-4)
        while not self.done():
            rest.after(False)
        forms = self._take(tuple(items))
        self._numbers[: len(numbers)] = numbers
        self._numbers[_NUMBERS] = -1 if forms == self._forms else len(forms)
        parts = [_bytes(self._numbers)]
        if forms != self._forms:
            parts.append(np.frombuffer(forms, np.uint8))
        self._forms = forms
        self._parts = parts  # kept while under way
        for memory in parts:
            self._send(memory)

    def _send(self, memory: np.ndarray) -> None:
        self._requests += [self._channel.send(self._to, piece) for piece in _pieces(memory)]

    def _take(self, items: tuple[Any, ...]) -> bytes:
        """Have the memory of items at hand; return their forms."""
        same = (a is b and isinstance(a, np.ndarray) for a, b in zip(self._items, items, strict=False))
        if len(self._items) == len(items) and all(same):
            return self._forms
        arrays = [_arrays(item) for item in items]
        self._items = items
        self._memory = [_bytes(array) for own in arrays for array in own]
        return json.dumps(_forms(arrays)).encode()

    def done(self) -> bool:
        """Tell whether the last parcel is on its way, so that its arrays may be written."""
        return self._channel.done(self._requests, self._to)


class Receiver:
    """Parcels from a rank, one after the other; arrays like those before come into the same memory.

    Parameters
    ----------
    channel : Channel
        What carries them.
    source : int
        The rank.

    Attributes
    ----------
    numbers : numpy.ndarray
        Those of the last parcel.
    items : list of numpy.ndarray, RowSparse or None
        What came with them: arrays that are the same objects where they are like those before.
    """

    def __init__(self, channel: Channel, source: int) -> None:
        self._source, self._channel = source, channel
        self.numbers = np.zeros(_NUMBERS + 1, np.int64)
        self.items: list[Any] = []
        self._forms: list[Any] = []
        self._arrays: list[list[np.ndarray]] | None = []  # None: to be made for these forms
        self._requests: list[Any] = []
        self._parts: Iterator[None] | None = None

    def expect(self, into: Sequence[np.ndarray] = ()) -> None:
        """Begin to receive the next parcel; its arrays into these, where these are like them and contiguous."""
        self._parts = self._receive(into)
        with suppress(Lost):  # which `arrived` raises
            next(self._parts)

    def arrived(self) -> bool:
        """Tell whether the parcel that is expected is there.

        Raises
        ------
        Lost
            The rank has ended.
        """
        while self._parts is not None:
            if not self._channel.done(self._requests, self._source):
                return False
            if next(self._parts, self) is self:
                self._parts = None
        return True

    def _receive(self, into: Sequence[np.ndarray]) -> Iterator[None]:
        self._begin([_bytes(self.numbers)])
        yield
        size = int(self.numbers[_NUMBERS])
        if size >= 0:
            text = np.empty(size, np.uint8)
            self._begin([text])
            yield
            self._forms, self._arrays = json.loads(text.tobytes() or b"[]"), None
        arrays = [[own] for own in into if own.flags.c_contiguous]
        if not arrays or self._forms != _forms(arrays):
            if self._arrays is None:
                self._arrays = [[np.empty(shape, _dtype(name)) for name, shape in own] for own in self._forms]
            arrays = self._arrays
        self._begin([_bytes(array) for own in arrays for array in own])
        yield
        self.items = [_item(own) for own in arrays]

    def _begin(self, parts: Sequence[np.ndarray]) -> None:
        for memory in parts:
            self._requests += [self._channel.receive(self._source, piece) for piece in _pieces(memory)]
        self._requests.reverse()


class Peers:
    """Parcels to and from any other rank.

    Parameters
    ----------
    channel : Channel
        What carries them.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel, self.rank = channel, channel.rank
        self._senders: dict[int, Sender] = {}
        self._receivers: dict[int, Receiver] = {}

    def to(self, rank: int) -> Sender:
        """Parcels to a rank."""
        if rank not in self._senders:
            self._senders[rank] = Sender(self.channel, rank)
        return self._senders[rank]

    def of(self, rank: int) -> Receiver:
        """Parcels from a rank."""
        if rank not in self._receivers:
            self._receivers[rank] = Receiver(self.channel, rank)
        return self._receivers[rank]


def _arrays(item: Any) -> list[np.ndarray]:
    """The arrays that an item is made of."""
    if item is None:
        return []
    own = [item.indices, floats_of(item.values)] if isinstance(item, RowSparse) else [item]
    return [np.asarray(array, order="C") for array in own]


def _forms(arrays: Sequence[Sequence[np.ndarray]]) -> list[Any]:
    """The dtypes and shapes of each item's arrays."""
    return [[[dtype_name(array.dtype), list(array.shape)] for array in own] for own in arrays]


def _item(arrays: Sequence[np.ndarray]) -> Any:
    """The item that is made of arrays."""
    return RowSparse(*arrays) if len(arrays) == 2 else arrays[0] if arrays else None


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _pieces(memory: np.ndarray) -> list[np.ndarray]:
    return [memory[begin : begin + PIECE] for begin in range(0, memory.size, PIECE)]


def _dtype(name: str) -> np.dtype:
    return numpy_dtype(BFLOAT16) if name == "bfloat16" else np.dtype(name)
