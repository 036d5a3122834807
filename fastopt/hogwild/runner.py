"""Runs a kernel over examples in several threads or processes that write the same arrays."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from multiprocessing import connection
from queue import SimpleQueue
from typing import Any

import numpy as np
from numba import typeof
from numba.core.dispatcher import Dispatcher

from ..backends.numba_arithmetic import ieee_arithmetic
from ..backends.numba_cache import compiled
from ..checks import check_flag, check_integer, check_number, wrong_type
from ..settings import check_threads
from .shared import SharedArrays

#: Examples that a kernel gets in one call: between two calls a worker sees whether it is to stop.
BATCH = 16384

Kernel = Callable[..., float]
Progress = Callable[[int, float, float], None]


class Compiled:
    """A kernel that is compiled when first called, but not by Numba's dispatcher."""

    def prepare(self, order: np.ndarray, arrays: Sequence[np.ndarray]) -> None:
        """Compiles for arguments of these types."""
        raise NotImplementedError


class WorkerDied(RuntimeError):
    """A worker process ended before its work did: the message names the worker and the signal or the exit code."""


@dataclass(frozen=True)
class Run:
    """Result of a run.

    Attributes
    ----------
    loss : tuple of float
        For each epoch the mean over the examples of what the kernel returned.
    seconds : tuple of float
        For each epoch the time that it took, without starting the workers and compiling the kernel.
    """

    loss: tuple[float, ...]
    seconds: tuple[float, ...]


def run(
    kernel: Kernel,
    examples: int,
    arrays: Mapping[str, np.ndarray] | Sequence[np.ndarray],
    *,
    lr: float,
    workers: int = 2,
    epochs: int = 10,
    decay: float = 0.9,
    processes: bool = False,
    seed: int = 0,
    progress: bool | Progress | None = None,
) -> Run:
    """Stochastic gradient descent by workers that update the same arrays without locks (Niu, Recht, Ré and Wright
    2011, Hogwild!, arXiv:1106.5730).

    Examples are dealt out to the workers at random, once. In each epoch every worker goes through its own in a new
    random order, each example once; lr is ``lr*decay**epoch``, epochs counted from 0.

    Parameters
    ----------
    kernel : callable
        ``kernel(order, lr, *arrays)`` does the updates for the examples whose indices are in `order` (int64, shape
        (m,), 1 <= m <= 16384), in place, and returns the sum of their losses. Workers run at the same time where it
        lets go of the interpreter's lock, as ``numba.njit(nogil=True)`` does, or are processes.
    examples : int
        Their number, at least 1 and less than 2**32.
    arrays : mapping of str to array, or sequence of arrays
        What the kernel gets after `lr`, in this order: what it writes, and data that it reads. With processes, a
        `SharedArrays`.
    lr : float
        The step's size in the first epoch; finite, > 0.
    workers : int
        Default 2.
    epochs : int
        At least 1; default 10.
    decay : float
        What lr is multiplied by after each epoch, in (0, 1]; default 0.9.
    processes : bool
        Whether workers are processes, started by `multiprocessing` in the way that is set there, or threads, the
        caller's among them (default). With "spawn" or "forkserver" the kernel must be picklable.
    seed : int
        At least 0; default 0. A run with one worker is reproducible to the bit, in a thread as in a process.
    progress : bool or callable
        True prints a line for each epoch to stderr; a callable gets ``(epoch, loss, seconds)``, epochs counted
        from 1.

    Returns
    -------
    Run
        Losses and times.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; nothing has been done.
    WorkerDied
        A worker process was killed, or ended. The others have been ended too, and the arrays hold what was written.
    Exception
        What a worker's kernel raised; from a process, with the traceback there as its cause. KeyboardInterrupt, too,
        ends all workers.
    """
    if not callable(kernel):
        raise wrong_type("kernel", kernel, "a callable")
    if not isinstance(arrays, (Mapping, Sequence)) or isinstance(arrays, (str, bytes)):
        raise wrong_type("arrays", arrays, "a mapping of names to arrays, or a sequence of arrays")
    processes = check_flag("processes", processes)
    examples = check_integer("examples", examples, 1, 2**32 - 1)
    workers = check_threads("workers", workers)
    epochs = check_integer("epochs", epochs, 1, 2**63 - 1)
    seed = check_integer("seed", seed, 0)
    lr = check_number("lr", lr, 0, above=True)
    decay = check_number("decay", decay, 0, 1, above=True)
    if processes and not isinstance(arrays, SharedArrays):
        raise TypeError(
            f"arrays: found a {type(arrays).__name__}, expected a SharedArrays for processes: SharedArrays.create(...)"
        )
    show = check_progress(progress)
    values = () if processes else tuple(arrays.values() if isinstance(arrays, Mapping) else arrays)
    shards = [Shard(examples, workers, worker, seed) for worker in range(workers)]
    team = _processes(kernel, arrays, shards) if processes else _threads(kernel, values, shards)
    losses, seconds = [], []
    with team as epoch_of:
        for epoch in range(epochs):
            begin = time.perf_counter()
            with ieee_arithmetic():
                losses.append(sum(epoch_of(epoch, lr * decay**epoch)) / examples)
            seconds.append(time.perf_counter() - begin)
            if show is not None:
                show(epoch + 1, losses[-1], seconds[-1])
    return Run(tuple(losses), tuple(seconds))


def check_progress(progress: Any) -> Progress | None:
    """Return the function that reports epochs, or None.

    Raises
    ------
    TypeError
        `progress` cannot be called.
    """
    if progress is None or progress is False:
        return None
    show = _print_line if progress is True else progress
    if not callable(show):
        raise wrong_type("progress", progress, "True, False, None or a callable")
    return show


class Shard:
    """A worker's own examples: which, and in what order in each epoch, follows from the seed."""

    def __init__(self, examples: int, workers: int, worker: int, seed: int) -> None:
        self._arguments = examples, workers, worker, seed
        self._order: np.ndarray | None = None

    def orders(self) -> Iterator[np.ndarray]:
        """The next epoch's order, in parts."""
        examples, workers, worker, seed = self._arguments
        if self._order is None:
            dealt = np.arange(examples)
            if workers > 1:
                _shuffle(dealt, _random(seed, 0))
            self._order = dealt[worker * examples // workers : (worker + 1) * examples // workers].copy()
            self._random = _random(seed, 1 + worker)
        _shuffle(self._order, self._random)
        for begin in range(0, len(self._order), BATCH):
            yield self._order[begin : begin + BATCH]

    def __reduce__(self) -> tuple[Any, ...]:
        return Shard, self._arguments


def _random(seed: int, stream: int) -> np.ndarray:
    """The state of `_shuffle`'s generator."""
    return np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)


@compiled
def _shuffle(order, state):  # type: ignore[no-untyped-def]
    """Fisher and Yates's, with SplitMix64 (Steele, Lea and Flood 2014): twenty times as fast as NumPy's, which would
    cost as much as the updates of a small model."""
    shift = np.uint64(32)
    for i in range(order.size - 1, 0, -1):
        state[0] += np.uint64(0x9E3779B97F4A7C15)
        z = state[0]
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        j = np.uint64(((z ^ (z >> np.uint64(31))) >> shift) * np.uint64(i + 1)) >> shift
        order[i], order[j] = order[j], order[i]


def _work(kernel: Kernel, shard: Shard, lr: float, arrays: Sequence[np.ndarray], stop: threading.Event | None) -> float:
    """An epoch of one worker, in IEEE 754's arithmetic; the sum of the losses."""
    loss = 0.0
    with ieee_arithmetic():
        for order in shard.orders():
            if stop is not None and stop.is_set():
                break
            loss += float(kernel(order, lr, *arrays))
    return loss


def _prepare(kernel: Kernel, arrays: Sequence[np.ndarray]) -> None:
    """Compiles what epochs call, so that no epoch's time holds it. What goes wrong goes wrong again there."""
    order = np.zeros(1, np.int64)
    _shuffle(order, _random(0, 0))
    with suppress(Exception):
        if isinstance(kernel, Dispatcher):
            kernel.compile(tuple(map(typeof, (order, 1.0, *arrays))))
        elif isinstance(kernel, Compiled):
            kernel.prepare(order, arrays)


# ---- threads ----


@contextmanager
def _threads(kernel: Kernel, arrays: Sequence[np.ndarray], shards: list[Shard]) -> Iterator[Callable[..., list[float]]]:
    """Run epochs in threads: the caller's takes the first shard."""
    stop = threading.Event()
    done: SimpleQueue[float | BaseException] = SimpleQueue()
    tasks: list[SimpleQueue[float | None]] = [SimpleQueue() for _ in shards[1:]]

    def serve(task: SimpleQueue[float | None], shard: Shard) -> None:
        while (lr := task.get()) is not None:
            try:
                done.put(_work(kernel, shard, lr, arrays, stop))
            except BaseException as error:
                stop.set()
                done.put(error)

    others = [
        threading.Thread(target=copy_context().run, args=(serve, *pair), name=f"hogwild-{k}", daemon=True)
        for k, pair in enumerate(zip(tasks, shards[1:], strict=True), 1)
    ]

    def epoch_of(epoch: int, lr: float) -> list[float]:
        for task in tasks:
            task.put(lr)
        results: list[Any] = [_work(kernel, shards[0], lr, arrays, stop)]
        results += [done.get() for _ in tasks]
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    try:
        for thread in others:
            thread.start()
        _prepare(kernel, arrays)
        yield epoch_of
    finally:
        stop.set()
        for task in tasks:
            task.put(None)
        for thread in others:
            with suppress(RuntimeError):  # it has not started; if it still does, None is its task
                thread.join()


# ---- processes ----


@contextmanager
def _processes(kernel: Kernel, arrays: Any, shards: list[Shard]) -> Iterator[Callable[..., list[float]]]:
    """Run epochs in processes."""
    context = multiprocessing.get_context()
    members: list[tuple[Any, connection.Connection]] = []
    try:
        # A child inherits that Ctrl-C is held back: it is for this process to end its workers.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for worker, shard in enumerate(shards):
                ours, theirs = context.Pipe()
                process: Any = context.Process(
                    target=_serve, args=(kernel, arrays, shard, theirs), name=f"hogwild-{worker}", daemon=True
                )
                try:
                    process.start()
                except (pickle.PicklingError, AttributeError, TypeError) as error:
                    raise TypeError(
                        f"kernel: found {kernel!r}, which cannot be sent to a process ({error}); expected a function "
                        f"of a module, not one made within another"
                    ) from error
                finally:
                    theirs.close()
                members.append((process, ours))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        _gather(members, "at its start")

        def epoch_of(epoch: int, lr: float) -> list[float]:
            for worker, (process, pipe) in enumerate(members):
                try:
                    pipe.send(lr)
                except OSError:
                    raise _died(worker, process, f"before epoch {epoch + 1}") from None
            return _gather(members, f"in epoch {epoch + 1}")

        yield epoch_of
        for process, pipe in members:
            with suppress(OSError):  # it has done its work, and may be gone
                pipe.send(None)
            process.join(5)
    finally:
        for process, pipe in members:
            process.kill()  # they hold nothing that would need an orderly end
            process.join()
            pipe.close()


def _gather(members: Sequence[tuple[Any, connection.Connection]], when: str) -> list[float]:
    """Collect every worker's answer, with an eye on those that die."""
    results: dict[int, float] = {}
    while len(results) < len(members):
        waiting = {k: member for k, member in enumerate(members) if k not in results}
        # A dead worker's end of the pipe is closed, unless a process that it had started keeps it: hence the timeout.
        connection.wait([pipe for _, pipe in waiting.values()], timeout=1)
        for worker, (process, pipe) in waiting.items():
            alive = process.exitcode is None  # asked before its last words are looked for
            if pipe.poll():
                try:
                    result = pipe.recv()
                except (EOFError, OSError):
                    raise _died(worker, process, when) from None
                if isinstance(result, _Failure):
                    raise result.error from _Traceback(result.text)
                results[worker] = result
            elif not alive:
                raise _died(worker, process, when)
    return [results[k] for k in range(len(members))]


def _died(worker: int, process: Any, when: str) -> WorkerDied:
    process.join()
    if process.exitcode < 0:
        how = f"was killed by {signal.Signals(-process.exitcode).name} (signal {-process.exitcode})"
    else:
        how = f"ended with exit code {process.exitcode}"
    return WorkerDied(
        f"worker {worker} (process {process.pid}) {how} {when}; the arrays hold what was written until then"
    )


@dataclass(frozen=True)
class _Failure:
    error: BaseException
    text: str


class _Traceback(Exception):
    """The traceback in a worker process, as text."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


def _serve(kernel: Kernel, arrays: SharedArrays, shard: Shard, pipe: connection.Connection) -> None:
    """A worker process: an epoch for each lr that comes, until None comes or the parent is gone."""
    parent: Any = multiprocessing.parent_process()
    values = tuple(arrays.values())
    _prepare(kernel, values)
    pipe.send(0.0)
    while pipe in connection.wait([pipe, parent.sentinel]):
        try:
            lr = pipe.recv()
        except EOFError:
            return
        if lr is None:
            return
        try:
            pipe.send(_work(kernel, shard, lr, values, None))
        except BaseException as error:
            pipe.send(_Failure(_picklable(error), traceback.format_exc()))


def _picklable(error: BaseException) -> BaseException:
    """The error itself, where it comes through a pipe whole."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _print_line(epoch: int, loss: float, seconds: float) -> None:
    print(f"epoch {epoch}: loss {loss:.6g}, {seconds:.3g} s", file=sys.stderr)
