"""Workers that do not wait for each other, and servers, that are processes."""

import pytest

from .test_asynchronous import EVERY
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
    done = launch(ranks, "-c", HEAD + text, timeout=60, **environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return sorted(done.stdout.split("\n"))[1:]


AGAIN = """
half = [p.astype(ml_dtypes.bfloat16) for p in start()]
cases = [fd.Downpour(getattr(fastopt, name), start(SHAPES[:1]) if name in MATRIX_CLASSES else start(), threads=1,
                     **REQUIRED.get(name, {})) for name in {names}]
cases += [
    fd.EASGD(fastopt.NAG, half, lr=0.05, momentum=0.9, lr_inside=True, every=2),
    fd.Downpour(fastopt.AdamW, half, n_push=3, n_fetch=2, warm_start=4),
    fd.Downpour(fastopt.SGD, half, rounding="stochastic", seed=3, lr=0.1),
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
used, began = time.process_time(), time.perf_counter()
fd.run(worker, downpour)
if rank == ranks - 1:
    print((time.process_time() - used) / (time.perf_counter() - began))
"""


@needs_mpi
@pytest.mark.slow
def test_a_server_that_waits_leaves_the_processor_to_others():
    (share,) = printed(3, IDLE.replace("{seconds}", "1.5"))
    assert float(share) <= 0.05
