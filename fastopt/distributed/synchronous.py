"""Internal. Synchronous data parallel training, whose bits do not depend on the number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple, cast

import numpy as np

from .. import settings
from ..arrays.array import CPU, Array
from ..arrays.checks import check_tensor
from ..arrays.dtypes import compute_dtype, dtype_name
from ..arrays.libraries import floats_of, view
from ..arrays.libraries.torch import detached, is_tensor
from ..backends import PartRunner
from ..backends.choice import host_backend, ieee_arithmetic
from ..binding.binding import Binding
from ..binding.norms import check_max_norm, clipped, root_of
from ..binding.options import FILES
from ..binding.sparse import RowSparse
from ..binding.structure import gradient_of, match, read_params, split_rows
from ..checks import check_integer, check_name, wrong_type, wrong_value
from ..jobs.job import DenseJob
from ..optimizers import CLASSES, Optimizer
from ..rules import Rule
from . import checkpoint
from .agreement import check_alike, digest, said
from .carriers import current
from .norms import Portion, gathered_square_sums
from .partial import Lanes, Partial
from .rows import Rows, own_elements, rows_of_table, send_rows
from .shards import Extent, Layout, Range, Span
from .states import copies_in, host_values, join_states, split_states, state_shape
from .tree import Node, additions, aligned
from .wire import WIRES, Wire
from .world import Request

MAX_SLICES = 1024
_NONE, _DENSE, _ROWS = range(3)  # kinds of gradients


class _Table(NamedTuple):
    """A part of a parameter in this rank's shard, as its optimizer has it."""

    span: Span
    shape: tuple[int, ...]


class _Unit(NamedTuple):
    """Elements that are summed, updated and sent at once."""

    spans: list[Span]
    ranges: list[Range]
    parts: list[tuple[int, int, int]]  # of this rank's own: elements of jobs


class _Route(NamedTuple):
    """The ways of a step's gradients, of which some parameters have dense ones."""

    units: list[list[_Unit]]  # of each rank
    bound: Binding


class Synchronous:
    """An optimizer whose ranks each compute gradients of a part of each batch, and keep the states of a part.

    A batch is cut into slices. Their gradients are added along one fixed tree, so that parameters and states have the
    same bits for any number of ranks, one process included. Each rank updates its shard of the parameters, whose states
    it alone has, and then all have the updated parameters. Every method but `slices` and `add` is called by all ranks.

    Parameters
    ----------
    optimizer : class
        A class of fastopt, as `fastopt.AdamW`.
    params : array, nested sequences and mappings of arrays, or list of group dicts
        As for the class, contiguous and on the CPU. They are the same in all ranks, and updated in place in all.
    slices : int
        The number of slices of a batch: a power of two, at least the number of ranks, at most 1024.
    wire : str
        In what sums of gradients travel: "float32", which is exact, or "bfloat16", to which what leaves a rank is
        rounded once. The bits depend on the number of ranks then.
    **options
        The arguments of the class, as ``lr``, but those about states in files.

    Attributes
    ----------
    params : object
        The parameters, as given.
    optimizer : Optimizer
        Of this rank's shard: its ``param_groups`` have the hyper-parameters, which are to change in all ranks alike.
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
        if not (isinstance(optimizer, type) and CLASSES.get(optimizer.__name__) is optimizer):
            raise wrong_type("optimizer", optimizer, "a class of fastopt, as fastopt.AdamW")
        for name in FILES:
            if options.get(name) is not None:
                raise wrong_value(name, options[name], "None: states of a shard are in memory")
        self._world = world = current()
        self.rank, self.ranks = world.rank, world.size
        self._count = _check_slices(slices, world.size)
        check_name("wire", wire, WIRES)
        self.params = list(params) if isinstance(params, Iterator) else params
        self._structure, given = read_params(self.params)
        self._names = list(chain.from_iterable(map(attrgetter("names"), given)))
        arrays = list(chain.from_iterable(map(attrgetter("arrays"), given)))
        self._arrays = arrays
        self._views = list(map(view, arrays, self._names))
        for array, name in zip(self._views, self._names, strict=True):
            _check_parameter(array, name)
        self._memory = [array.numpy().reshape(-1).view(np.uint8) for array in self._views]
        options["first_element"] = check_integer("first_element", options.get("first_element", 0), 0, 2**62 - 1)
        check_alike(self._signature(optimizer, slices, wire, given, options), world)

        counts = [len(group.arrays) for group in given]
        self._group_sizes = counts
        own = [group.own for group in given]
        # One of a single element of each parameter tells the rules, and refuses what cannot be.
        first = [_part(array, 0, min(view_.size, 1), None) for array, view_ in zip(arrays, self._views, strict=True)]
        probe = optimizer(_groups(own, counts, first), **options)._owned
        self._rules = [probe.rule_of(i) for i in range(len(arrays))]
        self._copies = [probe.copies_of(i) for i in range(len(arrays))]
        extents = []
        for i, array in enumerate(self._views):
            rule, stored = self._rules[i], probe.groups.storages[probe.groups.of[i]]
            in_blocks = any(dtype == np.uint8 for dtype, _ in stored.states(rule, array, self._copies[i]).values())
            width = math.prod(array.shape[1:])
            by_row, whole = rule.by_row is not None, _measures_tensors(rule)
            extents.append(Extent(array.size, width, compute_dtype(array.dtype), by_row, in_blocks, whole))
        self._layout = Layout(extents, world.size)
        self._parted = not any(extent.whole for extent in extents)  # a step can be done unit by unit
        self._wire = Wire(wire, self._layout.sizes, "wire")

        self._tables = [_Table(*part) for span in self._layout.spans(self.rank) for part in self._layout.tables(span)]
        owners = np.repeat(np.arange(len(counts)), counts)
        groups = np.bincount([owners[table.span.parameter] for table in self._tables], minlength=len(counts))
        mine = [_part(arrays[span.parameter], span.begin, span.end, shape) for span, shape in self._tables]
        options["first_element"] += self._layout.cuts[self.rank]
        self.optimizer: Optimizer = optimizer(_groups(own, groups.tolist(), mine), **options)

        self._nodes = [aligned(self._begin(rank), self._begin(rank + 1)) for rank in range(world.size)]
        self._steps, sums = additions([node for nodes in self._nodes for node in nodes], self._count)
        self._share()
        low = dict.fromkeys(self._layout.sizes, 0)
        high = dict(low)
        for span in self._layout.spans(self.rank):
            for dtype, begin, end in self._layout.ranges([span]):
                low[dtype] = begin if high[dtype] == 0 else low[dtype]
                high[dtype] = end
        self._low = low
        self._summed = {dtype: np.zeros(high[dtype] - low[dtype], dtype) for dtype in low}
        self._scratch = [{dtype: np.empty(0, dtype) for dtype in low} for _ in range(sums - 1)]
        self._received: dict[tuple[int, Node], Lanes] = {}
        if self._windows is None:
            for rank in range(world.size):
                for node in self._nodes[rank] if rank != self.rank else ():
                    self._received[rank, node] = self._wire.lanes(
                        {dtype: sum_.size for dtype, sum_ in self._summed.items()}
                    )
        self._routes: dict[bytes, _Route] = {}
        self._kinds: list[int] | None = None
        self._added: set[int] = set()
        self._rows: dict[int, dict[int, RowSparse]] = {}

    def _begin(self, rank: int) -> int:
        """The first slice of a rank."""
        return self._count * rank // self.ranks

    def _signature(
        self, optimizer: type, slices: int, wire: str, given: Sequence[Any], options: Mapping[str, Any]
    ) -> dict[str, str]:
        """Everything that must be the same in all ranks, by name."""
        found = {"optimizer": optimizer.__name__, "slices": str(slices), "wire": wire}
        found |= {name: said(value) for name, value in options.items()}
        for g, group in enumerate(given):
            found |= {f"params[{g}][{name!r}]": said(value) for name, value in group.own.items()}
        for name, array in zip(self._names, self._views, strict=True):
            found[name] = f"{array.dtype} of shape {array.shape}"
        found |= {
            f"the elements of {name}": digest(memory) for name, memory in zip(self._names, self._memory, strict=True)
        }
        return found

    def _share(self) -> None:
        """Make the memory of this rank's blocks, where the others on the machine can read it."""
        blocks = self._nodes[self.rank]
        sizes = [size * dtype.itemsize for dtype, size in sorted(self._layout.sizes.items(), key=_by_name)]
        each = sum(-(-size // 64) * 64 for size in sizes)
        begin, end = self._layout.cuts[self.rank : self.rank + 2]
        outgoing = sum(self._bytes(span) for span in self._layout.spans(self.rank)) if begin < end else 0
        memory = self._world.share(each * len(blocks) + outgoing)
        self._windows: list[dict[Node, Lanes]] | None = None
        self._outgoing: list[np.ndarray] = []
        if memory is None:
            own: dict[Node, Lanes] = {
                node: {d: np.zeros(n, d) for d, n in self._layout.sizes.items()} for node in blocks
            }
        else:
            self._windows = [
                {node: self._lanes(memory[rank], each * k) for k, node in enumerate(nodes)}
                for rank, nodes in enumerate(self._nodes)
            ]
            self._outgoing = [memory[rank][each * len(nodes) :] for rank, nodes in enumerate(self._nodes)]
            own = self._windows[self.rank]
        self._blocks = own
        self._partial = Partial(own)

    def _lanes(self, memory: np.ndarray, at: int) -> Lanes:
        lanes = {}
        for dtype, size in sorted(self._layout.sizes.items(), key=_by_name):
            lanes[dtype] = memory[at : at + size * dtype.itemsize].view(dtype)
            at += -(-size * dtype.itemsize // 64) * 64
        return lanes

    def _bytes(self, span: Span) -> int:
        return (span.end - span.begin) * self._views[span.parameter].dtype.itemsize

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
        given = tuple(self._own_gradients() if grads is ... else match(grads, self._structure, "grads"))
        dense, rows = split_rows(given, self._views, self._names)
        kinds = [_NONE if grad is None else _DENSE for grad in dense]
        placed, summed = [], {}
        for i, grad in enumerate(dense):
            if grad is not None:
                array = view(grad, name := self._called(i))
                check_tensor([self._views[i], array], [self._names[i], name])
                placed.append((self._layout.ranges([Span(i, 0, array.size)])[0].begin, floats_of(array).reshape(-1)))
        for i, sparse in rows:
            kinds[i] = _ROWS
            summed[i] = self._check_rows(i, sparse)
        if self._kinds is not None and kinds != self._kinds:
            i = next(i for i, pair in enumerate(zip(kinds, self._kinds, strict=True)) if pair[0] != pair[1])
            raise ValueError(
                f"{self._called(i)}: found another kind of gradient than in other slices, expected the same"
            )
        self._partial.add(number, placed)
        for i, grad in summed.items():
            self._rows.setdefault(i, {})[number] = grad
        self._kinds = kinds
        self._added.add(number)

    def _called(self, i: int) -> str:
        """The name of a parameter's gradient."""
        return gradient_of(self._names[i]) if len(self._names) > 1 else "grads"

    def _own_gradients(self) -> list[Any]:
        """The gradients that torch's parameters have."""
        for name, array in zip(self._names, self._arrays, strict=True):
            if not is_tensor(array):
                raise TypeError(f"grads: found none, expected gradients, for {name} is no tensor of torch")
        return [array.grad for array in self._arrays]

    def _check_rows(self, i: int, grad: RowSparse) -> RowSparse:
        """A gradient of rows, checked, with each row once."""
        name = self._called(i)
        grad.check(self._views[i], [self._names[i], name])
        if not self._views[i].shape:
            raise ValueError(f"{name}: found rows, expected a dense gradient, for {self._names[i]} has none")
        if self._layout.extents[i].in_blocks:
            raise TypeError(
                f"{name}: found rows, expected a dense gradient, for states of {self._names[i]} are in 8-bit blocks; "
                'its group may have a state_dtype of its own, as {"params": ..., "state_dtype": "float32"}'
            )
        if self._layout.extents[i].whole:
            raise ValueError(
                f"{name}: found rows, expected a dense gradient: {self._rules[i].name} measures whole tensors"
            )
        if grad.duplicates != "sum":
            raise ValueError(f"{name}: found duplicates {grad.duplicates!r}, expected 'sum'")
        return grad.coalesced()

    # ---- steps ----

    def step(self, max_norm: float | None = None) -> None:
        """Updates the parameters in all ranks with the mean of the gradients of all slices.

        Parameters
        ----------
        max_norm : float, optional
            Clips the mean gradient to this global norm, within the pass; see ``last_grad_norm``.

        Raises
        ------
        TypeError, ValueError
            A slice is missing in some rank, or slices have gradients of different parameters: raised in all ranks, and
            nothing has changed.
        RankDied
            Another rank has ended.
        """
        limit = None if max_norm is None else check_max_norm(max_norm)
        kinds = self._agree(max_norm)
        route = self._route(kinds)
        threads = self.optimizer._owned.threads or settings.threads
        rows = {i: self._exchange_rows(i) for i, kind in enumerate(kinds) if kind == _ROWS}
        scale = 1.0 / self._count
        owned, bound, units = self.optimizer._owned, route.bound, route.units[self.rank]
        with _Flight(self, route) as flight:
            if limit is not None:
                for k, unit in enumerate(units):
                    flight.receive(k)
                    self._sum(unit)
                norm = root_of(gathered_square_sums(self._portions(kinds, rows), self._world, host_backend(), threads))
                scale, self.last_grad_norm = clipped(scale, norm, limit)
            if owned.groups.varying:
                owned.groups.read_varying(bound.members)
            runner = cast(PartRunner, bound.runner)  # of arrays on the CPU
            if self._parted:
                runner.advance(scale)
            for k, unit in enumerate(units):
                if limit is None:
                    flight.receive(k)
                    self._sum(unit)
                for job, begin, end in unit.parts if self._parted else ():
                    runner.update(job, begin, end, threads)
                if self._parted:
                    flight.publish(k)
            if not self._parted:
                runner(scale, threads)
                for k in range(len(units)):
                    flight.publish(k)
            if rows:
                self._step_rows(rows, scale)
        self._forget()
        self.steps += 1

    def _agree(self, max_norm: Any) -> list[int]:
        """Check that all ranks have added all slices, of the same parameters; return the kinds of gradients."""
        missing = [s for s in range(self._begin(self.rank), self._begin(self.rank + 1)) if s not in self._added]
        told = self._world.all_gather((missing[:1], self._kinds, None if max_norm is None else float(max_norm)))
        for rank, (lacking, kinds, limit) in enumerate(told):
            if lacking:
                raise ValueError(
                    f"grads: found slice {lacking[0]} of rank {rank} not added, expected all before a step"
                )
            if kinds != told[0][1]:
                i = next(i for i, pair in enumerate(zip(kinds, told[0][1], strict=True)) if pair[0] != pair[1])
                raise ValueError(
                    f"{self._called(i)}: found another kind of gradient in rank {rank}, expected that of rank 0"
                )
            if limit != told[0][2]:
                raise ValueError(f"max_norm: found {limit} in rank {rank}, expected {told[0][2]} as in rank 0")
        return told[0][1]

    def _forget(self) -> None:
        self._partial.clear()
        self._added.clear()
        self._rows.clear()
        self._kinds = None

    def _route(self, kinds: Sequence[int]) -> _Route:
        """The ways of dense gradients, made when they are first taken."""
        key = bytes(kinds)
        if key not in self._routes:
            chosen = [kind == _DENSE for kind in kinds]
            grads = tuple(self._view_of(table) if chosen[table.span.parameter] else None for table in self._tables)
            bound = self.optimizer._owned.bind(grads)
            places = self._places(bound)
            units = []
            for rank in range(self.ranks):
                cut = self._layout.units(rank, chosen)
                units.append(
                    [
                        _Unit(spans, self._layout.ranges(spans), places(spans) if rank == self.rank else [])
                        for spans in cut
                    ]
                )
            self._routes[key] = _Route(units, bound)
        return self._routes[key]

    def _view_of(self, table: _Table) -> np.ndarray:
        """The summed gradient of a table."""
        ((dtype, begin, end),) = self._layout.ranges([table.span])
        return self._summed[dtype][begin - self._low[dtype] : end - self._low[dtype]].reshape(table.shape)

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

    def _sum(self, unit: _Unit) -> None:
        """Add the blocks of all ranks, for a unit."""
        with ieee_arithmetic(), np.errstate(all="ignore"):
            for dtype, begin, end in unit.ranges:
                low = self._low[dtype]
                out = self._summed[dtype][begin - low : end - low]
                slots: list[np.ndarray] = []
                for rank, nodes in enumerate(self._nodes):
                    for node in nodes:
                        if self._windows is not None:
                            slots.append(self._windows[rank][node][dtype][begin:end])
                        elif rank == self.rank:
                            slots.append(self._blocks[node][dtype][begin:end])
                        else:
                            lane = self._received[rank, node][dtype]
                            slots.append(self._wire.widened(lane[begin - low : end - low]))
                if not self._steps:
                    np.copyto(out, slots[0])
                    continue
                slots.append(out)
                for lanes in self._scratch:
                    if lanes[dtype].size < end - begin:
                        lanes[dtype] = np.empty(end - begin, dtype)
                    slots.append(lanes[dtype][: end - begin])
                for left, right, into in self._steps:
                    np.add(slots[left], slots[right], out=slots[into])

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
                values = self._view_of(_Table(span, (-1,))) if span.end else np.empty(0, dtype)
                portions.append(Portion(span.begin, values))
        return portions

    # ---- rows ----

    def _exchange_rows(self, i: int) -> Rows:
        """The rows of a parameter that this rank has elements of, of all slices in order."""
        return send_rows([self._rows[i][s] for s in sorted(self._rows[i])], i, self._layout, self._world)

    def _step_rows(self, rows: Mapping[int, Rows], scale: float) -> None:
        """Update rows of this rank's shard, and take over those that others have updated."""
        grads: list[Any] = [None] * len(self._tables)
        for k, (span, shape) in enumerate(self._tables):
            if span.parameter in rows:
                width = self._layout.extents[span.parameter].width
                grads[k] = rows_of_table(rows[span.parameter], span, shape, width)
        owned = self.optimizer._owned
        owned.step(tuple(grads), scale, None, False, False)
        mine = []
        for (span, shape), grad in zip(self._tables, grads, strict=True):
            if grad is not None:
                unique = np.unique(grad.indices)
                mine.append((span, shape[0], unique, self._rows_of(span, shape[0])[unique]))
        for rank, theirs in enumerate(self._world.all_gather(mine)):
            for span, count, unique, values in theirs if rank != self.rank else ():
                self._rows_of(span, count)[unique] = values

    def _rows_of(self, span: Span, count: int) -> np.ndarray:
        """The bytes of part of a parameter, row by row."""
        return self._memory_of(span).reshape(count, -1)

    def _memory_of(self, span: Span) -> np.ndarray:
        size = self._views[span.parameter].dtype.itemsize
        return self._memory[span.parameter][span.begin * size : span.end * size]

    # ---- states ----

    def state_dict(self) -> dict[str, Any] | None:
        """Everything that a training needs to go on bit for bit, with any number of ranks, in torch's layout.

        Returns
        -------
        dict or None
            On rank 0 what the class's own ``state_dict()`` would have, of whole parameters, copied; elsewhere None.
        """
        own = self.optimizer.state_dict()
        parts = [(span, own["state"][k]) for k, (span, _) in enumerate(self._tables)]
        told = self._world.gather([(span, dict(state)) for span, state in parts])
        if told is None:
            return None
        whole = join_states([part for theirs in told for part in theirs], self._views, self._rules, self._copies)
        return {"state": whole, "param_groups": self._numbered(own["param_groups"])}

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
        self.optimizer.load_state_dict(
            split_states(state_dict, self._group_sizes, self._tables, self._views, self._rules)
        )

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
        own = self.optimizer.state_dict()
        parts, shapes = [], {}
        for k, (span, _) in enumerate(self._tables):
            i, values = span.parameter, {}
            rule, copies = self._rules[i], self._copies[i]
            whole = shapes[i] = {checkpoint.PARAMETER: self._views[i].shape}
            values[checkpoint.PARAMETER] = host_values(self._parameter_part(span), "params").reshape(1, -1)
            for name, value in own["state"][k].items():
                values[name] = host_values(value, name)
                whole[name] = ()
                if values[name].ndim:
                    whole[name] = state_shape(rule, name, self._views[i], copies, values[name].dtype)
                    values[name] = values[name].reshape(copies_in(rule, name, copies), -1)
            parts.append(checkpoint.Part(span, values))
        about = {"optimizer": type(self.optimizer).__name__, "parameters": self._described()}
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
        reader = checkpoint.Reader(path)
        try:
            checkpoint.check(reader, type(self.optimizer).__name__, self._described())
            mine = {span.parameter for span in self._layout.spans(self.rank)}
            states = {i: reader.states(i) for i in sorted(mine)}
            loaded = [np.ascontiguousarray(reader.parameter(i)) for i in range(len(self._views))]
            self.load_state_dict({"state": states, "param_groups": reader.groups})
        finally:
            reader.close()
        for memory, values in zip(self._memory, loaded, strict=True):
            memory[:] = values.reshape(-1).view(np.uint8)
        self.steps = reader.index["steps"]
        return self.steps

    def _described(self) -> list[list[Any]]:
        """The parameters as the index of a checkpoint has them."""
        return [
            [name, dtype_name(view_.dtype), list(view_.shape)]
            for name, view_ in zip(self._names, self._views, strict=True)
        ]

    def _parameter_part(self, span: Span) -> Any:
        return _part(self._arrays[span.parameter], span.begin, span.end, None)


class _Flight:
    """The messages of a step, or what goes through shared memory in their place."""

    def __init__(self, own: Synchronous, route: _Route) -> None:
        self._own, self._route, self._world = own, route, own._world
        self._coming: list[list[Request]] = []
        self._going: list[Request] = []
        self._published = 0

    def __enter__(self) -> _Flight:
        own, world = self._own, self._world
        if own._windows is not None:
            world.barrier()  # all sums are there
            return self
        for unit in self._route.units[world.rank]:
            self._coming.append(
                [
                    world.receive(
                        rank, own._received[rank, node][dtype][begin - own._low[dtype] : end - own._low[dtype]]
                    )
                    for rank in range(world.size)
                    if rank != world.rank
                    for node in own._nodes[rank]
                    for dtype, begin, end in unit.ranges
                ]
            )
        for rank in range(world.size):
            for unit in self._route.units[rank] if rank != world.rank else ():
                for node in own._nodes[world.rank]:
                    for dtype, begin, end in unit.ranges:
                        self._going.append(world.send(rank, own._wire.narrowed(own._blocks[node][dtype][begin:end])))
        return self

    def receive(self, k: int) -> None:
        """Wait for the gradients of a unit."""
        for request in self._coming[k] if self._coming else ():
            request.wait()

    def publish(self, k: int) -> None:
        """Give the updated parameters of a unit to the others."""
        own, world = self._own, self._world
        if world.size == 1:
            return
        parts = [own._memory_of(span) for span in self._route.units[world.rank][k].spans]
        if own._windows is None:
            joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
            self._going += [world.send(rank, joined) for rank in range(world.size) if rank != world.rank]
            return
        for part in parts:
            own._outgoing[world.rank][self._published : self._published + part.size] = part
            self._published += part.size

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            return
        own, world = self._own, self._world
        if own._windows is not None:
            world.barrier()  # all parameters are there, and nobody reads sums any longer
            for rank in range(world.size):
                at = 0
                for unit in self._route.units[rank] if rank != world.rank else ():
                    for span in unit.spans:
                        memory = own._memory_of(span)
                        memory[:] = own._outgoing[rank][at : at + memory.size]
                        at += memory.size
            return
        for rank in range(world.size):
            for unit in self._route.units[rank] if rank != world.rank else ():
                parts = [own._memory_of(span) for span in unit.spans]
                joined = parts[0] if len(parts) == 1 else np.empty(sum(part.size for part in parts), np.uint8)
                world.receive(rank, joined).wait()
                at = 0
                for part in parts if len(parts) > 1 else ():
                    part[:] = joined[at : at + part.size]
                    at += part.size
        for request in self._going:
            request.wait()


def _measures_tensors(rule: Rule) -> bool:
    """Tell whether a rule's step of an element depends on all of its parameter."""
    return getattr(rule, "by_tensor", None) is not None


def _by_name(item: tuple[np.dtype, int]) -> str:
    return item[0].name


def _check_slices(slices: Any, ranks: int) -> int:
    expected = f"a power of two, at least {ranks}, the number of ranks, and at most {MAX_SLICES}"
    number = check_integer("slices", slices, ranks, MAX_SLICES, expected)
    if number & (number - 1):
        raise wrong_value("slices", slices, expected)
    return number


def _check_parameter(array: Array, name: str) -> None:
    if array.place is not CPU:
        raise ValueError(f"{name}: found an array on {array.place.device}, expected one on the CPU")
    check_tensor([array], [name])
    if not array.dense:
        raise ValueError(f"{name}: found strides {array.strides}, expected a contiguous array")
    if not array.size:
        raise ValueError(f"{name}: found shape {array.shape}, expected elements")


def _part(array: Any, begin: int, end: int, shape: tuple[int, ...] | None) -> Any:
    """Elements of a contiguous parameter, as an array of its library."""
    own = array if isinstance(array, np.ndarray) or is_tensor(array) else view(array, "params").numpy()
    part = detached(own).reshape(-1)[begin:end]
    return part if shape is None else part.reshape(shape)


def _groups(own: Sequence[Mapping[str, Any]], counts: Sequence[int], arrays: Sequence[Any]) -> list[dict[str, Any]]:
    """Groups of so many of the arrays."""
    given = iter(arrays)
    return [
        {**entries, "params": [next(given) for _ in range(count)]} for entries, count in zip(own, counts, strict=True)
    ]
