"""Internal. Optimizers that train on their own in each rank, and come together every so many steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from ..arrays.libraries import assign, floats_of, same_library, view
from ..arrays.libraries.torch import detached, is_tensor
from ..backends.choice import ieee_arithmetic
from ..checks import check_integer, check_number, wrong_type
from ..jobs.storage import DRAWN
from ..optimizers import CLASSES, Optimizer
from ..statedict import torch_state_dict
from . import checkpoint
from .agreement import check_alike, said
from .carriers import current
from .commons import are_common
from .exchange import Exchange
from .held import Held
from .shards import Extent, Layout, Span
from .states import host_values
from .synchronous import Synchronous
from .wire import Wire

#: The entry of an index that has what each rank draws at random.
_DRAWN = "drawn"


class _Periodic:
    """The part of these optimizers that steps, and counts: its parameters are those of the subclasses."""

    steps: int = 0
    """The number of steps that this rank has made."""

    def __init__(self, optimizer: Any, every: Any, arguments: Mapping[str, Any]) -> None:
        if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "step"):
            raise wrong_type("optimizer", optimizer, "an optimizer, as fastopt.AdamW(params)")
        self._every = check_integer("every", every, 1)
        self.optimizer = optimizer
        groups = list(optimizer.param_groups)
        self._held = Held([{"params": list(group["params"])} for group in groups])
        if are_common(self._held.views):
            raise ValueError("optimizer: found parameters that ranks have in common, expected each rank's own")
        self._world = current()
        self.rank, self.ranks = self._world.rank, self._world.size
        called = {"optimizer": type(optimizer).__name__, "every": str(every)}
        for g, group in enumerate(groups):
            called |= {f"param_groups[{g}][{name!r}]": said(x) for name, x in group.items() if name != "params"}
        check_alike({**called, **{name: said(x) for name, x in arguments.items()}, **self._held.said()}, self._world)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Does a step of this rank's optimizer; on every so many-th, all ranks come together.

        Parameters
        ----------
        *args, **kwargs
            Those of the optimizer's own ``step``, as its gradients.

        Returns
        -------
        object
            What that returns.

        Raises
        ------
        TypeError, ValueError
            As the optimizer's own.
        RankDied
            Another rank has ended.
        """
        result = self.optimizer.step(*args, **kwargs)
        self.steps += 1
        if self.steps % self._every == 0:
            self._held.fetch(self._held.whole())
            self._come_together()
            self._held.put()
        return result

    def _come_together(self) -> None:
        raise NotImplementedError

    def save(self, directory: Any) -> None:
        """Writes a checkpoint of all ranks' parameters and states; all call it, and reach the directory.

        It is whole or not there, and the one before it is kept.

        Parameters
        ----------
        directory : path
            That of all checkpoints; it is made if there is none.

        Raises
        ------
        OSError
            It cannot be written: in all ranks, with the file's name. The checkpoints before are there.
        TypeError
            A hyper-parameter is a callable that no file can hold; those of `fastopt.schedules` are plain data.
        """
        self._held.fetch(self._held.whole())
        own, count = self.optimizer.state_dict(), len(self._held.arrays)
        common, groups = self._common()
        saved = {}
        for i, array in enumerate(self._held.arrays):
            saved[self.rank * count + i] = {checkpoint.PARAMETER: array, **own["state"].get(i, {})}
        for i, values in enumerate(common):
            saved[self.ranks * count + i] = values
        parts, shapes = [], {}
        for number, given in saved.items():
            values = {name: np.asarray(host_values(value, name)) for name, value in given.items()}
            shapes[number] = {name: value.shape for name, value in values.items()}
            flat = {name: value.reshape(1, -1) if value.ndim else value for name, value in values.items()}
            parts.append(checkpoint.Part(Span(number, 0, values[checkpoint.PARAMETER].size), flat))
        drawn = self._world.all_gather(_drawn(own["param_groups"][0]))
        about = {"optimizer": self._called(), "parameters": self._held.described(), checkpoint.RANKS: self.ranks}
        groups = [*own["param_groups"], *groups]
        checkpoint.write(directory, self._world, self.steps, parts, shapes, {**about, _DRAWN: drawn}, groups)

    def load(self, directory: Any) -> int:
        """Takes over the last checkpoint in a directory, from which a training goes on bit for bit; all ranks call it.

        Of another number of ranks, rank r has what rank r, counted around, had: with fewer the last ones' is left out.

        Parameters
        ----------
        directory : path
            As of `save`.

        Returns
        -------
        int
            The steps that had been made: 0 where there is no checkpoint, and then nothing has changed.

        Raises
        ------
        OSError
            It cannot be read.
        TypeError, ValueError
            It is of other parameters or of another optimizer; nothing has changed.
        """
        path = self._world.all_gather(checkpoint.latest(directory))[0]
        if path is None:
            return 0
        with closing(checkpoint.Reader(path)) as reader:
            checkpoint.check(reader, self._called(), self._held.described())
            ranks, count, inner = reader.index[checkpoint.RANKS], len(self._held.arrays), len(self._held.groups)
            own, common = (range(k * count, (k + 1) * count) for k in (self.rank % ranks, ranks))
            params = [reader.parameter(number) for number in own]
            states = {i: reader.states(number) for i, number in enumerate(own)}
            groups = reader.groups[:inner]
            if _DRAWN in reader.index:  # each rank may have noise of its own; one that has come since draws as it will
                drawn = reader.index[_DRAWN][self.rank] if self.rank < ranks else {}
                groups = [{key: x for key, x in group.items() if key not in DRAWN} | drawn for group in groups]
            state_dict = {"state": states, "param_groups": groups}
            made = state_dict if isinstance(self.optimizer, Optimizer) else torch_state_dict(state_dict)
            self.optimizer.load_state_dict(made)
            self._take_common(reader, common, reader.groups[inner:])
        self._held.fill(params)
        self.steps = reader.index["steps"]
        return self.steps

    def _called(self) -> str:
        return f"{type(self).__name__} of {type(self.optimizer).__name__}"

    def _common(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What all ranks have in common, saved by rank 0: of each parameter values by name; and its groups."""
        return [], []

    def _take_common(self, reader: checkpoint.Reader, numbers: Sequence[int], groups: Sequence[dict[str, Any]]) -> None:
        """Take over what `_common` had: of each parameter under a number, and its groups."""

    def _copies(self) -> Held:
        """The parameters as they are now, in memory of their own."""
        return Held([_copied(array) for array in self._held.arrays])


class _Means:
    """The means of all ranks' parameters, of which something is made in arrays of each."""

    def __init__(self, own: _Periodic, made: Held) -> None:
        self._own, self._made = own, made
        layout = Layout([Extent.of(array) for array in own._held.views], own.ranks)
        self._layout = layout
        nodes = [[(rank, 1)] for rank in range(own.ranks)]
        self._exchange = Exchange(own._world, layout, made.memory, nodes, Wire("float32", layout.sizes))
        self._units = self._exchange.units([True] * len(own._held.views))

    def add(self) -> None:
        """Add this rank's parameters as they are now."""
        placed = []
        for i, array in enumerate(self._own._held.views):
            values = floats_of(array).reshape(-1)
            (where,) = self._layout.ranges(self._layout.whole(i))
            placed.append((where.begin, values))
        self._exchange.partial.add(self._own.rank, placed)

    def take(self, make: Callable[[np.ndarray, Any], np.ndarray]) -> None:
        """Have `make` make new elements of the mean and of what they were, each in the rank whose shard they are of."""
        ranks = self._own.ranks
        with self._exchange.flight(self._units) as flight:
            for k, unit in enumerate(self._units[self._own.rank]):
                flight.receive(k)
                flight.add_up(k)
                with ieee_arithmetic(), np.errstate(all="ignore"):
                    for span in unit.spans:
                        part = self._made.part(*span)
                        total = self._exchange.summed(span)
                        assign(part, same_library(make(total / total.dtype.type(ranks), part), part))
                flight.publish(k)


class LocalSGD(_Periodic):
    """Each rank trains on its own examples, and every so many steps all take the mean of their parameters.

    States of the optimizers stay as they are, what a rule measures too, as Prodigy's rate: each rank finds its own. The
    mean is the sum along a fixed tree, divided by the number of ranks.

    Parameters
    ----------
    optimizer : Optimizer
        This rank's, of fastopt or fastopt.torch; its parameters are the same in all ranks, and contiguous.
    every : int
        The number of steps between means.

    Attributes
    ----------
    optimizer : Optimizer
        As given.
    rank, ranks : int
        The number of this rank, and of all.
    steps : int
        The number of steps that this rank has made.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be, or not the same in all ranks; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt import distributed as fd
    >>> params = np.zeros(2)
    >>> opt = fd.LocalSGD(fastopt.SGD(params, lr=0.1), every=20)
    >>> opt.step(np.ones(2))
    >>> params.tolist()
    [-0.1, -0.1]
    """

    def __init__(self, optimizer: Any, *, every: int) -> None:
        super().__init__(optimizer, every, {})
        self._means = _Means(self, self._held)

    def _come_together(self) -> None:
        self._means.add()
        self._means.take(lambda mean, _: mean)


class Elastic(_Periodic):
    """Elastic averaging (Zhang, Choromanska and LeCun 2015, equations 5, 6): parameters are drawn to a common centre.

    Every so many steps, with p ranks and alpha = beta/p, at once: c = c + beta*(mean of x_i - c) and
    x_i = x_i - alpha*(x_i - c), both of the c before. What has been learned is the centre.

    Parameters
    ----------
    optimizer : Optimizer
        This rank's, as of `LocalSGD`: SGD makes it EASGD.
    every : int
        The number of steps between exchanges; default 4.
    beta : float
        The part of the way that the centre goes, in [0, 1]; default 0.9.

    Attributes
    ----------
    center : list
        The centre of each parameter, in order, in the host's memory.
    optimizer, rank, ranks, steps
        As of `LocalSGD`.

    Raises
    ------
    TypeError, ValueError
        As `LocalSGD`.
    """

    def __init__(self, optimizer: Any, *, every: int = 4, beta: float = 0.9) -> None:
        self._beta = check_number("beta", beta, 0, 1)
        super().__init__(optimizer, every, {"beta": self._beta})
        self._centre = self._copies()
        self.center: list[Any] = self._centre.arrays
        self._means = _Means(self, self._centre)

    def _come_together(self) -> None:
        self._means.add()
        alpha, beta = self._beta / self.ranks, self._beta
        with ieee_arithmetic(), np.errstate(all="ignore"):
            for array, x, centre in zip(self._held.arrays, self._held.views, self._centre.views, strict=True):
                own = floats_of(x)
                assign(detached(array), same_library(own - own.dtype.type(alpha) * (own - floats_of(centre)), array))

        def drawn(mean: np.ndarray, part: Any) -> np.ndarray:
            centre = floats_of(view(part, "center"))
            return centre + mean.dtype.type(beta) * (mean - centre)

        self._means.take(drawn)

    def _common(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return [{checkpoint.PARAMETER: array} for array in self.center] if self.rank == 0 else [], []

    def _take_common(self, reader: checkpoint.Reader, numbers: Sequence[int], groups: Sequence[dict[str, Any]]) -> None:
        self._centre.fill([reader.parameter(number) for number in numbers])


class DiLoCo(_Periodic):
    """DiLoCo (Douillard et al. 2023): ranks train on their own, and an outer optimizer steps by what came of it.

    Every so many steps the outer gradient of a parameter is the mean over ranks of theta - theta_i, where theta is what
    all had after the exchange before and theta_i what this one has now. Nesterov's momentum steps theta with it, whose
    state is cut among the ranks, and all go on from there. States of the inner optimizers stay as they are.

    Parameters
    ----------
    optimizer : Optimizer
        This rank's inner one, as of `LocalSGD`; the paper's is AdamW(lr=4e-4, betas=(0.9, 0.95), weight_decay=0.1).
    every : int
        The number of inner steps between outer ones; default 500.
    outer_lr, outer_momentum : float
        Of the outer optimizer, `fastopt.NAG`; default 0.7 and 0.9.

    Attributes
    ----------
    outer : Synchronous
        The outer optimizer.
    optimizer, rank, ranks, steps
        As of `LocalSGD`.

    Raises
    ------
    TypeError, ValueError
        As `LocalSGD`.
    """

    def __init__(self, optimizer: Any, *, every: int = 500, outer_lr: float = 0.7, outer_momentum: float = 0.9) -> None:
        outer = {"outer_lr": check_number("outer_lr", outer_lr, 0)}
        outer["outer_momentum"] = check_number("outer_momentum", outer_momentum, 0)
        super().__init__(optimizer, every, outer)
        self._theta = self._copies()
        self.outer: Synchronous = _Outer(
            CLASSES["NAG"], self._theta.arrays, slices=self.ranks, lr=outer_lr, momentum=outer_momentum
        )

    def _come_together(self) -> None:
        with ieee_arithmetic(), np.errstate(all="ignore"):
            moved = [
                floats_of(theta) - floats_of(own)
                for theta, own in zip(self._theta.views, self._held.views, strict=True)
            ]
        self.outer.add(self.rank, moved)
        self.outer.step()
        for own, theta in zip(self._held.memory, self._theta.memory, strict=True):
            own[:] = theta

    def _common(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        outer = self.outer.state_dict()
        if outer is None:
            return [], []
        found = [{checkpoint.PARAMETER: theta, **outer["state"][i]} for i, theta in enumerate(self._theta.arrays)]
        return found, outer["param_groups"]

    def _take_common(self, reader: checkpoint.Reader, numbers: Sequence[int], groups: Sequence[dict[str, Any]]) -> None:
        states = {i: reader.states(number) for i, number in enumerate(numbers)}
        self.outer.load_state_dict({"state": states, "param_groups": groups})
        self._theta.fill([reader.parameter(number) for number in numbers])


class _Outer(Synchronous):
    """One with a slice for each rank, whatever their number."""

    def _check_slices(self, slices: Any) -> int:
        return slices


def _drawn(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a saved group tells of random numbers."""
    return {key: group[key] for key in DRAWN if key in group}


def _copied(array: Any) -> Any:
    return array.detach().clone() if is_tensor(array) else copy.copy(array)
