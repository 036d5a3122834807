"""What users see and change of an optimizer: groups of parameters and states, as mappings whose changes are checked."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, NoReturn

from ..checks import wrong_type
from .options import Arguments


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


class Weakly:
    """A method of an optimizer, with its first argument, that does not keep the optimizer alive."""

    def __init__(self, optimizer: Any, method: Callable[..., None], first: int) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._method = method
        self._first = first

    def __call__(self, changes: Mapping[str, Any]) -> None:
        """Calls the method, as long as there is the optimizer."""
        optimizer = self._optimizer()
        if optimizer is not None:
            self._method(optimizer, self._first, changes)


class Fixed(tuple[Any, ...]):
    """As many groups, or states, as an optimizer has, each its own for good."""

    __slots__ = ()

    def refuse(self, *_: Any, **__: Any) -> NoReturn:
        """Says that there are as many as there are, each for good."""
        raise TypeError(
            "param_groups and state cannot be replaced, nor have entries added or removed: set a group's or a state's "
            "own entries, as param_groups[0]['lr'] = 0.1, or construct a new optimizer"
        )

    def __setitem__(self, place: Any, value: Any) -> None:
        if value is not self[place]:  # it is after ``groups[0] |= {"lr": 0.1}``, which has been done then
            self.refuse()

    __delitem__ = refuse
    append = extend = insert = remove = pop = clear = sort = reverse = refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)
