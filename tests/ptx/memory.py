"""Device memory as the interpreter sees it: registered regions, every access checked for bounds, alignment, races."""

import bisect
import ctypes
from collections import Counter
from collections.abc import Iterator

import numpy as np

NOBODY, MANY = 0, -1  # tags of a place that no thread, or more than one, has accessed; a thread's tag is its number + 1
WARP = 32
# The accesses of other threads that make one a race. Atomics are no race among one another.
FORBIDDEN = {"load": ("store", "atomic"), "store": ("store", "load", "atomic"), "atomic": ("store", "load")}
SHORT = {"load": "ld", "store": "st", "atomic": "atom"}


class LaunchError(Exception):
    """A fault of a kernel: an access outside every region, misaligned, read-only or racing; a deadlock."""


class Elsewhere(LaunchError):
    """Threads that an instruction waits for have not arrived at it."""


def warp_of(threads: np.ndarray, block: int) -> np.ndarray:
    """The number of the first thread of each thread's warp."""
    return threads - threads % block % WARP


class Shadow:
    """The threads that accessed each place of a region in this launch.

    A place is as large as the smallest access so far (at most 16 bytes), which loses nothing: all accesses are
    aligned to their size, so that they cover whole places.
    """

    def __init__(self, address: int, nbytes: int):
        self.granule = min(16, address & -address)
        self.places = -(-nbytes // self.granule)
        self.tags: dict[str, np.ndarray] = {}

    def rows(self, kind: str, start: int, size: int) -> np.ndarray:
        """Tags of one kind of access: a row for each `size` bytes that follow `start`."""
        if size < self.granule:
            finer = self.granule // size
            self.tags = {kind: np.repeat(tags, finer) for kind, tags in self.tags.items()}
            self.granule, self.places = size, self.places * finer
        tags = self.tags.get(kind)
        if tags is None:
            tags = self.tags[kind] = np.zeros(self.places, np.int32)
        first, columns = start // self.granule, size // self.granule
        return tags[first : first + (tags.size - first) // columns * columns].reshape(-1, columns)

    def synchronize(self, firsts: np.ndarray, block: int) -> None:
        """Give the warps what their threads have accessed: it is no race for any of a warp's threads from now on."""
        for tags in self.tags.values():
            places = np.flatnonzero(tags > 0)
            warps = warp_of(tags[places] - 1, block)
            chosen = np.isin(warps, firsts)
            tags[places[chosen]] = -2 - warps[chosen]

    def record(
        self, kind: str, start: int, size: int, index: slice | np.ndarray, threads: np.ndarray, block: int
    ) -> tuple[str, int] | None:
        """Note accesses to rows; returns the other access and the lane of a race, if there is one."""
        mine = (threads + 1).astype(np.int32)[:, None]
        ours = (-2 - warp_of(threads, block)).astype(np.int32)[:, None]
        for other in FORBIDDEN[kind]:
            if other in self.tags:
                seen = self.rows(other, start, size)[index]
                race = (seen != NOBODY) & (seen != mine) & (seen != ours)
                if race.any():
                    return other, int(race.any(axis=1).argmax())
        rows = self.rows(kind, start, size)
        before = rows[index]
        shared = (before != NOBODY) & (before != mine) & (before != ours)
        rows[index] = mine
        if isinstance(index, np.ndarray):  # lanes of this very access may share a place: all but one find another's tag
            together = rows[index] != mine
            if kind == "store" and together.any():
                return "store", int(together.any(axis=1).argmax())
            shared |= together
        if shared.any():
            lane, column = np.nonzero(shared)
            rows[lane + index.start if isinstance(index, slice) else index[lane], column] = MANY
        return None


class Region:
    """Bytes that kernels may access; `checked` says whether races are looked for."""

    def __init__(self, address: int, nbytes: int, name: str, writable: bool = True, checked: bool = True):
        self.address, self.nbytes, self.name, self.writable, self.checked = address, nbytes, name, writable, checked
        self.data = np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)
        self.shadow: Shadow | None = None
        self._words: dict[int, np.ndarray] = {}

    def start(self, size: int) -> int:
        """The offset of the first place that is aligned to size."""
        return -self.address % size

    def words(self, size: int) -> np.ndarray:
        """The region's aligned places of some size, one a row of unsigned integers of at most 8 bytes."""
        words = self._words.get(size)
        if words is None:
            start, unit = self.start(size), min(size, 8)
            count = max(self.nbytes - start, 0) // size
            words = self.data[start : start + count * size].view(f"u{unit}").reshape(count, size // unit)
            self._words[size] = words
        return words

    def record(
        self, kind: str, size: int, index: slice | np.ndarray, threads: np.ndarray, block: int
    ) -> tuple[str, int] | None:
        """Record accesses by `Shadow.record`, where races are looked for."""
        if not self.checked or (kind == "load" and not self.writable):
            return None
        if self.shadow is None:
            self.shadow = Shadow(self.address, self.nbytes)
        return self.shadow.record(kind, self.start(size), size, index, threads, block)


class Memory:
    """Regions by address; loads and stores of many threads at once."""

    def __init__(self) -> None:
        self.statistics: Counter[tuple[str, int]] = Counter()
        self._regions: list[Region] = []
        self._addresses: list[int] = []
        self.begin("no kernel", 1)

    def add(self, address: int, nbytes: int, name: str, writable: bool = True, checked: bool = True) -> Region | None:
        """Register a region. An empty one is none."""
        if nbytes == 0:
            return None
        at = bisect.bisect(self._addresses, address)
        neighbours = self._regions[max(at - 1, 0) : at + 1]
        for other in neighbours:
            if other.address < address + nbytes and address < other.address + other.nbytes:
                raise ValueError(f"the region {name!r} overlaps {other.name!r}")
        region = Region(address, nbytes, name, writable, checked)
        self._regions.insert(at, region)
        self._addresses.insert(at, address)
        return region

    def add_array(self, array: np.ndarray, name: str, writable: bool = True) -> Region | None:
        """Register the memory of a contiguous array."""
        if not array.flags.forc:
            raise ValueError(f"the array {name!r} is not contiguous")
        return self.add(array.ctypes.data, array.nbytes, name, writable)

    def remove(self, address: int) -> None:
        """Forget the region that begins at an address."""
        at = bisect.bisect_left(self._addresses, address)
        if at == len(self._addresses) or self._addresses[at] != address:
            raise KeyError(f"no region begins at {address:#x}")
        del self._addresses[at], self._regions[at]

    def begin(self, kernel: str, block: int, hogwild: tuple[str, ...] = ()) -> None:
        """Begin a launch: no place has been accessed. Races are tolerated in the regions named by `hogwild`."""
        self.kernel, self.block, self.statistics = kernel, block, Counter()
        for region in self._regions:
            region.shadow = None
            region.checked = region.name not in hogwild

    def synchronize_warps(self, firsts: np.ndarray) -> None:
        """Threads of the warps with these first threads have waited for one another."""
        for region in self._regions:
            if region.shadow is not None:
                region.shadow.synchronize(firsts, self.block)

    def load(self, addresses: np.ndarray, size: int, threads: np.ndarray) -> np.ndarray:
        """Read the addresses: for each a row of unsigned integers of at most 8 bytes."""
        found = None
        for region, index, lanes in self._locate("load", addresses, size, threads):
            words = region.words(size)[index]
            if lanes is None:
                return words.copy() if isinstance(index, slice) else words
            if found is None:
                found = np.empty((addresses.size, words.shape[1]), words.dtype)
            found[lanes] = words
        return found

    def store(self, addresses: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        """Store rows of unsigned integers, as `load` returns them."""
        size = values.shape[1] * values.itemsize
        for region, index, lanes in self._locate("store", addresses, size, threads):
            region.words(size)[index] = values if lanes is None else values[lanes]

    def update(self, addresses: np.ndarray, dtype: np.dtype, threads: np.ndarray, function, *values) -> np.ndarray:
        """Atomically replace numbers by a function of them and of values, thread after thread; returns the old ones."""
        before = np.empty(addresses.size, dtype)
        for region, index, lanes in self._locate("atomic", addresses, dtype.itemsize, threads):
            numbers = region.words(dtype.itemsize)[:, 0].view(dtype)
            places = range(index.start, index.stop) if isinstance(index, slice) else index.tolist()
            for lane, place in zip(range(addresses.size) if lanes is None else lanes.tolist(), places, strict=True):
                before[lane] = numbers[place]
                numbers[place] = function(before[lane], *(value[lane] for value in values))
        return before

    def _locate(
        self, kind: str, addresses: np.ndarray, size: int, threads: np.ndarray
    ) -> Iterator[tuple[Region, slice | np.ndarray, np.ndarray | None]]:
        """Check accesses; yields regions, the rows of their `words` and the lanes there, None if these are all."""
        self.statistics[SHORT[kind], size] += addresses.size
        first, last = int(addresses[0]), int(addresses[-1])
        if first % size:
            self._fail(f"misaligned {kind}", first, size, threads[0])
        region = self._region(first)
        # Most accesses are to consecutive places: then slices do, which are much faster than indices.
        span = (addresses.size - 1) * size
        if last - first == span and (addresses.size < 3 or (addresses[1:] - addresses[:-1] == size).all()):
            if region is not None and last + size <= region.address + region.nbytes:
                begin = (first - region.address - region.start(size)) // size
                index = slice(begin, begin + addresses.size)
                self._check(kind, region, size, index, addresses, threads)
                yield region, index, None
                return
        else:
            odd = addresses & np.uint64(size - 1)
            if odd.any():
                lane = int(np.flatnonzero(odd)[0])
                self._fail(f"misaligned {kind}", int(addresses[lane]), size, threads[lane])
            if region is not None:
                offsets = addresses - np.uint64(region.address)  # of a lower address, beyond every region
                if int(offsets.max()) + size <= region.nbytes:
                    index = self._rows(region, offsets, size)
                    self._check(kind, region, size, index, addresses, threads)
                    yield region, index, None
                    return
        # Places in several regions, or in none. All are checked before anything is stored.
        owners = np.searchsorted(np.array(self._addresses, np.uint64), addresses, side="right") - 1
        parts = []
        for owner in np.unique(owners):
            lanes = np.flatnonzero(owners == owner)
            if owner < 0:
                self._fail(f"{kind} outside every region", int(addresses[lanes[0]]), size, threads[lanes[0]])
            region = self._regions[owner]
            offsets = addresses[lanes] - np.uint64(region.address)
            beyond = np.flatnonzero(offsets > max(region.nbytes - size, -1)) if region.nbytes >= size else [0]
            if len(beyond):
                lane = lanes[beyond[0]]
                self._fail(f"{kind} out of bounds", int(addresses[lane]), size, threads[lane])
            parts.append((region, self._rows(region, offsets, size), lanes))
        for region, index, lanes in parts:
            self._check(kind, region, size, index, addresses[lanes], threads[lanes])
        yield from parts

    @staticmethod
    def _rows(region: Region, offsets: np.ndarray, size: int) -> np.ndarray:
        return ((offsets - np.uint64(region.start(size))) // np.uint64(size)).astype(np.intp)

    def _region(self, address: int) -> Region | None:
        at = bisect.bisect(self._addresses, address) - 1
        return self._regions[at] if at >= 0 else None

    def _check(
        self,
        kind: str,
        region: Region,
        size: int,
        index: slice | np.ndarray,
        addresses: np.ndarray,
        threads: np.ndarray,
    ) -> None:
        if kind != "load" and not region.writable:
            self._fail(f"{kind} to read-only memory", int(addresses[0]), size, threads[0])
        race = region.record(kind, size, index, threads, self.block)
        if race is not None:
            other, lane = race
            what = f"race: {kind} where another thread has a{'n' if other == 'atomic' else ''} {other}"
            self._fail(what, int(addresses[lane]), size, threads[lane])

    def _fail(self, what: str, address: int, size: int, thread: int) -> None:
        region = self._region(address)
        where = "below every region"
        if region is not None:
            where = f"offset {address - region.address} of region {region.name!r} of {region.nbytes} bytes"
        raise LaunchError(
            f"{self.kernel}: {what}: {size} bytes at {address:#x}, {where}; "
            f"thread {thread} (block {thread // self.block}, thread {thread % self.block} of it)"
        )
