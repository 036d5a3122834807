"""Internal. The algorithms of workers that do not wait for each other: a worker's side, and the servers'."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from ..arrays.array import CPU
from ..arrays.dtypes import compute_dtype
from ..arrays.libraries import floats_of, view
from ..backends.choice import choose_backend, ieee_arithmetic
from ..binding.accumulated import Accumulated
from ..binding.options import FILES
from ..binding.sparse import RowSparse
from ..binding.structure import match
from ..checks import check_integer, check_number, wrong_type, wrong_value
from ..optimizers import Optimizer
from .core import Centre, Op, OptimizerShard, Payload, Reply, Shard
from .held import Held, grouped


class Ask:
    """A request to all servers.

    Parameters
    ----------
    op : Op
        What is asked for.
    payload : sequence, optional
        Of each parameter what is sent.
    waits : bool
        False where the worker goes on, and asks for the replies later, by the same object.

    Attributes
    ----------
    replies : list of Reply or None
        The answer of each server, once they are there.
    sent : bool
        True once it is on its way.
    """

    def __init__(self, op: Op, payload: Payload | None = None, waits: bool = True) -> None:
        self.op, self.payload, self.waits = op, payload, waits
        self.replies: list[Reply] | None = None
        self.sent = False

    @property
    def arrays(self) -> list[np.ndarray]:
        """The answers, one for each parameter."""
        return [array for reply in self.replies or () for array in reply.payload or ()]


#: A worker's part: it yields requests, and goes on when they are answered, or at once where they do not wait.
Asking = Generator[Ask, None, None]


class Side:
    """The side of a worker: all that it does beside computing gradients.

    Attributes
    ----------
    params : object
        The worker's parameters, in the structure of those given.
    steps : int
        The gradients that it has had.
    """

    params: Any
    steps = 0

    def begin(self) -> Asking:
        """Do what comes before the first gradient."""
        raise NotImplementedError

    def resume(self) -> Asking:
        """Do what comes before the next gradient, where there have been some before this run: fetch."""
        raise NotImplementedError

    def advance(self, grads: Any) -> Asking:
        """Do what comes after each gradient."""
        raise NotImplementedError

    def finish(self) -> Asking:
        """Do what comes after the last one."""
        raise NotImplementedError


class Algorithm:
    """An optimizer's class with its parameters, and how workers and servers share the work: Downpour, or EASGD."""

    #: Pushes of worker 0 before the others begin.
    _warm_pushes = 0

    def __init__(self, optimizer: Any, params: Any, options: dict[str, Any]) -> None:
        if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
            raise wrong_type("optimizer", optimizer, "a class of fastopt, as fastopt.Adagrad")
        optimizer._arguments.check_no_inputs("optimizer")
        for name in FILES:
            if options.get(name) is not None:
                raise wrong_value(name, options[name], "None: states of a server are in memory")
        self._class, self._options, self._held = optimizer, options, Held(params)
        for array, name in zip(self._held.arrays, self._held.names, strict=True):
            if not isinstance(array, np.ndarray):
                raise wrong_type(name, array, "a NumPy array")
        self._sizes = [len(group.arrays) for group in self._held.groups]
        self._probe: Optimizer = optimizer(self._held.params, **options)  # which refuses what cannot be
        owned = self._probe._owned
        self._rules = [owned.rule_of(i) for i in range(len(owned.params))]
        if any(rule.ahead for rule in self._rules):
            raise ValueError(f"optimizer: found {optimizer.__name__}, expected one whose parameters need no eval()")

    def _copies(self) -> list[np.ndarray]:
        """The parameters as they were given, in arrays of their own."""
        return [array.copy() for array in self._held.arrays]

    def _check_servers(self, servers: Any) -> int:
        most = len(self._held.arrays)
        expected = f"an integer >= 1 and <= {most}, the number of parameters: each is whole on one server"
        return check_integer("servers", servers, 1, most, expected)

    def _cuts(self, servers: int) -> list[int]:
        """The first parameter of each server, and their number: neighbours, of nearly as many elements."""
        ends = np.cumsum([array.size for array in self._held.arrays])
        cuts = [0]
        for k in range(1, servers):
            wanted = int(np.searchsorted(ends, ends[-1] * k / servers)) + 1
            cuts.append(min(max(wanted, cuts[-1] + 1), len(ends) - (servers - k)))
        return [*cuts, len(ends)]

    def _shard(self, begin: int, end: int, workers: int) -> Shard:
        """The shard that has some neighbouring parameters."""
        raise NotImplementedError

    def _side(self, workers: int) -> Side:
        """The side of one of so many workers."""
        raise NotImplementedError

    def _result(self, values: Sequence[np.ndarray]) -> Any:
        """The parameters that have been learned, as servers have them, in their structure."""
        return self._held.build([x.astype(own.dtype) for x, own in zip(values, self._held.arrays, strict=True)])


class Downpour(Algorithm):
    """Downpour SGD (Dean et al. 2012, section 4.1): workers push gradients to servers that step, and fetch parameters.

    A worker, from t = 0 on: where n_fetch divides t, fetch x; compute the gradient g at x; acc = acc + g;
    x = x - local_lr*g; where n_push divides t, push acc, and acc = 0. A server steps with each sum that is pushed as
    with a gradient, whichever worker it is of. What is left in acc is pushed at the end. Where both are 1, each step is
    one exchange.

    Parameters
    ----------
    optimizer : class
        A class of fastopt, whose step the servers do. The paper's is ``fastopt.Adagrad`` (with
        ``initial_accumulator_value=1, eps=0`` AsyncAdaGrad); ``fastopt.AdaptiveRevision`` makes up for the delay.
    params : NumPy array, nested sequences and mappings of them, or list of group dicts
        Where all begin. They stay as they are: what has been learned is ``Result.params``.
    n_push, n_fetch : int
        The gradients between pushes, and between fetches; default 1.
    warm_start : int
        The gradients that worker 0 computes before the others begin; default 0.
    local_lr : float, optional
        The rate of a worker's own steps between fetches; by default the optimizer's at its first step.
    **options
        The arguments of the class, as ``lr``, but those about states in files.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt import distributed as fd
    >>> target = np.array([1.0, 2.0])
    >>> def worker(opt):
    ...     for _ in opt.deal(range(400)):
    ...         opt.step(2 * (opt.params - target))
    >>> result = fd.run(worker, fd.Downpour(fastopt.Adagrad, np.zeros(2), lr=0.5), workers=2)
    >>> result.params.round(3).tolist(), result.pushes
    ([1.0, 2.0], 400)
    """

    def __init__(
        self,
        optimizer: Any,
        params: Any,
        *,
        n_push: int = 1,
        n_fetch: int = 1,
        warm_start: int = 0,
        local_lr: float | None = None,
        **options: Any,
    ) -> None:
        self._n_push = check_integer("n_push", n_push, 1)
        self._n_fetch = check_integer("n_fetch", n_fetch, 1)
        self._warm_pushes = -(-check_integer("warm_start", warm_start, 0) // self._n_push)
        if local_lr is not None:
            check_number("local_lr", local_lr, 0)
        super().__init__(optimizer, params, options)
        rates = [self._probe.hyper(g)["lr"] if local_lr is None else local_lr for g in range(len(self._sizes))]
        self._rates = [rate for rate, size in zip(rates, self._sizes, strict=True) for _ in range(size)]

    def _shard(self, begin: int, end: int, workers: int) -> Shard:
        owners = np.repeat(np.arange(len(self._sizes)), self._sizes)[begin:end]
        counts = np.bincount(owners, minlength=len(self._sizes)).tolist()
        arrays = [array.copy() for array in self._held.arrays[begin:end]]
        before = sum(array.size for array in self._held.arrays[:begin])
        options = {**self._options, "first_element": self._options.get("first_element", 0) + before}
        return OptimizerShard(self._class(grouped(self._held.groups, counts, arrays), **options))

    def _side(self, workers: int) -> Side:
        return _DownpourSide(self)


class _DownpourSide(Side):
    def __init__(self, algorithm: Downpour) -> None:
        self._algorithm, self._held, self._arrays = algorithm, algorithm._held, algorithm._copies()
        self._views = list(map(view, self._arrays, self._held.names))
        self.params = self._held.build(self._arrays)
        self._sums, self._backend = Accumulated(), choose_backend(None, CPU)

    def begin(self) -> Asking:
        yield from self._ask(Op.FETCH)

    def resume(self) -> Asking:
        yield from self._ask(Op.FETCH)

    def advance(self, grads: Any) -> Asking:
        held, own = self._held, self._algorithm
        given = tuple(match(grads, held.structure, "grads"))
        self._sums.add(given, self._arrays, self._views, held.names, self._backend, 1)
        pushes, fetches = self.steps % own._n_push == 0, (self.steps + 1) % own._n_fetch == 0
        self.steps += 1
        if not fetches:
            for x, g, rate in zip(self._arrays, given, own._rates, strict=True):
                _descend(x, g, rate)
        if pushes or fetches:
            yield from self._ask(Op.EXCHANGE if pushes and fetches else Op.PUSH if pushes else Op.FETCH)

    def finish(self) -> Asking:
        if self._sums.pending:
            yield from self._ask(Op.PUSH)

    def _ask(self, op: Op) -> Asking:
        ask = Ask(op, None if op == Op.FETCH else self._sums.gradients(len(self._arrays)))
        yield ask
        if op != Op.FETCH:
            self._sums.clear()
        for x, found in zip(self._arrays, ask.arrays, strict=False):
            np.copyto(x, found)


class EASGD(Algorithm):
    """Elastic averaging SGD (Zhang, Choromanska and LeCun 2015, algorithms 1, 2), asynchronous.

    A worker, from t = 0 on: where `every` divides t, send x to the servers, each of which at once computes
    e = alpha*(x - c), and c = c + e, where c is the common centre and alpha = beta/workers; compute the gradient at the
    unchanged x, and step with it; then x = x - e. What has been learned is c. With ``fastopt.SGD`` it is EASGD; EAMSGD,
    v = momentum*v - lr*g(x + momentum*v) and x = x + v, is ``EASGD(fastopt.NAG, params, lr=0.01, momentum=0.99,
    lr_inside=True)``, where a worker's parameters are x + momentum*v, and x is what is sent.

    Parameters
    ----------
    optimizer : class
        A class of fastopt, whose step each worker does on its own.
    params : NumPy array, nested sequences and mappings of them, or list of group dicts
        Where all begin. They stay as they are: what has been learned is ``Result.params``.
    every : int
        The steps between exchanges (tau in the paper); default 4.
    beta : float
        The part of the way that the centre goes while all workers exchange once, in [0, 1]; default 0.9.
    **options
        The arguments of the class, as ``lr``, but those about states in files.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt import distributed as fd
    >>> target = np.array([1.0, 2.0])
    >>> def worker(opt):
    ...     for _ in opt.deal(range(400)):
    ...         opt.step(2 * (opt.params - target))
    >>> result = fd.run(worker, fd.EASGD(fastopt.SGD, np.zeros(2), lr=0.1, every=4), workers=2)
    >>> result.params.round(3).tolist()
    [1.0, 2.0]
    """

    def __init__(self, optimizer: Any, params: Any, *, every: int = 4, beta: float = 0.9, **options: Any) -> None:
        self._every = check_integer("every", every, 1)
        self._beta = check_number("beta", beta, 0, 1)
        super().__init__(optimizer, params, options)

    def _shard(self, begin: int, end: int, workers: int) -> Shard:
        arrays = self._held.arrays[begin:end]
        return Centre([array.astype(compute_dtype(array.dtype)) for array in arrays], self._beta / workers)

    def _side(self, workers: int) -> Side:
        return _ElasticSide(self)


class _ElasticSide(Side):
    def __init__(self, algorithm: EASGD) -> None:
        self._algorithm, self._arrays = algorithm, algorithm._copies()
        self.params = algorithm._held.build(self._arrays)
        own = grouped(algorithm._held.groups, algorithm._sizes, self._arrays)
        self._optimizer: Optimizer = algorithm._class(own, **algorithm._options)
        self._sent = [np.empty(x.shape, compute_dtype(x.dtype)) for x in self._arrays]
        self._asked: Ask | None = None

    def begin(self) -> Asking:
        yield from self._send()

    def resume(self) -> Asking:
        ask = Ask(Op.FETCH)
        yield ask
        for x, center in zip(self._arrays, ask.arrays, strict=True):
            np.copyto(x, center, casting="same_kind")

    def advance(self, grads: Any) -> Asking:
        self._optimizer.step(match(grads, self._algorithm._held.structure, "grads"))
        yield from self._draw()
        self.steps += 1
        yield from self._send()

    def finish(self) -> Asking:
        yield from self._draw()

    def _send(self) -> Asking:
        """Send x, and go on."""
        if self.steps % self._algorithm._every:
            return
        with ieee_arithmetic(), np.errstate(all="ignore"):
            for i, (x, sent) in enumerate(zip(self._arrays, self._sent, strict=True)):
                np.copyto(sent, x)
                if self._algorithm._rules[i].name == "nesterov":
                    sent += sent.dtype.type(self._momentum(i)) * self._optimizer.state[i]["momentum_buffer"]
        self._asked = Ask(Op.EXCHANGE, self._sent, waits=False)
        yield self._asked

    def _momentum(self, i: int) -> float:
        """The multiple of its buffer by which a parameter is ahead of x."""
        hyper = self._optimizer.hyper(self._optimizer._owned.groups.of[i])
        return hyper["momentum"] * (1.0 if hyper["lr_inside"] else hyper["lr"])

    def _draw(self) -> Asking:
        """Wait for what was sent to be answered, and draw the parameters to the centre."""
        if self._asked is None:
            return
        yield self._asked
        with ieee_arithmetic(), np.errstate(all="ignore"):
            for x, e in zip(self._arrays, self._asked.arrays, strict=True):
                np.copyto(x, x.astype(e.dtype) - e, casting="same_kind")
        self._asked = None


def _descend(x: np.ndarray, grad: Any, rate: float) -> None:
    """Step against a gradient, by NumPy."""
    if grad is None:
        return
    real = compute_dtype(x.dtype)
    with ieee_arithmetic(), np.errstate(all="ignore"):
        if isinstance(grad, RowSparse):
            found = grad.coalesced()
            rows = np.asarray(found.indices)
            x[rows] = (x[rows].astype(real) - real.type(rate) * floats_of(found.values)).astype(x.dtype)
        else:
            np.copyto(x, x.astype(real) - real.type(rate) * np.asarray(grad).astype(real), casting="same_kind")
