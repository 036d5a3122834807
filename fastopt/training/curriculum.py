"""Curricula: examples in the order of their difficulty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checks import check_integer, check_name, differing, wrong_type, wrong_value

STRATEGIES = ("naive", "mixed", "combined")
_KEYS = ("seed", "batch", "level", "strategy", "levels", "examples")


class Curriculum:
    """Examples of growing difficulty, level by level.

    Bengio, Louradour, Collobert and Weston 2009, "Curriculum learning"; the strategies are Zaremba and Sutskever's of
    2014 (arXiv:1410.4615, section 4). An example of a batch is drawn from a level, each example of that alike::

        naive       the present level, from 1 on; `advance` goes to the next once learning makes no more progress
        mixed       any of the levels, each alike
        combined    by a coin, as naive or as mixed

    Naive alone forgets what is easy, and meets what is hard unprepared; mixed spends time on what is too hard at first.

    Parameters
    ----------
    difficulty : array_like
        A number for each example, as the length of a sentence. Where examples are made as they are needed, the levels
        themselves, once each: what is drawn are the numbers of levels then.
    strategy : str
        "naive", "mixed" or "combined" (default).
    levels : int, optional
        The number of levels, with as many examples in each but for ties; by default each distinct difficulty is one.
    seed : int
        Of the draws, which depend on it and the number of the batch alone; default 0.

    Attributes
    ----------
    level, levels : int
        The present level, from 1, and their number.
    batch : int
        The batches that were drawn.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; the message names it.

    Examples
    --------
    Sums of numbers with one to four digits; `EarlyStopping` says when a level's loss falls no more:

    >>> import numpy as np
    >>> from fastopt.training import Curriculum, EarlyStopping
    >>> curriculum = Curriculum([1, 2, 3, 4], "combined", seed=0)
    >>> stopping = EarlyStopping(patience=2, restore_best=False)
    >>> for loss in (0.9, 0.5, 0.6, 0.5, 0.4):
    ...     digits = 1 + curriculum.draw(6)  # of each example
    ...     numbers = np.random.default_rng(0).integers(10 ** (digits - 1), 10**digits, (2, 6))
    ...     if stopping.step(loss):
    ...         curriculum.advance()
    ...         stopping = EarlyStopping(patience=2, restore_best=False)
    >>> curriculum.level, curriculum.levels, digits.shape
    (2, 4, (6,))
    """

    def __init__(
        self,
        difficulty: Any,
        strategy: str = "combined",
        *,
        levels: int | None = None,
        seed: int = 0,
    ) -> None:
        try:
            values = np.asarray(difficulty)
        except (TypeError, ValueError):
            raise wrong_type("difficulty", difficulty, "an array of numbers") from None
        if values.dtype.kind not in "fiu":
            raise wrong_type("difficulty", difficulty, "an array of numbers")
        if values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise wrong_value("difficulty", difficulty, "a finite number for each example, at least one")
        self.strategy = check_name("strategy", strategy, STRATEGIES)
        self._seed = check_integer("seed", seed, 0)
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        if levels is not None:
            number = check_integer(
                "levels",
                levels,
                1,
                len(starts),
                f"an integer from 1 to {len(starts)}, the number of distinct difficulties",
            )
            # The cuts among those between distinct difficulties that are nearest to equal shares, none of them twice.
            shares = np.arange(number) * values.size / number
            places = np.searchsorted(starts, shares)
            places = np.maximum.accumulate(places - np.arange(number)) + np.arange(number)
            starts = starts[np.minimum(places, len(starts) - number + np.arange(number))]
        self._starts = starts
        self._sizes = np.diff(starts, append=values.size)
        self.level = 1
        self.batch = 0

    @property
    def levels(self) -> int:
        """The number of levels."""
        return len(self._starts)

    def draw(self, size: int) -> np.ndarray:
        """Draw a batch.

        Parameters
        ----------
        size : int
            The number of examples.

        Returns
        -------
        numpy.ndarray of int64
            The places of examples in `difficulty`, in no order, and maybe one of them more than once.

        Raises
        ------
        TypeError, ValueError
            `size` is no number of examples.
        """
        size = check_integer("size", size, 1, 2**31 - 1)
        random = np.random.default_rng((self._seed, self.batch))
        drawn = random.integers(self.levels, size=size)
        if self.strategy == "naive":
            drawn[:] = self.level - 1
        elif self.strategy == "combined":
            drawn[random.integers(2, size=size) == 0] = self.level - 1
        self.batch += 1
        return self._order[self._starts[drawn] + random.integers(self._sizes[drawn])]

    def advance(self) -> None:
        """Go to the next level, if there is one."""
        self.level = min(self.level + 1, self.levels)

    def state_dict(self) -> dict[str, Any]:
        """The place in the curriculum, as plain data: numbers and the strategy's name."""
        return {
            "seed": self._seed,
            "batch": self.batch,
            "level": self.level,
            "strategy": self.strategy,
            "levels": self.levels,
            "examples": len(self._order),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the place that `state_dict` told.

        Parameters
        ----------
        state_dict : mapping
            From `state_dict`.

        Raises
        ------
        TypeError, ValueError
            It is of another curriculum, or no such state; nothing has changed.
        """
        if not isinstance(state_dict, Mapping):
            raise wrong_type("state_dict", state_dict, "what state_dict() returned")
        if set(state_dict) != set(_KEYS):
            raise ValueError(f"state_dict: found {sorted(map(str, state_dict))}{differing(state_dict, _KEYS)}")
        for key, own in self.state_dict().items():
            if key in ("strategy", "levels", "examples") and state_dict[key] != own:
                raise wrong_value(f"state_dict['{key}']", state_dict[key], f"{own!r}, as here")
        seed = check_integer("state_dict['seed']", state_dict["seed"], 0)
        batch = check_integer("state_dict['batch']", state_dict["batch"], 0)
        level = check_integer("state_dict['level']", state_dict["level"], 1, self.levels)
        self._seed, self.batch, self.level = seed, batch, level

    def __repr__(self) -> str:
        return (
            f"Curriculum({len(self._order)} examples, {self.strategy}; level {self.level} of {self.levels}, "
            f"batch {self.batch})"
        )
