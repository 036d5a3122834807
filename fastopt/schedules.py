"""Schedules: hyper-parameters that depend on the step."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import check_number, wrong_value


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
    TypeError, ValueError
        `total` or `beta` is no number, or out of range.

    Examples
    --------
    >>> Demon(total=100)(100)
    0.0
    """

    total: int
    beta: float = 0.9

    def __post_init__(self) -> None:
        check_number("total", self.total, 1, expected="a number of steps >= 1")
        if check_number("beta", self.beta, 0, 1, expected="a number in [0, 1)") == 1:
            raise wrong_value("beta", self.beta, "a number in [0, 1)")

    def __call__(self, t: float) -> float:
        """The value at the 1-based step `t`."""
        t = check_number("t", t, 1, expected="a step >= 1")
        left = max(0.0, 1.0 - t / self.total)
        return self.beta * left / ((1.0 - self.beta) + self.beta * left)
