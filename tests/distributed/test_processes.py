"""Workers that do not wait for each other, and servers, that are processes."""

import json
import shutil
from collections import deque

import numpy as np
import pytest

import fastopt
from fastopt import distributed as fd
from fastopt.arrays.libraries import floats_of
from fastopt.distributed import workers
from fastopt.distributed.asynchronous import Ask
from fastopt.distributed.client import Client
from fastopt.distributed.core import Header, Op
from fastopt.distributed.post import Receiver, Sender
from fastopt.distributed.roll import Roll
from fastopt.distributed.shelf import shelf_of

from ..support import assert_same_bits
from . import faults
from .test_asynchronous import EVERY, SHAPES, Plain, pull, start
from .test_mpi import launch, needs_mpi

HEAD = """
import hashlib, os, sys, time
import numpy as np, ml_dtypes
import fastopt
from fastopt import distributed as fd
from fastopt.distributed.carriers import current
from fastopt.optimizers import MATRIX_CLASSES
from tests.distributed.test_asynchronous import REQUIRED, SHAPES, pull, start, working
from tests.support import assert_same_bits

rank, ranks = current().rank, current().size
"""


def printed(ranks, text, **environment):
    """What each of some processes prints, of which none fails."""
    done = launch(ranks, "-c", HEAD + text, timeout=100, **environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return sorted(done.stdout.split("\n"))[1:]


AGAIN = """
half = [p.astype(ml_dtypes.bfloat16) for p in start()]
large = start(((700, 500), (3,), (300001,)))  # which are updated in parts, and sent in pieces
cases = [fd.Downpour(getattr(fastopt, name), start(SHAPES[:1]) if name in MATRIX_CLASSES else start(), threads=1,
                     **REQUIRED.get(name, {})) for name in {names}]
cases += [
    fd.EASGD(fastopt.NAG, half, lr=0.05, momentum=0.9, lr_inside=True, every=2),
    fd.Downpour(fastopt.AdamW, half, n_push=3, n_fetch=2, warm_start=4),
    fd.Downpour(fastopt.SGD, half, rounding="stochastic", seed=3, lr=0.1),
    fd.Downpour(fastopt.AdaptiveRevision, large, lr=0.1, threads=1),
    fd.Downpour(fastopt.AdamW, [p.astype(ml_dtypes.bfloat16) for p in large], threads=1),
]
runs = []
for number, case in enumerate(cases):
    servers = 1 + number % min(2, len(case._held.arrays))
    order = "{folder}/order-" + str(number)
    runs.append(fd.run(working(30, 1e-4), case, servers=servers, max_ahead=[None, 1][number % 2], order=order))
for number in range(rank, len(cases), ranks):
    again, first = fd.replay(working(30), cases[number], "{folder}/order-" + str(number)), runs[number]
    assert_same_bits(again.params, first.params)
    assert (again.pushes, again.delays) == (first.pushes, first.delays) and first.pushes >= 10
    assert not np.array_equal(first.params[0], cases[number]._held.arrays[0])
print("the same bits")
"""


@needs_mpi
@pytest.mark.parametrize("names", [["SGD", "AdaptiveRevision"], pytest.param(EVERY, marks=pytest.mark.slow)])
def test_runs_of_processes_are_done_again_with_the_same_bits(names, tmp_path):
    """Three processes by each rule, by one server or two, and in one process by the order alone."""
    text = AGAIN.replace("{folder}", str(tmp_path)).replace("{names}", repr(names))
    assert printed(4, text) == ["the same bits"] * 4


TOLD = """
def worker(opt):
    for n, k in enumerate(opt.deal(range(20))):
        if opt.rank == 1 and n == 4:
            raise LookupError("lost")
        opt.step([fastopt.RowSparse(np.array([7, 2, 7]), pull(opt, k)[0][:3])])
table = start(((10, 3),))
result = fd.run(worker, fd.Downpour(fastopt.Adagrad, table), max_ahead=2)
assert result.pushes == 10 + 4 and list(result.dead) == [1] and "lost" in str(result.dead[1])
assert np.array_equal(result.params[0][:2], table[0][:2]) and not np.array_equal(result.params[0], table[0])

def refused(opt):
    ask = fd.asynchronous.Ask(fd.core.Op.PUSH, [np.ones(3, "f4")])
    for what in range(2):  # a server tells what it cannot do, and goes on
        try:
            opt._drive(iter([ask]))
        except ValueError as error:
            assert "found shape (3,)" in str(error)
            ask = fd.asynchronous.Ask(fd.core.Op.PUSH, [np.ones((10, 3), "f4")])
assert fd.run(refused, fd.Downpour(fastopt.SGD, table)).pushes == 2
def failing(opt):
    raise ZeroDivisionError(opt.rank)

three = start(((10, 3),) * 3)
wrong = {
    "servers: found 2, expected .* <= 1": lambda: fd.run(worker, fd.Downpour(fastopt.SGD, table), servers=2),
    "servers: found 3 of 3 processes": lambda: fd.run(worker, fd.Downpour(fastopt.SGD, three), servers=3),
    "workers: found 3, expected 2": lambda: fd.run(worker, fd.Downpour(fastopt.SGD, table), workers=3),
    "lr: found 1 in rank 1": lambda: fd.run(worker, fd.Downpour(fastopt.SGD, table, lr=rank)),
    "n_push: found 2 in rank 1": lambda: fd.run(worker, fd.Downpour(fastopt.SGD, table, n_push=rank + 1)),
    "the elements of params": lambda: fd.run(worker, fd.Downpour(fastopt.SGD, [table[0] + rank])),
    "No such file": lambda: fd.run(worker, fd.Downpour(fastopt.SGD, table), order="/no/such/place"),
    "^[01]$": lambda: fd.run(failing, fd.Downpour(fastopt.SGD, table)),
}
import re
for message, call in wrong.items():
    try:
        call()
    except (ValueError, OSError, ZeroDivisionError) as error:
        assert re.search(message, str(error)), (message, error)
    else:
        raise AssertionError(message)
print("told")
"""


@needs_mpi
def test_what_goes_wrong_is_told():
    """Rows are pushed alone, one that fails costs the others nothing, and wrong arguments are told in all."""
    assert printed(3, TOLD) == ["told"] * 3


IDLE = """
def worker(opt):
    for _ in range(2):
        opt.step(np.ones(1000))
        time.sleep({seconds})
downpour = fd.Downpour(fastopt.Adagrad, np.zeros(1000))
fd.run(worker, downpour)
shares = []
for _ in range(4):  # the least counts: others on the processor make each look for messages longer
    used, began = time.process_time(), time.perf_counter()
    fd.run(worker, downpour)
    shares.append((time.process_time() - used) / (time.perf_counter() - began))
if rank == ranks - 1:
    print(min(shares))
"""


@needs_mpi
@pytest.mark.slow
def test_a_server_that_waits_leaves_the_processor_to_others():
    (share,) = printed(3, IDLE.replace("{seconds}", "0.5"))
    assert float(share) <= 0.05


class Loop:
    """A channel of a rank to itself."""

    rank = 0

    def __init__(self):
        self.sent, self.waiting = deque(), deque()

    def send(self, to, memory):
        self.sent.append(memory.copy())

    def receive(self, source, memory):
        self.waiting.append(memory)
        return memory

    def done(self, requests, other):
        while self.sent and self.waiting:
            np.copyto(self.waiting.popleft(), self.sent.popleft())
        requests[:] = [own for own in requests if any(own is one for one in self.waiting)]
        return not requests


def test_a_parcel_comes_to_where_it_is_asked_for_and_the_next_one_does_not():
    channel = Loop()
    sender, receiver, own = Sender(channel, 0), Receiver(channel, 0), np.zeros(3)
    others = [np.zeros(4), np.zeros((3, 2))[:, 0]]
    for k, into in enumerate([(), (own,), (), (others[0],), (others[1],), (own,)]):
        receiver.expect(into)
        sender.send([k], [np.full(3, k + 1.0)])
        assert receiver.arrived() and receiver.numbers[0] == k and receiver.items[0].tolist() == [k + 1] * 3
        assert (receiver.items[0] is own) == any(x is own for x in into)
        assert own.tolist() == [[0, 2, 2, 2, 2, 6][k]] * 3 and not any(x.any() for x in others)


class NoPeers:
    """Peers that note where parcels are to be received."""

    rank = 0

    def __init__(self):
        self.into = []

    def of(self, rank):
        return self

    to = of

    def expect(self, into=()):
        self.into.append(into)

    def send(self, numbers, items):
        pass


@pytest.mark.parametrize("spares", [[], [2]])
def test_parameters_are_received_in_place_only_where_no_server_is_replaced(spares):
    """One that stopped in the midst of a reply and wakes would write into what the worker has got from another."""
    algorithm, peers = fd.Downpour(fastopt.SGD, np.zeros(3), lr=0.1), NoPeers()
    client = Client(peers, Roll(peers, [1], spares, [0], 1.0), [0, 1], algorithm._side(1), 0)
    own = [np.zeros(3)]
    client.ask(Ask(Op.FETCH, into=own))
    assert [list(into) for into in peers.into] == ([[], []] if spares else [own])


# ---- servers that end ----


def a_core(algorithm, workers=2):
    (core,) = fd.runs.make_cores(algorithm, algorithm._cuts(1), workers)
    return core


def a_shelf(folder, algorithm):
    return shelf_of(algorithm, algorithm._cuts(1), 0, 2, folder)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "AdaptiveRevision", "DCASGD", "AggMo"])
def test_a_shard_goes_on_from_its_checkpoint(name, tmp_path):
    """Another server of it answers what has been applied, applies what has not, and counts what is lost."""
    algorithm = fd.Downpour(getattr(fastopt, name), start(), lr=0.1, threads=1)
    first, other, alone = a_core(algorithm), a_core(algorithm), a_core(algorithm, 1)
    grads = [pull(Plain(start()), k) for k in (1, 2)]
    for number in range(1, 6):
        first.handle(0, Header(Op.EXCHANGE, number, number, number - 1), grads[0])
        alone.handle(0, Header(Op.EXCHANGE, number, number, number - 1), grads[0])
    shelf = a_shelf(tmp_path, algorithm)
    assert shelf.claim(1, 7) == 7
    shelf.save(first)
    shelf.finish()
    for number in (6, 7):
        first.handle(0, Header(Op.EXCHANGE, number, number, number - 1), grads[0])
    taken = a_shelf(tmp_path, algorithm)
    assert taken.claim(2, 8) == 8
    taken.load(other)
    assert other.progress(0)[:2] == (5, 5) and other.version == 5
    again = other.handle(0, Header(Op.EXCHANGE, 5, 5, 4), grads[0])
    assert_same_bits(again.payload, alone.shard.values())
    assert (other.version, other.lost) == (5, 0)
    other.handle(0, Header(Op.EXCHANGE, 8, 8, 7), grads[1])
    alone.handle(0, Header(Op.EXCHANGE, 6, 6, 5), grads[1])
    assert_same_bits(other.shard.values(), alone.shard.values())
    assert (other.version, other.lost) == (6, 2)


@pytest.mark.parametrize("name", ["SGD", "AdaptiveRevision", "RowwiseAdagrad"])
def test_a_table_goes_on_from_its_checkpoint(name, tmp_path):
    """Rows that come again are not applied again; those that were lost are counted; bits are of what was left."""
    algorithm = fd.Downpour(getattr(fastopt, name), np.ones((9, 3)), lr=0.1, tables={"params": 2}, threads=1)
    first, other, alone = (a_core(algorithm) for _ in range(3))
    rng = np.random.default_rng(0)
    every = [np.arange(4), np.arange(5)]

    def ask(number, *cores):
        """A request of each worker, of rows and then with rows."""
        for worker in 0, 1:
            given = [fastopt.RowSparse(rng.integers(0, n, 3), rng.standard_normal((3, 3))) for n in (4, 5)]
            for core in cores:
                core.handle(worker, Header(Op.ROWS, 2 * number - 1, number - 1, number - 1), every)
                core.handle(worker, Header(Op.EXCHANGE, 2 * number, number, number - 1), given)
        return given

    ask(1, first, alone)
    last = ask(2, first, alone)
    shelf, taken = (shelf_of(algorithm, algorithm._cuts(1), 0, 2, tmp_path) for _ in range(2))
    shelf.claim(1, 7)
    shelf.save(first)
    shelf.finish()
    ask(3, first)
    taken.claim(2, 8)
    assert taken.load(other)
    found = other.handle(0, Header(Op.ROWS, 3, 1, 1), every).payload  # again, as it is now
    assert_same_bits(found, alone.shard.values())
    other.handle(1, Header(Op.EXCHANGE, 4, 2, 1), last)
    for worker in 0, 1:  # who goes on from a checkpoint has just read
        alone.shard.read_rows(worker, every)
    ask(4, other, alone)
    assert_same_bits(other.shard.values(), alone.shard.values())
    assert (other.version, other.lost) == (6, 2)


def served(algorithm, servers, workers):
    return fd.runs.make_cores(algorithm, algorithm._cuts(servers), workers)


def shelves_of(folder, algorithm, servers, workers):
    return [shelf_of(algorithm, algorithm._cuts(servers), s, workers, folder) for s in range(servers)]


def push(cores, worker, number, grads, op=Op.EXCHANGE):
    """One request of a worker to all servers."""
    ends = np.cumsum([0, *(len(core.shard.values()) for core in cores)])
    for core, begin, end in zip(cores, ends, ends[1:], strict=False):
        core.handle(worker, Header(op, number, number, number - 1), grads[begin:end])


@pytest.mark.parametrize("name", ["SGD", "AdamW", "AdaptiveRevision", "RowwiseAdagrad", "AggMo"])
def test_checkpoints_know_no_number_of_servers_or_workers(name, tmp_path):
    """Two servers' are one process's, and one, three and four servers' with more workers, with the same bits."""
    params = [{"params": [np.ones((7, 3))], "lr": 0.1}, {"params": [np.ones((2, 3)), np.ones(4)], "weight_decay": 0.01}]
    algorithm = fd.Downpour(getattr(fastopt, name), params, tables={"params[0]['params'][0]": 2}, threads=1)
    rng = np.random.default_rng(0)

    def gradients():
        rows = [fastopt.RowSparse(rng.integers(0, n, 2), rng.standard_normal((2, 3))) for n in (3, 4)]
        return [*rows, rng.standard_normal((2, 3)), rng.standard_normal(4)]

    old, shelves = served(algorithm, 2, 2), shelves_of(tmp_path, algorithm, 2, 2)
    for number in 1, 2, 3:
        push(old, 0, number, gradients())
    push(old, 1, 1, gradients())
    for shelf, core in zip(shelves, old, strict=True):
        shelf.claim(1, 0)
        shelf.save(core)
        shelf.finish()
    found = fd.read_checkpoint(tmp_path)
    parts = [x for core in old for x in core.shard.values()]
    assert_same_bits(found.params, [np.concatenate(parts[:2]), *parts[2:]])
    assert found.steps == 4
    own = [
        {**group, "params": [found.params[i] for i in group["params"]]} for group in found.state_dict["param_groups"]
    ]
    alone = getattr(fastopt, name)(own, threads=1)
    alone.load_state_dict(found.state_dict)

    grads = gradients()
    push(old, 1, 2, [np.arange(3), np.arange(4), None, None], Op.ROWS)
    push(old, 1, 3, grads)
    after = [x for core in old for x in core.shard.values()]
    for servers in 1, 3, 4:
        cores = served(algorithm, servers, 3)
        for shelf, core in zip(shelves_of(tmp_path, algorithm, servers, 3), cores, strict=True):
            assert not shelf.load(core) and shelf.gather(core)
            assert (core.progress(2), core.lost) == ((0, 0, [[3, 1]]), 0)
        push(cores, 2, 1, grads)
        assert_same_bits([x for core in cores for x in core.shard.values()], after)
    values = np.concatenate([floats_of(own.values) for own in grads[:2]])
    rows = fastopt.RowSparse(np.concatenate([grads[0].indices, grads[1].indices + 3]), values)
    alone.step([[rows], grads[2:]])
    assert_same_bits(own[0]["params"] + own[1]["params"], [np.concatenate(after[:2]), *after[2:]])


def test_what_servers_had_not_saved_alike_is_lost(tmp_path):
    """Batches are left out that one of the servers knows of, by whatever workers they were shared."""
    algorithm = fd.Downpour(fastopt.SGD, start((*SHAPES, (3,))))
    old, shelves = served(algorithm, 2, 2), shelves_of(tmp_path, algorithm, 2, 2)
    for worker, number in (0, 1), (0, 2), (1, 1):
        push(old, worker, number, pull(Plain(algorithm._held.arrays), 1))
    for number, (shelf, core) in enumerate(zip(shelves, old, strict=True)):
        shelf.claim(1, number)
        shelf.save(core)
        push(old, 0, 3, pull(Plain(algorithm._held.arrays), 2))
        shelf.finish()
    for runs, servers, workers_now in (1, 3, 3), (2, 1, 2):
        cores, shelves = served(algorithm, servers, workers_now), shelves_of(tmp_path, algorithm, servers, workers_now)
        for shelf, core in zip(shelves, cores, strict=True):
            assert shelf.gather(core)
            assert core.before == [[3, 1], [0, 1, 2]][:runs] and core.lost == (core is cores[0])
            shelf.claim(shelf.epoch() + 1, 0)
            shelf.save(core)
            shelf.finish()  # the next one finds this
        for shelf, core in zip(shelves, cores, strict=True):
            for worker, number in ((1, 1), (2, 1), (2, 2)) * (runs == 1):
                grads = [x.copy() for x in core.shard.values()]
                core.handle(worker, Header(Op.PUSH, number, number, number - 1), grads)
            shelf.save(core)
            shelf.finish()
        shelves[0].tidy()
        assert len([*tmp_path.glob("shard-*")]) == servers
    seen = []
    for rank in range(2):
        worker = workers.Worker(algorithm._side(2), rank, 2, None, before=core.before)
        seen.append([*worker.deal(range(12)), *worker.deal(range(2))])
    # Two workers did 0, 2, 4 and 1; of the rest the second of three did 5, and the third 6 and 9.
    assert seen == [[3, 8, 11, 0], [7, 10, 1]]
    other = fd.Downpour(fastopt.SGD, [np.ones((2, 2)), *start()])
    with pytest.raises(
        ValueError, match=r"checkpoint: found .* in .*, expected \['params\[0\]', 'float64', \[2, 2\]\]"
    ):
        shelves_of(tmp_path, other, 2, 2)[0].gather(a_core(other))


def test_a_centre_goes_on_from_its_checkpoint(tmp_path):
    algorithm = fd.EASGD(fastopt.SGD, np.zeros(3), lr=0.1, beta=1.0)
    first, other = a_core(algorithm), a_core(algorithm)
    moved = first.handle(0, Header(Op.EXCHANGE, 1, 0, 0), [np.ones(3)]).payload[0].tolist()
    shelf, taken = a_shelf(tmp_path, algorithm), a_shelf(tmp_path, algorithm)
    shelf.claim(1, 0)
    shelf.save(first)
    shelf.finish()
    taken.claim(2, 1)
    taken.load(other)
    assert moved == [0.5] * 3 == other.shard.values()[0].tolist()
    assert other.handle(1, Header(Op.FETCH, 0), None).payload[0].tolist() == [0.5] * 3
    assert other.handle(0, Header(Op.EXCHANGE, 1, 0, 0), [np.ones(3)]).payload[0].tolist() == [0.25] * 3
    assert other.shard.values()[0].tolist() == [0.5] * 3


def test_two_servers_never_have_one_shard(tmp_path):
    """Who is thought to have ended, and goes on, finds out before its next checkpoint, and others' stay."""
    algorithm = fd.Downpour(fastopt.SGD, np.zeros(3), lr=1.0)
    core, old, new, late = a_core(algorithm), *(a_shelf(tmp_path, algorithm) for _ in range(3))
    assert (old.claim(1, 4), new.claim(2, 5), late.claim(2, 6)) == (4, 5, 5)
    core.handle(0, Header(Op.PUSH, 1, 1, 0), [np.ones(3)])
    with pytest.raises(fd.RankDied, match="found another server of"):
        old.save(core)
    new.save(core)
    new.finish()
    other = fd.Downpour(fastopt.Adam, np.zeros(3))
    another = a_shelf(tmp_path, other)
    another.claim(3, 7)
    with pytest.raises(ValueError, match=r"checkpoint: found optimizer 'Downpour of SGD' in .*, expected 'Downpour of"):
        another.load(a_core(other))


RESUMED = """
seen = []
def worker(opt):
    for n, k in enumerate(opt.deal(range(40))):
        if {first} and n == 5 + opt.rank:
            raise LookupError(k)
        seen.append(k)
        opt.step(pull(opt, k))
params = start()
for make in {
    "d": lambda: fd.Downpour(fastopt.Adam, params, n_push=2),
    "e": lambda: fd.EASGD(fastopt.SGD, params, lr=0.1, every=2),
}.items():
    seen.clear()
    try:
        result = fd.run(worker, make[1](), servers={servers}, checkpoint="{folder}/" + make[0])
        print(rank, make[0], result.pushes, seen, [float(np.abs(p).max()) < 9 for p in result.params])
    except LookupError:
        pass
"""


@needs_mpi
def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    """Batches whose gradients have been pushed are left out, also with other servers and workers."""
    text = RESUMED.replace("{folder}", str(tmp_path / "states"))
    assert printed(4, text.replace("{first}", "True").replace("{servers}", "2")) == []
    shutil.copytree(tmp_path / "states", tmp_path / "others")
    text = text.replace("{first}", "False")
    found = printed(4, text.replace("{servers}", "2"))
    assert found[0].startswith("0 d 22 [10, 12, ") and found[2].startswith("1 d 22 [11, 13, 15")
    assert len(found) == 8
    text = text.replace(str(tmp_path / "states"), str(tmp_path / "others"))
    found = [line.split(maxsplit=3) for line in printed(4, text.replace("{servers}", "1"))]
    assert [(rank, what) for rank, what, *_ in found] == [(rank, what) for rank in "0123" for what in "de"]
    assert {pushes for _, what, pushes, _ in found if what == "d"} == {"24"}  # six before, and six of each worker
    done = [json.loads(rest.partition("]")[0] + "]") for _, what, _, rest in found if what == "d"]
    assert sorted(k for own in done for k in own) == [*range(10, 40)]
    assert fd.read_checkpoint(tmp_path / "others" / "d").steps == 24


@needs_mpi
@pytest.mark.parametrize(
    "plan",
    [
        [(1, "before a push", "is killed", 9), (3, "between applying and replying", "is killed", 30),
         (4, "in a checkpoint", "is killed", 3), (5, "in a takeover", "is killed", 1)],
        pytest.param([(1, "before a push", "exits", 9), (3, "between applying and replying", "exits", 30)],
                     marks=pytest.mark.slow),
        *(pytest.param([fault], marks=pytest.mark.slow) for fault in [
            (2, "before a push", "raises", 5),
            (2, "before a push", "stops", 5),
            (3, "between applying and replying", "stops", 20),
            (4, "between applying and replying", "raises", 20),
            (3, "in a checkpoint", "raises", 2),
        ]),
    ],
)  # fmt: skip
def test_faults_at_points(plan, tmp_path):
    """What a worker's end costs, and a server's: nothing is applied twice, and what is lost is counted."""
    assert faults.check(plan, tmp_path, *faults.run(plan, tmp_path)) >= len(plan) - 1


LONG = """
import sys, time
import numpy as np
import fastopt
from fastopt import distributed as fd

def worker(opt):
    for n in range(2):
        time.sleep(11.0 * n)
        opt.step(np.ones(3))

result = fd.run(worker, fd.Downpour(fastopt.SGD, np.zeros(3)))
print(result.pushes, result.dead)
"""


@needs_mpi
@pytest.mark.slow
def test_a_gradient_may_take_long(tmp_path):
    """Longer than MPI's own detector of failures would wait for a process that says nothing."""
    _, status, out = faults.run_program(LONG, [], tmp_path, ["-n", "3", "--servers", "1"])
    assert (status, out.splitlines()) == (0, ["4 {}"] * 3)


STOPPED = """
import json, os, pathlib, signal, subprocess, sys, time
import numpy as np
import fastopt
from fastopt import distributed as fd
from fastopt.distributed import carriers, server

rank, steps = carriers.current().rank, 1000

def stop(until):
    wake = f"while [ ! -e {until} ]; do sleep 0.02; done; kill -CONT {os.getpid()}"
    subprocess.Popen(["sh", "-c", wake if until else ":"])
    os.kill(os.getpid(), signal.SIGSTOP)

def worker(opt):
    for n in range(steps):
        if opt.rank and n == 5:
            stop("ended-1" if opt.rank == 1 else None)
        if opt.rank == 0 and all(map(os.path.exists, ("raised-1", "raised-3"))):
            return n
        grad = np.zeros((3, steps), "f4")
        grad[opt.rank, n] = -1
        opt.step(grad)
        time.sleep(0.01)

before, replies = server.Server._reply, []
def reply(self, *arguments):
    replies.append(1)
    if rank == 3 and len(replies) == 30:
        stop("states/shard-0/epoch-2/latest")
    before(self, *arguments)
server.Server._reply = reply
end = server.Server._end
def ended(self, worker, error):
    end(self, worker, error)
    pathlib.Path(f"ended-{worker}").touch()
server.Server._end = ended

try:
    result = fd.run(worker, fd.Downpour(fastopt.SGD, np.zeros((3, steps), "f4"), lr=1.0), checkpoint="states",
                    checkpoint_every=0.1, timeout=0.5)
except fd.RankDied as error:
    pathlib.Path(f"raised-{rank}").write_text(str(error))
else:
    np.save(f"params-{rank}", result.params)
    missing = int(result.params[0].nonzero()[0][-1]) + 1 - int(result.params[0].sum())
    found = {"dead": {k: str(error) for k, error in result.dead.items()}, "missing": missing, "lost": result.lost}
    pathlib.Path(f"result-{rank}").write_text(json.dumps(found))
"""


@needs_mpi
def test_who_is_silent_is_taken_for_ended(tmp_path):
    """A server that stops, and two workers, of which one never wakes: others go on, and who wakes up ends."""
    text, ranks = STOPPED, ["-n", "5", "--servers", "1", "--spares", "1"]
    found, status, err = faults.run_program(text, [], tmp_path, ranks)
    assert (sorted(found), status) == ([0, 4], 0), err
    assert found[0] == found[4] and sorted(found[0]["dead"]) == ["1", "2"]
    assert 0 <= found[0]["missing"] <= found[0]["lost"]
    assert "found nothing of worker 2 within the timeout" in found[0]["dead"]["2"]
    assert "found nothing of worker 1 within the timeout" in (tmp_path / "raised-1").read_text()
    assert "found another server of" in (tmp_path / "raised-3").read_text()
    params = np.load(tmp_path / "params-0.npy")
    assert params.max() == 1 and np.array_equal(params, np.load(tmp_path / "params-4.npy"))
    (last,) = (tmp_path / "states" / "shard-0").glob("epoch-*")  # of the other server's line nothing is left
    assert last.name == "epoch-2"
    assert faults.marked(tmp_path) == []
