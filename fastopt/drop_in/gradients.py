"""Gradients as torch has them: some are sparse, some stand for values that no memory has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch

from ..arrays.array import Array, replace_shape
from ..binding.sparse import RowSparse, as_row_sparse
from ..jobs.job import Rows
from ..jobs.tables import check_rows
from ..rules import Rule


def readable(grads: Sequence[Any]) -> tuple[Any, ...]:
    """Gradients, with copies of those whose memory is not what they stand for."""
    return tuple(g if g is None or not (g.is_neg() or g._is_zerotensor()) else _materialized(g) for g in grads)


def _materialized(grad: torch.Tensor) -> torch.Tensor:
    if grad.is_neg():
        return grad.detach().resolve_neg()
    return torch.zeros(grad.shape, dtype=grad.dtype, device=grad.device)


def rows_of(grad: torch.Tensor, name: str) -> RowSparse:
    """A sparse gradient's rows, numbered through all its sparse dimensions."""
    if grad.layout is not torch.sparse_coo or grad.sparse_dim() == 1:
        rows = as_row_sparse(grad, name)
        assert rows is not None  # it was found to be sparse
        return rows
    first, *others = grad._indices()
    for index, n in zip(others, grad.shape[1:], strict=False):
        first = first * n + index
    return RowSparse(first, grad._values())


def part(grads: Sequence[Any], names: Mapping[int, Sequence[str]]) -> tuple[list[bool], tuple[Any, ...], list[Any]]:
    """Part dense gradients from those that are sparse, and from None.

    Returns
    -------
    list of bool
        True for each that is dense.
    tuple of torch.Tensor
        Those.
    list of (int, RowSparse, str)
        The number, the rows and the name of each that is sparse; `names` are of a parameter and its gradient.
    """
    present = [g is not None and not g.is_sparse for g in grads]
    sparse = [i for i, (g, dense) in enumerate(zip(grads, present, strict=True)) if g is not None and not dense]
    return present, tuple(compress(grads, present)), [(i, rows_of(grads[i], names[i][1]), names[i][1]) for i in sparse]


def check_sparse(rule: Rule, arrays: list[Any], names: Sequence[str]) -> tuple[list[Array], Rows]:
    """Checks a tensor that is updated by rows; of several sparse dimensions, rows are what they name together.

    Raises
    ------
    TypeError, ValueError
        As `fastopt.jobs.tables.check_rows`.
    """
    param, grad, *states = arrays
    lead = 1 + len(param.shape) - len(grad.values.shape)
    if lead > 1 and not rule.by_row and all(array.dense for array in (param, *states)):
        shape = (-(-param.size // max(1, math.prod(param.shape[lead:]))), *param.shape[lead:])
        param, *states = (
            array if array.dtype == np.uint8 else replace_shape(array, shape) for array in (param, *states)
        )
    return check_rows(rule, [param, grad, *states], names)


def absent_like(param: Array) -> Array:
    """A stand-in for a gradient that is not there: one laid out as the parameter, at no address."""
    return Array(None, 0, param.dtype, param.shape, None if param.dense else param.strides, param.place)
