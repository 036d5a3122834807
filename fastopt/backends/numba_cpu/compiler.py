"""Numba on the CPU: the rules' own Python, compiled when first used and cached on disk.

One loop for each number of states, written once; a rule's update is that loop with the update of an element bound in.
Kernels, which are the same for all rules, call it by its address. They take the same table of addresses as the C
library, release the GIL, and are run by the library's threads: no threading layer of Numba's is involved, so nothing
breaks under fork or under calls from several threads at once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import rules
from ...arrays import blocks, dtypes
from ...arrays.dtypes import BFLOAT16, CODES
from ...jobs import storage
from ...jobs.job import NORM_BLOCK
from ...rules import FIRST_STATE, GRADIENT, OWN, primitives

if TYPE_CHECKING:
    from ...rules import Rule


from numba import njit, types
from numba.np.unsafe.ndarray import to_fixed_tuple

from .. import convert, noise
from ..numba_cache import INNER as _inner
from ..numba_cache import bind, compiled, compiled_callback, digest_of
from . import dense, memory, tiles
from .memory import array_at, load, on_stack
from .parts import parallel
from .tiles import prologue

# ---- the loops, written out for each number of states; `apply` is bound to a rule's ----

update: Any = None
apply: Any = None
width: int = 0


def _as_tuple(c):
    return to_fixed_tuple(c, width)


def _written(source: str, name: str) -> Any:
    """A function of this module from its source: one that no number of states can be given to."""
    namespace = dict(globals())
    exec(source, namespace)
    return namespace[name]


@cache
def _loop_of(states: int, inputs: int) -> Any:
    """The loop over elements of a parameter with so many states, and inputs behind them."""
    names = ["p", "grad", *(f"s{k}" for k in range(states + inputs))]
    views = ", ".join(f"array_at(a[{j}], n, like)" for j in range(len(names)))
    own = "".join(f", s{k}[i]" for k in range(states))
    read = own + "".join(f", s{k}[i]" for k in range(states, states + inputs))
    source = (
        f"def loop(n, a, c, like):\n"
        f"    {', '.join(names)} = {views}\n"
        f"    for i in range(n):\n"
        f"        x, g = prologue(p[i], grad[i], {', '.join(f'c[{k}]' for k in range(OWN))})\n"
        f"        p[i]{own} = apply(x, g{read}, c)\n"
    )
    return _written(source, "loop")


@cache
def _apply_of(states: int, inputs: int, coefficients: int, copies: int) -> Any:
    """The update of an element with so many states in each of its copies, one after the other, and so many inputs."""
    names, read = [f"s{k}" for k in range(states * copies)], [f"x{k}" for k in range(inputs)]
    source = f"def apply({', '.join(('p', 'g', *names, *read, 'c'))}):\n"
    for k in range(copies):
        own = names[k * states : (k + 1) * states]
        first = OWN + k * coefficients
        arguments = ", ".join(("p", "g", *own, *read, f"*c[{first}:{first + coefficients}]"))
        source += f"    {', '.join(('p', *own))} = update({arguments})\n"
    return _written(f"{source}    return {', '.join(('p', *names))}\n", "apply")


# The most copies of a rule's state that are fused in one loop.
FUSED = 3


@njit(**_inner)
def _passed(p, g, grad_scale, weight_decay, decay):
    """Stand in for a prologue that has been done."""
    return p, g


@njit(**_inner)
def _split_gradient(n, p, grad, g, c):
    """The prologue alone, for rules with several copies of their states: they share the gradient it leaves in g."""
    for i in range(n):
        p[i], g[i] = prologue(p[i], grad[i], c[0], c[1], c[2])


# ---- the update of a tile, or of a run ----

loop: Any = None
loop_after: Any = None  # the same after the prologue
to_tuple: Any = None
states: int = 0
inputs: int = 0
real: Any = None


def _update_tile(n, at, own, _rows, _shared):
    """Updates n elements of contiguous arrays of the compute type, at the addresses that are at the address `at`, with
    the coefficients at the address `own`.
    """
    loop(n, array_at(at, FIRST_STATE + states + inputs, np.int64), to_tuple(array_at(own, width, real)), real)


def _update_copies(n, at, own, rows, shared):
    """The same for a rule whose copies of its states are not fused, with a row of coefficients for each.

    Where there are several it updates TILE elements at most: the copies share the gradient that has been through the
    prologue, in the tile at `shared`.
    """
    a = array_at(at, FIRST_STATE + rows * states, np.int64)
    coefficients = array_at(own, rows * width, real).reshape(rows, width)
    if rows == 1:
        loop(n, a, to_tuple(coefficients[0]), real)
        return
    part = on_stack(FIRST_STATE + states, np.int64)
    part[0], part[GRADIENT] = a[0], shared
    p, grad, g = array_at(a[0], n, real), array_at(a[GRADIENT], n, real), array_at(shared, n, real)
    _split_gradient(n, p, grad, g, coefficients[0])
    for k in range(rows):
        for j in range(states):
            part[FIRST_STATE + j] = a[FIRST_STATE + j + k * states]
        loop_after(n, part, to_tuple(coefficients[k]), real)


# ---- rows ----

DIGIT = 11  # bits: so many counters fit the first-level cache


@compiled
def segments(indices, count, hogwild):
    """Lookups ordered by row, each row's in their order: rows, places, and where a row's segment starts.

    An index that is none of a row, for it may have been written since it was checked, ends it: no segments at all.
    """
    n = indices.size
    rows, places = np.empty(n, np.int64), np.arange(n)
    starts = np.empty(n + 1, np.int64)
    for i in range(n):
        rows[i] = indices[i]
        if rows[i] < 0 or rows[i] >= count:
            return rows, places, starts[:0]
    if hogwild:
        for i in range(n + 1):
            starts[i] = i
        return rows, places, starts
    other_rows, other_places = np.empty_like(rows), np.empty_like(places)
    bits = 0
    while (count - 1) >> bits > 0:
        bits += 1
    passes = -(-bits // DIGIT)
    digit = -(-bits // passes) if passes else 0
    at = np.empty(1 << DIGIT, np.int64)
    for k in range(passes):
        at[:] = 0
        shift, mask = k * digit, (1 << digit) - 1
        for i in range(n):
            at[rows[i] >> shift & mask] += 1
        total = 0
        for d in range(mask + 1):
            total, at[d] = total + at[d], total
        for i in range(n):
            d = rows[i] >> shift & mask
            other_rows[at[d]], other_places[at[d]] = rows[i], places[i]
            at[d] += 1
        rows, other_rows = other_rows, rows
        places, other_places = other_places, places
    segments = 0
    for i in range(n):
        if i == 0 or rows[i] != rows[i - 1]:
            starts[segments] = i
            segments += 1
    starts[segments] = n
    return rows, places, starts[: segments + 1]


# ---- a rule's kernel ----

_primitives = {"sqrt": primitives.sqrt, "isnan": primitives.isnan}
_primitives["where"] = njit(**_inner)(primitives.where)


_primitives["maximum"] = njit(**_inner)(bind(primitives.maximum, "maximum", **_primitives))


def compile_update(rule: Rule) -> Any:
    """The rule's update as an ``njit`` function."""
    return njit(**_inner)(bind(rule.update, rule.kernel, **_primitives))


def compile_fold(rule: Rule) -> Any:
    """The rule's fold as an ``njit`` function."""

    def compile_one(fold: Callable[..., Any]) -> Any:
        others = {name: compile_one(fold.__globals__[name]) for name in fold.__code__.co_names if "fold_" in name}
        return njit(**_inner)(bind(fold, fold.__name__, **_primitives, **others))

    return compile_one(rule.fold)


def compile_fold_prologue(rule: Rule) -> Any:
    """The fold of what comes before the rule, as an ``njit`` function."""
    return njit(**_inner)(rule.fold_prologue)


def compile_rule(rule: Rule, function: Callable[..., Any]) -> Any:
    """Return a function of the rule's stage as an ``njit`` function."""
    return njit(**_inner)(bind(function, f"{rule.kernel}_{function.__name__}", **_primitives))


def stage_fold(rule: Rule) -> Callable[..., Any]:
    """Return the fold of the rule's stage over tensors for numbers of Python: it gives NaN where C does."""
    assert rule.by_tensor is not None
    return bind(rule.by_tensor.fold, rule.by_tensor.fold.__name__, sqrt=_root)


def _root(x: float) -> float:
    """The square root; NaN of a negative number, where Python's would be an error."""
    return math.nan if x < 0 else math.sqrt(x)


def digest(rule: Rule) -> str:
    """Digest all source that a kernel is made from."""
    functions = (rule.update, rule.by_row or rule.update, rules.prologue, primitives.where, _update_tile)
    return digest_of(*(sys.modules[f.__module__] for f in functions), memory, tiles)


def _rule_of(name: str) -> Rule:
    """A rule whose kernel has that name."""
    return next(rule for rule in rules.RULES.values() if rule.kernel == name)


def _tile_by_row(state, own, rate, square, _):
    """Update the mean square of a row by addresses: its state, and the coefficient of the update."""
    state, rate = array_at(state, 1, real), array_at(rate, OWN + 1, real)
    c = array_at(own, width, real)
    state[0], rate[OWN] = by_row(array_at(square, 1, real)[0], state[0], *to_tuple(c)[OWN:])


by_row: Any = None
measure_loop: Any = None
sums: int = 0


@cache
def _measure_loop_of(states: tuple[int, ...], folded: int, sums: int) -> Any:
    """The loop over elements of a stage that reads these states and inputs, by number, and adds up so many products,
    each in sixteen lanes.

    Each lane takes four elements at a time, in their order: LLVM unrolls a loop of less before it could vectorise it.
    It is told that lanes are no elements (they are the loop's own), and that no index is negative.
    """
    names = {"p": 0, "grad": GRADIENT, **{f"s{k}": FIRST_STATE + k for k in states}}
    constants, ahead = ", ".join(f"c[{k}]" for k in range(OWN)), range(512, 576, 16)

    def views(first: str, count: str, indent: str) -> str:
        return "".join(
            f"{indent}{name} = array_at(a[{j}] + {first} * c.itemsize, {count}, real)\n" for name, j in names.items()
        )

    def element(at: str, lane: str) -> str:
        own = "".join(f", s{k}[{at}]" for k in states) + "".join(f", c[{OWN + k}]" for k in range(folded))
        return (
            f"            x, g = prologue(p[{at}], grad[{at}], {constants})\n            found = measure(x, g{own})\n"
        ) + "".join(
            f"            own{k}[{lane}] += np.float64(found[{k}][0]) * np.float64(found[{k}][1])\n"
            for k in range(sums)
        )

    source = (
        "def measure_loop(n, a, c, lanes):\n"
        + "".join(f"    own{k} = memory.on_stack(16, np.float64)\n" for k in range(sums))
        + "    for lane in range(16):\n"
        + "".join(f"        own{k}[lane] = lanes[{16 * k} + lane]\n" for k in range(sums))
        + f"    for i in range(n // 64):\n{views('64 * i', '64', ' ' * 8)}"
        + "".join(
            f"        memory.prefetch_near(a[{j}] + (64 * i + {at}) * c.itemsize)\n"
            for j in names.values()
            for at in ahead
        )
        + "        for lane in range(16):\n"
        + "".join(element(f"lane + {at}", "lane") for at in range(0, 64, 16))
        + f"    if n % 64:\n{views('(n - n % 64)', 'n % 64', ' ' * 8)}        for j in range(n % 64):\n"
        + element("j", "j % 16")
        + "    for lane in range(16):\n"
        + "".join(f"        lanes[{16 * k} + lane] = own{k}[lane]\n" for k in range(sums))
    )
    return _written(source, "measure_loop")


def _tile_measure(n, at, own, lanes, _):
    """Adds to its lanes what a rule's stage measures of n elements of contiguous arrays of the compute type."""
    a, c = array_at(at, FIRST_STATE + states, np.int64), array_at(own, width, real)
    measure_loop(n, a, c, array_at(lanes, 16 * sums, np.float64))


_TILE_SIGNATURE = types.void(*[types.int64] * 5)


@cache
def tile_update(name: str, copies: int, dtype: np.dtype) -> Any:
    """Compile a rule's update of a tile, or of a run, by its kernel's name: a function that is called by its address.

    With `copies` of a state fused, it is that of a rule with as many states and coefficients; of a rule of rows it is
    that of elements, without states and with one coefficient.
    """
    rule = _rule_of(name)
    count, width = (0, 1) if rule.by_row else (len(rule.elements), len(rule.coefficients))
    read = len(rule.inputs)
    once = _apply_of(count, read, width, copies)
    apply = njit(**_inner)(bind(once, f"apply_{name}_{copies}", update=compile_update(rule)))
    names: dict[str, Any] = {"states": count * copies, "inputs": read, "real": dtype.type}
    names["width"] = OWN + width * copies
    names["to_tuple"] = njit(**_inner)(bind(_as_tuple, "as_tuple", width=names["width"]))
    names["loop"] = njit(**_inner)(bind(_loop_of(count * copies, read), f"loop_{name}_{copies}", apply=apply))
    function = _update_tile
    if rule.vector and copies == 1:
        after = bind(_loop_of(count, read), f"loop_after_{name}", apply=apply, prologue=_passed)
        function, names["loop_after"] = _update_copies, njit(**_inner)(after)
    own = f"tile_{name}_{copies}_{dtype.name}_{digest(rule)}"
    return compiled_callback(bind(function, own, **names), _TILE_SIGNATURE)


@cache
def tile_measure(name: str, dtype: np.dtype) -> Any:
    """Compile what the rule's stage measures of a tile, as a function that is called by its address."""
    rule = _rule_of(name)
    assert rule.by_tensor is not None
    measure, taken = compile_rule(rule, rule.by_tensor.measure), len(rule.folds) + len(rule.read_before)
    loop = _measure_loop_of(tuple(map(rule.beside.index, rule.measured)), taken, len(rule.sums))
    names: dict[str, Any] = {"states": len(rule.beside), "width": OWN + taken, "sums": len(rule.sums)}
    names["real"] = dtype.type
    names["measure_loop"] = njit(**_inner)(bind(loop, f"measure_{name}", measure=measure, real=dtype.type))
    bound = bind(_tile_measure, f"tile_measure_{name}_{dtype.name}_{digest(rule)}", **names)
    return compiled_callback(bound, _TILE_SIGNATURE)


@cache
def tile_by_row(name: str, dtype: np.dtype) -> Any:
    """Compile the rule's update of a row's mean square, as a function that is called by its address."""
    rule = _rule_of(name)
    assert rule.by_row is not None
    width = OWN + len(rule.coefficients)
    names = {"real": dtype.type, "width": width, "by_row": compile_rule(rule, rule.by_row)}
    names["to_tuple"] = njit(**_inner)(bind(_as_tuple, "as_tuple", width=width))
    bound = bind(_tile_by_row, f"tile_by_row_{name}_{dtype.name}_{digest(rule)}", **names)
    return compiled_callback(bound, _TILE_SIGNATURE)


@cache
def kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel of `dense` or of `tiles`, which is the same for all rules."""
    modules = (dense, tiles, convert, noise, memory, storage, blocks, dtypes, sys.modules[rules.prologue.__module__])
    return parallel(function, *modules)


@compiled
def add_blocks(sums, firsts):
    """The sums of each tensor, whose blocks are those from one of `firsts` on: 256 partial sums, then their sum."""
    totals, parts = np.zeros((len(firsts) - 1, sums.shape[1])), np.empty(256)
    for i in range(len(totals)):
        for k in range(sums.shape[1]):
            parts[:] = 0
            for block in range(firsts[i], firsts[i + 1]):
                parts[(block - firsts[i]) % 256] += sums[block, k]
            for part in range(min(256, firsts[i + 1] - firsts[i])):
                totals[i, k] += parts[part]
    return totals


value: Any = None


def square_sums(addresses, strides, offsets, blocks, sums, like, begin, end):
    """Writes the sums of squares of some blocks."""
    lanes = on_stack(16, np.float64)
    r = np.searchsorted(blocks, begin, side="right") - 1
    for b in range(begin, end):
        while blocks[r + 1] <= b:
            r += 1
        first = (b - blocks[r]) * NORM_BLOCK
        n = min(NORM_BLOCK, offsets[r + 1] - offsets[r] - first)
        lanes[:] = 0
        for i in range(n):
            x = np.float64(value(load(np.int64(addresses[r, 0]) + (first + i) * strides[r, 0], like)))
            lanes[i % 16] += x * x
        total = 0.0
        for lane in range(16):
            total += lanes[lane]
        sums[b] = total


@njit(**_inner)
def _itself(x):
    return x


@cache
def square_kernel(code: int) -> Any:
    """The compiled `square_sums` for floats of that code."""
    values = {CODES[BFLOAT16]: convert.decode_bfloat16, CODES[np.dtype(np.float16)]: convert.decode_float16}
    name = f"square_sums_{code}"
    return parallel(square_sums, memory, convert, name=name, value=values.get(code, _itself))
