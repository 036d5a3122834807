"""Step counts and scalars of bound parameters: advanced by backends, set and read by users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..jobs.job import Progress
from ..rules import Rule
from .states import Numbers, number_of


class _Shared(NamedTuple):
    """A number that stays where its user has it, and the place where backends read and advance it."""

    tensor: torch.Tensor
    name: str
    label: str  # of its parameter
    array: np.ndarray
    place: tuple[int, ...]


class Counters:
    """The numbers of an optimizer's parameters, in tables.

    Parameters
    ----------
    numbers : Numbers
        The optimizer's.
    count : int
        How many parameters there are.
    on_device : torch.Tensor or None
        A tensor on the device where numbers are advanced; None if that is done on the CPU.
    """

    def __init__(self, numbers: Numbers, count: int, on_device: torch.Tensor | None) -> None:
        self._numbers, self._on_device = numbers, on_device
        self._steps = np.zeros(count, np.int64)
        self.counts = numbers.table("step", (count, 1), on_device)
        self.scalars: dict[int, torch.Tensor] = {}  # by the id of each set of parameters
        self._labels: dict[int, str] = {}  # of the parameters whose count is in the table
        self._live: np.ndarray | None = None  # counts that the user may set
        self._seen = b""
        self._shared: list[_Shared] = []

    def progress(self, rule: Rule, copies: int, rows: int, group: Sequence[int]) -> Progress:
        """The set of parameters under a rule; `group` is each parameter's row of hyper-parameters."""
        made = Progress.of(rule, copies, len(self._steps), rows, self._steps)
        made.group[:] = group
        table = self._numbers.table(rule.name, (len(self._steps), len(rule.scalars)), self._on_device)
        self.scalars[id(made)] = table
        if self._on_device is None:
            made.scalars = table.numpy()
        return made

    @property
    def tables(self) -> list[torch.Tensor]:
        """The tables of all numbers."""
        return [self.counts, *self.scalars.values()]

    def take(self, i: int, state: dict[str, Any], own: Progress, begun: bool | None, label: str) -> None:
        """Moves the numbers of a parameter's state to where backends advance them.

        Parameters
        ----------
        i : int
            The parameter's number.
        state : dict
            Its state.
        own : Progress
            Its set.
        begun : bool or None
            For states without a count: True after the first step.
        label : str
            What messages call the parameter.

        Raises
        ------
        TypeError, ValueError
            A number is not what it must be; the message names it.
        """
        if begun is not None:
            self._steps[i] = int(begun)
        elif self._move(state, "step", self.counts[i, 0], 0.0, self._steps, (i,), label):
            self._labels[i] = label
            if self._on_device is None and self._live is None:
                self._live = self.counts.numpy()[: len(self._steps), 0]
        for k, (name, begin) in enumerate(own.rule.scalars.items()):
            self._move(state, name, self.scalars[id(own)][i, k], begin, own.scalars, (i, k), label)

    def _move(
        self,
        state: dict[str, Any],
        name: str,
        cell: torch.Tensor,
        begin: float,
        array: np.ndarray,
        place: tuple[int, ...],
        label: str,
    ) -> bool:
        """Moves a number to its cell; False for one that is read and written where it is."""
        value = self._numbers.move(state, name, cell, begin, label)
        if value is None:
            self._shared.append(_Shared(state[name], name, label, array, place))
            return False
        array[place] = value
        return True

    def read(self) -> list[Any]:
        """Takes over numbers that users have set.

        Returns
        -------
        list of number
            Those that users hold, before the step: for `write`.

        Raises
        ------
        TypeError, ValueError
            A number is not what it must be; the message names it.
        """
        if self._live is not None and self._live.tobytes() != self._seen:
            for i, label in self._labels.items():
                self._steps[i] = number_of(self._live[i], f"'step' of {label}", "step")
            self._seen = self._live.tobytes()
        if not self._shared:
            return []
        for own in self._shared:
            own.array[own.place] = number_of(own.tensor, f"{own.name!r} of {own.label}", own.name)
        return [own.array[own.place] for own in self._shared]

    def take_back(self) -> None:
        """Tells states of numbers that backends have taken back."""
        if self._live is not None:
            self._live[...] = self._steps
            self._seen = self._live.tobytes()
        for own in self._shared:
            with torch.no_grad():
                own.tensor.fill_(own.array[own.place])

    def write(self, before: Sequence[Any]) -> None:
        """Tells states how far backends have counted."""
        if self._live is not None:
            self._live[...] = self._steps
            self._seen = self._live.tobytes()
        if before:
            with torch.no_grad():
                for own, last in zip(self._shared, before, strict=True):
                    if own.array[own.place] != last:  # counted as torch does, that no other process's count be lost
                        own.tensor.add_(1) if own.name == "step" else own.tensor.fill_(own.array[own.place])
