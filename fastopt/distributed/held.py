"""Internal. Parameters that all ranks have alike, and update in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np

from ..arrays.array import CPU, Array
from ..arrays.checks import check_tensor
from ..arrays.dtypes import dtype_name
from ..arrays.libraries import fetch, floats_of, host_like, put, view
from ..arrays.libraries.torch import detached, is_tensor
from ..binding.structure import Given, read_params
from .agreement import digest, said
from .shards import Span


class Held:
    """Parameters, contiguous; of those on a CUDA device copies in the host's memory, which ranks exchange.

    Parameters
    ----------
    params : array, nested sequences and mappings of arrays, or list of group dicts
        As classes take them.

    Attributes
    ----------
    params : object
        The parameters, as given; of an iterator a list.
    structure : object
        Their structure.
    groups : list of Given
        Their groups.
    names, given, arrays, views, memory : list
        Of each parameter what messages call it, the array as given, and in the host's memory the array, its view, and
        its bytes.

    Raises
    ------
    TypeError, ValueError
        One is not what it must be; the message names it.
    """

    def __init__(self, params: Any) -> None:
        self.params = list(params) if isinstance(params, Iterator) else params
        self.structure, self.groups = read_params(self.params)
        self.names: list[str] = list(chain.from_iterable(map(attrgetter("names"), self.groups)))
        self.given: list[Any] = list(chain.from_iterable(map(attrgetter("arrays"), self.groups)))
        views = list(map(view, self.given, self.names))
        for array, name in zip(views, self.names, strict=True):
            _check(array, name)
        self._away = {i: array for i, array in enumerate(views) if array.place is not CPU}
        self._room: dict[int, Any] = {}  # for gradients that are on a device
        self.arrays = [host_like(views[i]) if i in self._away else own for i, own in enumerate(self.given)]
        self.views = list(map(view, self.arrays, self.names))
        self.fetch(self.whole())
        self.memory = [array.numpy().reshape(-1).view(np.uint8) for array in self.views]

    def __reduce__(self) -> tuple[Any, ...]:
        return Held, (self.params,)

    def part(self, i: int, begin: int, end: int) -> Any:
        """Elements of a parameter, as an array of its library."""
        own = self.arrays[i]
        if not (isinstance(own, np.ndarray) or is_tensor(own)):
            own = self.views[i].numpy()
        return detached(own).reshape(-1)[begin:end]

    def whole(self) -> list[Span]:
        """All elements of all parameters."""
        return [Span(i, 0, array.size) for i, array in enumerate(self.views)]

    def fetch(self, spans: Iterable[Span]) -> None:
        """Copy elements of those on a device to the host's memory, as they are now."""
        for i, begin, end in spans if self._away else ():
            if i in self._away:
                fetch(self._away[i], detached(self.arrays[i]), begin, end)

    def put(self) -> None:
        """Copy those on a device there, as the host's memory has them."""
        for i, array in self._away.items():
            put(array, self.arrays[i])

    def fill(self, values: Sequence[np.ndarray]) -> None:
        """Take over elements of all, whose shapes and dtypes are these."""
        for memory, own in zip(self.memory, values, strict=True):
            memory[:] = np.ascontiguousarray(own).reshape(-1).view(np.uint8)
        self.put()

    def beside(self, i: int, array: Array) -> Array:
        """A parameter's view where an array is: on its device, or in the host's memory."""
        return self.views[i] if array.place is CPU else self._away.get(i, self.views[i])

    def floats(self, i: int, grad: Array) -> np.ndarray:
        """The elements of a parameter's gradient in the host's memory: of one on a device until its next one."""
        if grad.place is CPU:
            return floats_of(grad).reshape(-1)
        room = self._room.get(i)
        if room is None or view(room, "").dtype != grad.dtype:
            room = self._room[i] = host_like(grad)
        fetch(grad, room, 0, grad.size)
        return floats_of(view(room, "")).reshape(-1)

    def build(self, arrays: Sequence[Any]) -> Any:
        """Other arrays in the structure of these; of groups a list of each one's."""
        given = iter(arrays)
        if isinstance(self.structure, list):
            return [next(given) if own is None else own.build(given) for own in self.structure]
        return next(given) if self.structure is None else self.structure.build(given)

    def described(self) -> list[list[Any]]:
        """The parameters as the index of a checkpoint has them."""
        return [
            [name, dtype_name(array.dtype), list(array.shape)]
            for name, array in zip(self.names, self.views, strict=True)
        ]

    def said(self) -> dict[str, str]:
        """Everything about them that ranks have alike, by name."""
        found = {
            f"params[{g}][{name!r}]": said(x) for g, group in enumerate(self.groups) for name, x in group.own.items()
        }
        for name, array in zip(self.names, self.views, strict=True):
            found[name] = f"{array.dtype} of shape {array.shape}"
        return found | {
            f"the elements of {name}": digest(memory) for name, memory in zip(self.names, self.memory, strict=True)
        }


def grouped(groups: Sequence[Given], counts: Sequence[int], arrays: Sequence[Any]) -> list[dict[str, Any]]:
    """Groups with entries as these, of so many of the arrays."""
    given = iter(arrays)
    return [
        {**group.own, "params": [next(given) for _ in range(count)]}
        for group, count in zip(groups, counts, strict=True)
    ]


def _check(array: Array, name: str) -> None:
    check_tensor([array], [name])
    if not array.dense:
        raise ValueError(f"{name}: found strides {array.strides}, expected a contiguous array")
    if not array.size:
        raise ValueError(f"{name}: found shape {array.shape}, expected elements")
