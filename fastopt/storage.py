"""How arrays are stored: in which floats, and what becomes of the bits that these cannot hold."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from itertools import accumulate
from typing import Any

import numpy as np

from .arrays import BFLOAT16, CPU, Array, dtype_name
from .checks import check_integer, check_name, check_number, did_you_mean, wrong_value
from .rules import Rule

#: The numbers by which backends know how an array is stored.
CODES: dict[np.dtype, int] = {np.dtype(np.float32): 0, np.dtype(np.float64): 1, BFLOAT16: 2, np.dtype(np.float16): 3}
SIGNED, POSITIVE = 4, 5  # blocks of 8-bit floats: of states that may be negative, and of those that never are
BLOCK = 256  # elements that share a scale
BLOCK_BYTES = BLOCK + 4
SMALLEST_IN_BLOCKS = 4096  # parameters of fewer elements have float32 states instead
# The options of a tensor's storage, a sum of these.
STOCHASTIC, KAHAN, MASTER, AVERAGE, ZERO_GRADS, DITHER = 1, 2, 4, 8, 16, 32
_KEPT = {"nearest": 0, "stochastic": STOCHASTIC, "kahan": KAHAN, "master": MASTER}
_STATE_DTYPES: dict[str, np.dtype] = {**{dtype_name(dtype): dtype for dtype in CODES}, "8bit": np.dtype(np.uint8)}


@dataclass(frozen=True)
class Storage:
    """How the arrays of a job are stored, where that is not in the compute dtype alone.

    Attributes
    ----------
    dtypes : tuple of int
        Of each array, by `CODES`: parameter, gradient, states, the parameter's companion, its average.
    options : int
        A sum of `STOCHASTIC` and the others.
    average_decay : float
        Of the parameter's average.
    seed : int
        Of stochastic rounding.
    """

    dtypes: tuple[int, ...]
    options: int = 0
    average_decay: float = 0.0
    seed: int = 0

    @property
    def numbered(self) -> bool:
        """Whether elements need numbers: for what is rounded by them, and for what is in blocks."""
        return bool(self.options & (STOCHASTIC | DITHER)) or self.blocks

    @property
    def blocks(self) -> bool:
        """Whether a state is in blocks."""
        return max(self.dtypes) >= SIGNED


@dataclass(frozen=True)
class Precision:
    """What an optimizer was told about storage: the arguments of that name of its class."""

    state_dtype: np.dtype | None = None
    rounding: str = "nearest"
    seed: int = 0
    first_element: int = 0
    ema_decay: float | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Precision:
        """The arguments, checked.

        Raises
        ------
        TypeError, ValueError
            One is not what it must be; the message names it.
        """
        rounding, decay = options["rounding"], options["ema_decay"]
        check_name("rounding", rounding, _KEPT)
        if decay is not None:
            decay = check_number("ema_decay", decay, 0, 1, expected="a number in [0, 1] or None")
        seed = check_integer("seed", options["seed"], 0, 2**64 - 1, "a whole number >= 0, below 2**64")
        first = options["first_element"]
        first = check_integer("first_element", first, 0, 2**62 - 1, "a whole number >= 0, below 2**62")
        return cls(storage_dtype(options["state_dtype"]), rounding, seed, first, decay)

    def of_group(self, group: Mapping[str, Any]) -> Precision:
        """The same for parameters of a group that has a ``state_dtype`` of its own."""
        return replace(self, state_dtype=storage_dtype(group["state_dtype"])) if "state_dtype" in group else self

    def elements(self, sizes: Sequence[int]) -> list[int]:
        """The number of the first element of each of an optimizer's parameters."""
        return [self.first_element + before for before in accumulate(sizes, initial=0)][:-1]

    @property
    def counted(self) -> bool:
        """Whether a step's number decides how something is rounded."""
        return self.rounding == "stochastic" or (self.state_dtype is not None and self.state_dtype.itemsize < 4)

    def options(self, param: Array) -> int:
        """The options of a parameter's storage."""
        options = 0 if self.ema_decay is None else AVERAGE
        if self.state_dtype is not None and self.state_dtype.itemsize == 2:
            options |= DITHER
        return options | (_KEPT[self.rounding] if param.dtype.itemsize == 2 else 0)

    def check(self, param: Array, name: str) -> None:
        """Whether a parameter can have such states.

        Raises
        ------
        TypeError
            A float64 parameter, whose states are float64, or another whose states are not.
        """
        if self.state_dtype is not None and (self.state_dtype == np.float64) != (param.dtype == np.float64):
            one = "float64" if param.dtype == np.float64 else "float32, bfloat16, float16 or 8bit"
            found = "8bit" if self.state_dtype == np.uint8 else dtype_name(self.state_dtype)
            raise TypeError(f"state_dtype: found {found!r}, expected {one}, as {name} is {dtype_name(param.dtype)}")

    def states(self, rule: Rule, param: Array, copies: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """The dtype and shape of each state array of a parameter, those that storage adds among them."""
        shape = rule.state_shape(param.shape, copies)
        # In float16 a second moment is lost below 6e-8, and infinite above 65504.
        dtype = self.state_dtype or (np.dtype(np.float32) if param.dtype == np.float16 else param.dtype)
        if dtype == np.uint8:
            if param.size >= SMALLEST_IN_BLOCKS and not rule.by_row and is_one_run(param):
                shape = (*shape[: len(shape) - len(param.shape)], block_bytes(param.size))
            else:
                dtype = np.dtype(np.float32)
        states = dict.fromkeys(rule.states, (dtype, shape))
        options, compute = self.options(param), compute_dtype(param.dtype)
        if options & KAHAN:
            states["compensation"] = (param.dtype, param.shape)
        if options & MASTER:
            states["master"] = (compute, param.shape)
        if options & AVERAGE:
            states["ema"] = (compute, param.shape)
        return states


def storage_dtype(value: Any) -> np.dtype | None:
    """The dtype that is meant by a name or by a dtype of NumPy, ml_dtypes or torch; that of bytes for "8bit"."""
    if value is None:
        return None
    name = value if isinstance(value, str) else _name_of(value).removeprefix("torch.")
    if name not in _STATE_DTYPES:
        meant = did_you_mean(name, _STATE_DTYPES) if isinstance(value, str) else ""
        raise wrong_value("state_dtype", value, f"one of {', '.join(_STATE_DTYPES)}, or None{meant}")
    return _STATE_DTYPES[name]


def _name_of(dtype: Any) -> str:
    """The name of a library's dtype, or of its scalar type."""
    try:
        return str(getattr(dtype, "__name__", dtype))
    except Exception:  # of what is no dtype
        return ""


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """In what a parameter of that dtype is updated."""
    return np.dtype(np.float64) if dtype == np.float64 else np.dtype(np.float32)


def block_bytes(size: int) -> int:
    """How many bytes so many elements take in blocks."""
    return -(-size // BLOCK) * BLOCK_BYTES


def is_one_run(array: Array) -> bool:
    """Whether an array's elements lie one behind the other, in any order of its axes."""
    step = array.dtype.itemsize
    for stride, n in sorted((s, n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride != step:
            return False
        step *= n
    return True


def code_of(rule: Rule, state: str | None, array: Array) -> int:
    """By which number backends know how an array is stored."""
    if state is not None and array.dtype == np.uint8:
        return POSITIVE if state in rule.positive else SIGNED
    return CODES[array.dtype]


def _in_ieee_arithmetic(convert: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The same conversion, whatever the calling thread's arithmetic is set to."""

    @wraps(convert)
    def converted(*args: Any) -> np.ndarray:
        from .dispatch import ieee_arithmetic  # which knows storage

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
    flat = np.zeros((-(-values.size // BLOCK), BLOCK), np.float32)
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


def new_array(like: Any, array: Array, dtype: np.dtype, shape: tuple[int, ...], value: Any) -> Any:
    """A new array of the kind of `like`, whose view is `array`: of its memory order if of its shape.

    Raises
    ------
    MemoryError
        There is too little memory. (torch's own error is a RuntimeError.)
    ModuleNotFoundError
        NumPy's bfloat16 is needed, which ml_dtypes brings.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        kind = getattr(torch, dtype_name(dtype))
        like = like.detach()
        return (
            torch.full_like(like, value, dtype=kind)
            if shape == array.shape
            else like.new_full(shape, value, dtype=kind)
        )
    real = numpy_dtype(dtype) if dtype == BFLOAT16 else dtype
    if array.place is not CPU:
        from .backends import numba_cuda

        return numba_cuda.new_array(like, array, real, shape, value)
    # np.zeros takes fresh pages, zeroed when first touched; an order is kept where full_like can keep it.
    if value == 0 and (array.dense or shape != array.shape):
        return np.zeros(shape, real)
    if shape != array.shape:
        return np.full(shape, value, real)
    return np.full_like(array.numpy(), value, real, subok=False)


def assign(own: Any, value: Any) -> None:
    """Writes all elements of an array that `new_array` made: a number, or an array of any kind."""
    if isinstance(own, np.ndarray) or hasattr(own, "detach"):
        own[...] = value
        return
    from .backends import numba_cuda

    numba_cuda.assign(own, value)


def set_to_zero(array: Array) -> None:
    """Sets all elements of an array to zero."""
    if array.place.kind == "cpu":
        array.numpy()[...] = 0
    else:
        assign(array.owner.detach() if hasattr(array.owner, "detach") else array.owner, 0)


def numpy_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype by which NumPy computes with it.

    Raises
    ------
    ModuleNotFoundError
        ml_dtypes is needed and not here.
    """
    if dtype != BFLOAT16:
        return dtype
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        raise ModuleNotFoundError("NumPy has bfloat16 from ml_dtypes: pip install ml_dtypes") from None
    return np.dtype(ml_dtypes.bfloat16)
