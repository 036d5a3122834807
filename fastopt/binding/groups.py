"""Groups of parameters, and states, as users see and change them: mappings whose changes are checked."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NoReturn

import numpy as np

from ..checks import wrong_type
from ..jobs.job import Progress
from ..jobs.storage import StorageOptions
from ..rules import Rule
from ..rules.hyper import frozen
from .options import Arguments, check_training


class _Checked(MutableMapping[str, Any]):
    """A mapping whose changes an optimizer checks: all of one change are made, or none."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = dict(values)
        self._where = where

    def _change(self, changes: Mapping[str, Any]) -> None:
        """Makes checked changes."""
        raise NotImplementedError

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Makes several changes at once: all of them, or none where one is not what it must be."""
        try:
            changes = dict(other, **more)
        except (TypeError, ValueError):
            raise wrong_type(self._where, other, "a mapping of names to values") from None
        self._change(changes)

    def __setitem__(self, key: str, value: Any) -> None:
        self._change({key: value})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __delitem__(self, key: str) -> None:
        if key not in self._values:
            raise KeyError(key)
        raise TypeError(f"{self._where}: found {key!r} to be removed, expected it to stay: {key!r} cannot be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return self._values | dict(other)

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return dict(other) | self._values

    def __ior__(self, other: Any) -> Any:  # type: ignore[misc]
        self.update(other)
        return self

    def copy(self) -> dict[str, Any]:
        """A plain dict: a change to it changes no optimizer."""
        return dict(self._values)

    __copy__ = copy

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self._values,)


class ParamGroup(_Checked):
    """Parameters that share hyper-parameters: ``group["lr"] = 1e-4`` is checked at once and holds from the next step.

    A mapping under torch's names; ``group["params"]`` are the arrays. Entries under names of your own are kept.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str, arguments: Arguments, read: Callable[[Mapping[str, Any]], None]
    ) -> None:
        super().__init__(values, where)
        self._arguments = arguments
        self._read = read

    def _change(self, changes: Mapping[str, Any]) -> None:
        if changes.get("params", self._values["params"]) is not self._values["params"]:
            raise ValueError(
                f"{self._where}: found 'params' to be replaced, expected those of the construction; construct a new "
                "optimizer for others"
            )
        for key in changes:
            if key != "params":
                self._arguments.check_key(key, self._where)
        own = self._arguments.defaults
        fixed = {
            key: tuple(value) if isinstance(value, list) and key in own else value for key, value in changes.items()
        }
        values = self._values | fixed
        self._read(values)
        self._values = values

    def __delitem__(self, key: str) -> None:
        if key == "params" or key in self._arguments.defaults:
            super().__delitem__(key)
        del self._values[key]


class State(_Checked):
    """A parameter's state arrays: ``state["exp_avg"] = x`` writes the values of `x` into the array that is used."""

    def __init__(self, values: Mapping[str, Any], where: str, write: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__(values, where)
        self._write = write

    def _change(self, changes: Mapping[str, Any]) -> None:
        self._write(changes)

    def replace(self, name: str, array: Any) -> None:
        """Have another array in a state's place."""
        self._values[name] = array


class Weakly:
    """A function of what an optimizer owns and of a number, that does not keep the first alive."""

    def __init__(self, owner: Any, function: Callable[[Any, int, Mapping[str, Any]], None], number: int) -> None:
        self._owner = weakref.ref(owner)
        self._function = function
        self._number = number

    def __call__(self, changes: Mapping[str, Any]) -> None:
        """Calls the function, as long as there is the optimizer."""
        owner = self._owner()
        if owner is not None:
            self._function(owner, self._number, changes)


class Fixed(tuple[Any, ...]):
    """The groups, or states, of an optimizer: a tuple, for none can be removed or replaced."""

    __slots__ = ()

    def refuse(self, *_: Any, **__: Any) -> NoReturn:
        """Raise an error: none can be removed or replaced, nor added here."""
        raise TypeError(
            "param_groups and state cannot be replaced, nor have entries added or removed: set a group's or a state's "
            "own entries, as param_groups[0]['lr'] = 0.1, add a group by add_param_group, or construct a new optimizer"
        )

    def __setitem__(self, place: Any, value: Any) -> None:
        if value is not self[place]:  # it is after ``groups[0] |= {"lr": 0.1}``, which has been done then
            self.refuse()

    __delitem__ = refuse
    append = extend = insert = remove = pop = clear = sort = reverse = refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


class Groups:
    """The groups of an optimizer: their rules and hyper-parameters, and the progress of their parameters.

    Parameters
    ----------
    arguments : Arguments
        The class's.
    options : dict
        The hyper-parameters of all groups.

    Attributes
    ----------
    of : list of int
        The group of each parameter.
    spans : list of range
        The parameters of each group.
    rules : list of Rule
        The rule of each group.
    progress : list of Progress
        Of each group; those of one rule that came together share it.
    storages : list of StorageOptions
        How the states of each are stored.
    real : numpy.dtype
        That of computing.
    varying : set of int
        The groups whose hyper-parameters are to be read at each step, and those that are in eval mode.
    mappings : Fixed of ParamGroup
        The groups as users see them.
    """

    def __init__(self, arguments: Arguments, options: dict[str, Any]) -> None:
        self.arguments, self.options = arguments, options
        self.real = np.dtype(np.float64)
        self.of: list[int] = []
        self.rules: list[Rule] = []
        self.progress: list[Progress] = []
        self.storages: list[StorageOptions] = []
        self.spans: list[range] = []
        self.varying: set[int] = set()
        self._rows: list[int] = []  # of each group the first row of its progress that is a parameter's own
        self.mappings = Fixed()
        self.which: list[int] = []

    def extend(
        self,
        given: Sequence[tuple[Sequence[Any], dict[str, Any]]],
        names: Sequence[str],
        storages: Sequence[StorageOptions],
        real: np.dtype,
    ) -> None:
        """Add groups behind those that there are, whose progress stays where it is.

        Parameters
        ----------
        given : sequence of (sequence of array, dict)
            Of each group the parameters, and the entries of its own.
        names : sequence of str
            What messages call them.
        storages : sequence of StorageOptions
            How the states of each are stored.
        real : numpy.dtype
            That of computing from now on.

        Raises
        ------
        TypeError, ValueError
            A hyper-parameter is not what it must be; the message names it.
        """
        arguments, options = self.arguments, self.options
        if real != self.real:
            for rule, _, group, _ in self.each():
                arguments.row(rule, group, real)
        first, rows = len(self.of), len(self.rules) + len(given)
        count = first + sum(len(arrays) for arrays, _ in given)
        steps = np.zeros(count, np.int64)
        shared: dict[tuple[str, int], Progress] = {}
        made: list[ParamGroup] = []
        self.real, self.varying = real, {*self.varying}
        self.rules, self.progress, self.spans = [*self.rules], [*self.progress], [*self.spans]
        self.storages, self._rows = [*self.storages, *storages], [*self._rows, *[rows] * len(given)]
        for g, ((arrays, own), called) in enumerate(zip(given, names, strict=True), len(self.rules)):
            for name in own:
                arguments.check_key(name, called)
            values = {**options, **own}
            for name in options:
                if isinstance(values[name], list):
                    values[name] = tuple(values[name])
            arguments.complete(values)
            rule = arguments.rule(values)
            copies = arguments.copies(rule, values)
            key = (rule.name, copies)
            if key not in shared:
                shared[key] = Progress.of(rule, copies, count, rows + count, steps)
            self.rules.append(rule)
            self.progress.append(shared[key])
            self.spans.append(range(first, first + len(arrays)))
            first += len(arrays)
            values = {"params": tuple(arrays), **values}
            made.append(ParamGroup(values, f"param_groups[{g}]", arguments, Weakly(self, Groups._read, g)))
            self._put(g, values, arguments.row(rule, values, real))
        places: dict[int, int] = {}
        self.which = [places.setdefault(id(own), k) for k, own in enumerate(self.progress)]  # the first that shares it
        self.of = [g for g, span in enumerate(self.spans) for _ in span]
        self.mappings = Fixed([*self.mappings, *made])

    def each(self) -> Iterable[tuple[Rule, Progress, ParamGroup, range]]:
        """Yield each group's rule, progress, entries and parameters."""
        return zip(self.rules, self.progress, self.mappings, self.spans, strict=True)

    def _read(self, g: int, values: Mapping[str, Any]) -> None:
        """Takes over a group's hyper-parameters, if they are what they must be."""
        self._put(g, values, self.row(g, values))

    def row(self, g: int, values: Mapping[str, Any]) -> np.ndarray:
        """A group's hyper-parameters as backends take them, checked.

        Raises
        ------
        TypeError, ValueError
            One is not what it must be, or asks for other states than there are; the message names it.
        """
        rule, copies = self.rules[g], self.progress[g].copies
        if self.storages[g].of_group(values) != self.storages[g]:
            raise ValueError(
                f"param_groups[{g}]: found another state_dtype, {values['state_dtype']!r}, expected that of the states "
                "which are there; construct a new optimizer"
            )
        chosen = self.arguments.rule(values)
        if chosen is not rule:
            raise ValueError(
                f"param_groups[{g}]: found values that make the rule {chosen.name}, expected {rule.name}, whose states "
                "differ; construct a new optimizer"
            )
        found = self.arguments.copies(rule, values)
        if found != copies:
            raise ValueError(
                f"param_groups[{g}]: found {found} {rule.vector}, expected {copies} as at construction; construct a "
                "new optimizer"
            )
        return self.arguments.row(rule, values, self.real)

    def replace(self, g: int, values: Mapping[str, Any], row: np.ndarray) -> None:
        """Gives a group other entries, whose hyper-parameters are the checked `row`."""
        self.mappings[g]._values = dict(values)
        self._put(g, values, row)

    def _put(self, g: int, values: Mapping[str, Any], row: np.ndarray) -> None:
        """Has the next step use a group's checked hyper-parameters."""
        progress, span = self.progress[g], self.spans[g]
        if values.get("train_mode") is False or frozen(map(values.__getitem__, self.arguments.defaults)) is None:
            self.varying.add(g)
            progress.group[span.start : span.stop] = self._rows[g] + np.arange(span.start, span.stop)
        else:
            self.varying.discard(g)
            progress.group[span.start : span.stop] = g
            progress.hyper[g] = row

    def read_varying(self, members: Sequence[int]) -> None:
        """Writes the rows of parameters whose hyper-parameters are read at each step; all are checked before any."""
        rows: dict[tuple[int, int], np.ndarray] = {}
        for i in members:
            g = self.of[i]
            if g in self.varying:
                check_training(self.mappings[g], f"param_groups[{g}]")
                key = (g, int(self.progress[g].steps[i]) + 1)
                if key not in rows:
                    rows[key] = self.arguments.row(self.rules[g], self.mappings[g], self.real, key[1])
        for i in members:
            g = self.of[i]
            if g in self.varying:
                progress = self.progress[g]
                progress.hyper[self._rows[g] + i] = rows[g, int(progress.steps[i]) + 1]

    def at_next_step(self, g: int) -> dict[str, Any]:
        """A group's arguments as the numbers that they are at the next step of the foremost of its parameters."""
        return self.arguments.at_step(self.mappings[g], self.done(g) + 1)

    def at_last_step(self, g: int) -> dict[str, Any]:
        """A group's arguments as the numbers that they were at the last step; before it, at the first."""
        return self.arguments.at_step(self.mappings[g], max(self.done(g), 1))

    def move(self, g: int, train: bool) -> None:
        """Have a group tell where its parameters are: where gradients are taken, or where they are evaluated."""
        values = {**self.mappings[g], "train_mode": train}
        self.replace(g, values, self.row(g, values))

    def done(self, g: int) -> int:
        """The steps done by the foremost of a group's parameters."""
        span = self.spans[g]
        return int(self.progress[g].steps[span.start : span.stop].max(initial=0))
