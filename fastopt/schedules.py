"""Schedules: hyper-parameters that depend on the step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Demon:
    """Decaying momentum (Chen et al. 2022, arXiv:1910.04952): for any momentum or beta.

    ``beta_t = beta*(1 - t/T)/((1 - beta) + beta*(1 - t/T))``, and 0 from t = T on.

    Parameters
    ----------
    total : int
        T, the number of steps; at least 1.
    beta : float
        The value that it begins at, in [0, 1); default 0.9.

    Raises
    ------
    ValueError
        `total` or `beta` is out of range.

    Examples
    --------
    >>> Demon(total=100)(100)
    0.0
    """

    total: int
    beta: float = 0.9

    def __post_init__(self) -> None:
        if not self.total >= 1:
            raise ValueError(f"total: found {self.total!r}, expected a number of steps >= 1")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta: found {self.beta!r}, expected a number in [0, 1)")

    def __call__(self, t: int) -> float:
        """The value at the 1-based step `t`."""
        left = max(0.0, 1.0 - t / self.total)
        return self.beta * left / ((1.0 - self.beta) + self.beta * left)
