"""States of torch's parameters: what a parameter lacks of them, and numbers in tables that backends advance."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from itertools import chain, compress
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from ..arrays.array import Array
from ..arrays.libraries import view
from ..binding.states import new_state
from ..checks import check_number, wrong_type
from ..rules import EVERY_RULE, Rule
from ..statedict import COMPANIONS, step_count
from .groups import Groups, can_be_checked, is_counted
from .looks import addresses_of, places_of

#: All names that states have; others are the user's.
STATE_NAMES = {
    "step",
    "ema",
    *COMPANIONS,
    *chain.from_iterable((*r.state_names, *r.scalars) for r in EVERY_RULE.values()),
}

#: The dtype and shape of each of a parameter's state arrays.
Kinds = Mapping[str, tuple[np.dtype, tuple[int, ...]]]


def number_of(value: Any, label: str, name: str) -> float:
    """A number of a state, checked; a step count is one that float64 has exactly.

    Raises
    ------
    TypeError, ValueError
        It is something else; the message names it.
    """
    return float(step_count(value, label, 53)) if name == "step" else check_number(label, value)


class Numbers:
    """The numbers of states, as tensors: cells of tables that backends advance, and those made for them before."""

    def __init__(self) -> None:
        self._tables: dict[tuple[str, bool], torch.Tensor] = {}
        self._made: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()

    def make(self, value: float) -> torch.Tensor:
        """A number, which can be replaced by a cell."""
        with torch.inference_mode(False):
            made = torch.full((), value, dtype=torch.float64, device="cpu")
        self.adopt(made)
        return made

    def adopt(self, number: torch.Tensor) -> None:
        """Takes a number for one that `make` made."""
        self._made[id(number)] = number

    def are_own(self, number: Any) -> bool:
        """True for a number made here that no other process shares."""
        return isinstance(number, torch.Tensor) and self._made.get(id(number)) is number and not number.is_shared()

    def table(self, name: str, shape: tuple[int, int], on_device: torch.Tensor | None) -> torch.Tensor:
        """A table of numbers of all parameters, on the device of a tensor or on the CPU."""
        key = name, on_device is not None
        table = self._tables.get(key)
        # One that is shared with other processes is left to its users: what they hold is read and written there.
        if table is None or len(table) != shape[0] or (on_device is None and table.is_shared()):
            with torch.inference_mode(False):
                like = torch.empty(0, device="cpu") if on_device is None else on_device.detach()
                table = self._tables[key] = like.new_zeros(shape, dtype=torch.float64)
        return table

    def move(
        self, state: MutableMapping[str, Any], name: str, cell: torch.Tensor, begin: float, label: str
    ) -> float | None:
        """Puts a state's number into a cell, one that is not there yet as `begin`.

        Returns
        -------
        float or None
            The number; None for one that stays where it is, as one that others share.
        """
        number, value = state.get(name), begin
        if number is not None:
            value = number_of(number, f"{name!r} of {label}", name)
            if isinstance(number, torch.Tensor):
                if number.data_ptr() == cell.data_ptr():
                    return value
                if not (self.are_own(number) or cell.is_cuda or number.is_cuda):
                    return None
        with torch.no_grad():
            cell.fill_(value)
        state[name] = self._made[id(cell)] = cell
        return value


def check_entries(state: Mapping[str, Any], names: Iterable[str], label: str) -> None:
    """Checks that no entry is None, which only torch's own SGD has, for a buffer that is still to begin.

    Raises
    ------
    TypeError
        One is.
    """
    for name in names:
        if name in state and state[name] is None and name != "momentum_buffer":
            raise wrong_type(f"{name!r} of {label}", None, "a tensor, or no such entry before the first step")


def complete(
    state: MutableMapping[str, Any],
    p: torch.Tensor,
    param: Array,
    rule: Rule,
    kinds: Kinds,
    begins: Mapping[str, float],
) -> None:
    """Gives a parameter the state arrays that it lacks, as before the first step."""
    for name, (dtype, shape) in kinds.items():
        if state.get(name) is None:
            state[name] = new_state(p, param, rule, name, dtype, shape, begins.get(name, 0.0))


def begin_states(optimizer: Groups, group: Mapping[str, Any], own: Numbers, label: str) -> None:
    """Makes the states of a group's parameters."""
    rule = optimizer._arguments.rule(group)
    numbers = {**({"step": 0.0} if is_counted(optimizer) else {}), **rule.scalars}
    for p in filter(can_be_checked, group["params"]):
        param, state = view(p, "params"), optimizer.state[p]
        kinds = optimizer._storage.of_group(group).states(rule, param, 1)
        check_entries(state, (*numbers, *kinds), label)
        for name, begin in numbers.items():
            state.setdefault(name, own.make(begin))
        complete(state, p, param, rule, kinds, optimizer._arguments.begins(rule, group))


class Entries:
    """Entries of states by their names, read at once for all states that have the same names.

    They are read from where states are kept, so that a state that was replaced shows as one whose entries were.
    """

    def __init__(self, state: Mapping[Any, Any], names: Mapping[int, tuple[str, ...]]) -> None:
        """`names` are of whose states, by the parameter's `id`; what else is there, or comes later, is the users'."""
        found = [names.get(id(p)) for p in state]
        kinds = dict.fromkeys(filter(None, found))
        self._kinds: list[tuple[Callable[[Any], Iterable[Any]], itemgetter, list[bool]]] = [
            (iter if len(kind) == 1 else chain.from_iterable, itemgetter(*kind), [own == kind for own in found])
            for kind in kinds
        ]
        self._alike = len(found) if len(kinds) == 1 and all(found) else -1  # how many, where none is of another kind

    def read(self, state: Mapping[Any, Any]) -> Iterable[Any]:
        """The entries, in an order of their own."""
        if len(state) == self._alike:
            flatten, getter, _ = self._kinds[0]
            return flatten(map(getter, state.values()))
        return chain.from_iterable(
            flatten(map(getter, compress(state.values(), chosen))) for flatten, getter, chosen in self._kinds
        )


class Kept:
    """The tensors that an optimizer keeps: parameters, entries of their states, and tables of numbers.

    Parameters
    ----------
    params : sequence of torch.Tensor
        The parameters.
    known : sequence of bool
        True for each that has its state.
    entries : Entries
        Of the states.
    tables : sequence of torch.Tensor
        The tables.
    state : mapping
        The states as they are now.
    """

    def __init__(
        self,
        params: Sequence[torch.Tensor],
        known: Sequence[bool],
        entries: Entries,
        tables: Sequence[torch.Tensor],
        state: Mapping[Any, Any],
    ) -> None:
        self._known = None if all(known) else known
        self._read, self._tables = entries.read, tables
        self._addresses = self._ask(params, state)
        self._places = self._look(params, state)

    def stay(self, params: Sequence[torch.Tensor], state: Mapping[Any, Any]) -> bool:
        """Return whether all are where they were."""
        places = self._look(params, state)
        if places is not None and places == self._places:
            return True
        try:  # there may be other entries of the users'
            stay = self._ask(params, state) == self._addresses
        except (LookupError, TypeError, RuntimeError):  # an entry is missing, or no tensor with memory
            return False
        self._places = places
        return stay

    def _look(self, params: Sequence[torch.Tensor], state: Mapping[Any, Any]) -> Any:
        """Where all are, and entries of users', by one call; None where each is to be asked."""
        return places_of((params, state, *self._tables)) if self._known is None else None

    def _ask(self, params: Sequence[torch.Tensor], state: Mapping[Any, Any]) -> list[int]:
        known = params if self._known is None else compress(params, self._known)
        return addresses_of([*known, *self._read(state), *self._tables])


def copies_of(states: Mapping[Any, Any], numbers: Numbers) -> dict[Any, Any]:
    """States with copies of their own numbers: a cell would be pickled with the whole of its table."""
    copies = {
        p: {key: x.clone() if numbers.are_own(x) else x for key, x in state.items()}
        if isinstance(state, dict)
        else state
        for p, state in states.items()
    }
    return defaultdict(dict, copies)


def adopt_numbers(states: Iterable[Any], rules: Sequence[Rule], numbers: Numbers) -> None:
    """Takes the numbers of copied states for own ones."""
    names = {"step", *chain.from_iterable(rule.scalars for rule in rules)}
    for kept in states:
        for name in names.intersection(kept if isinstance(kept, dict) else ()):
            if isinstance(kept[name], torch.Tensor) and not kept[name].is_shared():
                numbers.adopt(kept[name])
