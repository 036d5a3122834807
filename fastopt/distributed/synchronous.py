"""Internal. Synchronous data parallel training, whose bits do not depend on the number of ranks."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple, cast

import numpy as np

from .. import settings
from ..arrays.array import CPU
from ..arrays.checks import check_tensor
from ..arrays.libraries import view
from ..arrays.libraries.torch import is_tensor
from ..backends import PartRunner
from ..backends.choice import host_backend, ieee_arithmetic
from ..binding.binding import Binding
from ..binding.norms import Limits, clip_factors, clipped
from ..binding.options import FILES, MATRIX_ARGUMENTS
from ..binding.sparse import RowSparse
from ..binding.structure import gradient_of, match, split_rows
from ..checks import check_integer, check_name, wrong_type, wrong_value
from ..evaluation import Evaluated
from ..jobs.job import DenseJob
from ..optimizers import EVERY_CLASS, Optimizer
from ..statedict import torch_state_dict
from . import checkpoint
from .agreement import check_alike, said
from .carriers import current
from .commons import are_common
from .exchange import Exchange, Unit
from .held import Held, grouped
from .norms import Portion, gathered_squares
from .rows import Rows, own_elements, rows_of_table, send_rows
from .shards import Extent, Layout, Span
from .states import copies_in, host_values, join_states, split_states, state_shape
from .tree import aligned
from .wire import WIRES, Wire

MAX_SLICES = 1024
_NONE, _DENSE, _ROWS = range(3)  # kinds of gradients


class _Table(NamedTuple):
    """A part of a parameter in this rank's shard, as its optimizer has it."""

    span: Span
    shape: tuple[int, ...]


class _Route(NamedTuple):
    """The ways of a step's gradients, of which some parameters have dense ones."""

    units: list[list[Unit]]  # of each rank
    parts: list[list[tuple[int, int, int]]]  # of each of this rank's, elements of jobs
    bound: Binding
    adds: bool  # sums are made within the pass


class Synchronous:
    """An optimizer whose ranks each compute gradients of a part of each batch, and keep the states of a part.

    A batch is cut into slices. Their gradients are added along one fixed tree, so that parameters and states have the
    same bits for any number of ranks, one process included. Each rank updates its shard of the parameters, whose states
    it alone has, and then all have the updated parameters. Every method but `slices` and `add` is called by all ranks.

    Parameters
    ----------
    optimizer : class
        A class of fastopt, as `fastopt.AdamW`, or of fastopt.torch, whose state dicts are torch's then.
    params : array, nested sequences and mappings of arrays, or list of group dicts
        As for the class, contiguous. They are the same in all ranks, and updated in place in all. Those on a CUDA
        device go through the host's memory, where shards are updated and states are.
    slices : int
        The number of slices of a batch: a power of two, at least the number of ranks, at most 1024.
    wire : str
        In what sums of gradients travel: "float32", which is exact, or "bfloat16", to which what leaves a machine is
        rounded once. The bits depend on the number of ranks and machines then.
    **options
        The arguments of the class, as ``lr``, but those about states in files.

    Attributes
    ----------
    params : object
        The parameters, as given.
    optimizer : Optimizer
        Of this rank's shard: its ``param_groups`` have the hyper-parameters, which are to change in all ranks alike. Of
        a class of fastopt.torch, a ``torch.optim.Optimizer`` of the whole parameters instead, whose step is this one's:
        for torch's schedulers and ``zero_grad()``.
    rank, ranks : int
        The number of this rank, and of all.
    steps : int
        The number of steps that have been made.
    last_grad_norm : float or None
        The global norm of the mean gradient at the last step that clipped, before clipping.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be, or not the same in all ranks; the message names it.

    Notes
    -----
    Arrays on CUDA devices have been tested with a driver that stands in for one, and torch's tensors with such as say
    that they are there; the pinned memory that torch has for them, with none.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt import distributed as fd
    >>> params, batch = {"w": np.zeros(2)}, np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> opt = fd.Synchronous(fastopt.SGD, params, lr=1.0, slices=2)
    >>> for number, part in opt.slices(len(batch)):
    ...     opt.add(number, {"w": batch[part].mean(0)})
    >>> opt.step()
    >>> params["w"].tolist()
    [-2.0, -3.0]
    """

    last_grad_norm: float | None = None
    """The global norm of the mean gradient at the last step that clipped, before clipping."""
    steps: int = 0
    """The number of steps that have been made."""

    def __init__(self, optimizer: Any, params: Any, *, slices: int, wire: str = "float32", **options: Any) -> None:
        optimizer, self._of_torch = _class_of(optimizer)
        if self._of_torch:
            _take_torchs(options)
        optimizer._arguments.check_no_inputs("optimizer")
        for name in FILES:
            if options.get(name) is not None:
                raise wrong_value(name, options[name], "None: states of a shard are in memory")
        self._world = world = current()
        self.rank, self.ranks = world.rank, world.size
        self._count = self._check_slices(slices)
        check_name("wire", wire, WIRES)
        self._held = held = Held(params)
        self.params = held.params
        options["first_element"] = check_integer("first_element", options.get("first_element", 0), 0, 2**62 - 1)
        called = {"optimizer": optimizer.__name__, "slices": str(slices), "wire": wire}
        check_alike({**called, **{name: said(value) for name, value in options.items()}, **held.said()}, world)

        self._group_sizes = [len(group.arrays) for group in held.groups]
        # One of a single element of each parameter tells the rules, and refuses what cannot be.
        first = [held.part(i, 0, 1) for i in range(len(held.arrays))]
        probe = optimizer(grouped(held.groups, self._group_sizes, first), **options)._owned
        self._rules = [probe.rule_of(i) for i in range(len(first))]
        for rule in self._rules:
            if rule.over_all:
                raise ValueError(
                    f"optimizer: found {rule.name}, expected another: it measures all tensors together, of which each "
                    "process has a part"
                )
        self._copies = [probe.copies_of(i) for i in range(len(first))]
        extents = []
        for i, array in enumerate(held.views):
            rule, stored = self._rules[i], probe.groups.storages[probe.groups.of[i]]
            in_blocks = any(dtype == np.uint8 for dtype, _ in stored.states(rule, array, self._copies[i]).values())
            by_row, whole = rule.by_row is not None, bool(rule.whole)
            extents.append(Extent.of(array, by_row, in_blocks, whole))
        self._layout = Layout(extents, world.size)
        self._parted = not any(extent.whole for extent in extents)  # a step can be done unit by unit

        self._mine = self._layout.spans(self.rank)
        self._tables = [_Table(*part) for span in self._mine for part in self._layout.tables(span)]
        owners = np.repeat(np.arange(len(held.groups)), self._group_sizes)
        counts = np.bincount([owners[table.span.parameter] for table in self._tables], minlength=len(held.groups))
        mine = [held.part(*span).reshape(shape) for span, shape in self._tables]
        options["first_element"] += self._layout.cuts[self.rank]
        self._own: Optimizer = optimizer(grouped(held.groups, counts.tolist(), mine), **options)
        self.optimizer: Any = self._stepped() if self._of_torch else self._own

        nodes = [aligned(self._begin(rank), self._begin(rank + 1)) for rank in range(world.size)]
        self._exchange = Exchange(
            world, self._layout, held.memory, nodes, Wire(wire, self._layout.sizes), are_common(held.views)
        )
        self._routes: dict[bytes, _Route] = {}
        self._kinds: list[int] | None = None
        self._added: set[int] = set()
        self._rows: dict[int, dict[int, RowSparse]] = {}

    def _stepped(self) -> Any:
        """An optimizer of torch for schedulers, over whole parameters."""
        from .stepped import Stepped  # which needs torch

        held, defaults = self._held, type(self._own)._arguments.defaults
        groups = [
            {**group, "params": own["params"]}
            for group, own in zip(
                self._own.param_groups, grouped(held.groups, self._group_sizes, held.given), strict=True
            )
        ]
        return Stepped(self, groups, defaults)

    def _check_slices(self, slices: Any) -> int:
        expected = f"a power of two, at least {self.ranks}, the number of ranks, and at most {MAX_SLICES}"
        number = check_integer("slices", slices, self.ranks, MAX_SLICES, expected)
        if number & (number - 1):
            raise wrong_value("slices", slices, expected)
        return number

    def _begin(self, rank: int) -> int:
        """The first slice of a rank."""
        return self._count * rank // self.ranks

    # ---- gradients ----

    def slices(self, examples: int) -> Iterator[tuple[int, slice]]:
        """This rank's slices of a batch: the number of each, and which examples are its.

        Parameters
        ----------
        examples : int
            The number of examples in the batch, a multiple of the number of slices.

        Raises
        ------
        TypeError, ValueError
            It is not.
        """
        examples = check_integer("examples", examples, 0)
        if examples % self._count or not examples:
            raise wrong_value("examples", examples, f"a multiple of slices, which is {self._count}")
        each = examples // self._count
        numbers = range(self._begin(self.rank), self._begin(self.rank + 1))
        return ((number, slice(number * each, (number + 1) * each)) for number in numbers)

    @property
    def grads(self) -> Any:
        """Arrays for the gradients of the next slice, in the structure of ``params``: `add` need not copy these.

        They are where the other ranks on the machine read the sum, if none of this rank's slices has been added, and
        may be others for each slice. Their dtype is that of computing: float32, or float64 of float64 parameters.
        """
        numbers = range(self._begin(self.rank), self._begin(self.rank + 1))
        free = self._exchange.partial.free(next((s for s in numbers if s not in self._added), numbers[0]))
        arrays = []
        for i, array in enumerate(self._held.views):
            ((dtype, begin, end),) = self._layout.ranges(self._layout.whole(i))
            arrays.append(free[dtype][begin:end].reshape(array.shape))
        return self._held.build(arrays)

    def add(self, number: int, grads: Any = ...) -> None:
        """Takes the mean gradient of one of this rank's slices for the next step; the arrays may be written anew then.

        Parameters
        ----------
        number : int
            The slice's number, each once before a step.
        grads : array, nested sequences and mappings, or list of groups
            The same structure as ``params``, dense or `fastopt.RowSparse`; ``None`` skips a parameter, in all slices of
            all ranks. Left out, torch's tensors give their own ``grad``.

        Raises
        ------
        TypeError, ValueError
            The slice is another rank's or has been added, or a gradient is not what it must be; nothing has been added.
        """
        begin, end = self._begin(self.rank), self._begin(self.rank + 1)
        number = check_integer("number", number, begin, end - 1, f"a slice of rank {self.rank}, {begin} to {end - 1}")
        if number in self._added:
            raise wrong_value("number", number, "a slice that has not been added since the last step")
        given = tuple(self._own_gradients() if grads is ... else match(grads, self._held.structure, "grads"))
        dense, rows = split_rows(given, self._held.views, self._held.names)
        kinds = [_NONE if grad is None else _DENSE for grad in dense]
        placed, summed = [], {}
        for i, grad in enumerate(dense):
            if grad is not None:
                array = view(grad, name := self._called(i))
                check_tensor([self._held.beside(i, array), array], [self._held.names[i], name])
                placed.append((i, array))
        for i, sparse in rows:
            kinds[i] = _ROWS
            summed[i] = self._check_rows(i, sparse)
        if self._kinds is not None and kinds != self._kinds:
            i = next(i for i, pair in enumerate(zip(kinds, self._kinds, strict=True)) if pair[0] != pair[1])
            raise ValueError(
                f"{self._called(i)}: found another kind of gradient than in other slices, expected the same"
            )
        at = [self._layout.ranges(self._layout.whole(i))[0].begin for i, _ in placed]
        values = [self._held.floats(i, array) for i, array in placed]
        self._exchange.partial.add(number, list(zip(at, values, strict=True)))
        for i, grad in summed.items():
            self._rows.setdefault(i, {})[number] = grad
        self._kinds = kinds
        self._added.add(number)

    def _called(self, i: int) -> str:
        """The name of a parameter's gradient."""
        return gradient_of(self._held.names[i]) if len(self._held.names) > 1 else "grads"

    def _own_gradients(self) -> list[Any]:
        """The gradients that torch's parameters have."""
        for name, array in zip(self._held.names, self._held.given, strict=True):
            if not is_tensor(array):
                raise TypeError(f"grads: found none, expected gradients, for {name} is no tensor of torch")
        return [array.grad for array in self._held.given]

    def _check_rows(self, i: int, grad: RowSparse) -> RowSparse:
        """A gradient of rows, checked, with each row once."""
        name = self._called(i)
        names = [self._held.names[i], name]
        grad.check(self._held.beside(i, grad.values), names)
        if not self._held.views[i].shape:
            raise ValueError(f"{name}: found rows, expected a dense gradient, for {self._held.names[i]} has none")
        if self._layout.extents[i].in_blocks:
            raise TypeError(
                f"{name}: found rows, expected a dense gradient, for states of {self._held.names[i]} are in 8-bit "
                'blocks; its group may have a state_dtype of its own, as {"params": ..., "state_dtype": "float32"}'
            )
        if self._layout.extents[i].whole:
            raise ValueError(
                f"{name}: found rows, expected a dense gradient: {self._rules[i].name} measures whole tensors"
            )
        if grad.duplicates != "sum":
            raise ValueError(f"{name}: found duplicates {grad.duplicates!r}, expected 'sum'")
        summed = grad.coalesced()
        if grad.values.place is not CPU:  # indices on a device have not been read before
            summed.check(self._held.views[i], names)
        return summed

    # ---- steps ----

    def step(
        self, max_norm: float | None = None, clip_norm: float | None = None, clip_value: float | None = None
    ) -> None:
        """Updates the parameters in all ranks with the mean of the gradients of all slices.

        Parameters
        ----------
        max_norm : float, optional
            Clips the mean gradient to this global norm, within the pass; see ``last_grad_norm``.
        clip_norm, clip_value : float, optional
            Clip each parameter's mean gradient to a norm, and each element, as the class's own ``step``.

        Raises
        ------
        TypeError, ValueError
            A slice is missing in some rank, or slices have gradients of different parameters: raised in all ranks, and
            nothing has changed.
        RankDied
            Another rank has ended.
        """
        if self._of_torch:
            self.optimizer.step(max_norm, clip_norm, clip_value)  # of which torch's schedulers and hooks are told
        else:
            self._step(max_norm, clip_norm, clip_value)

    def _step(self, max_norm: float | None, clip_norm: float | None, clip_value: float | None) -> None:
        if self._of_torch:
            self.optimizer.tell(self._own.param_groups)
        limits = Limits.of(max_norm, clip_norm, clip_value)
        kinds = self._agree(limits)
        by_norm = limits.max_norm is not None or limits.clip_norm is not None
        route = self._route(kinds, sums_first=by_norm or not self._parted)
        threads = self._own._owned.threads or settings.threads
        rows = {i: self._exchange_rows(i) for i, kind in enumerate(kinds) if kind == _ROWS}
        scale = 1.0 / self._count
        owned = self._own._owned
        # Of arrays on the CPU, so that it runs parts.
        runner = cast(PartRunner, route.bound.runner_with(False, limits.clip_value))
        if owned.groups.varying:  # all ranks' are alike, and refused before anything is sent
            owned.groups.read_varying([k for k, (span, _) in enumerate(self._tables) if kinds[span.parameter]])
        self._held.fetch(self._mine)
        with self._exchange.flight(route.units) as flight:
            if by_norm or not self._parted:
                for k in range(len(route.parts)):
                    flight.receive(k)
                    flight.add_up(k)
            if by_norm:
                scale = self._clip(kinds, rows, scale, limits, threads)
            try:
                if self._parted:
                    runner.advance(scale)
                else:
                    runner(scale, threads)
                for k, parts in enumerate(route.parts):
                    if self._parted:
                        if not by_norm:
                            flight.receive(k)
                            if not route.adds:
                                flight.add_up(k)
                        for job, begin, end in parts:
                            runner.update(job, begin, end, threads)
                    flight.publish(k)
                if rows:
                    self._step_rows(rows, scale, limits.clip_value)
            finally:
                if limits.clip_norm is not None:
                    for progress in owned.groups.progress:
                        progress.factors[:] = 1.0
        self._held.put()
        self._forget()
        self.steps += 1

    def _clip(
        self, kinds: Sequence[int], rows: Mapping[int, Rows], scale: float, limits: Limits, threads: int
    ) -> float:
        """Read the norms of summed gradients; return their scale, beside which each has its factor."""
        squares = gathered_squares(self._portions(kinds, rows), self._world, host_backend(), threads)
        if limits.max_norm is not None:
            scale, self.last_grad_norm = clipped(scale, squares.norm(), limits.max_norm)
        elif limits.clip_norm is not None:
            given = [i for i, kind in enumerate(kinds) if kind]
            with ieee_arithmetic(), np.errstate(all="ignore"):
                own = clip_factors(squares.norms(len(given)) * scale, limits.clip_norm)
            factors = dict(zip(given, own.tolist(), strict=True))
            groups = self._own._owned.groups
            for k, (span, _) in enumerate(self._tables):
                groups.progress[groups.of[k]].factors[k] = factors.get(span.parameter, 1.0)
        return scale

    def _agree(self, limits: Limits) -> list[int]:
        """Check that all ranks have added all slices, of the same parameters; return the kinds of gradients."""
        missing = [s for s in range(self._begin(self.rank), self._begin(self.rank + 1)) if s not in self._added]
        told = self._world.all_gather((missing[:1], self._kinds, limits._asdict()))
        for rank, (lacking, kinds, theirs) in enumerate(told):
            if lacking:
                raise ValueError(
                    f"grads: found slice {lacking[0]} of rank {rank} not added, expected all before a step"
                )
            if kinds != told[0][1]:
                i = next(i for i, pair in enumerate(zip(kinds, told[0][1], strict=True)) if pair[0] != pair[1])
                raise ValueError(
                    f"{self._called(i)}: found another kind of gradient in rank {rank}, expected that of rank 0"
                )
            for name, limit in told[0][2].items():
                if theirs[name] != limit:
                    raise ValueError(f"{name}: found {theirs[name]} in rank {rank}, expected {limit} as in rank 0")
        return told[0][1]

    def _forget(self) -> None:
        self._added.clear()
        self._rows.clear()
        self._kinds = None

    def _route(self, kinds: Sequence[int], sums_first: bool) -> _Route:
        """The ways of dense gradients, made when they are first taken; with `sums_first` they are summed before."""
        key = bytes([*kinds, sums_first])
        if key not in self._routes:
            chosen = [kind == _DENSE for kind in kinds]
            sums = None if sums_first else self._exchange.sums
            bound = None if sums is None else self._bind(chosen, self._exchange.first).adding(sums)
            adds = bound is not None
            if bound is None:
                bound = self._bind(chosen, self._exchange.summed)
            units = self._exchange.units(chosen)
            places = self._places(bound)
            self._routes[key] = _Route(units, [places(unit.spans) for unit in units[self.rank]], bound, adds)
        return self._routes[key]

    def _bind(self, chosen: Sequence[bool], gradient: Callable[[Span], np.ndarray]) -> Binding:
        grads = (gradient(span).reshape(shape) if chosen[span.parameter] else None for span, shape in self._tables)
        return self._own._owned.bind(tuple(grads))

    def _places(self, bound: Binding) -> Callable[[Sequence[Span]], list[tuple[int, int, int]]]:
        """What tells where spans are in the jobs of a binding."""
        of_parameter: dict[int, list[tuple[Span, int, int]]] = {}
        for k, job in enumerate(bound.jobs):
            at = 0
            for member in job.members.tolist():
                span = self._tables[member].span
                of_parameter.setdefault(span.parameter, []).append((span, k, at))
                at += span.end - span.begin
        dense = [isinstance(job, DenseJob) for job in bound.jobs]

        def find(spans: Sequence[Span]) -> list[tuple[int, int, int]]:
            found: list[tuple[int, int, int]] = []
            for span in spans:
                for own, k, at in of_parameter[span.parameter]:
                    begin, end = max(span.begin, own.begin), min(span.end, own.end)
                    if begin >= end:
                        continue
                    part = (k, at + begin - own.begin, at + end - own.begin)
                    if found and dense[k] and found[-1][0] == k and found[-1][2] == part[1]:
                        part = (k, found.pop()[1], part[2])
                    found.append(part)
            return found

        return find

    def _portions(self, kinds: Sequence[int], rows: Mapping[int, Rows]) -> list[Portion]:
        """This rank's parts of all summed gradients; rows count as if put one behind the other."""
        mine = {span.parameter: span for span in self._layout.spans(self.rank)}
        portions = []
        sparse = {}
        for i in rows:
            sparse[i] = own_elements(rows[i], mine.get(i), self._layout.extents[i])
        before = {
            i: sum(counts[i] for counts in told[: self.rank])
            for told in ([self._world.all_gather({i: own.size for i, own in sparse.items()})] if rows else [])
            for i in rows
        }
        for i, kind in enumerate(kinds):
            if kind == _ROWS:
                portions.append(Portion(before[i], sparse[i]))
            elif kind == _DENSE:
                span = mine.get(i, Span(i, 0, 0))
                dtype = self._layout.extents[i].dtype
                values = self._exchange.summed(span) if span.end else np.empty(0, dtype)
                portions.append(Portion(span.begin, values))
        return portions

    # ---- rows ----

    def _exchange_rows(self, i: int) -> Rows:
        """The rows of a parameter that this rank has elements of, of all slices in order."""
        return send_rows([self._rows[i][s] for s in sorted(self._rows[i])], i, self._layout, self._world)

    def _step_rows(self, rows: Mapping[int, Rows], scale: float, clip_value: float) -> None:
        """Update rows of this rank's shard, and take over those that others have updated."""
        grads: list[Any] = [None] * len(self._tables)
        for k, (span, shape) in enumerate(self._tables):
            if span.parameter in rows:
                width = self._layout.extents[span.parameter].width
                grads[k] = rows_of_table(rows[span.parameter], span, shape, width)
        owned = self._own._owned
        limits = None if clip_value == math.inf else Limits(None, None, clip_value)
        owned.step(tuple(grads), scale, limits, False, False)
        mine = []
        for (span, shape), grad in zip(self._tables, grads, strict=True):
            if grad is not None:
                unique = np.unique(grad.indices)
                mine.append((span, shape[0], unique, self._rows_of(span, shape[0])[unique]))
        there = self._exchange.near if self._exchange.common else [self.rank]
        if len(there) == self.ranks:
            return
        for rank, theirs in enumerate(self._world.all_gather(mine)):
            for span, count, unique, values in theirs if rank not in there else ():
                self._rows_of(span, count)[unique] = values

    def _rows_of(self, span: Span, count: int) -> np.ndarray:
        """The bytes of part of a parameter, row by row."""
        return self._exchange.memory_of(span).reshape(count, -1)

    # ---- what is to be evaluated ----

    def eval(self) -> None:
        """Moves the parameters in all ranks to where they are to be evaluated, of a Schedule-Free class.

        Raises
        ------
        TypeError
            The class has only one point.
        """
        self._move(False)

    def train(self) -> None:
        """Moves the parameters in all ranks to where gradients are taken, of a Schedule-Free class.

        Raises
        ------
        TypeError
            The class has only one point.
        """
        self._move(True)

    def _move(self, train: bool) -> None:
        if not isinstance(self._own, Evaluated):
            raise TypeError(f"optimizer: found {type(self._own).__name__}, expected a Schedule-Free class")
        self._held.fetch(self._mine)
        self._own._move(train)
        self._exchange.give()
        self._held.put()

    # ---- states ----

    def state_dict(self) -> dict[str, Any] | None:
        """Everything that a training needs to go on bit for bit, with any number of ranks, in torch's layout.

        Returns
        -------
        dict or None
            On rank 0 what the class's own ``state_dict()`` would have, of whole parameters, copied; elsewhere None.
        """
        own = self._states()
        parts = [(span, own["state"][k]) for k, (span, _) in enumerate(self._tables)]
        told = self._world.gather([(span, dict(state)) for span, state in parts])
        if told is None:
            return None
        whole = join_states([part for theirs in told for part in theirs], self._held.views, self._rules, self._copies)
        found = {"state": whole, "param_groups": self._numbered(own["param_groups"])}
        return torch_state_dict(found) if self._of_torch else found

    def _states(self) -> dict[str, Any]:
        """The state dict of this rank's shard."""
        if self._of_torch:
            self.optimizer.tell(self._own.param_groups)
        return self._own.state_dict()

    def _numbered(self, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Groups with the numbers of whole parameters."""
        found, first = [], 0
        for group, count in zip(groups, self._group_sizes, strict=True):
            found.append({**group, "params": list(range(first, first + count))})
            first += count
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a whole state dict: of `state_dict`, of the class's own, or of torch's class of that name.

        Parameters
        ----------
        state_dict : mapping
            The same in all ranks.

        Raises
        ------
        TypeError, ValueError
            It is not this optimizer's; nothing has changed.
        """
        self._own.load_state_dict(
            split_states(state_dict, self._group_sizes, self._tables, self._held.views, self._rules)
        )
        if self._of_torch:
            self.optimizer.follow(self._own.param_groups)

    def save(self, directory: Any) -> None:
        """Writes a checkpoint that any number of ranks can load, one process and torch too; see `read_checkpoint`.

        It is whole or not there, and the one before it is kept. All ranks reach the directory.

        Parameters
        ----------
        directory : path
            That of all checkpoints; it is made if there is none.

        Raises
        ------
        OSError
            It cannot be written: in all ranks, with the file's name. The checkpoints before are there.
        ValueError
            Slices have been added for a step that is to come.
        TypeError
            A hyper-parameter is a callable that no file can hold; those of `fastopt.schedules` are plain data.
        """
        if any(self._world.all_gather(bool(self._added))):
            raise ValueError("grads: found some added, expected none in a checkpoint: step() before it")
        self._held.fetch(self._mine)
        own = self._states()
        parts, shapes = [], {}
        for k, (span, _) in enumerate(self._tables):
            i, values = span.parameter, {}
            rule, copies = self._rules[i], self._copies[i]
            whole = shapes[i] = {checkpoint.PARAMETER: self._held.views[i].shape}
            values[checkpoint.PARAMETER] = host_values(self._held.part(*span), "params").reshape(1, -1)
            for name, value in own["state"][k].items():
                values[name] = host_values(value, name)
                whole[name] = ()
                if values[name].ndim:
                    whole[name] = state_shape(rule, name, self._held.views[i], copies, values[name].dtype)
                    values[name] = values[name].reshape(copies_in(rule, name, copies), -1)
            parts.append(checkpoint.Part(span, values))
        about = {"optimizer": type(self._own).__name__, "parameters": self._held.described()}
        groups = self._numbered(own["param_groups"])
        checkpoint.write(directory, self._world, self.steps, parts, shapes, about, groups)

    def load(self, directory: Any) -> int:
        """Takes over parameters and states of the last checkpoint in a directory, whatever number of ranks saved it.

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
            checkpoint.check(reader, type(self._own).__name__, self._held.described())
            mine = {span.parameter for span in self._layout.spans(self.rank)}
            states = {i: reader.states(i) for i in sorted(mine)}
            loaded = [reader.parameter(i) for i in range(len(self._held.views))]
            self.load_state_dict({"state": states, "param_groups": reader.groups})
        self._held.fill(loaded)
        self.steps = reader.index["steps"]
        return self.steps


def _class_of(optimizer: Any) -> tuple[type, bool]:
    """The class that shards are updated by, and whether torch's of that name was given.

    Raises
    ------
    TypeError, ValueError
        It is none, or one that shards cannot be updated by.
    """
    name = optimizer.__name__ if isinstance(optimizer, type) else ""
    torch = sys.modules.get("fastopt.torch")  # where nobody has imported it, there is no class of it
    of_torch = torch is not None and name in EVERY_CLASS and getattr(torch, name, None) is optimizer
    if not of_torch and (name not in EVERY_CLASS or EVERY_CLASS[name] is not optimizer):
        raise wrong_type("optimizer", optimizer, "a class of fastopt or fastopt.torch, as fastopt.AdamW")
    if name in MATRIX_ARGUMENTS:
        whole = MATRIX_ARGUMENTS[name].rules[0].whole.removeprefix(name)
        expected = f"another: it{whole}, and ranks hold parts of arrays without their shapes"
        raise wrong_value("optimizer", name, expected)
    return EVERY_CLASS[name], of_torch


def _take_torchs(options: dict[str, Any]) -> None:
    """Take out the arguments that torch's classes have beside; those that would change something are refused."""
    from ..drop_in.groups import REFUSED  # which needs torch

    for flag, reason in REFUSED.items():
        if options.pop(flag, False):
            raise wrong_value(flag, True, f"False: {reason}")
    for name in ("foreach", "fused"):
        options.pop(name, None)
