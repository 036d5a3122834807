"""The compiled kernels of the models, and the update forms that they are made with.

A model's parameters and their states are one *table*, of shape (1 + states, ...): the parameters first, then each
state. The formulas are those of `fastopt.numba`; what is here is only where their arguments come from and go to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.ir
import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from .. import rules
from ..backends.numba_cache import OPTIONS, bind, compiled
from ..backends.numba_cpu import compiler
from ..backends.numba_cpu.memory import address_of, prefetch_near
from ..numba import adagrad, sgd
from ..rules import Rule

#: The most features that each worker has copies of. Those below a rank in frequency are merged with the others' after
#: a period of examples, those beyond the last rank when a call ends. Merging only then harms accuracy; merging more
#: often than here gains none.
HOT = 65536
_RANKS = (256, 2048)
_PERIODS = (128, 2048)  # powers of two
_AHEAD = 4  # examples to prefetch ahead: their order is random, so the processor cannot guess
_ITEM, _LINE = 4, 16  # bytes of an element; elements of a cache line


# ---- the rules ----


_fold_sgd, _update_sgd = sgd.fold, sgd.update
_fold_adagrad, _update_adagrad = adagrad.fold, adagrad.update


# ---- memory ----


@intrinsic
def _exchange(typing, array, index, before, after):
    """Puts `after` in the place of `before` if that is still there, bit for bit, as one operation; whether it was."""
    if array.ndim != 1 or array.layout != "C":
        raise TypingError(f"async_adagrad: found {array}, expected an array of one dimension, C-contiguous")

    def codegen(context, builder, signature, args):
        bits = llvmlite.ir.IntType(signature.args[0].dtype.bitwidth)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), bits.as_pointer())
        old, new = (builder.bitcast(x, bits) for x in args[2:])
        done = builder.extract_value(builder.cmpxchg(pointer, old, new, "monotonic", "monotonic"), 1)
        return builder.zext(done, llvmlite.ir.IntType(cgutils.bool_t.width)) if cgutils.bool_t.width > 1 else done

    return types.boolean(array, index, array.dtype, array.dtype), codegen


# ---- update forms: an element of a table, in place ----


@njit(**OPTIONS)
def async_adagrad(p, sum, i, g, c):
    """Adagrad's update of one element in arrays that others update at the same time, for kernels of your own.

    ``p[i], sum[i] = fastopt.numba.adagrad.update(p[i], g, sum[i], c)``, but so that no race can lose an addition to the
    accumulator or make a step too long::

        local = sum[i] += g^2            (one atomic operation)
        p[i] -= lr*g/(sqrt(local + eps_root) + eps)

    The denominator is of the worker's own, local copy of the accumulator, never of what another has put there since:
    local >= g^2 always, so that the step is at most lr. (Adagrad as passes over arrays, torch's say, adds and then
    reads the accumulator again. In between another's addition, begun before, can have overwritten this one, which
    leaves a denominator as small as eps, and a step as long as lr*g/eps.) `p[i]` itself is written as in Hogwild: of
    two updates at the very same time one may be lost.

    With one worker it gives plain Adagrad's bits.

    Parameters
    ----------
    p, sum : array of float32 or float64, one-dimensional, C-contiguous
        Parameter and accumulator (which begins at a value >= 0), of one type.
    i : int
        Which element; it must be within both.
    g : float
        Its gradient, of the arrays' type.
    c : tuple
        From ``fastopt.numba.adagrad.fold``.

    Notes
    -----
    Atomic operations take time: a model of `LinearModel` learns half as fast as with ``"adagrad"``.

    References
    ----------
    Lerer et al. 2019, PyTorch-BigGraph, arXiv:1903.12287, whose AsyncAdagrad has the local copy; its addition to the
    shared accumulator is not atomic.
    """
    i = np.uint64(i)
    while True:
        before = sum[i]
        step, after = _update_adagrad(p[i], g, before, c)
        if _exchange(sum, i, before, after):
            p[i] = step
            return


def _apply_sgd(p, state, i, g, c):
    p[i] = _update_sgd(p[i], g, c)


def _apply_adagrad(p, state, i, g, c):
    p[i], state[i] = _update_adagrad(p[i], g, state[i], c)


@dataclass(frozen=True)
class _Form:
    """The update of an element of a table by a rule: ``apply(p, state, i, g, c)``, in place.

    Where the rule has no state `state` is any array.
    """

    rule: Rule
    fold: Any
    apply: Callable[..., Any]

    @property
    def states(self) -> int:
        """Number of the rule's states."""
        return len(self.rule.states)


#: Only these: their one state is a sum, so that workers' contributions to it add up; an average that each lets decay on
#: its own is no one's average.
RULES = {
    "sgd": _Form(rules.RULES["sgd"], _fold_sgd, _apply_sgd),
    "adagrad": _Form(rules.RULES["adagrad"], _fold_adagrad, _apply_adagrad),
    "async_adagrad": _Form(rules.RULES["adagrad"], _fold_adagrad, async_adagrad.py_func),
}


# ---- losses: of a prediction z and a target y; the value and its derivative by z ----

# Python's own numbers would make float64 of it all.
_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)


def _hinge(z, y):
    margin = y * z
    return (_ONE - margin, -y) if margin < _ONE else (_ZERO, _ZERO)


def _logistic(z, y):
    margin = y * z
    e = np.exp(-abs(margin))  # never overflows
    return np.log1p(e) - min(margin, _ZERO), -y * (e if margin > _ZERO else _ONE) / (_ONE + e)


def _squared(z, y):
    error = z - y
    return _HALF * error * error, error


LOSSES: dict[str, Callable[..., Any]] = {"hinge": _hinge, "logistic": _logistic, "squared": _squared}


# ---- sparse linear models ----

fold: Any = None
apply: Any = None
loss_of: Any = None


@njit(**OPTIONS)
def _merge(table, local, base, begin, end):
    """Adds to the table what a worker has changed in its copies since they were last equal, and makes them equal."""
    for row in range(table.shape[0]):
        for i in range(begin, end):
            now = table[row, i] + (local[row, i] - base[row, i])
            table[row, i] = local[row, i] = base[row, i] = now


@njit(**OPTIONS)
def _dot(w, columns, values, begin, end):
    z = _ZERO
    for k in range(begin, end):
        z += w[columns[k]] * values[k]
    return z


def _linear(order, lr, starts, splits, columns, values, targets, decay, table, hot, regularised):
    """Columns below `hot` stand first in each row, up to its split. For them the worker has copies of its own: all rows
    have some, and two workers that write one cache line wait for each other far longer than an update takes."""
    c = fold(np.float32, 1, lr)
    local = table[:, :hot].copy()
    base = local.copy()
    w, state, local_w, local_state = table[0], table[-1], local[0], local[-1]  # once: each view made counts references
    ranks = (min(_RANKS[0], hot), min(_RANKS[1], hot))
    total = 0.0
    for n in range(order.size):
        if hot and n & (_PERIODS[0] - 1) == 0:
            _merge(table, local, base, 0, ranks[0])
            if n & (_PERIODS[1] - 1) == 0:
                _merge(table, local, base, ranks[0], ranks[1])
        if n + _AHEAD < order.size:
            later = np.uint64(order[n + _AHEAD])
            for k in range(np.uint64(starts[later]), np.uint64(starts[later + np.uint64(1)]), np.uint64(_LINE)):
                prefetch_near(address_of(columns) + _ITEM * np.int64(k))
                prefetch_near(address_of(values) + _ITEM * np.int64(k))
        i = np.uint64(order[n])
        begin, split, end = np.uint64(starts[i]), np.uint64(splits[i]), np.uint64(starts[i + np.uint64(1)])
        z = _dot(local_w, columns, values, begin, split) + _dot(w, columns, values, split, end)
        value, slope = loss_of(z, targets[i])
        total += value
        if slope == 0 and not regularised:
            continue
        for k in range(begin, split):
            apply(local_w, local_state, columns[k], slope * values[k], (c[0], decay[columns[k]], c[2], *c[3:]))
        for k in range(split, end):
            apply(w, state, columns[k], slope * values[k], (c[0], decay[columns[k]], c[2], *c[3:]))
    _merge(table, local, base, 0, hot)
    return total


@compiled
def arrange(starts, columns, values, rank, hot):
    """Renumbers columns, and puts those below `hot` first in each row; columns, values, and where the others begin."""
    new_columns, new_values = np.empty_like(columns), np.empty_like(values)
    splits = np.empty(starts.size - 1, np.int64)
    for i in range(splits.size):
        first, last = starts[i], starts[i + 1]
        for k in range(starts[i], starts[i + 1]):
            column = rank[columns[k]]
            if column < hot:
                new_columns[first], new_values[first] = column, values[k]
                first += 1
            else:
                last -= 1
                new_columns[last], new_values[last] = column, values[k]
        splits[i] = first
    return new_columns, new_values, splits


@compiled
def products(starts, columns, values, w):
    """Each row's product with w."""
    z = np.empty(starts.size - 1, np.float32)
    for i in range(z.size):
        z[i] = _dot(w, columns, values, np.uint64(starts[i]), np.uint64(starts[i + 1]))
    return z


def _factorization(order, lr, first, second, ratings, u, v, l2):
    c = fold(np.float32, 1, lr, weight_decay=l2)
    total = 0.0
    for n in order:
        i, j = np.uint64(first[n]), np.uint64(second[n])
        error = _ZERO
        p, q, p_state, q_state = u[0, i], v[0, j], u[-1, i], v[-1, j]
        for k in range(p.size):
            error += p[k] * q[k]
        error -= ratings[n]
        total += _HALF * error * error
        for k in range(p.size):
            gp, gq = error * q[k], error * p[k]
            apply(p, p_state, k, gp, c)
            apply(q, q_state, k, gq, c)
    return total


@cache
def kernel(model: str, rule: str, loss: str = "") -> Any:
    """The compiled kernel of a model. Compiled when first called, and cached on disk."""
    form = RULES[rule]
    names = {"fold": form.fold, "apply": njit(**OPTIONS)(form.apply)}
    if loss:
        names["loss_of"] = njit(**OPTIONS)(LOSSES[loss])
    function: Any = {"linear": _linear, "factorization": _factorization}[model]
    bound = bind(function, f"{model}_{rule}_{loss}_{compiler.digest(form.rule)}", **names)
    return compiled(bound)
