"""Internal. The CUDA kernels as they are compiled, without a GPU: what limits each of them on an H100."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.blocks import BLOCK_BYTES, POSITIVE, QUANT_BLOCK, SIGNED
from ..arrays.dtypes import CODES
from ..errors import BackendUnavailable, install_command
from ..jobs.storage import KAHAN, MASTER, NOISE, STOCHASTIC
from ..rules import RULES
from .assembly import assemble, count_in_loop, disassemble
from .peers.base import hyper_of, installed
from .section import Options, Row, Section, Skip, Table, named, table, value_of

CAPABILITY = (9, 0)
# An H100 SXM: its multiprocessors, the instructions that each issues in a cycle, its clock, its memory as measured, and
# what one of its multiprocessors has of registers and warps.
MULTIPROCESSORS, ISSUED, HERTZ, BYTES_A_SECOND = 132, 4, 1.98e9, 3.0e12
REGISTERS, WARPS, WARP = 65536, 64, 32
ELEMENTS = 100_000_000

F4, BF16, F2 = CODES[np.dtype("f4")], 2, CODES[np.dtype("f2")]
# Adam's parameter, gradient, states and what is kept beside them, by how they are stored.
STORAGES: dict[str, tuple[tuple[int, ...], int]] = {
    "adam, 8-bit states": ((F4, F4, SIGNED, POSITIVE), 0),
    "adam, bfloat16 states": ((F4, F4, BF16, BF16), 0),
    "adam, bfloat16": ((BF16,) * 4, 0),
    "adam, bfloat16, 8-bit states": ((BF16, BF16, SIGNED, POSITIVE), 0),
    "adam, bfloat16, stochastic": ((BF16,) * 4, STOCHASTIC),
    "adam, bfloat16, stochastic, 8-bit states": ((BF16, BF16, SIGNED, POSITIVE), STOCHASTIC),
    "adam, bfloat16, Kahan": ((BF16,) * 5, KAHAN),
    "adam, bfloat16, master": ((BF16, BF16, F4, F4, F4), MASTER),
    "adam, float16": ((F2,) * 4, 0),
    "adam, gradient noise": ((F4,) * 4, NOISE),
}
# What steps of rows launch, among others: the update of a row, by rule, and what is the same for all rules.
ROWS = {f"{name}, rows": name for name in ("adagrad", "adam", "rowwise_adagrad")}
LOOKUPS = ("lookups, ordered", "lookups, added up")
_BYTES = {**{code: float(dtype.itemsize) for dtype, code in CODES.items()}}
_BYTES |= dict.fromkeys((SIGNED, POSITIVE), BLOCK_BYTES / QUANT_BLOCK)


@dataclass(frozen=True)
class _Kernel:
    """A kernel: its rule, copies of the states, how each array is stored, and options of the storage."""

    rule: str
    copies: int
    stored: tuple[int, ...]
    options: int = 0

    @property
    def bytes(self) -> float:
        """Bytes that an element's update reads and writes."""
        sizes = [_BYTES[code] for code in self.stored]
        read = sum(sizes) - sizes[0] * bool(self.options & MASTER)  # whose parameter is only written
        return read + sum(sizes) - sizes[1]


def kernel_of(name: str) -> _Kernel:
    """The kernel of a rule, or of one of `STORAGES`."""
    if name in STORAGES:
        return _Kernel("adam", 1, *STORAGES[name])
    rule = RULES[name]
    copies = len(hyper_of(rule)["betas"]) if rule.vector else 1
    return _Kernel(name, copies, (F4,) * rule.count_arrays(copies))


def blocks_of(registers: int, threads: int) -> int:
    """The blocks of so many threads that a multiprocessor has at a time."""
    of_a_warp = -(-registers * WARP // 256) * 256
    return min(REGISTERS // of_a_warp, WARPS) // (threads // WARP)


def check() -> None:
    """Check that kernels can be compiled and assembled here.

    Raises
    ------
    BackendUnavailable
        Something is not installed.
    """
    for package in ("numba-cuda", "cuda-core"):
        if not installed(package):
            raise BackendUnavailable(f"no {package} here; install it: {install_command('cuda')}")
    try:
        from ..backends.numba_cuda import compiler  # noqa: F401
    except ImportError as error:
        raise BackendUnavailable(
            f"numba-cuda does not work here ({error}); install: {install_command('cuda')}"
        ) from None


def measure(name: str, budget: float) -> Row:
    """Compiles and assembles a kernel; its row has no times, for nothing runs."""
    from ..backends.numba_cuda import compiler, lookups

    f4 = np.dtype("f4")
    if name in LOOKUPS:
        return _as_built(name, (lookups.ORDER, compiler.GroupSums(f4, F4))[LOOKUPS.index(name)])[0]
    if name in ROWS:
        rule = RULES[ROWS[name]]
        kind = compiler.RowKernelSpec(rule.kernel, 1, f4, (F4,) * rule.count_arrays(1))
        return _as_built(name, kind)[0]
    kernel = kernel_of(name)
    spec = compiler.KernelSpec(RULES[kernel.rule].kernel, kernel.copies, f4, kernel.stored, kernel.options)
    row, code = _as_built(name, spec)
    try:
        executed = count_in_loop(disassemble(code, spec.name)) / spec.lanes
    except Skip:
        executed = None
    memory = kernel.bytes * ELEMENTS / BYTES_A_SECOND
    issue = None if executed is None else executed * ELEMENTS / WARP / (MULTIPROCESSORS * ISSUED * HERTZ)
    return {**row, "instructions": executed, "bytes": kernel.bytes, "memory": memory, "issue": issue}


def _as_built(name: str, kind: Any) -> tuple[Row, bytes]:
    """What the assembler says of a kernel, and its code."""
    from ..backends.numba_cuda import compiler, kernels

    built = assemble(compiler.compile_ptx(kind.bound(CAPABILITY), kind.signature(), CAPABILITY, kind.name), CAPABILITY)
    warps = blocks_of(built.registers, kernels.THREADS) * kernels.THREADS // WARP
    spills = built.stack + built.spills
    return {"name": name, "registers": built.registers, "spills": spills, "occupancy": warps / WARPS}, built.code


def section(options: Options) -> Section:
    """The section of compiled kernels."""
    title = "CUDA kernels compiled for an H100 (compute capability 9.0), float32 unless named"

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        columns = {
            "kernel": named,
            "registers": value_of("registers", 0),
            "spilled\nbytes": value_of("spills", 0),
            "occupancy": value_of("occupancy", 0, " %", 100),
            "instructions\na row of 32": value_of("instructions", 0),
            "bytes\nan element": value_of("bytes"),
            "memory\nms": value_of("memory", 3, scale=1e3),
            "issue\nms": value_of("issue", 3, scale=1e3),
        }
        yield table(title, columns, rows, CAPTION)

    return Section("kernels", title, [*options.rules, *STORAGES, *ROWS, *LOOKUPS], measure, tables, None, 4.0)


CAPTION = (
    "instructions: what a warp executes for 32 elements (needs nvdisasm: pip install nvidia-cuda-nvdisasm). memory, "
    f"issue: the time of {ELEMENTS:.0e} elements by bytes at 3.0 TB/s, and by instructions of 132 multiprocessors that "
    "issue 4 in a cycle of 1.98 GHz. The device takes at least the longer one, and more where occupancy is below a "
    "half: then too few warps are there to wait for memory. Of rules that measure tensors it is the update, without "
    "the pass that reads. What a row takes depends on its lookups."
)
