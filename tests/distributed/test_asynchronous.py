"""Workers that do not wait for each other: the server's core, the algorithms, runs in threads, and such runs again."""

import json
import threading
import time

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt import distributed as fd
from fastopt import functional
from fastopt.distributed.core import Centre, Header, Op, ServerCore
from fastopt.optimizers import CLASSES, MATRIX_CLASSES

from ..support import assert_same_bits

SHAPES = [(6, 4), (4,)]
REQUIRED = {"QHM": {"lr": 0.05}}
#: Those that train as they are.
EVERY = [name for name in {**CLASSES, **MATRIX_CLASSES} if not name.startswith("ScheduleFree")]


def start(shapes=tuple(SHAPES), dtype="f4"):
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def pull(opt, k):
    """Gradients of a worker's k-th batch."""
    random = np.random.default_rng(k)
    return [(p - 1 + 0.1 * random.standard_normal(p.shape)).astype(p.dtype) for p in opt.params]


def working(steps, slow=0.0):
    def worker(opt):
        for k in opt.deal(range(steps)):
            opt.step(pull(opt, k))
            if opt.rank == 0 and slow:
                time.sleep(slow)

    return worker


def by_hand(algorithm, workers):
    """Cores and sides, and a function that answers a side's generator until it is done; it returns what was asked."""
    (core,) = fd.runs.make_cores(algorithm, algorithm._cuts(1), workers)
    sides, numbers = [algorithm._side(workers) for _ in range(workers)], [0] * workers

    def drive(k, asking):
        asked = []
        for ask in asking:
            if not ask.sent:
                ask.sent = True
                numbers[k] += 1
                ask.replies = [core.handle(k, Header(ask.op, numbers[k]), ask.payload)]
                asked.append(ask.op)
        return asked

    return core, sides, drive


# ---- the core ----


def test_a_request_is_handled_once():
    algorithm = fd.Downpour(fastopt.SGD, np.zeros(2), lr=1.0)
    core, _, _ = by_hand(algorithm, 2)
    core.handle(0, Header(Op.FETCH, 1), None)
    first = core.handle(0, Header(Op.EXCHANGE, 2), [np.ones(2)])
    core.handle(1, Header(Op.FETCH, 1), None)
    again = core.handle(0, Header(Op.EXCHANGE, 2), [np.ones(2)])
    assert again is first and first.payload[0].tolist() == [-1, -1]
    assert core.version == first.version == 1 and core.order == [0, 0, 1]


def test_a_reply_is_never_the_shard():
    algorithm = fd.Downpour(fastopt.SGD, np.zeros(2), lr=1.0)
    core, _, _ = by_hand(algorithm, 2)
    reply = core.handle(0, Header(Op.FETCH, 1), None)
    core.handle(1, Header(Op.FETCH, 1), None)
    core.handle(1, Header(Op.PUSH, 2), [np.ones(2)])
    assert reply.payload[0].tolist() == [0, 0] and core.shard.values()[0].tolist() == [-1, -1]
    reply.payload[0][:] = 7
    assert core.shard.values()[0].tolist() == [-1, -1]
    assert core.handle(1, Header(Op.PUSH, 3), [np.ones(2)]).payload is None
    centre = ServerCore(Centre([np.zeros(2)], 0.5), 1)
    moves = centre.handle(0, Header(Op.EXCHANGE, 1), [np.ones(2)]).payload
    assert moves[0].tolist() == [0.5, 0.5] and not np.shares_memory(moves[0], centre.shard.values()[0])


def test_what_cannot_be_applied_changes_nothing():
    core, _, _ = by_hand(fd.Downpour(fastopt.Adam, np.zeros(2)), 1)
    with pytest.raises(ValueError, match=r"found shape \(3,\)"):
        core.handle(0, Header(Op.PUSH, 1), [np.ones(3)])
    assert (core.version, core.order, core.shard.values()[0].tolist()) == (0, [], [0, 0])
    core.handle(0, Header(Op.PUSH, 1), [np.ones(2)])
    assert core.version == 1


def test_who_begins_late_is_as_far_as_the_slowest_and_who_has_ended_tells_what_is_lost():
    algorithm = fd.Downpour(fastopt.SGD, np.zeros(2), lr=1.0)
    (core,) = fd.runs.make_cores(algorithm, algorithm._cuts(1), 3, max_ahead=1)
    core.expect(())
    core.begin(0)
    for number in range(1, 6):
        assert core.ready(0, Header(Op.FETCH, number))
        core.handle(0, Header(Op.FETCH, number), None)
    core.begin(1)
    assert core.ready(1, Header(Op.FETCH, 1)) and core.ready(0, Header(Op.FETCH, 6))
    for number in (6, 7):
        core.handle(0, Header(Op.FETCH, number), None)
    assert not core.ready(0, Header(Op.FETCH, 8))  # two ahead of 1; nobody waits for 2
    for _ in range(2):
        core.begin(1)
        core.end(1, 3)
    assert core.lost == 3 and core.ready(0, Header(Op.FETCH, 8))


@pytest.mark.parametrize("name, storage", [*((name, {}) for name in EVERY), ("AdamW", {"state_dtype": "8bit"})])
def test_a_large_step_is_done_part_by_part(name, storage, monkeypatch):
    """A reply that is filled in parts has the bits of one after the step, and so have the states."""
    shapes = ((12, 4),) if name in MATRIX_CLASSES else ((3,), (8193,), (2, 4100))
    algorithm = fd.Downpour(getattr(fastopt, name), start(shapes), threads=1, **REQUIRED.get(name, {}), **storage)
    (alone,), (parted,) = (fd.runs.make_cores(algorithm, algorithm._cuts(1), 1) for _ in range(2))
    grads = pull(Plain(start(shapes)), 1)
    replies = [alone.handle(0, Header(Op.EXCHANGE, number), grads) for number in (1, 2, 3)]
    sizes = []

    def fill(to, pairs):
        for own, array in pairs:
            np.copyto(own, array)
            sizes.append(own.size)

    monkeypatch.setattr("fastopt.distributed.core.PART", 4096)
    for number in (1, 2, 3):
        reply = parted.handle(0, Header(Op.EXCHANGE, number), grads, fill)
    assert_same_bits(reply.payload, replies[-1].payload)
    assert_same_bits(parted.shard.values(), alone.shard.values())
    assert str(parted.shard.saved()) == str(alone.shard.saved())
    if name in CLASSES and not (rule := CLASSES[name]._arguments.rules[0]).whole and not rule.by_row:
        assert max(sizes) == 4096 and sum(sizes) == 3 * sum(p.size for p in grads)


@pytest.mark.parametrize("size", [(1 << 16) - 1, 1 << 16])
@pytest.mark.parametrize("every, kind", [(1, "f4"), (2, "f4"), (1, "f2")])
def test_large_gradients_are_pushed_from_where_they_are_unless_they_are_summed_or_of_another_kind(size, every, kind):
    algorithm = fd.Downpour(fastopt.SGD, np.zeros(size, "f4"), lr=1.0, local_lr=0.0, n_push=every, n_fetch=every)
    (core,) = fd.runs.make_cores(algorithm, algorithm._cuts(1), 1)
    side, number, total, pushed = algorithm._side(1), 0, np.zeros(size, "f4"), []
    for step in range(4):
        grad = np.full(size, 1 + step, kind)
        total += grad
        for ask in side.advance(grad):
            number += 1
            pushed += [ask.payload[0] is grad] if ask.op != Op.FETCH else []
            ask.replies = [core.handle(0, Header(ask.op, number), ask.payload)]
    for ask in side.finish():
        ask.replies = [core.handle(0, Header(ask.op, number + 1), ask.payload)]
    assert_same_bits(core.shard.values(), [-total])
    assert pushed and set(pushed) == {every == 1 and kind == "f4" and size >= 1 << 16}


def test_each_worker_has_a_snapshot_of_its_own():
    """Pushes of AdaptiveRevision, with and without reading, are those of the function with the worker's snapshot."""
    algorithm = fd.Downpour(fastopt.AdaptiveRevision, start(((9,),)), lr=0.3, threads=1)
    core, _, _ = by_hand(algorithm, 3)
    p = start(((9,),))[0]
    common = [np.zeros_like(p), np.ones_like(p), np.ones_like(p)]
    snapshots, random = np.zeros((3, 9), "f4"), np.random.default_rng(3)
    buffers, numbers, t = np.zeros((3, 9), "f4"), [0] * 3, 0
    for _ in range(200):
        k, op = int(random.integers(3)), Op(random.integers(3))
        numbers[k] += 1
        if op == Op.FETCH:
            snapshots[k] = common[0]
        else:
            t += 1
            buffers[k] = random.standard_normal(9)
            functional.adaptive_revision(
                p, buffers[k], *common, snapshots[k], step=t, lr=0.3, read=op == Op.EXCHANGE, threads=1
            )
        reply = core.handle(k, Header(op, numbers[k]), [buffers[k]])
        if op != Op.PUSH:
            assert_same_bits(reply.payload, [p])
    assert core.version == t and sum(core.delays.values()) == t and max(core.delays) > 2


@pytest.mark.parametrize("dtype", ["f4", "bfloat16"])
def test_each_worker_has_a_backup_of_its_own(dtype):
    """Pushes of DC-ASGD, of all elements, of rows and of none, are those of the function with what the worker read."""
    start_at = start(((9, 3),), np.dtype(dtype))[0]
    core, _, _ = by_hand(fd.Downpour(fastopt.DCASGD, start_at, lr=0.1, lambd=2.0, threads=1), 3)
    p, backups, random, t = start_at.copy(), np.stack([start_at] * 3), np.random.default_rng(3), 0
    for number in range(1, 61):
        for k in random.permutation(3).tolist():
            op, grad = Op(random.integers(3)), random.standard_normal((9, 3)).astype(dtype)
            given = [grad, fastopt.RowSparse(np.array([number % 9, 4, 4]), grad[:3]), None][random.integers(3)]
            if op != Op.FETCH:
                t += 1
                if given is not None:
                    functional.dc_asgd(p, given, backups[k].copy(), step=t, lr=0.1, lambd=2.0, threads=1)
            reply = core.handle(k, Header(op, number), [given])
            if op != Op.PUSH:
                assert_same_bits(reply.payload, [p])
                backups[k] = p
    assert_same_bits(core.shard.values(), [p])


# ---- the algorithms ----


def test_downpour_asks_as_its_script_says():
    """n_push = 3, n_fetch = 5: what is asked before the first gradient, after each, and at the end."""
    algorithm = fd.Downpour(fastopt.SGD, np.zeros(1), lr=0.5, n_push=3, n_fetch=5, local_lr=0.25)
    core, (side,), drive = by_hand(algorithm, 1)
    assert drive(0, side.begin()) == [Op.FETCH]
    x = server = kept = 0.0
    script = {0: Op.PUSH, 3: Op.PUSH, 4: Op.FETCH, 6: Op.PUSH, 9: Op.EXCHANGE, 12: Op.PUSH, 14: Op.FETCH, 15: Op.PUSH}
    for t in range(17):
        assert side.params[0] == x
        g = x - 1.0
        asked = drive(0, side.advance(side.params - 1.0))
        assert asked == ([script[t]] if t in script else []), t
        kept, x = kept + g, x - 0.25 * g
        if t in script and script[t] != Op.FETCH:
            server, kept = server - 0.5 * kept, 0.0
        if t in script and script[t] != Op.PUSH:
            x = server
    assert drive(0, side.finish()) == [Op.PUSH]
    assert core.shard.values()[0][0] == server - 0.5 * kept


def test_downpours_workers_begin_where_the_servers_are():
    """Two workers by hand: each fetches what both have pushed."""
    core, sides, drive = by_hand(fd.Downpour(fastopt.SGD, np.zeros(1), lr=1.0, n_fetch=2), 2)
    for k in (0, 1):
        drive(k, sides[k].begin())
    drive(0, sides[0].advance(np.array([1.0])))
    assert (sides[0].params[0], sides[1].params[0]) == (-1, 0)  # a step of its own
    drive(1, sides[1].advance(np.array([2.0])))
    drive(0, sides[0].advance(np.array([4.0])))
    assert (sides[0].params[0], sides[1].params[0], core.shard.values()[0][0]) == (-7, -2, -7)
    assert core.delays == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_elastic_averaging_is_that_of_the_paper(momentum):
    """Algorithms 1 and 2 over five steps of two workers that take turns, tau = 2."""
    lr, beta, p0 = 0.1, 0.8, np.array([2.0, -1.0])
    options = {"momentum": momentum, "lr_inside": True} if momentum else {}
    algorithm = fd.EASGD(fastopt.NAG if momentum else fastopt.SGD, p0, every=2, beta=beta, lr=lr, **options)
    core, sides, drive = by_hand(algorithm, 2)
    x, v, c = [p0.copy(), p0.copy()], [np.zeros(2), np.zeros(2)], p0.copy()
    e = [np.zeros(2), np.zeros(2)]  # at t = 0 the workers are where the centre is
    assert [drive(k, sides[k].begin()) for k in (0, 1)] == [[Op.EXCHANGE]] * 2
    for t in range(5):
        for k in (0, 1):
            here = x[k] + momentum * v[k]
            np.testing.assert_allclose(sides[k].params, here, rtol=0, atol=1e-14)
            v[k] = momentum * v[k] - lr * (here * (k + 1))
            x[k] = x[k] + v[k] - e[k]
            asked = drive(k, sides[k].advance(sides[k].params * (k + 1)))
            e[k] = np.zeros(2)
            if t % 2:  # 2 divides t + 1, before whose gradient x is sent
                assert asked == [Op.EXCHANGE]
                e[k] = beta / 2 * (x[k] - c)
                c = c + e[k]
            else:
                assert asked == []
    np.testing.assert_allclose(core.shard.values()[0], c, rtol=0, atol=1e-14)
    assert np.abs(c - p0).max() > 0.05


def test_rows_are_pushed_alone():
    table, worker_rows = start(((10, 3),))[0], np.array([7, 2, 7])

    def worker(opt):
        for k in opt.deal(range(6)):
            opt.step(fastopt.RowSparse(worker_rows + k % 2, np.full((3, 3), k + 1, "f4")))

    result = fd.run(worker, fd.Downpour(fastopt.Adagrad, table, lr=0.1, n_push=2), workers=1)
    own = fastopt.Adagrad(table, lr=0.1)
    given = [fastopt.RowSparse(worker_rows + k % 2, np.full((3, 3), k + 1, "f4")) for k in range(6)]
    for sums in (given[:1], given[1:3], given[3:5], given[5:]):  # n_push = 2: after gradients 0, 2, 4, and the rest
        for grad in sums:
            own.accumulate(grad)
        own.step()
    assert_same_bits([result.params], [table])
    assert np.array_equal(table[:2], start(((10, 3),))[0][:2])


def tables_and_bias(shards=1, **options):
    params = dict(zip("tb", start(((10, 3), (3,))), strict=True))
    return fd.Downpour(fastopt.AdaptiveRevision, **{"params": params, "lr": 0.2, "tables": {"t": shards}, **options})


def looked_up(k):
    return np.random.default_rng(k).integers(0, 10, (2, 3))


def looking_up(steps, read_again=True):
    """A worker that knows of a table what it has looked up."""

    def worker(opt):
        assert opt.params["t"].shape == (0, 3)
        for k in opt.deal(range(steps)):
            which = looked_up(k)
            rows = opt.fetch_rows("t", which)
            assert rows.shape == (2, 3, 3)
            pulled = (rows - opt.params["b"]).reshape(-1, 3)
            opt.step({"t": fastopt.RowSparse(which.ravel(), pulled), "b": -pulled.sum(axis=0)})

    return worker


def test_rows_are_fetched_alone():
    """Two workers by hand: what each reads of a table, and when, is what its push is revised by."""
    core, sides, drive = by_hand(tables_and_bias(threads=1), 2)
    table, bias = start(((10, 3), (3,)))
    common = [[np.zeros_like(x), np.ones_like(x), np.ones_like(x)] for x in (table, bias)]
    snapshots = [[np.zeros_like(x) for x in (table, bias)] for _ in sides]
    for k in (0, 1):
        drive(k, sides[k].begin())
    for t in range(1, 41):
        k = int(np.random.default_rng(t).integers(2))
        which = looked_up(t)
        if t % 3:
            found = by_hand_rows(drive, k, sides[k], which)
            assert_same_bits([found], [table[which]])
            snapshots[k][0][which] = common[0][0][which]
        own = snapshots[k]
        pulled = np.random.default_rng(t).standard_normal((6, 3)).astype("f4")
        grads = fastopt.RowSparse(which.ravel(), pulled), pulled[0]
        given = {"step": t, "lr": 0.2, "threads": 1}
        kept = own[0].copy()
        functional.adaptive_revision(table, grads[0], *common[0], own[0], read=False, **given)
        assert_same_bits([own[0]], [kept])
        functional.adaptive_revision(bias, grads[1], *common[1], own[1], **given)
        assert drive(k, sides[k].advance(dict(zip("tb", grads, strict=True)))) == [Op.EXCHANGE]
        assert_same_bits([sides[k].params["b"], *core.shard.values()], [bias, table, bias])


def by_hand_rows(drive, k, side, which):
    found = []

    def asking():
        found.extend((yield from side.fetch_rows({"t": which})))

    assert drive(k, asking()) == [Op.ROWS]
    return found[0]


@pytest.mark.parametrize("options", [{}, {"n_push": 3, "n_fetch": 2}], ids=["each", "3 and 2"])
def test_bits_do_not_depend_on_how_a_table_is_cut(options, tmp_path):
    order = tmp_path / "order"
    first = fd.run(looking_up(40), tables_and_bias(3, **options), workers=3, servers=3, order=order)
    again = fd.replay(looking_up(40), tables_and_bias(3, **options), order)
    assert_same_bits(again.params.values(), first.params.values())
    assert not np.array_equal(first.params["t"], start(((10, 3),))[0])
    alone = [
        fd.run(looking_up(40), tables_and_bias(shards, **options), workers=1, servers=servers).params
        for shards, servers in ((1, 1), (1, 2), (4, 1), (10, 3))
    ]
    for found in alone[1:]:
        assert_same_bits(found.values(), alone[0].values())


def test_what_a_table_does_not_have_is_told_its_worker():
    def worker(opt):
        for indices, error, message in (
            ([3, 10], ValueError, "indices: found 10, expected rows >= 0 and < 10"),
            ([-1], ValueError, "indices: found -1"),
            ([0.5], TypeError, "indices: found"),
        ):
            with pytest.raises(error, match=message):
                opt.fetch_rows("t", indices)
        with pytest.raises(ValueError, match="name: found 'b', expected a table: 't'"):
            opt.fetch_rows("b", [0])
        with pytest.raises(TypeError, match=r"grads\['t'\]: found .*, expected a fastopt.RowSparse"):
            opt.step({"t": np.zeros((10, 3), "f4"), "b": None})
        assert opt.fetch_rows("t", []).shape == (0, 3)

    assert fd.run(worker, tables_and_bias(2), workers=1).dead == {}

    def elastic(opt):
        with pytest.raises(ValueError, match="name: found 't', expected a table of a Downpour"):
            opt.fetch_rows("t", [0])

    assert fd.run(elastic, fd.EASGD(fastopt.SGD, start()), workers=1).dead == {}


# ---- runs ----


@pytest.mark.parametrize("name", EVERY)
def test_a_run_is_done_again_with_the_same_bits(name, tmp_path):
    """Three workers, one of them slow; what each rule left, it leaves again."""
    params = start(SHAPES[:1]) if name in MATRIX_CLASSES else start()
    algorithm = fd.Downpour(getattr(fastopt, name), params, threads=1, **REQUIRED.get(name, {}))
    first = fd.run(working(30, 1e-4), algorithm, workers=3, order=tmp_path / "order")
    again = fd.replay(working(30), algorithm, tmp_path / "order")
    assert_same_bits(again.params, first.params)
    assert (again.pushes, again.delays) == (first.pushes, first.delays) and first.pushes == 30
    assert not np.array_equal(first.params[0], params[0])


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda params: fd.EASGD(fastopt.NAG, params, lr=0.05, momentum=0.9, lr_inside=True, every=2),
        lambda params: fd.Downpour(fastopt.AdamW, params, n_push=3, n_fetch=2, warm_start=4),
        lambda params: fd.Downpour(fastopt.SGD, params, rounding="stochastic", seed=3, lr=0.1),
    ],
    ids=["elastic", "downpour", "stochastic"],
)
def test_such_runs_are_done_again_too(make, servers, tmp_path):
    params = [p.astype(ml_dtypes.bfloat16) for p in start()]
    first = fd.run(working(60, 1e-4), make(params), workers=3, servers=servers, order=tmp_path / "order")
    again = fd.replay(working(60), make(params), tmp_path / "order")
    assert_same_bits(again.params, first.params)
    head = json.loads((tmp_path / "order").read_bytes().split(b"\n")[0])
    assert head["workers"] == 3 and len(head["requests"]) == servers


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "AdaptiveRevision", "LAMB"])
def test_one_worker_has_the_bits_of_one_process(name, servers):
    groups = [{"params": [p], "lr": lr} for p, lr in zip(start(), (0.1, 0.01), strict=True)]
    given = [{"params": [p], "lr": lr} for p, lr in zip(start(), (0.1, 0.01), strict=True)]
    result = fd.run(working_on_groups(20), fd.Downpour(getattr(fastopt, name), given), workers=1, servers=servers)
    opt = getattr(fastopt, name)(groups)
    own = [group["params"][0] for group in groups]
    for k in range(20):
        opt.step([[g] for g in pull(Plain(own), k)])
    assert_same_bits([p for (p,) in result.params], own)
    assert_same_bits([group["params"][0] for group in given], start())  # which stay as they were


class Plain:
    def __init__(self, params):
        self.params = params


def working_on_groups(steps):
    def worker(opt):
        for k in opt.deal(range(steps)):
            opt.step(pull(Plain([p for (p,) in opt.params]), k))

    return worker


def test_an_exception_in_a_worker_costs_the_others_nothing():
    def worker(opt):
        for n, k in enumerate(opt.deal(range(30))):
            if opt.rank == 1 and n == 4:
                raise LookupError("lost")
            opt.step(pull(opt, k))

    result = fd.run(worker, fd.Downpour(fastopt.SGD, start(), lr=0.1), workers=3, max_ahead=2)
    assert list(result.dead) == [1] and "lost" in str(result.dead[1])
    assert result.pushes == 10 + 4 + 10
    with pytest.raises(ZeroDivisionError):
        fd.run(lambda opt: 1 / 0, fd.Downpour(fastopt.SGD, start()), workers=3)


def test_a_wrong_gradient_is_told_its_worker():
    told = []

    def worker(opt):
        with pytest.raises(ValueError, match=r"found shape \(5,\), expected .*6, 4"):
            opt.step([np.zeros(5, "f4"), None])
        with pytest.raises(ValueError, match="grads: found 1 arrays, expected 2"):
            opt.step([np.zeros((6, 4), "f4")])
        told.append(opt.rank)
        opt.step([None, np.ones(4, "f4")])

    result = fd.run(worker, fd.Downpour(fastopt.SGD, start(), lr=1.0), workers=2)
    assert (sorted(told), result.dead, result.pushes) == ([0, 1], {}, 2)
    assert_same_bits([result.params[0]], [start()[0]])


def test_nobody_is_further_ahead_than_allowed(tmp_path):
    fd.run(working(60, 2e-3), fd.Downpour(fastopt.SGD, start()), workers=3, max_ahead=1, order=tmp_path / "order")
    done = [0, 0, 0]
    for k in (tmp_path / "order").read_bytes().split(b"\n", 1)[1]:
        done[k] += 1
        assert max(done) - min(done) <= 2
    assert done == [21] * 3


@pytest.mark.parametrize("max_ahead", [None, 1])
def test_a_warm_start_is_worker_0_alone(max_ahead, tmp_path):
    algorithm = fd.Downpour(fastopt.SGD, start(), warm_start=10)
    fd.run(working(60), algorithm, workers=3, max_ahead=max_ahead, order=tmp_path / "order")
    order = (tmp_path / "order").read_bytes().split(b"\n", 1)[1]
    assert set(order[:11]) == {0} and sorted(order) == [0] * 21 + [1] * 21 + [2] * 21

    def worker(opt):
        for k in opt.deal(range(9)):
            if opt.rank == 0:
                raise LookupError
            opt.step(pull(opt, k))

    assert fd.run(worker, algorithm, workers=3).pushes == 6  # the others begin when it has ended


def test_what_is_not_the_run_again_is_told(tmp_path):
    algorithm = fd.Downpour(fastopt.SGD, start())
    fd.run(working(30), algorithm, workers=3, order=tmp_path / "order")
    for steps, message in ((27, r"order: found \d+ requests, expected 33|one of worker"), (33, "expected none")):
        with pytest.raises(ValueError, match=message):
            fd.replay(working(steps), algorithm, tmp_path / "order")
    (tmp_path / "order").write_bytes((tmp_path / "order").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"order: found .*, expected a file that run"):
        fd.replay(working(30), algorithm, tmp_path / "order")


def test_no_thread_is_left_behind():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        fd.run(interrupting, fd.Downpour(fastopt.SGD, start()), workers=2)
    assert threading.active_count() == before


def interrupting(opt):
    import _thread

    if opt.rank == 0:
        _thread.interrupt_main()
    for k in range(10**6):
        opt.step(pull(opt, k))


WRONG = {
    "worker": (lambda a: fd.run(3, a), TypeError, "worker: found 3"),
    "algorithm": (lambda a: fd.run(print, fastopt.SGD(start())), TypeError, "algorithm: found"),
    "workers": (lambda a: fd.run(print, a, workers=0), ValueError, "workers: found 0"),
    "servers": (lambda a: fd.run(print, a, servers=3), ValueError, "servers: found 3, expected .*<= 2, the number of"),
    "max_ahead": (lambda a: fd.run(print, a, max_ahead=-1), ValueError, "max_ahead: found -1"),
    "order": (lambda a: fd.run(print, a, order="/no/such/place"), FileNotFoundError, "/no/such/place"),
    "replay": (lambda a: fd.replay(3, a, "x"), TypeError, "worker: found 3"),
    "optimizer": (lambda a: fd.Downpour(fastopt.SGD(start()), start()), TypeError, "optimizer: found .*SGD"),
    "ahead": (lambda a: fd.Downpour(fastopt.ScheduleFreeSGD, start()), ValueError, "optimizer: found ScheduleFreeSGD"),
    "option": (lambda a: fd.Downpour(fastopt.SGD, start(), momentun=1), TypeError, "momentun"),
    "lr": (lambda a: fd.EASGD(fastopt.SGD, start(), lr=-1), ValueError, "lr: found -1"),
    "n_push": (lambda a: fd.Downpour(fastopt.SGD, start(), n_push=0), ValueError, "n_push: found 0"),
    "n_fetch": (lambda a: fd.Downpour(fastopt.SGD, start(), n_fetch=1.5), TypeError, "n_fetch: found 1.5"),
    "warm_start": (lambda a: fd.Downpour(fastopt.SGD, start(), warm_start=-1), ValueError, "warm_start: found -1"),
    "local_lr": (lambda a: fd.Downpour(fastopt.SGD, start(), local_lr=-1), ValueError, "local_lr: found -1"),
    "tables": (lambda a: fd.Downpour(fastopt.Adam, start(), tables=[0]), TypeError, "tables: found"),
    "table": (lambda a: fd.Downpour(fastopt.Adam, start(), tables={"x": 1}), ValueError, "tables: found 'x', expected"),
    "shards": (lambda a: fd.Downpour(fastopt.Adam, start(), tables={0: 7}), ValueError, r"tables\[0\]: found 7"),
    "whole": (lambda a: fd.Downpour(fastopt.LARS, start(), tables={0: 1}), ValueError, "found LARS with tables"),
    "blocks": (
        lambda a: fd.run(
            print, tables_and_bias(params=start(((99, 99),))[0], state_dtype="8bit", tables={"params": 1})
        ),
        ValueError,
        "state_dtype: found '8bit'",
    ),
    "state_dir": (lambda a: fd.Downpour(fastopt.Adam, start(), state_dir="x"), ValueError, "state_dir: found 'x'"),
    "every": (lambda a: fd.EASGD(fastopt.SGD, start(), every=0), ValueError, "every: found 0"),
    "beta": (lambda a: fd.EASGD(fastopt.SGD, start(), beta=1.5), ValueError, "beta: found 1.5"),
    "params": (lambda a: fd.EASGD(fastopt.SGD, [3]), TypeError, "params"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_before_any_worker_begins(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call(fd.Downpour(fastopt.SGD, start()))


OVER_ALL = {"Prodigy": {"d0": 1e-2}, "SWATS": {"over": "all", "eps": 0.1, "betas": (0.5, 0.5)}}


@pytest.mark.parametrize("name", OVER_ALL)
def test_one_server_measures_all_tensors_together(name):
    options = OVER_ALL[name]
    params = start()
    result = fd.run(working(20), fd.Downpour(getattr(fastopt, name), params, **options), workers=1)
    own = start()
    opt = getattr(fastopt, name)(own, **options)
    for k in range(20):
        opt.step(pull(Plain(own), k))
    assert_same_bits(result.params, own)
    begun = []
    expected = r"^servers: found 2, expected 1: \w+ measures all tensors together"
    with pytest.raises(ValueError, match=expected):
        fd.run(begun.append, fd.Downpour(getattr(fastopt, name), params, **options), servers=2)
    assert not begun
    assert_same_bits(params, start())
    found = fd.run(working(20), fd.EASGD(getattr(fastopt, name), params, **options), workers=1, servers=2).params
    assert not np.array_equal(found[0], params[0])  # each worker has all tensors


def test_workers_need_a_rate_where_the_servers_find_theirs():
    with pytest.raises(ValueError, match=r"^local_lr: found None, expected a number: .* lr of Prodigy is a factor"):
        fd.Downpour(fastopt.Prodigy, start(), n_fetch=2)
    fd.Downpour(fastopt.Prodigy, start(), n_fetch=2, local_lr=1e-3)


def test_servers_that_were_asked_at_once_are_replayed(tmp_path):
    """An order in which each of two servers had another worker ahead, as only processes have it."""
    algorithm = fd.Downpour(fastopt.SGD, start(), lr=0.1)
    orders = [0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 1, 1]
    with open(tmp_path / "order", "wb") as file:
        fd.runs.write_order(file, 2, orders)
    again = []
    thread = threading.Thread(
        target=lambda: again.append(fd.replay(working(4), algorithm, tmp_path / "order")), daemon=True
    )
    thread.start()
    thread.join(20)
    assert again and again[0].pushes == 4
