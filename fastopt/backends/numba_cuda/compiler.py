"""Kernels compiled to PTX: once for each rule, storage and compute capability, and kept on disk.

No GPU is needed for that. The PTX is compiled without contraction of multiplications and additions, so that what it
computes has the bits that the CPU's has.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sys
import tempfile
import types as pytypes
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import llvmlite
import numba
import numba_cuda
import numpy as np
from cuda import pathfinder
from numba import cuda
from numba.cuda import dispatcher, types
from numba.cuda.compiler import _compile_pyfunc_with_fixup
from numba.cuda.cuda_paths import get_cuda_paths, temporary_env_var
from numba.cuda.cudadrv import nvvm
from numba.cuda.np.numpy_support import from_dtype

from ... import rules
from ...arrays import blocks, dtypes
from ...arrays.blocks import POSITIVE, SIGNED
from ...arrays.dtypes import CODES, compute_dtype, dtype_name
from ...errors import BackendUnavailable, install_command
from ...jobs import job, storage
from ...jobs.job import DUPLICATES
from ...rules import FIRST_STATE, OWN
from .. import convert, noise, numba_cache
from . import instructions, kernels

if not hasattr(np, "row_stack"):  # NumPy 2.5 dropped it; numba-cuda 0.30.4 looks for it, once, before it compiles
    np.row_stack = np.vstack
    try:
        from numba.cuda.np import arrayobj  # noqa: F401
    finally:
        del np.row_stack

_NAMES = {**{code: dtype_name(dtype) for dtype, code in CODES.items()}, SIGNED: "signed8bit", POSITIVE: "positive8bit"}
#: Instructions that devices have from a compute capability on, in place of what takes several.
_FROM_8_0 = {"encode_bfloat16": instructions.encode_bfloat16, "largest_of_warp": instructions.largest_of_warp}
TOOLKIT = Path("/usr/local/cuda")  # where it is, if nothing says otherwise
#: Kernels of which the assembler is told how many threads a block has: it then spends registers on loads that are under
#: way together, of which these have many. Of updates it would spend those that other blocks need.
_BOUNDED = {"sum_groups"}
_BITS_16 = {code for dtype, code in CODES.items() if dtype.itemsize == 2}


@dataclass(frozen=True)
class KernelSpec:
    """The kernel that updates runs, for one rule and one way of storing arrays.

    Attributes
    ----------
    kernel : str
        The rule's, by `fastopt.rules.Rule.kernel`.
    copies : int
        Of its states.
    dtype : numpy.dtype
        In which it computes.
    stored : tuple of int
        How each array is stored, by `fastopt.arrays.dtypes.CODES`.
    options : int
        Of the storage.
    strided, tabled : bool
        Whether runs have a table of strides, and a table of coefficients.
    """

    kernel: str
    copies: int
    dtype: np.dtype
    stored: tuple[int, ...]
    options: int = 0
    strided: bool = False
    tabled: bool = False
    integers: ClassVar[int] = 10  # arguments before the seed

    @property
    def rule(self) -> rules.Rule:
        """A rule of that kernel."""
        return next(rule for rule in rules.RULES.values() if rule.kernel == self.kernel)

    @property
    def width(self) -> int:
        """Coefficients of a copy, with the prologue's."""
        return OWN + len(self.rule.coefficients)

    @property
    def row_bytes(self) -> int:
        """Size of a row of coefficients in a table: a step before them, whole words, the deviation of noise behind."""
        noise = 8 if self.options & storage.NOISE else 0
        return 8 + -(-self.copies * self.width * self.dtype.itemsize // 8) * 8 + noise

    @property
    def row(self) -> np.dtype:
        """A row of coefficients in a table: those of all copies are its own."""
        fields = {"step": (np.int64, 0), "own": ((self.dtype, self.copies * self.width), 8)}
        if self.options & storage.NOISE:
            fields["deviation"] = (self.dtype, self.row_bytes - 8)
        formats, offsets = zip(*fields.values(), strict=True)
        return np.dtype({"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": self.row_bytes})

    @property
    def in_blocks(self) -> bool:
        """Tell whether a state is in blocks."""
        return max(self.stored) >= SIGNED

    @property
    def in_halves(self) -> bool:
        """Tell whether an array has elements of 16 bits."""
        return not _BITS_16.isdisjoint(self.stored)

    @property
    def lanes(self) -> int:
        """Elements that a thread updates at a time: 16 bytes of the narrowest."""
        return 8 if self.in_blocks or self.in_halves else 16 // self.dtype.itemsize

    @property
    def name(self) -> str:
        """Name shown by profilers."""
        kinds = "".join("_" + _NAMES[code] for code in self.stored)
        more = f"_options{self.options}" * bool(self.options) + "_strided" * self.strided + "_tabled" * self.tabled
        return f"fastopt_{self.kernel}{kinds}{more}"

    def bindings(self, capability: tuple[int, int]) -> dict[str, Any]:
        """Values of the kernel's template constants."""
        rule, real = self.rule, self.dtype.type
        return {
            "REAL": real,
            "OWN": CODES[self.dtype],
            "STORED": self.stored,
            "ARRAYS": len(self.stored),
            "OPTIONS": self.options,
            "STATES": len(rule.elements),
            "COPIES": self.copies,
            "INPUTS": len(rule.inputs),
            "COEFFICIENTS": ((real(0),) * self.width,) * self.copies,
            "STRIDED": self.strided,
            "TABLED": self.tabled,
            "ROW_BYTES": self.row_bytes,
            "IN_BLOCKS": self.in_blocks,
            "IN_HALVES": self.in_halves,
            "update": rule.update,
            "apply": _apply_of(len(rule.elements), self.copies, len(rule.inputs)),
            "wide_product": instructions.wide_product,
            **(_FROM_8_0 if capability >= (8, 0) else {}),
        }

    def of_lanes(self, function: Callable[..., Any], lanes: int, aligned: bool, capability: tuple[int, int]) -> Any:
        """A function of `kernels` that deals with so many elements at a time."""
        names = {**self.bindings(capability), "LANES": lanes, "ALIGNED": aligned}
        names["read_all"] = unrolled(kernels.read, names["ARRAYS"])
        names["write_all"] = unrolled(kernels.write, names["ARRAYS"])
        names["update_lanes"] = unrolled(kernels.update_lane, lanes)
        return bound(function, names)

    def bound(self, capability: tuple[int, int]) -> Any:
        """The kernel as Python whose every name is bound."""
        names = {
            **self.bindings(capability),
            "LANES": self.lanes,
            "update_aligned": self.of_lanes(kernels.update_elements, self.lanes, True, capability),
            "update_any": self.of_lanes(
                kernels.update_elements, self.lanes if self.in_blocks else 1, False, capability
            ),
        }
        return _rebound(kernels.update_runs, names)[0]

    def signature(self) -> Any:
        """The types of its arguments."""
        real = from_dtype(self.dtype)
        own = types.UniTuple(types.UniTuple(real, self.width), self.copies)
        return types.void(*integers(self.integers), types.uint64, types.uint64, *[real] * 4, own)


@dataclass(frozen=True)
class RowKernelSpec(KernelSpec):
    """The kernel that updates rows; of a rule of rows, `stored` ends with its state.

    Attributes
    ----------
    duplicates : int
        What several lookups of one row mean, by `fastopt.jobs.job.DUPLICATES`.
    bags, weighted : bool
        Whether several lookups may have one row of the gradient, and whether they have weights.
    """

    duplicates: int = 0
    bags: bool = False
    weighted: bool = False
    integers: ClassVar[int] = 16

    @property
    def name(self) -> str:
        """Name shown by profilers."""
        return f"{super().name}_rows_{DUPLICATES[self.duplicates]}{_of_lookups(self.bags, self.weighted)}"

    @property
    def elementwise(self) -> tuple[int, ...]:
        """Storage formats of the arrays that have a row's elements."""
        return self.stored[:-1] if self.rule.by_row else self.stored

    @property
    def batch(self) -> int:
        """Gradients that a thread loads at a time."""
        return _BATCH_OF_ROWS if DUPLICATES[self.duplicates] == "sum" else 1

    def bindings(self, capability: tuple[int, int]) -> dict[str, Any]:
        """Values of the kernel's template constants."""
        names = {**super().bindings(capability), "ROWS": True, "DUPLICATE_RULE": self.duplicates}
        names |= {"STORED": self.elementwise, "ARRAYS": len(self.elementwise)}
        names |= {"BAGS": self.bags, "WEIGHTED": self.weighted, "BATCH": self.batch}
        names["WHOLE"] = self.batch == 1
        if self.rule.by_row:
            names |= {"BY_ROW": self.stored[-1:], "STATES": 0, "by_row": self.rule.by_row, "apply": _apply_of(0, 1, 0)}
        return names

    def bound(self, capability: tuple[int, int]) -> Any:
        """The kernel as Python whose every name is bound."""
        names = {
            **self.bindings(capability),
            "LANES": self.lanes,
            "update_aligned": self.of_lanes(kernels.update_row_elements, self.lanes, True, capability),
            "update_any": self.of_lanes(kernels.update_row_elements, 1, False, capability),
            "row_sum_aligned": self.of_lanes(kernels.sum_row_elements, self.lanes, True, capability),
            "row_sum_any": self.of_lanes(kernels.sum_row_elements, 1, False, capability),
            "square_of": self.of_lanes(kernels.square_of, 1, False, capability),
        }
        return _rebound(kernels.update_rows, names)[0]


@dataclass(frozen=True)
class GroupSums:
    """The kernel that adds up the gradients of groups of a row's lookups, or groups of such groups.

    Attributes
    ----------
    dtype : numpy.dtype
        In which it computes.
    gradient : int
        How gradients are stored, by `fastopt.arrays.dtypes.CODES`.
    bags, weighted : bool
        As of `RowKernelSpec`.
    of_groups : bool
        Whether it adds up groups' sums.
    """

    dtype: np.dtype
    gradient: int
    bags: bool = False
    weighted: bool = False
    of_groups: bool = False

    @property
    def name(self) -> str:
        """Name shown by profilers."""
        if self.of_groups:
            return f"fastopt_sum_groups_in_{self.dtype.name}"
        return f"fastopt_sum_{_NAMES[self.gradient]}_in_{self.dtype.name}{_of_lookups(self.bags, self.weighted)}"

    @property
    def lanes(self) -> int:
        """Elements that a thread adds up at a time: 16 bytes of the narrower."""
        return 8 if self.gradient in _BITS_16 else 16 // self.dtype.itemsize

    def bindings(self) -> dict[str, Any]:
        """Values of the kernel's template constants."""
        return {
            "REAL": self.dtype.type,
            "OWN": CODES[self.dtype],
            "STORED": (CODES[self.dtype], self.gradient),
            "IN_HALVES": self.gradient in _BITS_16,
            "BAGS": self.bags,
            "WEIGHTED": self.weighted,
            "BATCH": _BATCH_OF_GROUPS,
            "LANES": self.lanes,
        }

    def bound(self, capability: tuple[int, int]) -> Any:
        """The kernel as Python whose every name is bound."""
        names = {**self.bindings(), "OF_GROUPS": self.of_groups}
        whole, one = {**names, "ALIGNED": True}, {**names, "LANES": 1}
        names["sum_aligned"] = bound(kernels.sum_group_elements, whole)
        names["sum_any"] = bound(kernels.sum_group_elements, one)
        return _rebound(kernels.sum_groups, names)[0]

    def signature(self) -> Any:
        """The types of its arguments."""
        return types.void(*integers(len(inspect.signature(kernels.sum_groups).parameters)))


@dataclass(frozen=True)
class RowSums(GroupSums):
    """The kernel that adds up the gradients of each row's lookups, with those of whole groups."""

    @property
    def name(self) -> str:
        """Name shown by profilers."""
        return f"{super().name}_by_row"

    def bound(self, capability: tuple[int, int]) -> Any:
        """The kernel as Python whose every name is bound."""
        names = {**self.bindings(), "DUPLICATE_RULE": DUPLICATES.index("sum"), "WHOLE": False}
        whole, one = {**names, "ALIGNED": True}, {**names, "LANES": 1}
        names["row_sum_aligned"] = bound(kernels.sum_row_elements, whole)
        names["row_sum_any"] = bound(kernels.sum_row_elements, one)
        return _rebound(kernels.sum_rows, names)[0]

    def signature(self) -> Any:
        """The types of its arguments."""
        return types.void(*integers(len(inspect.signature(kernels.sum_rows).parameters)))


#: Gradients that a thread loads at a time, where it then updates a row, and where it only adds up.
_BATCH_OF_ROWS, _BATCH_OF_GROUPS = 4, 8


def _of_lookups(bags: bool, weighted: bool) -> str:
    """What a kernel's name says of its lookups."""
    return "_bags" * bags + "_weighted" * weighted


@dataclass(frozen=True)
class Measure:
    """The kernel that adds up what a rule's stage measures, with the coefficients of an update that are in a table."""

    update: KernelSpec

    @property
    def name(self) -> str:
        """Name shown by profilers."""
        return self.update.name.replace("fastopt_", "fastopt_measure_")

    def bound(self, capability: tuple[int, int]) -> Any:
        """The kernel as Python whose every name is bound."""
        rule = self.update.rule
        assert rule.by_tensor is not None
        names = {**self.update.bindings(capability), "LANES": 1, "ALIGNED": False, "SUMS": len(rule.sums)}
        names["read_elements"] = unrolled(kernels.read_element, names["ARRAYS"])
        names["add_products"] = _add_products_of(
            tuple(map(rule.beside.index, rule.measured)), len(rule.folds), len(rule.read_at), len(rule.sums)
        )
        names["load_before"] = _load_before_of(rule.read_at)
        names["SINGLES"] = len(rule.singles)
        names["measure"] = rule.by_tensor.measure
        return _rebound(kernels.measure_runs, names)[0]

    def signature(self) -> Any:
        """The types of its arguments."""
        return types.void(*integers(12), types.uint64, from_dtype(self.update.dtype))


@dataclass(frozen=True)
class FoldSums:
    """The kernel that makes further coefficients of what a rule's stage measured; over all tensors one of the two that
    do, by name.
    """

    update: KernelSpec
    function: str = "fold_sums"

    @property
    def name(self) -> str:
        """Name shown by profilers."""
        return f"fastopt_{self.function}_{self.update.kernel}_{self.update.dtype.name}"

    def bound(self, capability: tuple[int, int]) -> Any:
        """The kernel as Python whose every name is bound."""
        rule = self.update.rule
        assert rule.by_tensor is not None
        names = {**self.update.bindings(capability), "WIDTH": self.update.width, "FOLDED": len(rule.folds)}
        names |= {"SUMS": len(rule.sums), "SINGLES": len(rule.singles), "fold_stage": rule.by_tensor.fold}
        over_all = self.function == "fold_all"
        names["stage"] = _stage_of(len(rule.sums), len(rule.singles), len(rule.folds), rule.read_at, over_all)
        return _rebound(getattr(kernels, self.function), names)[0]

    @property
    def count(self) -> int:
        """The number of its arguments."""
        return len(inspect.signature(getattr(kernels, self.function)).parameters)

    def signature(self) -> Any:
        """The types of its arguments."""
        return types.void(*integers(self.count))


@dataclass(frozen=True)
class Fold:
    """The kernel that counts steps and folds on the device.

    Attributes
    ----------
    rule_name : str
        The rule's.
    update : KernelSpec
        The kernel that it folds for, whose coefficients are in a table.
    """

    rule_name: str
    update: KernelSpec

    @property
    def name(self) -> str:
        """Name shown by profilers."""
        return f"fastopt_fold_{self.rule_name}"

    def bound(self, capability: tuple[int, int]) -> Any:
        """The kernel as Python whose every name is bound."""
        rule = rules.RULES[self.rule_name]
        names = {
            **self.update.bindings(capability),
            "HYPER": (0.0,) * len(rule.row),
            "KEPT": len(rule.scalars),
            "WIDTH": self.update.width,
            "FOLDED": len(rule.folds),
            "fold": rule.fold,
            "fold_prologue": rule.fold_prologue,
            "fold_row": fold_row_of(rule.folded_at, len(rule.scalars)),
        }
        return _rebound(kernels.fold_steps, names)[0]

    def signature(self) -> Any:
        """The types of its arguments."""
        return types.void(*integers(10), types.float64)


@dataclass(frozen=True)
class Plain:
    """A kernel that depends on no rule: its name in `kernels`, the types of its arguments, what is bound in, and what
    its name shall say of that.
    """

    function: str
    arguments: tuple[Any, ...] = field(hash=False)  # types, whose hashes take longer than a launch
    names: tuple[tuple[str, Any], ...] = ()
    of: str = ""

    @property
    def name(self) -> str:
        """Name shown by profilers."""
        return f"fastopt_{self.function}" + f"_{self.of}" * bool(self.of)

    def bound(self, capability: tuple[int, int]) -> Any:
        """The kernel as Python whose every name is bound."""
        return _rebound(getattr(kernels, self.function), dict(self.names))[0]

    def signature(self) -> Any:
        """The types of its arguments."""
        return types.void(*self.arguments)


def integers(count: int) -> tuple[Any, ...]:
    """The types of so many addresses or numbers."""
    return (types.int64,) * count


def squares_of(dtype: np.dtype) -> Plain:
    """The kernel of sums of squares of floats of a dtype."""
    return Plain("square_sums", integers(7), _of_floats(dtype), dtype_name(dtype))


@cache
def put_scales_in(real: np.dtype) -> Plain:
    """The kernel that puts scales into rows of coefficients of a dtype."""
    return Plain("put_scales", integers(5), (("REAL", real.type),), real.name)


def scale_of(dtype: np.dtype) -> Plain:
    """The kernel that multiplies floats of a dtype."""
    return Plain("scale", (*integers(5), types.float64), _of_floats(dtype), dtype_name(dtype))


def _of_floats(dtype: np.dtype) -> tuple[tuple[str, Any], ...]:
    return ("REAL", compute_dtype(dtype).type), ("STORED", (CODES[dtype],))


_bound: dict[Any, Any] = {}  # functions for the device, by what they are and what is bound in them


def bound(function: Callable[..., Any], names: Mapping[str, Any]) -> Any:
    """A function for the device, with other meanings for some global names of its own and of all that it calls.

    Where these mean the same it is the same, whatever the kernel: Numba deals with it once.
    """
    own, key = _rebound(function, names)
    if key not in _bound:
        _bound[key] = cuda.jit(own, device=True, forceinline=True)
    return _bound[key]


def _rebound(function: Callable[..., Any], names: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """Copy a function with some globals replaced; return it, and a key that tells it from other copies."""
    found = {}
    for name in function.__code__.co_names:
        value = names[name] if name in names else function.__globals__.get(name)
        if isinstance(value, pytypes.FunctionType):
            found[name] = bound(value, names)
        elif name in names:
            found[name] = value
    own = pytypes.FunctionType(function.__code__, {**function.__globals__, **found}, function.__name__)
    own.__qualname__ = function.__name__
    return own, (function.__module__, function.__code__, *found.items())


def unrolled(function: Callable[..., Any], count: int) -> Any:
    """A function that calls another so many times, with 0, 1, ... before its own arguments."""
    arguments = ", ".join(list(inspect.signature(function).parameters)[1:])
    calls = "".join(f"    one(int64({k}), {arguments})\n" for k in range(count))
    namespace: dict[str, Any] = {"one": function, "int64": np.int64}
    exec(f"def each({arguments}):\n{calls}", namespace)
    return namespace["each"]


@cache
def _apply_of(states: int, copies: int, inputs: int) -> Any:
    """The `kernels.apply` of a rule with so many states in each of its copies, one after the other, and inputs."""
    calls, behind = "", FIRST_STATE + copies * states
    read = "".join(f", x[{j}, k]" for j in range(behind, behind + inputs))
    for copy in range(copies):
        first = FIRST_STATE + copy * states
        own = "".join(f", x[{j}, k]" for j in range(first, first + states))
        calls += f"    p{own} = update(p, g{own}{read}, *c[{copy}][{OWN}:])\n"
    namespace: dict[str, Any] = {"update": None}
    exec(f"def apply(x, k, p, g, c):\n{calls}    return p\n", namespace)
    return namespace["apply"]


@cache
def _add_products_of(states: tuple[int, ...], folded: int, before: int, sums: int) -> Any:
    """The `kernels.add_products` of a stage that reads these states and inputs, by number, and so many single states,
    for so many sums.
    """
    own = "".join(f", x[{FIRST_STATE + k}, 0]" for k in states)
    kept = "".join(f", before[{k}]" for k in range(before))
    source = "def add_products(x, p, g, c, before, partial):\n"
    source += f"    found = measure(p, g{own}, *c[0][{OWN}:{OWN + folded}]{kept})\n"
    for k in range(sums):
        source += f"    partial[{k}] += float64(found[{k}][0]) * float64(found[{k}][1])\n"
    namespace: dict[str, Any] = {"measure": None, "float64": np.float64}
    exec(source, namespace)
    return namespace["add_products"]


@cache
def _load_before_of(places: tuple[int, ...]) -> Any:
    """The `kernels.load_before` of a stage that measures with these of the single states."""
    found = "".join(f"load(load(at + {8 * k}, int64), REAL), " for k in places) or "REAL(0), "
    namespace: dict[str, Any] = {"int64": np.int64, "REAL": None, "load": instructions.load}
    exec(f"def load_before(at):\n    return ({found})\n", namespace)
    return namespace["load_before"]


@cache
def _stage_of(sums: int, singles: int, folded: int, before: tuple[int, ...], over_all: bool) -> Any:
    """The `kernels.stage` of a rule: its fold of so many sums and single states, and of the coefficients that its first
    fold made; `before` are the single states that it measures with.
    """
    arguments = [f"totals[{k}]" for k in range(sums)]
    kept = "load(at + {}, float64)" if over_all else "float64(load(load(at + {}, int64), REAL))"
    arguments += [f"one{k}" for k in range(singles)]
    arguments += [f"float64(c[0][{OWN + k}])" for k in range(folded)]
    read = "".join(f"    one{k} = {kept.format(8 * k)}\n" for k in range(singles))
    found = f"found[:{singles}] + ({''.join(f'one{k}, ' for k in before)}) + found[{singles}:]" if before else "found"
    namespace: dict[str, Any] = {"fold_stage": None, "float64": np.float64, "int64": np.int64, "REAL": None}
    namespace["load"] = instructions.load
    source = f"def stage(totals, at, c):\n{read}    found = fold_stage({', '.join(arguments)})\n    return {found}\n"
    exec(source, namespace)
    return namespace["stage"]


@cache
def fold_row_of(folded_at: Sequence[int], kept: int) -> Any:
    """The `kernels.fold_row` of a rule: the places in a row of what it folds, and how many numbers it keeps."""
    own = "".join(f", own[{place}]" for place in folded_at[1:])
    scalars = "".join(f", load(kept + {8 * k}, float64)" for k in range(kept))
    namespace: dict[str, Any] = {"fold": None, "load": instructions.load, "float64": np.float64}
    exec(
        f"def fold_row(t, lr, own, kept):\n    return fold(t, lr{own}{scalars})\n",
        namespace,
    )
    return namespace["fold_row"]


@contextmanager
def _for(capability: tuple[int, int]) -> Iterator[None]:
    """Lets Numba compile for a compute capability without asking a device for its own."""
    asked = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    try:
        yield
    finally:
        dispatcher.get_current_device = asked


def compile_ptx(function: Callable[..., Any], signature: Any, capability: tuple[int, int], name: str) -> str:
    """The PTX of a kernel, under a name that people can read."""
    return ptx_from(llvm_of(function, signature, capability), capability, name)


def llvm_of(function: Callable[..., Any], signature: Any, capability: tuple[int, int]) -> list[str]:
    """The LLVM IR of a kernel and of what it calls, which takes nearly all of the time."""
    with _for(capability):
        library, _ = _compile_pyfunc_with_fixup(
            function,
            signature,
            debug=False,
            lineinfo=False,
            device=False,
            fastmath=False,
            cc=capability,
            opt=True,
            abi="numba",
            abi_info=None,
            forceinline=False,
            launch_bounds=kernels.THREADS if function.__name__ in _BOUNDED else None,
            lto=False,
        )
    return library.llvm_strs


def find_nvvm() -> None:
    """Has CUDA's compiler found: in its wheel, else in a toolkit that the environment names, else in the usual place.

    Raises
    ------
    BackendUnavailable
        It is nowhere; the message says where it was looked for.
    """
    named = next((os.environ[name] for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)), None)
    missing = _missing_of_nvvm()
    if missing and named is None:
        with temporary_env_var("CUDA_HOME", os.fspath(TOOLKIT)):
            missing = _missing_of_nvvm()
    if missing:
        where = f"{TOOLKIT}/nvvm" if named is None else f"{named}/nvvm, which CUDA_PATH or CUDA_HOME names"
        raise BackendUnavailable(
            f"CUDA's compiler is not there: {missing} was looked for in the package nvidia-nvvm, in conda's "
            f"environment, and in {where}: {install_command('cuda')}, or have CUDA_HOME name a toolkit of CUDA 13"
        )


def _missing_of_nvvm() -> str:
    """The file of CUDA's compiler that is not found; "" where none is missing."""
    try:
        pathfinder.load_nvidia_dynamic_lib("nvvm")
        bitcode = get_cuda_paths()["libdevice"].info
    except pathfinder.DynamicLibNotFoundError:
        return "libnvvm"
    if bitcode is not None and os.path.isfile(bitcode):
        return ""
    if hasattr(get_cuda_paths, "_cached_result"):  # it may be found elsewhere
        del get_cuda_paths._cached_result
    return "libdevice.10.bc"


def ptx_from(llvm: list[str], capability: tuple[int, int], name: str) -> str:
    """The PTX of a kernel that is LLVM IR."""
    find_nvvm()
    ptx = nvvm.compile_ir(llvm, arch="compute_{}{}".format(*capability), opt=3, fma=False).decode()
    ptx = re.sub(r"^\.common \.global .*NumbaEnv.*\n", "", ptx, flags=re.M)  # of Numba's own dispatcher
    mangled = re.search(r"\.entry (\w+)\(", ptx)
    assert mangled is not None
    return ptx.replace(mangled[1], name)


# ---- on disk ----


def _sources() -> str:
    modules = (
        kernels,
        instructions,
        convert,
        noise,
        storage,
        job,
        blocks,
        dtypes,
        *_rule_modules(),
        sys.modules[__name__],
    )
    versions = [numba.__version__, numba_cuda.__version__, llvmlite.__version__, np.__version__]
    with suppress(metadata.PackageNotFoundError):
        versions.append(metadata.version("nvidia-nvvm"))  # by which the PTX has a version that a driver takes or not
    return "\n".join([*map(inspect.getsource, modules), *versions])


def _rule_modules() -> list[pytypes.ModuleType]:
    return [module for name, module in sorted(sys.modules.items()) if name.startswith(f"{rules.__name__}.")]


@cache
def _digest_of_sources() -> str:
    return hashlib.sha256(_sources().encode()).hexdigest()


def _places() -> Iterator[Path]:
    """List the folders for PTX: where Numba is told to cache, beside this file, in the user's cache."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(os.environ["NUMBA_CACHE_DIR"])
    yield Path(__file__).parent / "__pycache__"
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(user):  # it is not where the system knows no home
        yield Path(user) / "fastopt"


@cache
def ptx_of(kind: KernelSpec | GroupSums | Measure | FoldSums | Fold | Plain, capability: tuple[int, int]) -> str:
    """The PTX of a kernel: compiled the first time, and then kept on disk."""
    key = hashlib.sha256(f"{kind!r} {capability} {_digest_of_sources()}".encode()).hexdigest()[:20]
    for place in _places():
        with suppress(OSError):
            for file in place.glob(f"{kind.name}-{key}-*.ptx"):
                found = file.read_bytes()
                if file.name == _file_name(kind, key, found):
                    return found.decode()
    ptx = compile_ptx(kind.bound(capability), kind.signature(), capability, kind.name)
    name, failure = _file_name(kind, key, ptx.encode()), "no place"
    for place in _places():
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place) as own:
                (Path(own) / name).write_text(ptx)
                os.replace(Path(own) / name, place / name)  # whole or not at all, whoever else is at it
            break
        except OSError as error:
            failure = str(error)
    else:
        numba_cache.warn_uncached(failure)
    return ptx


def _file_name(kind: KernelSpec | GroupSums | Measure | FoldSums | Fold | Plain, key: str, ptx: bytes) -> str:
    """File of cached PTX: its name tells the kernel, a checksum whether it is whole."""
    return f"{kind.name}-{key}-{zlib.crc32(ptx):08x}.ptx"
