"""Internal. A server of an asynchronous training, without any input or output: what it does with a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from .. import settings
from ..backends import PartRunner
from ..backends.choice import ieee_arithmetic
from ..binding.owned import Owned
from ..binding.plan import Plan
from ..jobs.job import DenseJob
from ..optimizers import Optimizer
from ..rules import AT_PARAMETER, State

#: Parts of arrays, in order, each with what is to be copied there: as it is once the pair is taken, not before.
Pairs = Iterable[tuple[np.ndarray, np.ndarray]]
#: What copies into arrays, until there are no more pairs.
Copy = Callable[[Sequence[np.ndarray], Pairs], None]
#: The elements that are updated and copied at once.
PART = 1 << 17
#: What a worker sends of each parameter: an array, rows, which rows it asks for, or None.
Payload = Sequence[Any]


class OutOfOrder(ValueError):
    """A request is not the one that the order has next."""


class Op(IntEnum):
    """Requests of a worker."""

    FETCH = 0
    PUSH = 1
    EXCHANGE = 2  # both, in one pass
    ROWS = 3  # a fetch of some rows of tables


class Header(NamedTuple):
    """The beginning of a request.

    Attributes
    ----------
    op : Op
        What is asked for.
    number : int
        Of the worker's request, from 1 on; each is handled once, however often it comes.
    steps, before : int
        The gradients that the worker has computed, and those of which it knows that they have been pushed.
    """

    op: Op
    number: int
    steps: int = 0
    before: int = 0


class Reply(NamedTuple):
    """The answer to a request.

    Attributes
    ----------
    number : int
        That of the request.
    version : int
        The pushes that the shard had after it.
    payload : list of numpy.ndarray or None
        Of a push None; else memory of this worker's own, until its next request is handled.
    """

    number: int
    version: int
    payload: list[np.ndarray] | None


class Shard(Protocol):
    """Parameters of a server, and how they change."""

    def apply(self, worker: int, payload: Payload, reads: bool) -> None:
        """Take over what a worker pushes, which reads the parameters after it or not: all, or nothing and an error."""

    def read(self, worker: int, pushed: bool, copy: Copy | None = None) -> list[np.ndarray]:
        """Return for a worker, which has pushed in this request or not, what it reads, in memory of its own.

        What is copied there for that is copied by `copy`, if there is one. A reading after a push may end that.
        """

    def again(self, worker: int, payload: Payload, pushed: bool) -> list[np.ndarray]:
        """Return what a worker reads to which that is to be said again; what it pushed has been applied."""

    def read_rows(self, worker: int, wanted: Payload) -> list[np.ndarray]:
        """Return for a worker the rows that it asks for of each table, and of all else none, in memory of its own."""

    def values(self) -> list[np.ndarray]:
        """Return the parameters."""

    def saved(self) -> dict[str, Any]:
        """Return states in torch's layout, for a checkpoint."""

    def restore(self, params: Sequence[np.ndarray], state_dict: dict[str, Any], workers: int) -> None:
        """Take over parameters and states, as if so many workers had just read them."""


class ServerCore:
    """A server: a shard, and what it knows of its workers.

    Whoever has a request asks whether it is `ready`, and has it handled then. Of the same requests in the same order
    the bits are the same: the order is all that is left to chance.

    Parameters
    ----------
    shard : Shard
        The parameters.
    workers : int
        Their number.
    max_ahead : int, optional
        The most requests that a worker may be ahead of the slowest that is alive: its next one waits.
    warm_start : int
        The pushes of worker 0 before the others begin.
    order : sequence of int, optional
        The workers whose requests are to be handled, in order.

    Attributes
    ----------
    version : int
        The pushes that have been applied.
    order : list of int
        The workers whose requests have been handled, in order.
    delays : Counter
        How often so many pushes came between a worker's reading and its push.
    lost : int
        The gradients that were pushed to a server before this one which had not saved them.
    before : list of list of int
        Of each run before this one, with other workers, the gradients that each of these had pushed.
    """

    def __init__(
        self,
        shard: Shard,
        workers: int,
        *,
        max_ahead: int | None = None,
        warm_start: int = 0,
        order: Sequence[int] | None = None,
    ) -> None:
        self.shard = shard
        self.version = 0
        self.order: list[int] = []
        self.delays: Counter[int] = Counter()
        self._max_ahead, self._warm, self._follows = max_ahead, warm_start, order
        self._alive = set(range(workers))
        self._last = [0] * workers  # the number of the last request that was handled
        self._done = [0] * workers  # how far each is; those that a warm start keeps back begin where it ends
        self._read = [0] * workers  # the version at the last reading
        self._replies: list[Reply | None] = [None] * workers
        self._steps = [0] * workers  # the gradients that have been pushed,
        self._pushed = [0] * workers  # and the number of the request that pushed the last
        self.lost = 0
        self.before: list[list[int]] = []

    def ready(self, worker: int, header: Header) -> bool:
        """Tell whether a request can be handled now: else it is to wait until others have been."""
        if header.number <= self._last[worker]:
            return True
        if self._follows is not None:
            turn = self._turn()
            return turn == worker or turn not in self._alive  # then `handle` says what is wrong
        if self._warm and worker:
            return False
        if self._max_ahead is None:
            return True
        slowest = min((self._done[k] for k in self._alive if not (self._warm and k)), default=self._done[worker])
        return self._done[worker] - slowest <= self._max_ahead

    def handle(self, worker: int, header: Header, payload: Payload | None, copy: Copy | None = None) -> Reply:
        """Do what a request asks for, once: to one that comes again the reply is the same.

        The version is the new one when `copy` copies what the reply has, if it does.

        Raises
        ------
        TypeError, ValueError
            What is pushed is not what it must be, or another request was to come; nothing has changed.
        """
        if header.number <= self._last[worker]:
            return self._again(worker, header, payload or ())
        if self._follows is not None and (turn := self._turn()) != worker:
            expected = "none" if turn is None else f"one of worker {turn}, which has ended"
            raise OutOfOrder(
                f"order: found request {len(self.order) + 1} of worker {worker}, expected {expected}: a run is done "
                "again with the worker and the algorithm that it had"
            )
        reads = header.op != Op.PUSH
        pushes = header.op in (Op.PUSH, Op.EXCHANGE)
        self._note(worker, header.before)
        if pushes:
            self.shard.apply(worker, payload or (), reads)
            self.delays[self.version - self._read[worker]] += 1
            self.version += 1
            self._pushed[worker] = header.number
            self._steps[worker] = max(self._steps[worker], header.steps)
        found = None
        if header.op == Op.ROWS:
            found = self.shard.read_rows(worker, payload or ())
        elif reads:
            found = self.shard.read(worker, pushes, copy)
        if reads:
            self._read[worker] = self.version
        self._last[worker] = header.number
        self._done[worker] += 1
        self.order.append(worker)
        if self._warm and self.version >= self._warm:
            self._end_warm_start()
        self._replies[worker] = reply = Reply(header.number, self.version, found)
        return reply

    def expect(self, workers: Iterable[int]) -> None:
        """Wait for these workers alone; others may begin later."""
        self._alive = set(workers)

    def begin(self, worker: int) -> None:
        """Wait for a worker from now on: one that never was there is as far as the slowest of the others."""
        if worker not in self._alive and not self._last[worker]:
            self._done[worker] = min((self._done[k] for k in self._alive), default=self._done[worker])
        self._alive.add(worker)

    def end(self, worker: int, before: int = 0) -> None:
        """Wait for a worker no more: it has ended, as it should or not. So many of its gradients had been pushed."""
        self._note(worker, before)
        self._alive.discard(worker)
        if worker == 0:
            self._end_warm_start()

    def _note(self, worker: int, before: int) -> None:
        """Count those of a worker's gradients as lost that had been pushed, and are not known here."""
        self.lost += max(before - self._steps[worker], 0)
        self._steps[worker] = max(self._steps[worker], before)

    def _again(self, worker: int, header: Header, payload: Payload) -> Reply:
        """The reply to a request that has been handled, by this server or by one before it."""
        kept = self._replies[worker]
        if kept is not None and kept.number == header.number:
            return kept
        found = None
        if header.op == Op.ROWS:
            found = self.shard.read_rows(worker, payload)
        elif header.op != Op.PUSH:
            found = self.shard.again(worker, payload, header.op == Op.EXCHANGE)
        if header.op != Op.PUSH:
            self._read[worker] = self.version
        return Reply(header.number, self.version, found)

    def progress(self, worker: int) -> tuple[int, int, list[list[int]]]:
        """The number of a worker's last push, the gradients that have been pushed then, and those of runs before."""
        return self._pushed[worker], self._steps[worker], self.before

    def saved(self) -> dict[str, Any]:
        """What is known of workers, for a checkpoint."""
        return {
            "version": self.version,
            "delays": sorted(self.delays.items()),
            "warm": self._warm,
            "lost": self.lost,
            "before": self.before,
            "last": list(self._last),
            "done": list(self._done),
            "steps": list(self._steps),
            "pushed": list(self._pushed),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over what was saved; all workers are alive, and have just read."""
        self.version, self.delays = saved["version"], Counter(dict(map(tuple, saved["delays"])))
        self._warm, self.lost, self.before = saved["warm"], saved["lost"], saved["before"]
        self._last, self._done = saved["last"], saved["done"]
        self._steps, self._pushed = saved["steps"], saved["pushed"]
        self._read = [self.version] * len(self._last)

    def _turn(self) -> int | None:
        """The worker whose request is the next one, where there is an order."""
        follows, done = self._follows or (), len(self.order)
        return int(follows[done]) if done < len(follows) else None

    def _end_warm_start(self) -> None:
        if self._warm:
            self._warm = 0
            self._done[1:] = [self._done[0]] * (len(self._done) - 1)


class OptimizerShard:
    """Parameters that an optimizer steps, with what each worker pushes for a gradient.

    States that are a copy of another one are one for each worker: a step has the worker's own in their place.

    Parameters
    ----------
    optimizer : Optimizer
        That of the parameters.
    tables : collection of int
        The parameters of which workers read rows alone, each in a group of its own.

    Raises
    ------
    ValueError
        A copy of a table's state is stored so that its rows cannot be read.
    """

    def __init__(self, optimizer: Optimizer, tables: Collection[int] = ()) -> None:
        self._optimizer, self._tables = optimizer, tables
        self._owned = owned = optimizer._owned
        self._copies: list[tuple[int, State]] = []
        for i in range(len(owned.params)):
            self._copies += [(i, state) for state in owned.rule_of(i).states if state.copy_of]
        self._begun = [owned.states[i][state.name] for i, state in self._copies]
        groups = {owned.groups.of[i] for i in tables}
        self._flagged = [group for g, group in enumerate(optimizer.param_groups) if g not in groups]
        for (i, state), own in zip(self._copies, self._begun, strict=True):
            if i in tables:
                optimizer.param_groups[owned.groups.of[i]]["read"] = False
                if own.shape != owned.params[i].shape:
                    raise ValueError(f"state_dtype: found '8bit', expected one of whose {state.name} rows can be read")
        self._snapshots: dict[int, list[np.ndarray]] = {}
        self._plans: dict[int, _Plan] = {}
        self._left: Callable[[Sequence[np.ndarray]], Pairs] | None = None  # of a step that has begun, by its reply
        self._replies: dict[int, list[np.ndarray]] = {}
        self._reads = True
        self._whole = list[bool]()  # of each parameter, whether the last push had a gradient of all its elements

    def apply(self, worker: int, payload: Payload, reads: bool) -> None:
        """Do a step; a worker that sends the same arrays again has the plan that it had."""
        if self._copies and reads is not self._reads:
            self._reads = reads
            for group in self._flagged:
                group["read"] = reads
        plan = self._plans.get(worker)
        if plan is None or not plan.fits(payload):
            for (i, state), own in zip(self._copies, self._own(worker), strict=True):
                self._owned.replace_state(i, state.name, own)
            plan = self._plans[worker] = _Plan(self._owned, payload)
        self._whole = [isinstance(given, np.ndarray) for given in payload]
        if reads and plan.in_parts and not self._copied(worker, True):
            self._left = plan.begin()
        else:
            plan.step()

    def read(self, worker: int, pushed: bool, copy: Copy | None = None) -> list[np.ndarray]:
        """Copy the parameters, and what the worker's next step is to know of them."""
        for i, state, own in self._copied(worker, pushed):
            np.copyto(own, self._source(i, state))
        whole = [array[:0] if i in self._tables else array for i, array in enumerate(self._owned.params)]
        reply = _memory(self._replies, worker, whole)
        left, self._left = self._left, None
        (copy or _copy)(reply, zip(reply, whole, strict=True) if left is None else left(reply))
        return reply

    def again(self, worker: int, payload: Payload, pushed: bool) -> list[np.ndarray]:
        """Copy the parameters as they are now."""
        return self.read(worker, False)

    def read_rows(self, worker: int, wanted: Payload) -> list[np.ndarray]:
        """Copy rows, and what the worker's next step is to know of them."""
        for (i, state), own in zip(self._copies, self._own(worker), strict=True):
            if wanted[i] is not None:
                own[wanted[i]] = self._source(i, state)[wanted[i]]
        found = zip(wanted, self._owned.params, strict=True)
        return [array[:0] if own is None else np.take(array, own, axis=0) for own, array in found]

    def values(self) -> list[np.ndarray]:
        """Return the parameters."""
        return self._owned.params

    def saved(self) -> dict[str, Any]:
        """Return the optimizer's states; copies are what a worker would have that reads now."""
        found = self._optimizer.state_dict()
        for (i, state), begun in zip(self._copies, self._begun, strict=True):
            own = begun.copy()
            np.copyto(own, self._source(i, state))
            found["state"][i][state.name] = own
        return found

    def restore(self, params: Sequence[np.ndarray], state_dict: dict[str, Any], workers: int) -> None:
        """Take over parameters and states."""
        for own, given in zip(self._owned.params, params, strict=True):
            np.copyto(own, given)
        self._optimizer.load_state_dict(state_dict)
        self._plans.clear()
        for worker in range(workers):
            for (i, state), own in zip(self._copies, self._own(worker), strict=True):
                np.copyto(own, self._source(i, state))

    def _copied(self, worker: int, pushed: bool) -> list[tuple[int, State, np.ndarray]]:
        """The copies of states that a worker's reading makes, and no step has made."""
        found = []
        for (i, state), own in zip(self._copies, self._own(worker), strict=True):
            exact = state.copy_of != AT_PARAMETER or own.dtype.itemsize > 2  # states may be rounded otherwise than it
            if i not in self._tables and not (pushed and exact and self._whole[i]):
                found.append((i, state, own))
        return found

    def _source(self, i: int, state: State) -> np.ndarray:
        """What a state is a copy of, as it is now."""
        states = self._owned.states[i]
        found = states.get("master", self._owned.params[i]) if state.copy_of == AT_PARAMETER else states[state.copy_of]
        return np.asarray(found)

    def _own(self, worker: int) -> list[np.ndarray]:
        if worker not in self._snapshots:
            self._snapshots[worker] = [array.copy() for array in self._begun]
        return self._snapshots[worker]


class _Plan:
    """A step with what a worker pushes.

    Attributes
    ----------
    in_parts : bool
        True where a step can be done part by part, of all parameters in order.
    """

    def __init__(self, owned: Owned, payload: Payload) -> None:
        self._owned, self._payload = owned, payload
        self._bound = owned.bind(tuple(payload))
        self.step = Plan(owned, self._bound).step
        jobs = self._bound.jobs
        elements = not any(owned.rule_of(i).whole for i in range(len(owned.params)))
        ordered = [i for job in jobs for i in job.members.tolist()] == list(range(len(owned.params)))
        dense = all(isinstance(job, DenseJob) for job in jobs)
        size = sum(array.size for array in owned.params)
        self.in_parts = elements and ordered and dense and size > PART and isinstance(self._bound.runner, PartRunner)

    def fits(self, payload: Payload) -> bool:
        """Tell whether these are the same arrays: rows, and what is left out, are never the same."""
        if len(self._payload) != len(payload):
            return False
        return all(a is b and isinstance(a, np.ndarray) for a, b in zip(self._payload, payload, strict=True))

    def begin(self) -> Callable[[Sequence[np.ndarray]], Pairs]:
        """Begin a step in parts; return what does the rest of it and fills a reply, part by part."""
        groups, runner = self._owned.groups, cast(PartRunner, self._bound.runner)
        if groups.varying:
            groups.read_varying(self._bound.members)
        runner.advance(1.0)
        return self._fill

    def _fill(self, reply: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        runner, threads = cast(PartRunner, self._bound.runner), self._owned.threads or settings.threads
        flat = [(own.reshape(-1), array.reshape(-1)) for own, array in zip(reply, self._owned.params, strict=True)]
        i = at = 0
        for k, job in enumerate(cast(Sequence[DenseJob], self._bound.jobs)):
            for begin in range(0, job.size, PART):
                end = min(begin + PART, job.size)
                runner.update(k, begin, end, threads)
                while begin < end:
                    own, array = (x[at : at + end - begin] for x in flat[i])
                    yield own, array
                    begin, at = begin + own.size, at + own.size
                    if at == flat[i][0].size:
                        i, at = i + 1, 0


class Centre:
    """A centre, to which each worker's parameters are drawn, and which is drawn to them.

    Parameters
    ----------
    arrays : sequence of numpy.ndarray
        The centre, in dtypes of computing.
    alpha : float
        The part of the way between them.
    """

    def __init__(self, arrays: Sequence[np.ndarray], alpha: float) -> None:
        self._arrays, self._alpha = list(arrays), alpha
        self._moves: dict[int, list[np.ndarray]] = {}

    def apply(self, worker: int, payload: Payload, reads: bool) -> None:
        """Draw the centre to the worker's parameters, as far as these are to be drawn to it."""
        with ieee_arithmetic(), np.errstate(all="ignore"):
            for centre, e in zip(self._arrays, self._measure(worker, payload), strict=True):
                centre += e

    def _measure(self, worker: int, payload: Payload) -> list[np.ndarray]:
        """How far the centre and the worker's parameters are drawn to each other."""
        moves = _memory(self._moves, worker, self._arrays)
        with ieee_arithmetic(), np.errstate(all="ignore"):
            for centre, x, e in zip(self._arrays, payload, moves, strict=True):
                np.subtract(x, centre, out=e)
                e *= e.dtype.type(self._alpha)
        return moves

    def read(self, worker: int, pushed: bool, copy: Copy | None = None) -> list[np.ndarray]:
        """Return by how much the worker's parameters are drawn to the centre; or the centre."""
        return self._moves[worker] if pushed else [array.copy() for array in self._arrays]

    def again(self, worker: int, payload: Payload, pushed: bool) -> list[np.ndarray]:
        """Return by how much the worker's parameters are drawn to the centre, which has been drawn; or the centre."""
        if pushed:
            self._measure(worker, payload)
        return self.read(worker, pushed)

    def read_rows(self, worker: int, wanted: Payload) -> list[np.ndarray]:
        """Return nothing: there are no tables."""
        return []

    def values(self) -> list[np.ndarray]:
        """Return the centre."""
        return self._arrays

    def saved(self) -> dict[str, Any]:
        """Return no states: a centre has none."""
        return {"state": {}, "param_groups": [{"params": list(range(len(self._arrays)))}]}

    def restore(self, params: Sequence[np.ndarray], state_dict: dict[str, Any], workers: int) -> None:
        """Take over the centre."""
        for own, given in zip(self._arrays, params, strict=True):
            np.copyto(own, given)


def _copy(to: Sequence[np.ndarray], pairs: Pairs) -> None:
    for own, array in pairs:
        np.copyto(own, array)


def _memory(of: dict[int, list[np.ndarray]], worker: int, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A worker's own arrays, made like others where it has none."""
    if worker not in of:
        of[worker] = [np.zeros_like(array) for array in arrays]
    return of[worker]
