"""Storage formats (bfloat16, float16, 8-bit blocks) and rounding modes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from ..arrays.array import Array
from ..arrays.blocks import POSITIVE, SIGNED, block_bytes
from ..arrays.dtypes import CODES, compute_dtype, dtype_name
from ..arrays.runs import is_one_run
from ..checks import check_integer, check_name, check_number, describe, did_you_mean, wrong_value
from ..rules import FactoredRule, Rule
from .noise import GradientNoise, check_noise

SMALLEST_IN_BLOCKS = 4096  # parameters of fewer elements have float32 states instead
# The options of a tensor's storage, a sum of these.
STOCHASTIC, KAHAN, MASTER, AVERAGE, ZERO_GRADS, DITHER, NOISE, CLIP = 1, 2, 4, 8, 16, 32, 64, 128
#: The options with which gradients are scaled before the rule's prologue.
PREPARED = NOISE | CLIP
#: The entries of saved groups that tell what is drawn at random: the noise, and the seed of stochastic rounding.
DRAWN = ("gradient_noise", "stochastic_rounding")
_KEPT = {"nearest": 0, "stochastic": STOCHASTIC, "kahan": KAHAN, "master": MASTER}
_EXACT = ("kahan", "master")
_STATE_DTYPES: dict[str, np.dtype] = {**{dtype_name(dtype): dtype for dtype in CODES}, "8bit": np.dtype(np.uint8)}


@dataclass(frozen=True)
class Storage:
    """Storage of a job's arrays, where that is not in the compute dtype alone.

    Attributes
    ----------
    dtypes : tuple of int
        Of each array, by `CODES`: parameter, gradient, states, inputs, the parameter's companion, its average.
    options : int
        A sum of `STOCHASTIC` and the others.
    average_decay : float
        Of the parameter's average.
    seed : int
        Of stochastic rounding.
    noise : GradientNoise or None
        What is added to gradients.
    clip_value : float
        The most that magnitudes of scaled gradients are clipped to.
    """

    dtypes: tuple[int, ...]
    options: int = 0
    average_decay: float = 0.0
    seed: int = 0
    noise: GradientNoise | None = None
    clip_value: float = math.inf

    @property
    def numbered(self) -> bool:
        """Tell whether elements need numbers: for stochastic rounding, for blocks, and for noise."""
        return bool(self.options & (STOCHASTIC | DITHER | NOISE)) or self.blocks

    @property
    def blocks(self) -> bool:
        """Tell whether a state is in blocks."""
        return max(self.dtypes) >= SIGNED


@dataclass(frozen=True)
class StorageOptions:
    """The storage arguments of an optimizer: how its states are stored and its parameters rounded; and its noise."""

    state_dtype: np.dtype | None = None
    rounding: str = "nearest"
    seed: int = 0
    first_element: int = 0
    ema_decay: float | None = None
    noise: GradientNoise | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> StorageOptions:
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
        first = check_first_element(options["first_element"])
        noise = check_noise(options["gradient_noise"])
        return cls(_storage_dtype(options["state_dtype"]), rounding, seed, first, decay, noise)

    def of_group(self, group: Mapping[str, Any]) -> StorageOptions:
        """Copy the options for a group that has a ``state_dtype`` of its own."""
        return replace(self, state_dtype=_storage_dtype(group["state_dtype"])) if "state_dtype" in group else self

    def elements(self, sizes: Iterable[int]) -> list[int]:
        """The number of the first element of each of an optimizer's parameters."""
        return [self.first_element + before for before in accumulate(sizes, initial=0)][:-1]

    @property
    def counted(self) -> bool:
        """Tell whether a step's number decides how something is rounded, or which noise there is."""
        rounds = self.rounding == "stochastic" or (self.state_dtype is not None and self.state_dtype.itemsize < 4)
        return rounds or self.noise is not None

    def drawn(self) -> dict[str, Any]:
        """What is drawn at random, in plain data, as groups of state dicts tell it."""
        found: dict[str, Any] = {}
        if self.noise is not None:
            found["gradient_noise"] = (self.noise.eta, self.noise.gamma, self.noise.seed)
        if self.rounding == "stochastic":
            found["stochastic_rounding"] = self.seed
        return found

    def check_drawn(self, group: Mapping[str, Any], where: str) -> None:
        """Check that a saved group tells of the noise and the stochastic rounding that there are here, if of any.

        Rounding that keeps all bits takes the place of stochastic rounding.

        Raises
        ------
        ValueError
            It tells of others.
        """
        own = self.drawn()
        for name, argument in zip(DRAWN, ("gradient_noise", "rounding"), strict=True):
            found = group.get(name)
            found = tuple(found) if isinstance(found, list) else found  # as JSON has it
            if found is None or found == own.get(name) or (argument == "rounding" and self.rounding in _EXACT):
                continue
            given = f"rounding='stochastic', seed={describe(found)}"
            if argument == "gradient_noise":
                fields = isinstance(found, tuple) and len(found) == 3
                given = f"gradient_noise=GradientNoise{describe(found)}" if fields else "its gradient_noise"
            raise ValueError(
                f"{where}[{name!r}]: found {describe(found)}, expected {own.get(name)}, as this optimizer has: "
                f"construct it with {given} for the same run, or take the entry out of the state dict for another one"
            )

    def options(self, param: Array) -> int:
        """The options of a parameter's storage."""
        options = 0 if self.ema_decay is None else AVERAGE
        if self.noise is not None:
            options |= NOISE
        if self.state_dtype is not None and self.state_dtype.itemsize == 2:
            options |= DITHER
        return options | (_KEPT[self.rounding] if param.dtype.itemsize == 2 else 0)

    def check(self, param: Array, name: str) -> None:
        """Check that a parameter can have such states.

        Raises
        ------
        TypeError
            A float64 parameter, whose states are float64, or another whose states are not.
        """
        if self.state_dtype is not None and (self.state_dtype == np.float64) != (param.dtype == np.float64):
            one = "float64" if param.dtype == np.float64 else "float32, bfloat16, float16 or 8bit"
            found = "8bit" if self.state_dtype == np.uint8 else dtype_name(self.state_dtype)
            raise TypeError(f"state_dtype: found {found!r}, expected {one}, as {name} is {dtype_name(param.dtype)}")

    def check_rule(self, rule: Rule) -> None:
        """Check that states of a rule can be stored so.

        Raises
        ------
        ValueError
            The rule's states are in the dtype of computing only.
        """
        if isinstance(rule, FactoredRule) and self.state_dtype is not None and self.state_dtype.itemsize < 4:
            found = "8bit" if self.state_dtype == np.uint8 else dtype_name(self.state_dtype)
            raise ValueError(
                f"state_dtype: found {found!r}, expected None: the averages of {rule.optimizer} are in the dtype of "
                "computing, for they are few"
            )

    def states(self, rule: Rule, param: Array, copies: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """The dtype and shape of each state array of a parameter: those that storage adds behind the rule's, and last
        those of one number.
        """
        shape = rule.state_shape(rule.elements[0], param.shape, copies) if rule.elements else param.shape
        # In float16 a second moment is lost below 6e-8, and infinite above 65504.
        dtype = self.state_dtype or (np.dtype(np.float32) if param.dtype == np.float16 else param.dtype)
        if dtype == np.uint8:
            if param.size >= SMALLEST_IN_BLOCKS and not rule.by_row and is_one_run(param):
                shape = (*shape[: len(shape) - len(param.shape)], block_bytes(param.size))
            else:
                dtype = np.dtype(np.float32)
        states = dict.fromkeys(rule.elements, (dtype, shape)) | dict.fromkeys(
            rule.at_parameter, (param.dtype, param.shape)
        )
        if isinstance(rule, FactoredRule):
            own = rule.states_of(param.shape)
            states = {name: (compute_dtype(param.dtype), rule.state_shape(name, param.shape, copies)) for name in own}
        options = self.options(param)
        if options & MASTER:
            states.update(dict.fromkeys(rule.copies_of_parameter, (compute_dtype(param.dtype), param.shape)))
        if options & KAHAN:
            states["compensation"] = (param.dtype, param.shape)
        if options & MASTER:
            states["master"] = (compute_dtype(param.dtype), param.shape)
        if options & AVERAGE:
            states["ema"] = (compute_dtype(param.dtype), param.shape)
        return {**states, **dict.fromkeys(rule.singles, (compute_dtype(param.dtype), ()))}


def check_first_element(value: Any) -> int:
    """The number of an element, as the argument ``first_element``.

    Raises
    ------
    TypeError, ValueError
        It is none.
    """
    return check_integer("first_element", value, 0, 2**62 - 1, "a whole number >= 0, below 2**62")


def _storage_dtype(value: Any) -> np.dtype | None:
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


def code_of(rule: Rule, state: str | None, array: Array) -> int:
    """Return the backends' code for how an array is stored."""
    if state is not None and array.dtype == np.uint8:
        return POSITIVE if state in rule.positive else SIGNED
    return CODES[array.dtype]
