"""Internal. The algorithms of workers that do not wait for each other: a worker's side, and the servers'."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..arrays.array import CPU
from ..arrays.dtypes import compute_dtype
from ..arrays.libraries import floats_of
from ..backends.choice import choose_backend, ieee_arithmetic
from ..binding.accumulated import Accumulated
from ..binding.options import FILES
from ..binding.sparse import RowSparse, each_once
from ..binding.structure import gradient_of, match, split_rows
from ..checks import check_integer, check_number, wrong_type, wrong_value
from ..optimizers import Optimizer
from ..rules import LibraryRule
from .core import Centre, Op, OptimizerShard, Payload, Reply, Shard
from .held import Held, grouped

#: The fewest elements of gradients that are not copied before they are pushed.
_DIRECT = 1 << 16


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
    into : sequence of numpy.ndarray, optional
        Arrays like the answers, of all parameters, which a carrier may have received there.

    Attributes
    ----------
    replies : list of Reply or None
        The answer of each server, once they are there.
    sent : bool
        True once it is on its way.
    """

    def __init__(
        self,
        op: Op,
        payload: Payload | None = None,
        waits: bool = True,
        into: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.op, self.payload, self.waits, self.into = op, payload, waits, into
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

    def fetch_rows(self, wanted: Mapping[Any, Any]) -> Generator[Ask, None, list[np.ndarray]]:
        """Fetch rows of tables, by name: return those of each."""
        raise ValueError(f"name: found {next(iter(wanted))!r}, expected a table of a Downpour")

    def with_rows(self, wanted: Mapping[Any, Any], found: list[np.ndarray]) -> Any:
        """The worker's parameters, with rows that were fetched in the places of tables."""
        return self.params


class Piece(NamedTuple):
    """What is whole on one server: a parameter, or neighbouring rows of a table."""

    parameter: int
    begin: int
    end: int


class Algorithm:
    """An optimizer's class with its parameters, and how workers and servers share the work: Downpour, or EASGD."""

    #: Pushes of worker 0 before the others begin.
    _warm_pushes = 0

    def __init__(
        self, optimizer: Any, params: Any, options: dict[str, Any], tables: Mapping[Any, Any] | None = None
    ) -> None:
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
        self._tables = self._read_tables({} if tables is None else tables)  # by name
        self._shards = dict(self._tables.values())  # by parameter
        self._pieces = [piece for i in range(len(self._held.arrays)) for piece in self._cut(i)]
        firsts = [x[:1] if i in self._shards else x for i, x in enumerate(self._held.arrays)]
        probed = grouped(self._held.groups, self._sizes, firsts) if self._shards else self._held.params
        probe: Optimizer = optimizer(probed, **options)  # which refuses what cannot be
        owned = probe._owned
        self._rules = [owned.rule_of(i) for i in range(len(owned.params))]
        self._lrs = [probe.hyper(g)["lr"] for g in range(len(self._sizes))]  # at the first step
        if any(rule.ahead for rule in self._rules):
            raise ValueError(f"optimizer: found {optimizer.__name__}, expected one whose parameters need no eval()")

        for i in self._shards:
            if isinstance(self._rules[i], LibraryRule) or self._rules[i].by_tensor:
                raise ValueError(f"optimizer: found {optimizer.__name__} with tables, expected one of elements or rows")

    def _read_tables(self, tables: Any) -> dict[Any, tuple[int, int]]:
        """Of each table, by the name that it is given, the parameter and the number of its shards."""
        if not isinstance(tables, Mapping):
            raise wrong_type("tables", tables, "a mapping of names of parameters to numbers of shards")
        found: dict[Any, tuple[int, int]] = {}
        for name, shards in tables.items():
            called = [k for k, known in enumerate(self._held.names) if known in (name, f"params[{name!r}]")]
            if not called:
                raise wrong_value("tables", name, f"parameters, of {', '.join(self._held.names)}")
            rows = self._held.arrays[called[0]].shape[:1]
            if not rows:
                raise wrong_value(f"tables[{name!r}]", self._held.arrays[called[0]], "a parameter that has rows")
            found[name] = called[0], check_integer(f"tables[{name!r}]", shards, 1, rows[0])
        return found

    def _cut(self, i: int) -> list[Piece]:
        """The pieces of a parameter, which is whole unless it is a table."""
        rows, shards = self._rows(i), self._shards.get(i, 1)
        return [Piece(i, *ends) for ends in pairwise([rows * k // shards for k in range(shards + 1)])]

    def _copies(self) -> list[np.ndarray]:
        """The parameters as they were given, in arrays of their own; of a table no rows."""
        return [array[:0] if i in self._shards else array.copy() for i, array in enumerate(self._held.arrays)]

    def _check_servers(self, servers: Any) -> int:
        most = len(self._pieces)
        what = "shards of tables and other parameters" if self._shards else "parameters"
        expected = f"an integer >= 1 and <= {most}, the number of {what}: each is whole on one server"
        return check_integer("servers", servers, 1, most, expected)

    def _cuts(self, servers: int) -> list[int]:
        """The first piece of each server, and their number: neighbours, of nearly as many elements."""
        ends = np.cumsum([self._size(piece) for piece in self._pieces])
        cuts = [0]
        for k in range(1, servers):
            wanted = int(np.searchsorted(ends, ends[-1] * k / servers)) + 1
            cuts.append(min(max(wanted, cuts[-1] + 1), len(ends) - (servers - k)))
        return [*cuts, len(ends)]

    def _rows(self, i: int) -> int:
        """The rows of a parameter; one of a number."""
        return (self._held.arrays[i].shape or (1,))[0]

    def _size(self, piece: Piece) -> int:
        """The elements of a piece."""
        return self._held.arrays[piece.parameter].size // self._rows(piece.parameter) * (piece.end - piece.begin)

    def _shard(self, begin: int, end: int, workers: int) -> Shard:
        """The shard that has some neighbouring pieces."""
        raise NotImplementedError

    def _side(self, workers: int) -> Side:
        """The side of one of so many workers."""
        raise NotImplementedError

    def _result(self, values: Sequence[np.ndarray]) -> Any:
        """The parameters that have been learned, as servers have them, in their structure."""
        parts: list[list[np.ndarray]] = [[] for _ in self._held.arrays]
        for piece, x in zip(self._pieces, values, strict=True):
            parts[piece.parameter].append(x.astype(self._held.arrays[piece.parameter].dtype))
        return self._held.build([_joined(own) for own in parts])


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
        The rate of a worker's own steps between fetches; by default the optimizer's at its first step. Prodigy, which
        finds its rate, needs one where n_fetch > 1.
    tables : mapping of names to int, optional
        Parameters of which workers have no row but those that they ask for, ``opt.fetch_rows(name, indices)``, and push
        gradients of some rows alone, a `fastopt.RowSparse`: by key of `params`, or as messages call them; with each the
        number of shards of neighbouring rows that servers share. Bits do not depend on that number.
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
        tables: Mapping[Any, int] | None = None,
        **options: Any,
    ) -> None:
        self._n_push = check_integer("n_push", n_push, 1)
        self._n_fetch = check_integer("n_fetch", n_fetch, 1)
        self._warm_pushes = -(-check_integer("warm_start", warm_start, 0) // self._n_push)
        if local_lr is not None:
            check_number("local_lr", local_lr, 0)
        super().__init__(optimizer, params, options, tables)
        finds = next((rule for rule in self._rules if "d0" in rule.hyper), None)
        if finds is not None and local_lr is None and self._n_fetch > 1:
            raise ValueError(
                "local_lr: found None, expected a number: a worker steps by itself between fetches, and lr of "
                f"{finds.optimizer} is a factor of the rate that the servers find"
            )
        rates = self._lrs if local_lr is None else [local_lr] * len(self._sizes)
        self._rates = [rate for rate, size in zip(rates, self._sizes, strict=True) for _ in range(size)]

    def _check_servers(self, servers: Any) -> int:
        servers = super()._check_servers(servers)
        together = next((rule for rule in self._rules if rule.over_all), None)
        if together is not None and servers > 1:
            raise ValueError(
                f"servers: found {servers}, expected 1: {together.name} measures all tensors together, of which each "
                "server would have a part"
            )
        return servers

    def _shard(self, begin: int, end: int, workers: int) -> Shard:
        pieces, groups = self._pieces[begin:end], list[dict[str, Any]]()
        owners = np.repeat(np.arange(len(self._sizes)), self._sizes)
        last: Any = None
        for i, first, after in pieces:
            kind = i if i in self._shards else None, int(owners[i])  # a table is a group of its own
            if kind != last or i in self._shards:
                own = {key: value for key, value in self._held.groups[kind[1]].own.items() if key != "param_names"}
                groups.append({**own, "params": []})
            array = self._held.arrays[i]
            groups[-1]["params"].append((array[first:after] if i in self._shards else array).copy())
            last = kind
        before = sum(self._size(piece) for piece in self._pieces[:begin])
        options = {**self._options, "first_element": self._options.get("first_element", 0) + before}
        tables = {k for k, piece in enumerate(pieces) if piece.parameter in self._shards}
        return OptimizerShard(self._class(groups, **options), tables)

    def _side(self, workers: int) -> Side:
        return _DownpourSide(self)


class _DownpourSide(Side):
    def __init__(self, algorithm: Downpour) -> None:
        self._algorithm, self._held, self._arrays = algorithm, algorithm._held, algorithm._copies()
        self._views = self._held.views
        self.params = self._held.build(self._arrays)
        self._sums, self._backend = Accumulated(), choose_backend(None, CPU)
        self._given: tuple[Any, ...] | None = None  # the last gradients, where they are pushed as they are

    def begin(self) -> Asking:
        yield from self._ask(Op.FETCH)

    def resume(self) -> Asking:
        yield from self._ask(Op.FETCH)

    def advance(self, grads: Any) -> Asking:
        held, own = self._held, self._algorithm
        given = tuple(match(grads, held.structure, "grads"))
        if own._shards:
            self._check_tables(given)
        self._given = given if self._is_whole(given) else None
        if self._given is None:
            self._sums.add(given, self._arrays, self._views, held.names, self._backend, 1)
        pushes, fetches = self.steps % own._n_push == 0, (self.steps + 1) % own._n_fetch == 0
        self.steps += 1
        if not fetches:
            for i, (x, g, rate) in enumerate(zip(self._arrays, given, own._rates, strict=True)):
                if i not in own._shards:
                    _descend(x, g, rate)
        if pushes or fetches:
            yield from self._ask(Op.EXCHANGE if pushes and fetches else Op.PUSH if pushes else Op.FETCH)

    def finish(self) -> Asking:
        if self._sums.pending:
            yield from self._ask(Op.PUSH)

    def _ask(self, op: Op) -> Asking:
        payload = None
        if op != Op.FETCH:
            payload = self._cut(self._given or self._sums.gradients(len(self._arrays)))
        ask = Ask(op, payload, into=None if op == Op.PUSH or self._algorithm._shards else self._arrays)
        yield ask
        if op != Op.FETCH:
            self._sums.clear()
        for piece, found in zip(self._algorithm._pieces, ask.arrays, strict=False):
            own = self._arrays[piece.parameter]
            if found is not own:
                np.copyto(own, found)

    def _is_whole(self, given: Sequence[Any]) -> bool:
        """Tell whether gradients can be pushed where they are, with no other, and are worth it."""
        if self._algorithm._n_push > 1 or sum(x.size for x in self._arrays) < _DIRECT:
            return False
        return all(
            isinstance(g, np.ndarray)
            and g.shape == x.shape
            and g.dtype == compute_dtype(x.dtype)
            and g.flags.c_contiguous
            for x, g in zip(self._arrays, given, strict=True)
        )

    def _check_tables(self, given: tuple[Any, ...]) -> None:
        """Check that of tables rows alone have gradients.

        Raises
        ------
        TypeError
            One has another gradient.
        """
        names = self._held.names
        for i, grad in enumerate(split_rows(given, self._views, names)[0]):
            if grad is not None and i in self._algorithm._shards:
                name = gradient_of(names[i]) if len(names) > 1 else "grads"
                raise wrong_type(name, grad, "a fastopt.RowSparse, for of a table rows travel alone")

    def _cut(self, grads: Sequence[Any]) -> Payload:
        """The gradient of each piece; of a shard of a table those of its rows, by their numbers there."""
        found: list[Any] = []
        for i, begin, end in self._algorithm._pieces:
            grad = grads[i]
            if grad is not None and self._algorithm._shards.get(i, 1) > 1:
                chosen = (grad.indices >= begin) & (grad.indices < end)
                grad = RowSparse(grad.indices[chosen] - begin, floats_of(grad.values)[chosen])
            found.append(grad)
        return found

    def fetch_rows(self, wanted: Mapping[Any, Any]) -> Generator[Ask, None, list[np.ndarray]]:
        """Fetch rows of tables, each once, by one request."""
        own = self._algorithm
        payload: list[Any] = [None] * len(own._pieces)
        places: list[tuple[int, np.ndarray]] = []
        for name, indices in wanted.items():
            if name not in own._tables:
                raise wrong_value("name", name, f"a table: {', '.join(map(repr, own._tables)) or 'there is none'}")
            i, _ = own._tables[name]
            asked, rows = np.asarray(indices), own._rows(i)
            if asked.dtype.kind not in "iu" and asked.size:
                raise wrong_type("indices", indices, "integers")
            unique, place = each_once(asked.reshape(-1).astype(np.int64))
            if unique.size and (unique[0] < 0 or unique[-1] >= rows):
                found = unique[0] if unique[0] < 0 else unique[-1]
                raise ValueError(f"indices: found {found}, expected rows >= 0 and < {rows}")
            for k, piece in enumerate(own._pieces):
                if piece.parameter == i:
                    begin, end = np.searchsorted(unique, (piece.begin, piece.end))
                    payload[k] = unique[begin:end] - piece.begin
            places.append((i, place.reshape(asked.shape)))
        ask = Ask(Op.ROWS, payload)
        yield ask
        parts: dict[int, list[np.ndarray]] = {}
        for piece, rows_found in zip(own._pieces, ask.arrays, strict=True):
            parts.setdefault(piece.parameter, []).append(rows_found)
        return [np.take(_joined(parts[i]), place, axis=0, mode="clip") for i, place in places]  # which none is out of

    def with_rows(self, wanted: Mapping[Any, Any], found: list[np.ndarray]) -> Any:
        """The worker's parameters, with rows that were fetched in the places of tables."""
        arrays = list(self._arrays)
        for name, rows in zip(wanted, found, strict=True):
            arrays[self._algorithm._tables[name][0]] = rows
        return self._held.build(arrays)


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


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Parts one behind the other: of a single one no copy."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


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
