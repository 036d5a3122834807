"""The build of the C library: units, instruction sets, flags."""

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).resolve().parent

# No contraction and no fast-math: the same bits on every level. -O3 is for the loops. It must not unswitch them: a copy
# of each for coefficients of 0 makes the library a third larger. gcc tests before a loop whether its arrays overlap,
# by default in at most 10 pairs: loops over six arrays (Adan's, and AggMo's from four copies on) would stay scalar.
FLAGS = ["-std=c11", "-O3", "-fno-unswitch-loops", "-g0", "-fPIC", "-ffp-contract=off", "-fno-math-errno",
         "-fno-trapping-math", "--param=vect-max-version-for-alias-checks=100", "-fvisibility=hidden", "-Wall",
         "-Wextra"]  # fmt: skip
# With vectors of 16 bytes the arithmetic takes so long that loops specialised for storage formats save little. They
# would be half of this level's code and of its time to compile. Few processors have no more than this level, so four
# passes are left out that take a fifth of that time for a hundredth or two of the kernels'.
SSE2 = ["-DFASTOPT_TILES_ONLY", "-fno-gcse", "-fno-gcse-after-reload", "-fno-tree-pre", "-fno-schedule-insns2"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]


def levels(machine=None):
    """Return the instruction-set levels of a machine, by default this one, from the lowest, with their flags."""
    machine = (machine or platform.machine()).lower()
    if machine in ("x86_64", "amd64"):
        return {"sse2": SSE2, "avx2": AVX2, "avx512": AVX512}
    return {"neon" if machine in ("aarch64", "arm64") else "baseline": []}


def series(version):
    """Return a version's series of compatible versions: while the major number is 0, a minor one may break callers."""
    major, minor = version.split(".")[:2]
    return f"0.{minor}" if major == "0" else major


def file_name(version):
    """Return the name of the library's file, with the series if the format has a place for it."""
    return "libfastopt.dylib" if sys.platform == "darwin" else f"libfastopt.so.{series(version)}"


class Unit(NamedTuple):
    """One call of the compiler."""

    source: str
    object: str
    flags: list[str]


def units(levels):
    """Return all units for these levels, those that take longest first."""
    found = []
    for bits in (32, 64):
        for level, flags in reversed(levels.items()):
            own = [*flags, f"-DFASTOPT_ISA={level}", f"-DFASTOPT_BITS={bits}"]
            found.append(Unit("isa/kernels.dispatch.c", f"kernels-{level}-{bits}.o", own))
    for level, flags in levels.items():
        found.append(Unit("isa/stream.dispatch.c", f"stream-{level}.o", [*flags, f"-DFASTOPT_ISA={level}"]))
    return found + [Unit(path.name, f"{path.stem}.o", []) for path in sorted(CSRC.glob("*.c"))]


def compile_all(compiler, flags, levels, include, folder):
    """Compile all units into `folder`, as many at a time as there are CPUs, and return the objects' paths.

    The compiler gets paths relative to the working folder, so that its cache serves other clones too.
    """
    include = [f"-I{os.path.relpath(path)}" for path in (CSRC, *include)]

    def compile_unit(unit):
        target = os.path.relpath(Path(folder) / unit.object)
        command = [*compiler, *flags, *unit.flags, *include, "-c", os.path.relpath(CSRC / unit.source), "-o", target]
        subprocess.run(command, check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_unit, units(levels)))
