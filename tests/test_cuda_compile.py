"""CUDA kernels compile, assemble without spills, move 16 bytes at a time, round as the CPU does; PTX is kept on disk.

No GPU is needed. Every rule's float32 kernel is for all targets, every fold and plain kernel for one of them; of the
kernels in float64 and of those of rows every second rule's is.
"""

import errno
import itertools
import os
import re
import subprocess
import sys
import zlib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastopt.arrays.blocks import POSITIVE, SIGNED
from fastopt.jobs.job import DUPLICATES
from fastopt.jobs.storage import AVERAGE, DITHER, KAHAN, MASTER, STOCHASTIC, ZERO_GRADS
from fastopt.rules import RULES

from .support import one_of_each_kind

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from fastopt import BackendUnavailable
from fastopt.arrays.libraries import driver
from fastopt.backends.numba_cuda import compiler, limits, lookups, rows, runs
from fastopt.backends.numba_cuda.compiler import (
    Fold,
    GroupSums,
    KernelSpec,
    Plain,
    RowKernelSpec,
    scale_of,
    squares_of,
)
from fastopt.bench.assembly import Assembled, assemble

TARGETS = ((7, 5), (8, 0), (9, 0))
F4, F8 = np.dtype("f4"), np.dtype("f8")
IN_F4, IN_F8, IN_BF16, IN_F2 = range(4)
BYTES = {IN_F4: 4, IN_F8: 8, IN_BF16: 2, IN_F2: 2}
RULE_OF = {rule.kernel: rule for rule in RULES.values()}
BY_RUNS = [kernel for kernel, rule in RULE_OF.items() if not rule.by_row]
COPIES = 8  # the most that AggMo has

# Registers of a thread, by what it holds; with 128 a multiprocessor has two blocks of 256 threads, with 255 one.
UP_TO_2_STATES, OTHERS, PLAIN, FOLDS = 64, 128, 64, 64
MANY_COPIES_IN_HALVES = 168
BLOCKS = {(7, 5): 255, (8, 0): 255, (9, 0): 128}  # of 8-bit floats


def update(kernel, dtype=F4, copies=1, **more):
    """The kernel of arrays that are all of the dtype computed in."""
    arrays = RULE_OF[kernel].count_arrays(copies)
    return KernelSpec(kernel, copies, dtype, (IN_F8 if dtype == F8 else IN_F4,) * arrays, **more)


def by_rows(kernel, duplicates):
    plain = update(kernel)
    return RowKernelSpec(kernel, 1, F4, plain.stored, duplicates=duplicates)


def target_of(kind):
    """One of the targets, always the same."""
    return TARGETS[zlib.crc32(kind.name.encode()) % len(TARGETS)]


def plain_kinds():
    yield from (limits._BEGIN, limits._ADD, limits._LIMIT, *map(compiler.put_scales_in, (F4, F8)))
    yield from (runs._MAP_CHUNKS, lookups.BEGIN, lookups.COUNT, lookups.ADD_UP, lookups.ORDER)
    yield from (lookups.COUNT_ROWS, lookups.NUMBER)
    yield from map(rows.bags_of, (F4, F8))
    yield from map(squares_of, compiler.CODES)
    yield from map(scale_of, compiler.CODES)


# Storages: how each array is stored, and options.
STORAGES = [
    ("adam", 1, (IN_F4, IN_BF16, IN_F4, IN_F4), ZERO_GRADS),
    ("adam", 1, (IN_BF16,) * 4, 0),
    ("adam", 1, (IN_BF16,) * 4, STOCHASTIC | DITHER),
    ("adam", 1, (IN_F4, IN_F4, IN_BF16, IN_BF16), DITHER),
    ("adam", 1, (IN_BF16, IN_BF16, IN_BF16, IN_BF16, IN_BF16, IN_F4), KAHAN | AVERAGE | ZERO_GRADS),
    ("adam", 1, (IN_F2, IN_F2, IN_F2, IN_F2, IN_F4), MASTER | DITHER),
    ("adam", 1, (IN_BF16, IN_BF16, SIGNED, POSITIVE), STOCHASTIC),
    ("adam", 1, (IN_F4, IN_F4, SIGNED, POSITIVE), 0),
    ("amsgrad", 1, (IN_BF16,) * 5, STOCHASTIC),
    ("amsgrad", 1, (IN_F4, IN_BF16, SIGNED, POSITIVE, POSITIVE), 0),
    ("aggmo", COPIES, (IN_F4, IN_F4, *(IN_BF16,) * COPIES), 0),
]


@dataclass
class Built:
    """A kernel for one target."""

    ptx: str
    code: Assembled

    @property
    def registers(self):
        return self.code.registers

    @property
    def in_memory(self):
        """Bytes of a thread that are in memory for want of registers."""
        return self.code.stack + self.code.spills

    def count(self, pattern):
        return len(re.findall(pattern, self.ptx))


@cache
def llvm_of(kind, target):
    return compiler.llvm_of(kind.bound(target), kind.signature(), target)


def build(kind, capability):
    """Compiles and assembles, and checks what is true of all kernels: but libdevice, in folds, may know better."""
    # From 8.0 on there are instructions for less than 32 bits; else it is the same for all.
    below_32 = isinstance(kind, KernelSpec) and (kind.in_blocks or kind.in_halves)
    llvm = llvm_of(kind, TARGETS[below_32 and capability >= TARGETS[1]])
    ptx = compiler.ptx_from(llvm, capability, kind.name)
    built = Built(ptx, assemble(ptx, capability))
    assert f".target sm_{capability[0]}{capability[1]}" in built.ptx
    assert f".visible .entry {kind.name}(" in built.ptx
    assert built.in_memory == 0
    assert not built.count(r"\.local\b")
    assert not built.count(r"(?:\.approx|\.ftz|\.full)[.\w]*f32")
    assert isinstance(kind, Fold) or not built.count(r"\.approx|\.ftz")
    assert not built.count(r"\b(?:add|sub|mul)\.f(?:32|64)")  # not rounded as written: ptxas might contract them
    addresses = re.findall(r"\b(?:ld|st)\.global[.\w]*\s[^;]*\[([^\]]*)\]", built.ptx)
    assert addresses
    assert all(re.fullmatch(r"%rd\d+(\+-?\d+)?", address) for address in addresses)
    return built


def check_update(kind, built):
    """Check what holds for all updates: no function is called, nothing contracted, all is computed in the dtype."""
    assert not built.count(r"\bcall\b")
    # But where codes of signed numbers are decoded, eight in each of the two ways to go, exactly.
    assert built.count(r"\bfma\.") == 2 * 8 * kind.stored.count(SIGNED)
    newer = ".target sm_75" not in built.ptx
    assert bool(built.count(r"\bredux\.")) == (newer and kind.in_blocks)
    if not newer:
        assert not built.count(r"\bcvt\.\w+\.bf16")
    if kind.dtype != F8 and not kind.rule.by_row:
        assert not built.count(r"\.f64")
    assert vectors(built) == expected_vectors(kind)


def vectors(built):
    """The loads and stores of 16 bytes."""
    kinds = r"(?:v4\.(?:u|b|f|s)32|v2\.(?:u|b|f|s)64)"
    return tuple(built.count(rf"\b{access}\.global\.(?:nc\.)?{kinds}") for access in ("ld", "st"))


def expected_vectors(kind):
    """So many there are, if a thread loads and stores each array once, in as few as can be."""
    count = [kind.lanes * BYTES.get(code, 0) // 16 for code in kind.stored]  # none of blocks
    if isinstance(kind, RowKernelSpec):
        count = count[: len(kind.elementwise)]
    loaded = sum(count) - count[0] * bool(kind.options & MASTER)  # which is the parameter
    stored = sum(count) - count[1] * (not kind.options & ZERO_GRADS)
    if isinstance(kind, RowKernelSpec):  # whose gradients come in batches, and if they are added up groups' sums, too
        own = kind.lanes * kind.dtype.itemsize // 16
        loaded += (kind.batch - 1) * count[1] + kind.batch * own * (DUPLICATES[kind.duplicates] == "sum")
        if kind.rule.by_row:  # the sum is kept in between
            loaded, stored = loaded + own, stored + own
    return loaded, stored


def allowed(kind, capability):
    if kind.in_blocks:
        return BLOCKS[capability]
    if kind.in_halves and kind.copies == COPIES:
        return MANY_COPIES_IN_HALVES
    plain = kind.dtype == F4 and type(kind) is KernelSpec and not kind.in_halves
    return UP_TO_2_STATES if plain and len(kind.stored) <= 4 else OTHERS


# ---- updates ----


@pytest.mark.parametrize("kernel", one_of_each_kind(BY_RUNS))
def test_updates(kernel):
    for capability in TARGETS:
        kind = update(kernel)
        built = build(kind, capability)
        check_update(kind, built)
        assert built.registers <= allowed(kind, capability)
        assert not built.count(r"\b(?:mul|mad)\.lo\.[su]32|\bshl\.b32")  # numbers of elements have 64 bits


@pytest.mark.slow
@pytest.mark.parametrize("kernel", BY_RUNS[::2])
def test_updates_in_float64(kernel):
    kind = update(kernel, F8)
    capability = target_of(kind)
    built = build(kind, capability)
    check_update(kind, built)
    assert not built.count(r"\.f32")
    assert built.registers <= allowed(kind, capability)


@pytest.mark.parametrize("more", [{"strided": True}, {"tabled": True}, {"copies": COPIES}], ids=str)
def test_updates_with_more(more):
    kind = update("aggmo", **more)
    capability = target_of(kind)
    built = build(kind, capability)
    check_update(kind, built)
    assert built.registers <= OTHERS


@pytest.mark.slow
@pytest.mark.parametrize("kernel, copies, stored, options", STORAGES)
def test_storages(kernel, copies, stored, options):
    kind = KernelSpec(kernel, copies, F4, stored, options)
    capability = target_of(kind)
    built = build(kind, capability)
    check_update(kind, built)
    assert built.registers <= allowed(kind, capability)
    shuffles = built.count(r"\bshfl\.sync")
    assert bool(shuffles) == (kind.in_blocks or bool(kind.options & STOCHASTIC))


# ---- rows ----


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel, duplicates",
    [*((kernel, 0) for kernel in BY_RUNS[1::2]), *itertools.product(("adagrad", "rowwise_adagrad"), (0, 1, 2))],
)
def test_rows(kernel, duplicates):
    kind = by_rows(kernel, duplicates)
    capability = target_of(kind)
    built = build(kind, capability)
    check_update(kind, built)
    assert built.registers <= OTHERS


@pytest.mark.slow
@pytest.mark.parametrize("lookups", [(True, False), (True, True)], ids=["bags", "weighted bags"])
def test_rows_of_bags(lookups):
    bags, weighted = lookups
    kind = replace(by_rows("adagrad", 0), bags=bags, weighted=weighted)
    built = build(kind, target_of(kind))
    check_update(kind, built)
    assert built.registers <= OTHERS


GROUPS = [GroupSums(F4, IN_F4), GroupSums(F4, IN_F4, of_groups=True), GroupSums(F4, IN_F4, bags=True, weighted=True)]
GROUPS += [GroupSums(F4, IN_BF16), GroupSums(F4, IN_F2), GroupSums(F8, IN_F8), GroupSums(F8, IN_F8, of_groups=True)]


@pytest.mark.parametrize("kind", GROUPS, ids=lambda kind: kind.name)
def test_sums_of_groups(kind):
    """A thread has eight loads of gradients under way, and registers for as many."""
    built = build(kind, target_of(kind))
    lanes = 8 if BYTES[kind.gradient] == 2 else 16 // kind.dtype.itemsize
    loaded, stored = lanes * BYTES[kind.gradient] // 16, lanes * kind.dtype.itemsize // 16
    assert vectors(built) == (8 * loaded, stored)
    assert built.registers <= 96
    assert not built.count(r"\bfma\.|\bcall\b|\bdiv\b")


# ---- folds and what depends on no rule ----


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_folds(name):
    """They are in float64, and call libdevice's powers."""
    rule = RULES[name]
    kind = Fold(name, replace(update(rule.kernel, copies=COPIES if rule.vector else 1), tabled=True))
    built = build(kind, target_of(kind))
    assert built.registers <= FOLDS
    assert built.count(r"\.f64")
    assert not re.findall(r"\bfma\.[^;]*f32", built.ptx)


@pytest.mark.parametrize("kind", list(plain_kinds()), ids=lambda kind: kind.name)
def test_plain(kind):
    built = build(kind, target_of(kind))
    assert built.registers <= PLAIN
    assert not built.count(r"\bfma\.|\bcall\b")


def test_upload():
    text = Path(driver.__file__).with_name("upload.ptx").read_text()
    for capability in TARGETS:
        built = Built(text, assemble(text, capability))
        assert built.in_memory == 0
        assert built.registers <= PLAIN


def test_names_tell_kernels_apart():
    """And are names in PTX, whatever the kind."""
    kinds = [update(kernel, dtype) for kernel in BY_RUNS for dtype in (F4, F8)]
    kinds += [KernelSpec(kernel, copies, F4, stored, options) for kernel, copies, stored, options in STORAGES]
    kinds += [by_rows(kernel, duplicates) for kernel in RULE_OF for duplicates in range(3)]
    kinds += [replace(update("adam"), strided=strided, tabled=True) for strided in (False, True)]
    kinds += [Fold(name, update(rule.kernel, tabled=True)) for name, rule in RULES.items()]
    kinds += [*GROUPS, *plain_kinds()]
    names = [kind.name for kind in kinds]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z]\w*", name) for name in names)


def test_functions_are_shared_where_their_names_mean_the_same():
    def of(function, kernel, dtype=F4, capability=(8, 0)):
        return update(kernel, dtype).of_lanes(getattr(compiler.kernels, function), 4, True, capability)

    assert of("_value", "adam") is of("_value", "sgd")
    assert of("_value", "adam") is of("_value", "adam", capability=(7, 5))
    assert of("_value", "adam") is not of("_value", "adam", F8)
    assert of("_encode", "adam") is not of("_encode", "adam", capability=(7, 5))
    assert of("update_elements", "adam") is not of("update_elements", "adadelta")


# ---- on disk ----

KIND = Plain("map_chunks", runs._MAP_CHUNKS.arguments)


@pytest.fixture
def compiled(monkeypatch):
    """The kernels that `ptx_of` has compiled: nothing is, in truth."""
    calls = []

    def compile_ptx(function, signature, capability, name):
        calls.append((name, capability))
        return f"// {name} {capability} {len(calls)}"

    monkeypatch.setattr(compiler, "compile_ptx", compile_ptx)
    return calls


def as_a_new_process(kind=KIND, capability=(9, 0)):
    return compiler.ptx_of.__wrapped__(kind, capability)


def keep_at(monkeypatch, *places):
    monkeypatch.setattr(compiler, "_places", lambda: iter(places))


def test_ptx_is_kept(monkeypatch, tmp_path, compiled):
    keep_at(monkeypatch, tmp_path / "a" / "b", tmp_path / "c")
    first = as_a_new_process()
    assert as_a_new_process() == first
    assert len(compiled) == 1
    (file,) = tmp_path.rglob("*.*")  # in the first place, and nothing beside it
    assert file.parent == tmp_path / "a" / "b"
    assert file.name.startswith("fastopt_map_chunks-")
    assert file.read_text() == first
    keep_at(monkeypatch, tmp_path / "elsewhere", tmp_path / "a" / "b")
    assert as_a_new_process() == first
    assert len(compiled) == 1


def test_ptx_of_other_kernels_is_other_ptx(monkeypatch, tmp_path, compiled):
    keep_at(monkeypatch, tmp_path)
    adam = update("adam")
    kinds = [adam, replace(adam, strided=True), replace(adam, dtype=F8), squares_of(F4), squares_of(F8)]
    kinds += [replace(KIND, names=(("REAL", real),)) for real in (np.float32, np.float64)]
    found = [as_a_new_process(kind, capability) for kind in kinds for capability in TARGETS]
    assert len(set(found)) == len(found) == len(compiled)
    assert found == [as_a_new_process(kind, capability) for kind in kinds for capability in TARGETS]
    assert len(found) == len(compiled)


def test_ptx_of_other_sources_is_compiled(monkeypatch, tmp_path, compiled):
    keep_at(monkeypatch, tmp_path)
    as_a_new_process()
    sources = compiler._sources()
    for module in ("kernels", "instructions", "rules.adam", "backends.convert", "compiler"):
        name = f"fastopt.{module}" if "." in module else f"fastopt.backends.numba_cuda.{module}"
        assert Path(sys.modules[name].__file__).read_text() in sources
    monkeypatch.setattr(compiler, "_sources", lambda: sources + "#")
    compiler._digest_of_sources.cache_clear()
    try:
        as_a_new_process()
        assert len(compiled) == 2
        assert len(list(tmp_path.iterdir())) == 2
    finally:
        compiler._digest_of_sources.cache_clear()


def test_places_that_cannot_be_written(monkeypatch, tmp_path, compiled):
    file = tmp_path / "file"
    file.write_text("")
    keep_at(monkeypatch, file, file / "below", tmp_path / "folder")
    as_a_new_process()
    as_a_new_process()
    assert len(compiled) == 1
    keep_at(monkeypatch, file)
    as_a_new_process()
    as_a_new_process()
    assert len(compiled) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_where_ptx_is_kept(monkeypatch, tmp_path):
    beside = Path(compiler.__file__).parent / "__pycache__"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert list(compiler._places()) == [tmp_path / "numba", beside, tmp_path / "user" / "fastopt"]
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(compiler._places()) == [beside, tmp_path / ".cache" / "fastopt"]


def test_a_home_that_the_system_does_not_know(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert all(place.is_absolute() for place in compiler._places())


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: b"\xff" * 100])
def test_damaged_ptx_is_compiled_and_replaced(monkeypatch, tmp_path, compiled, damage):
    monkeypatch.setattr(compiler, "compile_ptx", lambda *_: compiled.append("") or "// PTX")
    keep_at(monkeypatch, tmp_path)
    as_a_new_process()
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert [as_a_new_process(), as_a_new_process()] == ["// PTX"] * 2
    assert len(compiled) == 2


def test_a_full_disk(monkeypatch, tmp_path, compiled):
    def write_half(path, text):
        path.write_bytes(text.encode()[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    keep_at(monkeypatch, tmp_path)
    monkeypatch.setattr(compiler.numba_cache, "_warned", False)
    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.warns(RuntimeWarning, match="No space left") as told:
        as_a_new_process()
        as_a_new_process()
    assert len(compiled) == 2
    assert len(told) == 1
    assert not list(tmp_path.iterdir())


PROCESS = """
import sys
from pathlib import Path
import numba_cuda
from fastopt.backends.numba_cuda import compiler, runs

place = Path(sys.argv[1])
compiler._places = lambda: iter([place])
compiler.compile_ptx = lambda function, signature, capability, name: f"{capability} " * 50_000
(place / sys.argv[2]).touch()
while len(list(place.glob("ready*"))) < 2:
    pass
for major in range(100):
    assert compiler.ptx_of(runs._MAP_CHUNKS, (major, 0)) == f"({major}, 0) " * 50_000
"""


def test_processes_at_once(tmp_path):
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    pair = [subprocess.Popen([*command, f"ready{k}"], stderr=subprocess.PIPE, text=True) for k in range(2)]
    try:
        for process in pair:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
    finally:
        for process in pair:
            process.kill()
    names = [path.suffix for path in tmp_path.iterdir()]
    assert sorted(names) == [""] * 2 + [".ptx"] * 100


OLDER = """
import numpy
if hasattr(numpy, "row_stack"):
    del numpy.row_stack
    numpy.__all__.remove("row_stack")
import numpy as np
from fastopt.backends.numba_cuda import compiler
kind = compiler.scale_of(np.dtype("f4"))
print(".entry fastopt_scale" in compiler.compile_ptx(kind.bound((9, 0)), kind.signature(), (9, 0), kind.name))
print(hasattr(np, "row_stack"))
"""


@pytest.mark.slow
def test_names_that_numpy_dropped_are_not_needed():
    done = subprocess.run([sys.executable, "-c", OLDER], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_a_compiler_that_is_nowhere_is_told_of_with_the_places(monkeypatch, tmp_path):
    def find(name):
        raise compiler.pathfinder.DynamicLibNotFoundError(name)

    monkeypatch.setattr(compiler.pathfinder, "load_nvidia_dynamic_lib", find)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    with pytest.raises(
        BackendUnavailable, match=r"libnvvm was looked for in .*nvidia-nvvm, .* in /usr/local/cuda/nvvm: "
    ):
        compiler.find_nvvm()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BackendUnavailable, match=rf"in {tmp_path}/nvvm, which CUDA_PATH or CUDA_HOME names: "):
        compiler.find_nvvm()


def test_a_compiler_in_the_usual_place_is_found(monkeypatch, tmp_path):
    """Where neither the wheel has it nor the environment names a toolkit, which is as it was afterwards."""
    bitcode = tmp_path / "nvvm/libdevice/libdevice.10.bc"
    bitcode.parent.mkdir(parents=True)
    bitcode.touch()

    def find(name):
        if os.environ.get("CUDA_HOME") != str(tmp_path):
            raise compiler.pathfinder.DynamicLibNotFoundError(name)

    monkeypatch.setattr(compiler, "TOOLKIT", tmp_path)
    monkeypatch.setattr(compiler.pathfinder, "load_nvidia_dynamic_lib", find)
    monkeypatch.setattr(compiler, "get_cuda_paths", lambda: {"libdevice": SimpleNamespace(info=str(bitcode))})
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    compiler.find_nvvm()
    assert "CUDA_HOME" not in os.environ
