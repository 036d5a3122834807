"""Maps of files larger than memory: how jobs are cut, what is in memory meanwhile, the system's refusals."""

import ctypes
import itertools
import mmap
import os
import sys
import tempfile
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from fastopt.arrays.libraries import view
from fastopt.backends import native, numba_cpu
from fastopt.binding.norms import norm_of
from fastopt.files import paging
from fastopt.files.paging import GRAIN, LEAST, SLOTS, SPARE, Chunk, Mapping, Pager, Range, check_memory
from fastopt.jobs.job import DUPLICATES, DenseJob, Progress, RowJob, Rows
from fastopt.jobs.tables import make_gradients
from fastopt.rules import RULES

from .support import assert_same_bits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="state_memory needs Linux")
F4 = np.dtype("f4")
FLOATS = [(4, 1)] * 4
SMALLEST = SLOTS * LEAST + SPARE


def mapped(path, shape, seed=None):
    """A new memory map, of zeros or of random numbers."""
    array = np.memmap(path, "f4", "w+", shape=shape)
    if seed is not None:
        array[...] = np.random.default_rng(seed).standard_normal(shape)
        array.flush()
    return array


def own(array):
    """The mapping of a map that begins at its file's beginning."""
    descriptor = os.open(array.filename, os.O_RDWR)
    mapping = Mapping(array.ctypes.data, array.ctypes.data + array.nbytes, 0, descriptor, str(array.filename))
    weakref.finalize(mapping, os.close, descriptor)
    return mapping


def job(*tensors, strides=None, rows=None):
    """A job of contiguous arrays, or of runs whose strides are given."""
    addresses = np.array([[array.ctypes.data for array in arrays] for arrays in tensors], np.uint64)
    offsets = np.cumsum([0, *(arrays[0].size for arrays in tensors)])
    places = np.arange(len(tensors), dtype=np.int32)
    progress = Progress.of(RULES["sgd"], 1, len(tensors), 1)
    common = {"progress": progress, "dtype": F4, "members": places, "owners": []}
    if rows is not None:
        return RowJob(addresses=addresses[0], strides=strides[0], rows=rows, **common)
    return DenseJob(addresses=addresses, strides=strides, offsets=offsets, tensor_of=places, **common)


def assert_covers(chunks, k, size):
    """Chunks are of job k, one after the other, and leave nothing out."""
    mine = [chunk for chunk in chunks if chunk.job == k]
    assert [chunk.begin for chunk in mine] == [0, *(chunk.end for chunk in mine[:-1])]
    assert mine[-1].end == size


def pages(*arrays):
    return [
        (
            a.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE,
            -(-(a.ctypes.data + a.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE,
        )
        for a in arrays
    ]


class Resident:
    """While it runs, looks how much of memory maps is in memory: of the process's, and of the system's cache."""

    def __init__(self, *arrays):
        self.arrays = arrays
        self.process = self.cache = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        while not self._stop.is_set():
            self.look()

    def look(self):
        self.process = max(self.process, in_process(*self.arrays))
        self.cache = max(self.cache, sum(in_cache(array) for array in self.arrays))


def in_process(*arrays):
    """Bytes of maps that are in the process's memory: at the first look, and still at the second.

    The kernel goes through a map piece by piece. Where another thread goes through it too, one look counts pages that
    were never there together; those of two looks all were between the two.
    """
    present = 0
    with open("/proc/self/pagemap", "rb", buffering=0) as entries:
        looks = []
        for begin, end in pages(*arrays) * 2:
            entries.seek(begin // mmap.PAGESIZE * 8)
            found = np.frombuffer(entries.read((end - begin) // mmap.PAGESIZE * 8), np.uint64)
            assert found.size == (end - begin) // mmap.PAGESIZE
            looks.append(found >> np.uint64(63))
    for first, second in zip(looks[: len(looks) // 2], looks[len(looks) // 2 :], strict=True):
        present += int((first & second).sum())
    return mmap.PAGESIZE * present


def in_cache(array):
    """Bytes of a map that are in the system's memory."""
    found = np.zeros(-(-array.nbytes // mmap.PAGESIZE), np.uint8)
    libc = ctypes.CDLL(None)
    assert libc.mincore(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), found.ctypes) == 0
    return mmap.PAGESIZE * int((found & 1).sum())


def needs_a_disk(folder):
    """Skips where the file system is memory, so that nothing can be let go."""
    array = mapped(folder / "probe", 1 << 16, seed=0)
    with open(folder / "probe", "rb") as file:
        array = np.memmap(file, "f4", "r")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if in_cache(array):
        pytest.skip("the temporary directory's files are in memory")


def test_small_tensors_go_together_and_large_ones_are_cut(tmp_path):
    sizes = [3, 1_000_001, 5, 700_000, 64, 64]
    states = mapped(tmp_path / "states", 2 * sum(sizes))
    starts = np.cumsum([0, *sizes])
    tensors = []
    for begin, end in itertools.pairwise(starts):
        m, v = states[2 * begin : begin + end], states[begin + end : 2 * end]
        tensors.append((np.zeros(len(m), "f4"), np.zeros(len(m), "f4"), m, v))
    pager = Pager(own(states), SMALLEST)
    chunks = pager.chunks([job(*tensors), job(tensors[1])], [FLOATS, FLOATS])
    assert_covers(chunks, 0, sum(sizes))
    assert_covers(chunks, 1, sizes[1])
    cuts = {chunk.begin for chunk in chunks if chunk.job == 0}
    for cut in cuts:
        tensor = np.searchsorted(starts, cut, "right") - 1
        assert (cut - starts[tensor]) % GRAIN == 0
    assert not {starts[4], starts[5]} & cuts  # the last three are in one piece
    for chunk in chunks:
        assert sum(r.high - r.low for r in chunk.ranges) <= pager.piece == LEAST
        assert all(r.written and r.mapping is pager._own for r in chunk.ranges)


def test_a_piece_has_the_pages_of_its_elements(tmp_path):
    n = 300_000
    p, g = mapped(tmp_path / "p", n), mapped(tmp_path / "g", n)
    blocks = -(-n // 256) * 260
    raw = np.memmap(tmp_path / "states", "u1", "w+", shape=(blocks + 4 * n,))
    coded, m = raw[:blocks], raw[blocks:].view("f4")
    pager = Pager(own(raw), SMALLEST)
    chunks = pager.chunks([job((p, g, coded, m))], [[(4, 1), (4, 1), (260, 256), (4, 1)]])
    assert_covers(chunks, 0, n)
    assert len(chunks) > 2
    for _, begin, end, ranges, _ in chunks:
        held = [(r.low, r.high, r.written) for r in ranges]
        for low, high in pages(p[begin:end]) + pages(m[begin:end]):
            assert any(a <= low and high <= b and written for a, b, written in held)
        for low, high in pages(g[begin:end]):
            assert any(a <= low and high <= b and not written for a, b, written in held)
        for low, high in pages(coded[begin // 256 * 260 : -(-end // 256) * 260]):
            assert any(a <= low and high <= b and written for a, b, written in held)
        assert sum(r.high - r.low for r in ranges) <= pager.piece


def test_the_pages_at_a_pieces_edges_count(tmp_path):
    n = 1 << 20
    arrays = [mapped(tmp_path / name, n + 1)[1:] for name in "pg12345"]
    states = mapped(tmp_path / "states", n)
    pager = Pager(own(states), SMALLEST)
    chunks = pager.chunks([job(arrays)], [[(4, 1)] * len(arrays)])
    assert_covers(chunks, 0, n)
    assert all(sum(r.high - r.low for r in chunk.ranges) <= pager.piece for chunk in chunks)


def test_strides(tmp_path):
    table = mapped(tmp_path / "p", (100_000, 6))
    column, backwards = table[:, 2], table[::-1, 4]
    m = mapped(tmp_path / "m", 100_000)
    strides = np.array([[24, 24, -24, 4]])
    pager = Pager(own(m), SMALLEST)
    chunks = pager.chunks([job((column, column, backwards, m), strides=strides)], [FLOATS])
    assert_covers(chunks, 0, 100_000)
    assert len(chunks) > 3
    for _, begin, end, ranges, _ in chunks:
        held = [(r.low, r.high) for r in ranges]
        for low, high in pages(table[begin:end]) + pages(table[100_000 - end : 100_000 - begin]):
            assert any(a <= low + mmap.PAGESIZE and high - mmap.PAGESIZE <= b for a, b in held)


def test_what_is_no_shared_map_of_a_file_is_left_alone(tmp_path):
    mapped(tmp_path / "p", 5000, seed=0)
    m = mapped(tmp_path / "m", 5000)
    private = np.memmap(tmp_path / "p", "f4", "c")
    private[:] = 7  # lost if it were let go
    pager = Pager(own(m), SMALLEST)
    (chunk,) = pager.chunks([job((private, np.ones(5000, "f4"), m))], [FLOATS[:3]])
    assert {r.mapping for r in chunk.ranges} == {pager._own}
    pager.stream([chunk], lambda chunk: None)
    assert (private == 7).all()
    (chunk,) = pager.chunks([job((np.ones(9, "f4"), np.ones(9, "f4")))], [FLOATS[:2]])
    assert chunk == Chunk(0, 0, 9, [])


def test_memory_beside_maps_is_not_theirs(tmp_path, monkeypatch):
    """Pages taken for a map's are let go after use, by which other memory would lose its numbers."""
    shared = [(4096 * begin, 4096 * end, 0, 1, name) for begin, end, name in ((10, 20, "a"), (30, 40, "b"))]
    monkeypatch.setattr(paging, "_shared_mappings", lambda: shared)
    monkeypatch.setattr(paging, "_open", lambda start, stop, offset, inode, path: path)
    m = mapped(tmp_path / "m", 10)
    pager = Pager(own(m), SMALLEST)
    at = {9: None, 10: "a", 19: "a", 20: None, 29: None, 30: "b", 39: "b", 40: None}
    edges = {4096 * page + inside: found for page, found in at.items() for inside in (0, 4095)}
    (table,) = pager._mappings([np.array([list(edges)], np.uint64)])
    assert table == [list(edges.values())]
    assert pager._mappings([np.array([[m.ctypes.data]], np.uint64)]) == [[[pager._own]]]


def test_ranges_that_touch_are_one():
    """But for those of two files, whose pages lie side by side at other offsets, and those that are only read."""
    first, second = Mapping(0, 40, 0, None, "first"), Mapping(40, 80, 0, None, "second")
    ranges = [(first, 0, 10), (first, 10, 20), (first, 15, 18), (first, 21, 40), (second, 40, 50), (second, 45, 60)]
    whole = [(first, 0, 20), (first, 21, 40), (second, 40, 60)]
    as_ranges = [[Range(*range_, True) for range_ in several] for several in (reversed(ranges), whole)]
    assert paging._merged(as_ranges[0]) == as_ranges[1]
    apart = [Range(first, 0, 10, True), Range(first, 10, 20, False)]
    assert paging._merged(apart) == apart


def test_a_job_of_rows_is_left_whole(tmp_path):
    p, g, m = (mapped(tmp_path / name, (1000, 64)) for name in "pgm")
    rows = Rows(1000, 64, np.arange(1000), DUPLICATES.index("sum"))
    table = job((p, g, m), strides=np.array([[256, 256, 256]]), rows=rows)
    pager = Pager(own(m), SMALLEST)
    (chunk,) = pager.chunks([table], [FLOATS[:3]])
    assert (chunk.begin, chunk.end, chunk.ahead) == (0, 64_000, False)
    assert sorted((r.low, r.high) for r in chunk.ranges) == sorted(pages(p, m))


def passes(pager, arrays, reference, steps=2):
    """Computes the same in maps by pieces and in memory at once; returns what was in memory at most."""
    p, g, m, v = arrays

    def compute(chunk):
        part = slice(chunk.begin, chunk.end)
        m[part] += g[part]
        v[part] += g[part] * g[part]
        p[part] -= m[part] * v[part]
        resident.look()

    chunks = pager.chunks([job(arrays)], [FLOATS])
    with Resident(*arrays) as resident:
        for _ in range(steps):
            pager.stream(chunks, compute)
    for _ in range(steps):
        reference[2] += reference[1]
        reference[3] += reference[1] * reference[1]
        reference[0] -= reference[2] * reference[3]
    assert_same_bits(arrays, reference)
    return resident


@pytest.mark.parametrize("populate", [True, False])
@pytest.mark.parametrize("unlinked", [False, True])
def test_the_bound(tmp_path, monkeypatch, populate, unlinked):
    """Maps of eight times the bound are in memory up to it, and everything is computed."""
    if not populate:  # as kernels before 5.14
        monkeypatch.setattr(paging, "_POPULATE_WRITE", 9999)
        monkeypatch.setattr(paging, "_POPULATE_READ", 9999)
    bound, n = 8 << 20, 4 << 20
    states = mapped(tmp_path / "states", 2 * n)
    arrays = [mapped(tmp_path / "p", n, seed=1), mapped(tmp_path / "g", n, seed=2), states[:n], states[n:]]
    reference = [np.array(array) for array in arrays]
    for array in (states, *arrays[:2]):
        own(array).let_go(*pages(array)[0])
    if unlinked:
        (tmp_path / "p").unlink()
    pager = Pager(own(states), bound)
    assert sum(array.nbytes for array in arrays) == 8 * bound
    resident = passes(pager, arrays, reference)
    assert 0 < resident.process <= bound


def test_the_bound_is_the_systems_caches_too(tmp_path):
    needs_a_disk(tmp_path)
    bound, n = 8 << 20, 4 << 20
    states = mapped(tmp_path / "states", 2 * n, seed=0)
    arrays = [np.ones(n, "f4"), np.ones(n, "f4"), states[:n], states[n:]]
    pager = Pager(own(states), bound)
    reference = [np.array(array) for array in arrays]
    pager._own.let_go(*pages(states)[0])

    def compute(chunk):
        for state in arrays[2:]:
            state[chunk.begin : chunk.end] += 1
        resident.look()

    with Resident(states) as resident:
        pager.stream(pager.chunks([job(arrays)], [FLOATS]), compute)
    # The disk's own reading ahead comes on top.
    assert 0 < resident.cache < states.nbytes
    assert in_cache(states) <= bound
    assert_same_bits(arrays[2:], [reference[2] + 1, reference[3] + 1])


def test_what_fits_stays(tmp_path):
    n = 2 << 20
    states = mapped(tmp_path / "states", 2 * n, seed=0)
    mapping = own(states)
    arrays = [np.ones(n, "f4"), np.ones(n, "f4"), states[:n], states[n:]]
    for memory, piece, stays in (
        (SMALLEST, LEAST, 0),
        (states.nbytes + SPARE, states.nbytes // SLOTS, 0),
        (states.nbytes + SMALLEST, LEAST, states.nbytes),
        (10**12, paging.MOST, states.nbytes),
    ):
        pager = Pager(mapping, memory)
        assert (pager.piece, mapping.stays - mapping.start) == (piece, stays)
    pager.stream(pager.chunks([job(arrays)], [FLOATS]), lambda chunk: None)
    assert in_process(states) == states.nbytes
    mapping.stays = mapping.start + (3 << 20)
    mapping.let_go(mapping.start, mapping.stop)
    assert in_process(states) == 3 << 20
    big = Mapping(1 << 40, 1 << 41, 0, None, "")
    assert Pager(big, SLOTS * paging.MOST + SPARE + 12345).piece == paging.MOST
    assert big.stays - big.start == 12345 // mmap.PAGESIZE * mmap.PAGESIZE


def test_what_is_ahead_is_neither_waited_for_nor_let_go(tmp_path, monkeypatch):
    states = mapped(tmp_path / "states", 1 << 20, seed=0)
    mapping = own(states)
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, place, length, advice: asked.append((place, place + length)))
    call = paging._call

    def recorded(function, *arguments, path):
        if function.__name__ == "sync_file_range":
            asked.append((arguments[1], arguments[1] + arguments[2]))
        return call(function, *arguments, path=path)

    monkeypatch.setattr(paging, "_call", recorded)
    low, high = mapping.start + (1 << 20), mapping.start + (2 << 20)
    mapping.write(low, high)
    mapping.let_go(low, high)
    assert asked == [(1 << 20, 2 << 20), (1 << 20, 2 << 20), (0, 2 << 20)]


def test_pages_that_are_locked_stay(tmp_path):
    states = mapped(tmp_path / "states", 1 << 16, seed=0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(states.ctypes.data), ctypes.c_size_t(states.nbytes)):
        pytest.skip("this process may lock no memory")
    before = np.array(states)
    mapping = own(states)
    mapping.fetch(*pages(states)[0], True)
    mapping.let_go(*pages(states)[0])
    assert in_process(states) == states.nbytes
    assert_same_bits([states], [before])


def test_errors_end_a_pass(tmp_path):
    n = 1 << 20
    states = mapped(tmp_path / "states", 2 * n, seed=0)
    grad = mapped(tmp_path / "g", n, seed=1)
    arrays = [np.ones(n, "f4"), grad, states[:n], states[n:]]
    pager = Pager(own(states), SMALLEST)
    chunks = pager.chunks([job(arrays)], [FLOATS])
    assert len(chunks) > 8
    threads = threading.active_count()
    computed = []

    def compute(chunk):
        computed.append(chunk)
        if len(computed) == 5:
            raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        pager.stream(chunks, compute)
    assert len(computed) == 5
    os.truncate(tmp_path / "g", n)  # a quarter of it: what is beyond would be SIGBUS to whoever touches it
    computed = []
    with pytest.raises(OSError, match=r"cannot be read.*/g'"):
        pager.stream(chunks, computed.append)
    assert len(computed) < len(chunks)
    assert threading.active_count() == threads


def test_errors_of_writing(tmp_path, monkeypatch):
    n = 1 << 20
    states = mapped(tmp_path / "states", 2 * n, seed=0)
    arrays = [np.ones(n, "f4"), np.ones(n, "f4"), states[:n], states[n:]]
    pager = Pager(own(states), SMALLEST)

    def fail(mapping, low, high):
        raise OSError(5, "Input/output error", mapping._path)

    monkeypatch.setattr(Mapping, "let_go", fail)
    with pytest.raises(OSError, match=r"Input/output error: .*/states"):
        pager.stream(pager.chunks([job(arrays)], [FLOATS]), lambda chunk: None)


@pytest.mark.parametrize("kind", ["number", "array", "map", "any"])
def test_copying(tmp_path, kind):
    n = 3 << 20
    states = mapped(tmp_path / "states", n + 17)
    target = states[17:]
    source = {
        "number": lambda: 2.5,
        "array": lambda: np.arange(n, dtype="f8"),
        "map": lambda: mapped(tmp_path / "source", n, seed=3),
        "any": lambda: np.arange(2 * n, dtype="f4").reshape(2, n).T[:, 1].flat,
    }[kind]()
    pager = Pager(own(states), SMALLEST)
    maps = [states, source] if kind == "map" else [states]
    for array in maps:
        own(array).let_go(*pages(array)[0])
    with Resident(*maps) as resident:
        pager.copy(target, source)
    assert resident.process <= SMALLEST
    want = np.empty(n, "f4")
    want[:] = source if kind == "number" else source[:]
    assert_same_bits([target], [want])


def test_copying_takes_the_pages_of_its_elements(tmp_path, monkeypatch):
    n = 1 << 20
    states, source = mapped(tmp_path / "states", n), mapped(tmp_path / "source", n)
    pager, streamed = Pager(own(states), SMALLEST), []
    monkeypatch.setattr(pager, "stream", lambda chunks, compute: streamed.extend(chunks))
    pager.copy(states, source)
    assert_covers(streamed, 0, n)
    assert len(streamed) > 2
    for _, begin, end, ranges, _ in streamed:
        held = sorted((r.low, r.high, r.written) for r in ranges)
        parts = ((states[begin:end], True), (source[begin:end], False))
        assert held == sorted((*pages(part)[0], written) for part, written in parts)


def test_gradients_are_only_read_for_a_norm(tmp_path, monkeypatch):
    """Pages that were fetched to be written would be written back, though nothing in them has changed."""
    gradient = mapped(tmp_path / "g", 300_000, seed=0)
    pager, streamed = Pager(own(mapped(tmp_path / "states", 10)), SMALLEST), []
    stream = pager.stream
    monkeypatch.setattr(pager, "stream", lambda chunks, compute: (streamed.extend(chunks), stream(chunks, compute)))
    norm_of(make_gradients([view(gradient, "")], ["grads[0]"]), pager.reading(native), 1)
    assert {r.written for chunk in streamed for r in chunk.ranges} == {False}


@pytest.mark.parametrize("backend", [native, numba_cpu])
def test_norms_of_maps(tmp_path, backend):
    """They have the same bits as those of the same numbers in memory, and stay within the bound."""
    sizes = [11, 3 << 20, 5000, 4096]
    maps = [mapped(tmp_path / str(n), n, seed=n) for n in sizes]
    maps.append(mapped(tmp_path / "table", (300_000, 5), seed=9)[:, 2])
    states = mapped(tmp_path / "states", 10)
    names = [f"grads[{k}]" for k in range(len(maps))]
    want = norm_of(make_gradients([view(np.array(g), "") for g in maps], names), backend, 2)
    inside = [g for g in maps if g.size == 3 << 20]
    own(inside[0]).let_go(*pages(inside[0])[0])
    pager = Pager(own(states), SMALLEST)

    def square_sums(grads, threads):
        resident.look()
        return backend.square_sums(grads, threads)

    watched = SimpleNamespace(prepare=backend.prepare, square_sums=square_sums)
    with Resident(*inside) as resident:
        got = norm_of(make_gradients([view(g, "") for g in maps], names), pager.reading(watched), 2)
    assert got == want
    assert 0 < resident.process <= SMALLEST
    for others in ([np.ones(5, "f8"), np.ones(7, "f8")], [maps[1][:0]], [maps[0], maps[1][7:7], maps[2][:1]]):
        tables = make_gradients([view(g, "") for g in others], names[: len(others)])
        assert norm_of(tables, pager.reading(backend), 1) == norm_of(tables, backend, 1)


def test_maps_without_a_name():
    """A file that was removed while it was mapped, and memory that is shared without a file."""
    with tempfile.TemporaryFile() as first, tempfile.TemporaryFile() as second:
        array, states = (np.memmap(file, "f4", "w+", shape=(1 << 20,)) for file in (first, second))
    array[:] = 3
    anonymous = np.frombuffer(mmap.mmap(-1, 1 << 22), "f4")
    anonymous[:] = 4
    pager = Pager(Mapping(states.ctypes.data, states.ctypes.data + states.nbytes, 0, None, "states"), SMALLEST)
    chunks = pager.chunks([job((array, anonymous, states))], [FLOATS[:3]])
    pager.stream(chunks, lambda chunk: None)
    assert in_process(array) <= SMALLEST
    assert (array == 3).all() and (anonymous == 4).all()


def test_a_file_that_was_replaced(tmp_path):
    """The one at the path is not that which is mapped."""
    array, states = mapped(tmp_path / "p", 5000, seed=0), mapped(tmp_path / "states", 5000)
    pager = Pager(own(states), SMALLEST)
    table = job((array, np.ones(5000, "f4"), states))
    found = []
    for _ in range(2):
        (chunk,) = pager.chunks([table], [FLOATS[:3]])
        found += [r.mapping._descriptor for r in chunk.ranges if r.mapping is not pager._own]
        (tmp_path / "p").unlink()
        (tmp_path / "p").write_bytes(bytes(20_000))
    assert found[0] is not None and found[1] is None


def test_bounds_that_cannot_be_kept(monkeypatch):
    assert check_memory(np.int64(SMALLEST)) == SMALLEST
    for bad in (1e9, "1 GB", True, None):
        with pytest.raises(TypeError, match=r"state_memory: found .* expected a number of bytes"):
            check_memory(bad)
    for bad in (0, -1, SMALLEST - 1):
        with pytest.raises(
            ValueError, match=f"state_memory: found {bad}, expected a number of bytes, at least {SMALLEST}"
        ):
            check_memory(bad)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match="state_memory: found 1000000000 on darwin, expected None"):
        check_memory(10**9)
