"""Hyper-parameters of a rule, checked, as rows of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np

from ..checks import wrong_type, wrong_value
from . import MAX_COPIES, Rule

FLOAT64 = np.dtype(np.float64)
_FIXED = (type(None), int, float, str, np.generic, Number)
_LARGEST = {dtype: float(np.finfo(dtype).max) for dtype in (np.dtype(np.float32), FLOAT64)}


def hyper_row(
    rule: Rule,
    values: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    dtype: np.dtype = FLOAT64,
    t: int = 1,
) -> np.ndarray:
    """Checked hyper-parameters as backends take them, of shape (copies, row).

    Parameters
    ----------
    rule : Rule
        The rule.
    values : mapping
        Every hyper-parameter of the rule.
    names : mapping, optional
        What the caller calls them, where that differs.
    dtype : numpy.dtype
        In which updates are computed.
    t : int
        The step that they are for.

    Raises
    ------
    TypeError, ValueError
        A value is no number, or outside its domain, or `dtype` cannot hold it or what becomes of it at step `t`.
    """
    names = names or {}
    for name in rule.initial:
        if name in values:
            rule.hyper[name].check(names.get(name, name), values[name])
    copies = count_copies(rule, values)
    columns: list[list[float]] = []
    for name in rule.row:
        if name == "copies":
            columns.append([copies] * copies)
        elif name == rule.vector:
            label = names.get(name, name)
            columns.append([rule.hyper[name].check(f"{label}[{i}]", beta) for i, beta in enumerate(values[name])])
        else:
            columns.append([rule.hyper[name].check(names.get(name, name), values[name])] * copies)
    rows = list(zip(*columns, strict=True))
    _check_range(rule, rows, names, dtype, t)
    return np.array(rows, np.float64)


def frozen(values: Iterable[Any]) -> tuple[Any, ...] | None:
    """Hyper-parameters to compare with later ones; None where one may change unseen: an array, or a callable."""
    fixed = []
    for value in values:
        if isinstance(value, (list, tuple)):
            value = tuple(value)
        for leaf in value if isinstance(value, tuple) else (value,):
            if not isinstance(leaf, _FIXED):
                return None
        fixed.append(value)
    return tuple(fixed)


def check_held(name: str, value: float, dtype: np.dtype) -> None:
    """Check that a dtype can hold a number.

    Raises
    ------
    ValueError
        The number is finite, and beyond it.
    """
    if _LARGEST[dtype] < abs(value) < math.inf:
        expected = f"a number that {dtype} holds, in which the update is computed: at most {_LARGEST[dtype]:.8g}"
        raise wrong_value(name, value, expected)


def _check_range(
    rule: Rule, rows: Sequence[tuple[float, ...]], names: Mapping[str, str], dtype: np.dtype, t: int
) -> None:
    """Check that a dtype can hold hyper-parameters and the coefficients of step t: infinity times 0 would be NaN."""
    largest = _LARGEST[dtype]
    for row in rows:
        if row[0] > 1e-15 and max(row) < 1e15 and min(row) > -1e15:  # whose products and quotients all can hold
            continue
        coefficients, _ = rule.fold_row(float(t), row, tuple(rule.scalars.values()))
        if max(map(abs, (*row, *coefficients))) <= largest:
            continue
        for name, value in zip(rule.row, row, strict=True):
            check_held(names.get(name, name), value, dtype)
        for name, value in zip(rule.coefficients, coefficients, strict=True):
            if not abs(value) <= largest:
                raise ValueError(
                    f"{names.get('lr', 'lr')}: found {row[0]!r}, which with the other hyper-parameters makes {name} "
                    f"{value:g} at step {t}, expected a number that {dtype} holds: at most {largest:.8g}"
                )


def count_copies(rule: Rule, values: Mapping[str, Any]) -> int:
    """Count the copies of its states that the rule has with these hyper-parameters."""
    if rule.vector is None:
        return 1
    vector = values[rule.vector]
    try:
        copies = None if isinstance(vector, (str, bytes)) else len(vector)
    except Exception:  # it has no length
        copies = None
    if copies is None:
        raise wrong_type(rule.vector, vector, rule.hyper[rule.vector].domain)
    if not 1 <= copies <= MAX_COPIES:
        raise ValueError(f"{rule.vector}: found {copies} values, expected 1 to {MAX_COPIES}")
    return copies
