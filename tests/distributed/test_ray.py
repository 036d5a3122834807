"""Workers that do not wait for each other, and servers, that are Ray's actors, in a cluster on this machine."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt import distributed as fd

from ..support import assert_same_bits
from .test_asynchronous import looking_up, start, tables_and_bias, working
from .test_launch import MARK, marked

ROOT = Path(__file__).parents[2]
ROOM = 80 << 20
#: A token for those that talk to this cluster alone, and nothing told to Ray's makers.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}


@pytest.fixture(scope="module")
def cluster():
    """A cluster with room for two workers, that this process is in."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}.items():
            patch.setenv(name, value)
        ray = pytest.importorskip("ray", reason="ray is not installed")  # which reads the environment
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 2, "object_store_memory": ROOM, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(address=found.address, log_to_driver=False, logging_level="error")
            yield found
        finally:
            ray.shutdown()
            found.shutdown()


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.01)


def one_each(steps, before=lambda opt, n: None):
    """A worker each gradient of which is of an element of its own, so that it is seen how often each was applied."""

    def worker(opt):
        for k in opt.deal(range(steps)):
            before(opt, k // opt.workers)
            grads = [np.zeros_like(p) for p in opt.params]
            for grad in grads:
                grad[k] = -1
            opt.step(grads)

    return worker


# ---- runs ----


@pytest.mark.parametrize(
    ("make", "worker", "options"),
    [
        (lambda: tables_and_bias(3), looking_up(40), {"servers": 2}),
        pytest.param(
            lambda: fd.EASGD(fastopt.NAG, half(), lr=0.05, momentum=0.9, lr_inside=True, every=2),
            working(60),
            {"servers": 2, "max_ahead": 1},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: fd.Downpour(fastopt.AdamW, half(), n_push=3, n_fetch=2, warm_start=4),
            working(60),
            {"max_ahead": 2},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["tables", "elastic", "downpour"],
)
def test_a_run_is_done_again_with_the_same_bits(make, worker, options, cluster, tmp_path):
    """Three workers, of which one waits for room: what they left, threads of one process leave again."""
    first = fd.run(worker, make(), carrier="ray", workers=3, order=tmp_path / "order", **options)
    again = fd.replay(worker, make(), tmp_path / "order")
    for own, theirs in zip(values(again), values(first), strict=True):
        assert_same_bits([own], [theirs])
    assert (again.pushes, again.delays) == (first.pushes, first.delays) and not first.dead


def half():
    return [p.astype(ml_dtypes.bfloat16) for p in start()]


def values(result):
    return [*result.params.values()] if isinstance(result.params, dict) else result.params


def test_a_worker_is_added_and_one_is_killed(cluster, tmp_path):
    """One for which there is no room begins when a machine joins; one that is killed costs the others nothing."""

    def before(opt, n):
        (tmp_path / f"begun-{opt.rank}").touch()
        if n == 5 and opt.rank < 2:
            wait_for(tmp_path / "begun-2")
            if opt.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    downpour = fd.Downpour(fastopt.SGD, [np.zeros(90, "f4")], lr=1.0)
    with ThreadPoolExecutor(1) as pool:  # a machine joins by the main thread alone
        running = pool.submit(fd.run, one_each(90, before), downpour, carrier="ray", workers=3, max_ahead=20)
        wait_for(tmp_path / "begun-0")
        wait_for(tmp_path / "begun-1")
        assert not (tmp_path / "begun-2").exists()
        joined = cluster.add_node(num_cpus=1, object_store_memory=ROOM)
        result = running.result(60)
    cluster.remove_node(joined)
    assert list(result.dead) == [1] and "actor of worker 1 ended" in str(result.dead[1])
    assert (result.pushes, result.lost) == (30 + 5 + 30, 0)
    assert [result.params[0][k::3].sum() for k in range(3)] == [30, 5, 30] and result.params[0].max() == 1


def test_a_server_that_is_killed_goes_on_from_its_checkpoint(cluster, tmp_path):
    """What had been pushed before the run is known, nothing is applied twice, and what is lost is counted."""

    def failing(opt, n):
        if n == 10:
            raise LookupError(f"of worker {opt.rank}")

    class Mortal(fastopt.SGD):
        def state_dict(self):  # which a server asks for to save it, between a push and its answer
            if self.state[0]["step"] >= 40 and not (tmp_path / "killed").exists():
                (tmp_path / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().state_dict()

    def run(before, **options):
        downpour = fd.Downpour(Mortal, [np.zeros(80, "f4"), np.zeros(80, "f4")], lr=1.0)
        options = {"workers": 2, "servers": 2, "checkpoint": tmp_path / "states", "checkpoint_every": 0.03, **options}
        return fd.run(one_each(80, before), downpour, carrier="ray", **options)

    with pytest.raises(LookupError, match="of worker") as raised:
        run(failing)
    assert str(raised.value).count("in failing") == 1
    result = run(lambda opt, n: time.sleep(0.005))
    assert (tmp_path / "killed").exists() and not result.dead
    assert max(x.max() for x in result.params) == 1, "a push was applied twice"
    assert sum(int(80 - x.sum()) for x in result.params) == result.lost < 30
    again = run(failing, workers=3, servers=1)  # nothing is left to do
    assert (again.pushes, again.lost) == (result.pushes, result.lost)
    assert_same_bits(again.params, result.params)
    other = fd.Downpour(fastopt.Adam, [np.zeros(80, "f4")])
    with pytest.raises(
        ValueError, match=r"checkpoint: found optimizer 'Downpour of Mortal' in .*, expected 'Downpour of"
    ):
        fd.run(one_each(80, failing), other, carrier="ray", workers=2, checkpoint=tmp_path / "states")


def test_what_goes_wrong_is_told(cluster, tmp_path):
    def worker(opt):
        ask = fd.asynchronous.Ask(fd.core.Op.PUSH, [np.ones(3, "f4"), None])
        with pytest.raises(ValueError, match=r"found shape \(3,\)"):  # a server tells what it cannot do, and goes on
            opt._drive(iter([ask]))
        for n, k in enumerate(opt.deal(range(20))):
            if opt.rank == 1 and n == 4:
                raise LookupError("lost")
            opt.step([None, np.full(4, k, "f4")])

    downpour = fd.Downpour(fastopt.SGD, start(), lr=1.0)
    result = fd.run(worker, downpour, carrier="ray", workers=2, max_ahead=2)
    assert list(result.dead) == [1] and isinstance(result.dead[1], LookupError) and "lost" in str(result.dead[1])
    assert (result.pushes, result.lost) == (10 + 4, 0)
    for options, error, message in (
        ({"spares": 1}, ValueError, "spares: found 1, expected none but among processes"),
        ({"order": "/no/such/place"}, FileNotFoundError, "/no/such/place"),
        ({"checkpoint": __file__}, NotADirectoryError, "test_ray.py"),
    ):
        with pytest.raises(error, match=message):
            fd.run(worker, downpour, carrier="ray", **options)


@pytest.mark.slow
def test_a_run_ends_by_a_full_disk_and_goes_on_without_a_worker_that_hangs(cluster, tmp_path):
    class Full(fastopt.SGD):
        def state_dict(self):
            raise OSError(28, "No space left on device", "states")

    downpour = fd.Downpour(Full, start(), lr=1.0)
    with pytest.raises(OSError, match="No space left on device: 'states'"):
        fd.run(working(20), downpour, carrier="ray", workers=2, checkpoint=tmp_path, checkpoint_every=0)

    def hanging(opt):
        for n, k in enumerate(opt.deal(range(20))):
            if opt.rank == 1 and n == 4:
                time.sleep(600)
            opt.step([None, np.full(4, k, "f4")])

    downpour = fd.Downpour(fastopt.SGD, start(), lr=1.0)
    result = fd.run(hanging, downpour, carrier="ray", workers=2, servers=2, max_ahead=2, timeout=0.5)
    assert list(result.dead) == [1] and "within the timeout" in str(result.dead[1]) and result.pushes == 10 + 4


def test_a_carrier_is_ray_or_none():
    with pytest.raises(ValueError, match="carrier: found 'mail', expected 'ray'"):
        fd.run(print, fd.Downpour(fastopt.SGD, start()), carrier="mail")


def test_without_ray_the_command_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "fastopt.distributed.actors", raising=False)
    with pytest.raises(fastopt.BackendUnavailable, match=r"no Ray .*pip install .*\[ray\]"):
        fd.run(print, fd.Downpour(fastopt.SGD, start()), carrier="ray")


DIGITS = ROOT / "benchmarks" / "workloads" / "asynchronous_digits.py"


@pytest.mark.parametrize("by", ["threads", *(pytest.param(by, marks=pytest.mark.slow) for by in ("ray", "processes"))])
def test_a_program_is_the_same_by_each_carrier(by, request):
    for package in ("sklearn", "threadpoolctl", "rich"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    command, environment = [sys.executable, str(DIGITS), "--workers", "2", "--epochs", "10"], dict(os.environ)
    if by == "ray":
        environment |= {"RAY_ADDRESS": request.getfixturevalue("cluster").address, **ENVIRONMENT}
        command += ["--carrier", "ray"]
    if by == "processes":
        pytest.importorskip("mpi4py", reason="mpi4py is not installed")
        command[1:1] = ["-m", "fastopt", "run", "-n", "3", "--servers", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"^480 pushes, .* s; (\d+\.\d) % of digits held out are read$", done.stdout, re.MULTILINE)
    assert found and float(found[1]) > 80, done.stdout


PROGRAM = """
import pathlib, time
import numpy as np
import fastopt
from fastopt import distributed as fd

def worker(opt):
    pathlib.Path("works").touch()
    while True:
        opt.step([np.ones(3)])
        time.sleep(0.01)

fd.run(worker, fd.Downpour(fastopt.SGD, [np.zeros(3)]), carrier="ray", workers=1)
"""


@pytest.mark.slow
def test_nothing_is_left_behind(tmp_path):
    """A cluster that a run has begun ends with it, also where it is interrupted."""
    pytest.importorskip("ray", reason="ray is not installed")
    environment = {**os.environ, **ENVIRONMENT, "RAY_ADDRESS": "local", MARK: str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(tmp_path / "works")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode in (1, 130, -signal.SIGINT) and errors.count("KeyboardInterrupt") == 1, errors
    end = time.monotonic() + 10
    while marked(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert marked(tmp_path) == []
