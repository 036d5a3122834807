"""Internal. States of whole parameters from those of their parts, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays.array import Array
from ..arrays.blocks import BLOCK_BYTES, QUANT_BLOCK, block_bytes
from ..arrays.dtypes import BFLOAT16, numpy_dtype
from ..arrays.libraries import to_host, view
from ..arrays.libraries.torch import detached
from ..binding.blocks import from_blocks
from ..rules import Rule
from ..statedict import read_state_dict
from .shards import Span


def host_values(value: Any, name: str) -> Any:
    """A state as NumPy has it: an array on the CPU, or a number as it is."""
    if not hasattr(value, "dtype"):
        return value
    array = view(detached(value), name)
    values = to_host(array)
    return values.view(numpy_dtype(BFLOAT16)) if array.dtype == BFLOAT16 else values


def join_states(
    parts: Sequence[tuple[Span, Mapping[str, Any]]],
    params: Sequence[Array],
    rules: Sequence[Rule],
    copies: Sequence[int],
) -> dict[int, dict[str, Any]]:
    """The states of whole parameters, from those of their parts in order."""
    of_each: dict[int, list[Mapping[str, Any]]] = {i: [] for i in range(len(params))}
    for span, state in parts:
        of_each[span.parameter].append(state)
    whole: dict[int, dict[str, Any]] = {}
    for i, states in of_each.items():
        rule, param = rules[i], params[i]
        whole[i] = {}
        for name in states[0]:
            found = [host_values(state[name], name) for state in states]
            if name == "step" or name in rule.scalars:
                whole[i][name] = np.array(found[0])
                continue
            rows = copies_in(rule, name, copies[i])
            joined = np.concatenate([values.reshape(rows, -1) for values in found], axis=1)
            whole[i][name] = joined.reshape(state_shape(rule, name, param, copies[i], joined.dtype))
    return whole


def copies_in(rule: Rule, name: str, copies: int) -> int:
    """The number of arrays like the parameter that one state is."""
    return copies if rule.vector and name in rule.state_names else 1


def state_shape(rule: Rule, name: str, param: Array, copies: int, dtype: np.dtype) -> tuple[int, ...]:
    """The shape of a parameter's whole state that is stored in a dtype."""
    shape = rule.state_shape(name, param.shape, copies)
    if dtype == np.uint8:
        return (*shape[: len(shape) - len(param.shape)], block_bytes(param.size))
    return shape


def split_states(
    state_dict: Any, sizes: Sequence[int], tables: Sequence[Any], params: Sequence[Array], rules: Sequence[Rule]
) -> dict[str, Any]:
    """The state dict of parts of parameters, from that of whole ones.

    Raises
    ------
    TypeError, ValueError
        It is none of these parameters.
    """
    order, groups, states = read_state_dict(state_dict, sizes)
    state: dict[int, dict[str, Any]] = {}
    for k, (span, shape) in enumerate(tables):
        i = span.parameter
        state[k] = {}
        for name, value in states.get(order[i], {}).items():
            where = f"state_dict['state'][{order[i]!r}][{name!r}]"
            state[k][name] = part_of(value, name, span, shape, params[i], rules[i], where)
    counted = iter(range(len(tables)))
    parts = []
    first = 0
    for group, size in zip(groups, sizes, strict=True):
        own = sum(first <= span.parameter < first + size for span, _ in tables)
        parts.append({**group, "params": [next(counted) for _ in range(own)]})
        first += size
    return {"state": state, "param_groups": parts}


def part_of(value: Any, name: str, span: Span, shape: tuple[int, ...], param: Array, rule: Rule, where: str) -> Any:
    """The part of a whole state that belongs to some elements of its parameter.

    Raises
    ------
    ValueError
        The state is not of the parameter's size.
    """
    if name == "step" or name in rule.scalars or not hasattr(value, "dtype"):
        return value
    values = host_values(value, where)
    if values.ndim == 0:
        return values
    if values.dtype == np.uint8:
        copies = values.shape[:-1]
        if values.shape[-1] != block_bytes(param.size):
            raise ValueError(f"{where}: found {values.shape[-1]} bytes, expected {block_bytes(param.size)} of blocks")
        if span.begin % QUANT_BLOCK == 0 and (span.end % QUANT_BLOCK == 0 or span.end == param.size):
            begin = span.begin // QUANT_BLOCK * BLOCK_BYTES
            return values[..., begin : begin + block_bytes(span.end - span.begin)]
        values = from_blocks(values, name in rule.positive, param)
        values = values.reshape(*copies, *param.shape)
    if rule.by_row and name in rule.state_names:
        width = math.prod(param.shape[1:])
        if values.shape != param.shape[:1]:
            raise ValueError(f"{where}: found shape {values.shape}, expected {param.shape[:1]}")
        return values[span.begin // width : span.end // width]
    copies = values.shape[:1] if rule.vector and name in rule.state_names else ()
    if values.shape[len(copies) :] != param.shape:
        raise ValueError(f"{where}: found shape {values.shape}, expected {(*copies, *param.shape)}")
    flat = values.reshape(*copies, -1)
    return flat[..., span.begin : span.end].reshape(*copies, *shape)
