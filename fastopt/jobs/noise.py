"""Gradient noise, in its terms: variance, power of the step, seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..checks import check_integer, check_number, wrong_type


@dataclass(frozen=True)
class GradientNoise:
    """Normal noise that steps add to the gradient, less and less of it (Neelakantan et al. 2015, arXiv:1511.06807).

    ::

        g += N(0, eta/(1 + t)^gamma)

    with t = 0 in a parameter's first step. It comes after ``grad_scale`` and all clipping, whose norms do not
    count it, and before weight decay. It is added within the pass over the arrays.

    Every element has a deviate of its own, which depends on nothing but the seed, the step, and the number of the
    element (see ``first_element`` of `fastopt.Optimizer`): the bits are the same on every backend, with any number of
    threads, for any strides, and in shards. Deviates are of float32, by Box and Muller (1958) from the bits of
    Philox4x32-7 (Salmon et al. 2011), and reach 6.55; float64 parameters have the same ones. Of a
    `fastopt.RowSparse` gradient, the rows that it names have noise, and the others none.

    A state dict tells of it, and only an optimizer with the same noise loads it: construct the one that goes on with a
    training so. The functions of `fastopt.numba` take the gradient as it is, and add none.

    Parameters
    ----------
    eta : float, default 0.3
        Variance in the first step, from 0 to 1e38. The paper chooses among 0.01, 0.3 and 1.
    gamma : float, default 0.55
        Power of the step by which the variance falls, from 0 to 1e38; 0 keeps it.
    seed : int, default 0
        Seed, from 0 to 2**64 - 1.

    Raises
    ------
    TypeError, ValueError
        A value is no number, or outside its domain.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.zeros(4, np.float32)
    >>> opt = fastopt.SGD(p, lr=1.0, gradient_noise=fastopt.GradientNoise(eta=0.01, seed=7))
    >>> opt.step(np.zeros_like(p))
    >>> [round(float(x), 4) for x in p]
    [-0.0394, 0.0507, -0.0293, -0.0895]
    """

    eta: float = 0.3
    gamma: float = 0.55
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", check_number("eta", self.eta, 0, 1e38))
        object.__setattr__(self, "gamma", check_number("gamma", self.gamma, 0, 1e38))
        seed = check_integer("seed", self.seed, 0, 2**64 - 1, "a whole number >= 0, below 2**64")
        object.__setattr__(self, "seed", seed)

    def __repr__(self) -> str:
        return f"GradientNoise(eta={self.eta}, gamma={self.gamma}, seed={self.seed})"

    def deviation(self, step: int) -> float:
        """The standard deviation in a step.

        Parameters
        ----------
        step : int
            The step, counted from 1.

        Returns
        -------
        float
            The square root of ``eta/step**gamma``.
        """
        try:
            return math.sqrt(self.eta / math.pow(step, self.gamma))
        except OverflowError:
            return 0.0


def check_noise(value: Any) -> GradientNoise | None:
    """Gradient noise, or None, as the argument ``gradient_noise``.

    Raises
    ------
    TypeError
        It is neither.
    """
    if value is not None and not isinstance(value, GradientNoise):
        raise wrong_type("gradient_noise", value, "a fastopt.GradientNoise or None")
    return value
