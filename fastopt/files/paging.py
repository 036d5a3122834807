"""Memory maps larger than memory: read ahead, written behind, let go."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import sys
import threading
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from ..backends import SquareSums
from ..checks import check_integer
from ..jobs.job import Gradients, Job, RowJob
from ..rules import GRADIENT

SLOTS = 4  # pieces in memory at once: one being read, one computed, two being written
LEAST, MOST = 1 << 20, 1 << 25  # bytes of a piece
SPARE = 1 << 20  # bytes for pages that the system enters around one that is asked for
GRAIN = 4096  # elements: a tensor is cut at multiples of it, which are whole 8-bit blocks and whole blocks of norms

_WILLNEED, _DONTNEED, _POPULATE_READ, _POPULATE_WRITE = 3, 4, 22, 23  # madvise's
_WRITE, _WAIT = 2, 7  # sync_file_range's: begin to write; write, and wait for that and whatever was being written
_MS_SYNC = 4
_FOLIOS = 1 << 25  # bytes


@cache
def _libc() -> Any:
    """The C library, called without the interpreter's lock."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.msync.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return libc


def _call(function: Any, *arguments: int | None, path: str) -> None:
    if function(*arguments):
        code = ctypes.get_errno()
        raise OSError(
            code, "its part that is mapped cannot be read" if code == errno.EFAULT else os.strerror(code), path
        )


def check_memory(memory: Any) -> int:
    """`state_memory`, if it is enough bytes, and the system has what it takes to keep to it."""
    least = SLOTS * LEAST + SPARE
    why = (
        f"a number of bytes, at least {least}: pieces of {LEAST}, of which one is read, one computed and two written "
        "at the same time, and some to spare"
    )
    checked = check_integer("state_memory", memory, least, 2**63 - 1, why)
    if sys.platform != "linux":
        raise ValueError(
            f"state_memory: found {memory} on {sys.platform}, expected None: only Linux can be told which pages of a "
            "memory map to let go; without the bound the system chooses"
        )
    return checked


class Mapping:
    """A file's bytes at addresses of this process, shared with the file: what is written there reaches it."""

    def __init__(self, start: int, stop: int, offset: int, descriptor: int | None, path: str) -> None:
        self.start, self.stop = start, stop
        self.stays = start  # bytes before this address are never let go
        self._offset = offset
        self._descriptor = descriptor
        self._path = path

    def _advise(self, low: int, high: int, advice: int) -> bool:
        """Tell whether the system takes the advice: it does not for pages that are locked in memory."""
        try:
            _call(_libc().madvise, low, high - low, advice, path=self._path)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def _place(self, low: int, high: int) -> tuple[int, int]:
        """Return the file's offsets of the bytes at these addresses, and how many they are."""
        return low - self.start + self._offset, high - low

    def fetch(self, low: int, high: int, written: bool) -> None:
        """Reads pages and enters them in the process's tables, so that no access to them waits, or meets SIGBUS."""
        if not self._advise(low, high, _POPULATE_WRITE if written else _POPULATE_READ):  # a kernel before 5.14
            self._advise(low, high, _WILLNEED)

    def write(self, low: int, high: int) -> None:
        """Begins to write pages."""
        if self._descriptor is not None and (low := max(low, self.stays)) < high:
            _call(_libc().sync_file_range, self._descriptor, *self._place(low, high), _WRITE, path=self._path)

    def let_go(self, low: int, high: int) -> None:
        """Waits until pages are written, then takes them from the process and from the system's cache."""
        if (low := max(low, self.stays)) >= high:
            return
        if self._descriptor is None:
            _call(_libc().msync, low, high - low, _MS_SYNC, path=self._path)
            self._advise(low, high, _DONTNEED)
        else:
            _call(_libc().sync_file_range, self._descriptor, *self._place(low, high), _WAIT, path=self._path)
            self._advise(low, high, _DONTNEED)
            # The cache lets go whole folios only, of up to megabytes: those that began before are tried again.
            place = self._place(max(low - _FOLIOS, self.stays), high)
            os.posix_fadvise(self._descriptor, *place, os.POSIX_FADV_DONTNEED)


def _shared_mappings() -> list[tuple[int, int, int, int, str]]:
    """Start, stop, offset, inode and path of every shared mapping of a file, by address.

    Private ones (mode "c" of numpy.memmap) are not among them: their changes are in memory only, and to let them go
    would lose them.
    """
    found = []
    with open("/proc/self/maps", errors="surrogateescape") as lines:
        for line in lines:
            extent, access, offset, _, inode, *path = line.rstrip("\n").split(maxsplit=5)
            if access.endswith("s") and inode != "0" and path:
                start, stop = (int(address, 16) for address in extent.split("-"))
                found.append((start, stop, int(offset, 16), int(inode), path[0]))
    return found


def _open(start: int, stop: int, offset: int, inode: int, path: str) -> Mapping:
    """A mapping, with a descriptor if the file is still at its path."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return Mapping(start, stop, offset, None, path)
    status = os.fstat(descriptor)
    if status.st_ino != inode or not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        return Mapping(start, stop, offset, None, path)
    mapping = Mapping(start, stop, offset, descriptor, path)
    weakref.finalize(mapping, os.close, descriptor)
    return mapping


class Range(NamedTuple):
    """Pages of a mapping."""

    mapping: Mapping
    low: int
    high: int
    written: bool


class Chunk(NamedTuple):
    """Elements of a job, from `begin` to `end`, and the pages of files that they are in."""

    job: int
    begin: int
    end: int
    ranges: list[Range]
    ahead: bool = True  # whether the pages are to be read ahead

    def fetch(self) -> None:
        """Reads its pages."""
        if self.ahead:
            for mapping, low, high, written in self.ranges:
                mapping.fetch(low, high, written)

    def write(self) -> None:
        """Begins to write its pages."""
        for mapping, low, high, _ in self.ranges:
            mapping.write(low, high)

    def let_go(self) -> None:
        """Waits until its pages are written, and frees their memory."""
        for mapping, low, high, _ in self.ranges:
            mapping.let_go(low, high)


class Pager:
    """Keeps a mapping, and whatever maps of files are used with it, within a bound of memory.

    Attributes
    ----------
    piece : int
        So many bytes are read, computed, written at once.
    """

    # When a file larger than the bound is passed through again and again, the least recently used page is always
    # that which is needed next. So a part of it that fits stays, and the rest goes through a window.

    def __init__(self, mapping: Mapping, memory: int) -> None:
        self._own = mapping
        memory -= SPARE
        left = memory - (mapping.stop - mapping.start)  # if all of it stays
        self.piece = min(MOST, (left if left >= SLOTS * LEAST else memory) // SLOTS)
        stays = (memory - SLOTS * self.piece) // mmap.PAGESIZE * mmap.PAGESIZE
        mapping.stays = min(mapping.start + stays, mapping.stop)

    def chunks(self, jobs: Sequence[Job], units: Sequence[Sequence[tuple[int, int]]]) -> list[Chunk]:
        """Cuts jobs into pieces.

        Parameters
        ----------
        jobs : sequence of Job
            A `RowJob` is left whole: which pages it needs, only its indices say.
        units : for each job, for each of its arrays (bytes, elements)
            How many bytes so many elements take: (4, 1) is float32, (260, 256) blocks of 8-bit floats.
        """
        mappings = self._mappings([np.atleast_2d(job.addresses) for job in jobs])
        found = []
        for k, (job, arrays) in enumerate(zip(jobs, units, strict=True)):
            if isinstance(job, RowJob):
                pages = list(_extents(job, mappings[k][0]))
                found.append(Chunk(k, 0, job.size, _merged(pages), ahead=False))
                continue
            table = job.addresses, job.strides, job.offsets
            found += _cut(k, *table, arrays, mappings[k], self.piece, job.progress.read_only)
        return found

    def _mappings(self, addresses: Sequence[np.ndarray]) -> list[list[list[Mapping | None]]]:
        """Find the mapping that each address is in; None for ordinary memory."""
        shared = _shared_mappings()
        starts = np.array([start for start, *_ in shared], np.uint64)
        stops = np.array([stop for _, stop, *_ in shared], np.uint64)
        opened: dict[int, Mapping | None] = {-1: None}

        def at(address: int, place: int) -> Mapping | None:
            if self._own.start <= address < self._own.stop:
                return self._own
            if place not in opened:
                opened[place] = _open(*shared[place])
            return opened[place]

        tables = []
        for table in addresses:
            places = np.searchsorted(starts, table, "right") - 1
            places[(places >= 0) & (table >= np.append(stops, 0)[places])] = -1
            tables.append([list(map(at, *row)) for row in zip(table.tolist(), places.tolist(), strict=True)])
        return tables

    def stream(self, chunks: Sequence[Chunk], compute: Callable[[Chunk], None]) -> None:
        """Computes pieces one after the other, while the next are read and those before are written.

        Raises
        ------
        OSError
            A file cannot be read or written.
        """
        free, ready = threading.Semaphore(SLOTS), threading.Semaphore(0)
        computed: SimpleQueue[Chunk | None] = SimpleQueue()
        errors: list[BaseException] = []

        def read() -> None:
            for chunk in chunks:
                free.acquire()
                if errors:
                    return
                chunk.fetch()
                ready.release()

        def write() -> None:
            before = None
            while (chunk := computed.get()) is not None:
                chunk.write()  # before it is waited for the one before: the disk always has something to do
                if before is not None:
                    before.let_go()
                    free.release()
                before = chunk
            if before is not None:
                before.let_go()

        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)
            finally:  # whoever waits goes on: to the end, or to see the error
                free.release()
                ready.release()

        threads = [threading.Thread(target=guarded, args=(work,)) for work in (read, write)]
        started = []
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
            for chunk in chunks:
                ready.acquire()
                if errors:
                    break
                compute(chunk)
                computed.put(chunk)
        except BaseException as error:
            errors.append(error)
        computed.put(None)
        free.release()
        for thread in started:
            thread.join()
        if errors:
            raise errors[0]

    def copy(self, target: np.ndarray, source: Any) -> None:
        """``target[:] = source``, piece by piece; `target` is flat and contiguous, as `source` is if it is an array."""
        arrays = [target, source] if isinstance(source, np.ndarray) else [target]
        addresses = np.array([[array.ctypes.data for array in arrays]], np.uint64)
        units = [(array.itemsize, 1) for array in arrays]
        ((mappings,),) = self._mappings([addresses])
        chunks = _cut(0, addresses, None, np.array([0, target.size]), units, [mappings], self.piece, (1,))

        def assign(chunk: Chunk) -> None:
            part = slice(chunk.begin, chunk.end)
            target[part] = source if np.isscalar(source) else source[part]

        self.stream(list(chunks), assign)

    def reading(self, backend: SquareSums) -> SquareSums:
        """The backend, for norms of gradients that may be memory maps."""
        return _Reading(self, backend)


class _Reading:
    """A backend that reads gradients within the bound of a pager."""

    def __init__(self, pager: Pager, backend: SquareSums) -> None:
        self._pager, self._backend = pager, backend

    def square_sums(self, grads: Gradients, threads: int) -> np.ndarray:
        """Sum squares as the backend does: the same blocks, in the same order."""
        (mappings,) = self._pager._mappings([grads.addresses])
        if not any(mapping for (mapping,) in mappings):
            return self._backend.square_sums(grads, threads)
        unit = [(grads.dtype.itemsize, 1)]
        chunks = list(_cut(0, grads.addresses, grads.strides, grads.offsets, unit, mappings, self._pager.piece, (0,)))
        sums: list[np.ndarray] = []
        self._pager.stream(chunks, lambda chunk: sums.append(self._backend.square_sums(_part(grads, chunk), threads)))
        return np.concatenate([np.empty(0), *sums])


def _part(grads: Gradients, chunk: Chunk) -> Gradients:
    """The elements of a table that a chunk has."""
    first = int(np.searchsorted(grads.offsets, chunk.begin, "right")) - 1
    last = int(np.searchsorted(grads.offsets, chunk.end, "left"))
    addresses = grads.addresses[first:last].copy()
    addresses[0] += ((chunk.begin - grads.offsets[first]) * grads.strides[first]).astype(np.uint64)
    offsets = np.clip(grads.offsets[first : last + 1], chunk.begin, chunk.end) - chunk.begin
    array_of = grads.array_of[first:last]
    return replace(grads, addresses=addresses, strides=grads.strides[first:last], offsets=offsets, array_of=array_of)


def _pages(low: int, high: int) -> tuple[int, int]:
    """The whole pages that an extent of bytes is in."""
    return low // mmap.PAGESIZE * mmap.PAGESIZE, -(-high // mmap.PAGESIZE) * mmap.PAGESIZE


def _merged(ranges: Iterable[Range]) -> list[Range]:
    """Ranges with those that touch made one."""
    merged: list[Range] = []
    for mapping, low, high, written in sorted(ranges, key=lambda r: (r.low, r.high)):
        if merged and merged[-1].mapping is mapping and low <= merged[-1].high and written == merged[-1].written:
            low, high = merged[-1].low, max(high, merged.pop().high)
        merged.append(Range(mapping, low, high, written))
    return merged


def _extents(job: RowJob, mappings: Sequence[Mapping | None]) -> Iterator[Range]:
    """The pages of a job's arrays, all rows of them."""
    for j, mapping in enumerate(mappings):
        if mapping is not None and j != GRADIENT:
            written = j not in job.progress.inputs
            address, stride = int(job.addresses[j]), int(job.strides[j])
            edges = address, address + (job.rows.count - 1) * stride
            yield Range(mapping, *_pages(min(edges), min(max(edges) + abs(stride), mapping.stop)), written)


def _cut(
    k: int,
    addresses: np.ndarray,
    strides: np.ndarray | None,
    offsets: np.ndarray,
    units: Sequence[tuple[int, int]],
    mappings: Sequence[Sequence[Mapping | None]],
    piece: int,
    read_only: Container[int],
) -> Iterator[Chunk]:
    """Pieces of a table of runs, of at most `piece` bytes of files each; arrays at `read_only` are not written."""
    begin = 0
    ranges: list[Range] = []
    held = 0
    for r, row in enumerate(addresses.tolist()):
        mapped = [(j, mapping) for j, mapping in enumerate(mappings[r]) if mapping is not None]
        first, length = int(offsets[r]), int(offsets[r + 1] - offsets[r])
        if not mapped or not length:
            continue
        layouts = [(row[j], *units[j], 0 if strides is None else int(strides[r, j])) for j, _ in mapped]
        rate = sum(max(size / elements, abs(stride)) for _, size, elements, stride in layouts)
        # A piece's edges take up to two pages of each array more than its elements do.
        step = max(GRAIN, int((piece - 2 * mmap.PAGESIZE * len(mapped)) / rate) // GRAIN * GRAIN)
        for low in range(0, length, step):
            high = min(low + step, length)
            own = [
                Range(mapping, *_pages(*_bytes(layout, low, high)), j not in read_only)
                for (j, mapping), layout in zip(mapped, layouts, strict=True)
            ]
            size = sum(range_.high - range_.low for range_ in own)
            if held and held + size > piece:
                yield Chunk(k, begin, first + low, _merged(ranges))
                begin, ranges, held = first + low, [], 0
            ranges += own
            held += size
    if begin < offsets[-1]:
        yield Chunk(k, begin, int(offsets[-1]), _merged(ranges))


def _bytes(layout: tuple[int, int, int, int], begin: int, end: int) -> tuple[int, int]:
    """The addresses of elements of a run: of their first byte, and after the last."""
    address, size, elements, stride = layout
    if elements != 1 or stride in (0, size):
        return address + begin // elements * size, address + -(-end // elements) * size
    edges = address + begin * stride, address + (end - 1) * stride
    return min(edges), max(edges) + size
