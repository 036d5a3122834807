"""Values in blocks of 8-bit floats, and back."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from ..arrays.array import Array
from ..arrays.blocks import BLOCK_BYTES, QUANT_BLOCK, block_bytes
from ..backends.choice import ieee_arithmetic


def _in_ieee_arithmetic(convert: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Wrap a conversion so that it does not depend on the calling thread's arithmetic."""

    @wraps(convert)
    def converted(*args: Any) -> np.ndarray:
        with ieee_arithmetic():
            return convert(*args)

    return converted


@_in_ieee_arithmetic
def blocks_of(values: np.ndarray, positive: bool) -> np.ndarray:
    """Values in blocks of 8-bit floats, each rounded to the nearest.

    Parameters
    ----------
    values : numpy.ndarray
        Finite numbers, in the order of the blocks' elements.
    positive : bool
        True for states that are never negative.

    Returns
    -------
    numpy.ndarray, uint8
        Blocks of a float32 scale and 256 codes.
    """
    flat = np.zeros((-(-values.size // QUANT_BLOCK), QUANT_BLOCK), np.float32)
    flat.reshape(-1)[: values.size] = values.reshape(-1)
    scale = np.abs(flat).max(1, keepdims=True) / _top(positive)
    near = np.abs(flat) / np.where(scale > 0, scale, 1)
    if positive:
        codes = (np.maximum(near.view(np.int32), 0x30000000) + 0x80000 >> 20) & 0xFF
    else:
        codes = ((near + np.float32(2**-15)).view(np.int32) + 0x80000 >> 20) & 0x7F | np.signbit(flat) << 7
    blocks = np.empty((len(flat), BLOCK_BYTES), np.uint8)
    blocks[:, :4] = scale.astype(np.float32).view(np.uint8)
    blocks[:, 4:] = codes
    blocks.reshape(-1)[blocks.size - (flat.size - values.size) :] = 0
    return blocks.reshape(-1)


@_in_ieee_arithmetic
def values_of(blocks: np.ndarray, positive: bool, size: int) -> np.ndarray:
    """The float32 values that blocks stand for, in order; see `blocks_of`."""
    table = blocks.reshape(-1, BLOCK_BYTES)
    scale = np.ascontiguousarray(table[:, :4]).view(np.float32)
    codes = table[:, 4:].astype(np.int32)
    if positive:
        values = (codes << 20 | 0x30000000).view(np.float32) * np.abs(scale)
    else:
        values = ((codes << 20 & 0x07F00000 | 0x38000000).view(np.float32) - np.float32(2**-15)) * np.abs(scale)
        values = np.copysign(values, np.where(codes & 0x80, np.float32(-1), np.float32(1)))
    values[np.signbit(scale) & (codes == (0 if positive else 0x80))] = np.nan
    return values.reshape(-1)[:size]


def to_blocks(values: np.ndarray, positive: bool, param: Array) -> np.ndarray:
    """A state's values, of the parameter's shape or of several such, in blocks that lie as the parameter does."""
    copies = values.shape[: values.ndim - len(param.shape)]
    rows = [blocks_of(row.transpose(param.order), positive) for row in values.reshape(-1, *param.shape)]
    return np.stack(rows).reshape(*copies, -1)


def from_blocks(blocks: np.ndarray, positive: bool, param: Array) -> np.ndarray:
    """The float32 values that a state's blocks stand for, of the parameter's shape or of several such."""
    copies = blocks.shape[:-1]
    rows = blocks.reshape(-1, block_bytes(param.size))
    values = np.concatenate([values_of(row, positive, param.size) for row in rows])
    whole = values.reshape(*copies, *(param.shape[axis] for axis in param.order))
    axes = range(len(copies), whole.ndim)
    return np.moveaxis(whole, axes, [axis + len(copies) for axis in param.order])


def _top(positive: bool) -> np.float32:
    return np.float32(1.875 if positive else 1.875 - 2**-15)
