"""``fastopt run``: processes started, ended together, and started anew."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import cli
from fastopt import distributed as fd
from fastopt.distributed import launch, raised

from .test_mpi import ROOT, needs_mpi

MARK = "FASTOPT_TEST_MARK"


@pytest.fixture
def program(tmp_path):
    """What writes a program, and what runs it by the command line: returns the process."""

    def start(text, *options, arguments=()):
        path = tmp_path / "train.py"
        path.write_text(text)
        environment = {**os.environ, MARK: str(tmp_path), "PYTHONPATH": str(ROOT)}
        environment.pop("OMP_NUM_THREADS", None)
        command = [sys.executable, "-m", "fastopt", "run", *options, str(path), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, cwd=tmp_path, start_new_session=True, **pipes)

    yield start
    left = marked(tmp_path)
    assert left == []


def marked(path):
    """The processes of a test that are there after a second."""
    for _ in range(20):
        left = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and int(folder.name) != os.getpid():
                try:
                    if f"{MARK}={path}".encode() in (folder / "environ").read_bytes():
                        left.append((folder / "cmdline").read_bytes())
                except OSError:
                    continue
        if not left:
            break
        time.sleep(0.1)
    return left


TRAINING = """
import hashlib, os, sys
import numpy as np
import fastopt
from fastopt import distributed as fd

params = [np.zeros(9000, "f4"), np.ones((70, 30), "f4")]
opt = fd.Synchronous(fastopt.AdamW, params, slices=4, lr=0.1)
first = not opt.load("checkpoints")
while opt.steps < 6:
    if opt.steps == 3 and first and opt.rank == 1:
        os.kill(os.getpid(), 9)
    for number, _ in opt.slices(4):
        rng = np.random.default_rng(10 * opt.steps + number)
        opt.add(number, [rng.standard_normal(p.shape).astype("f4") + p for p in params])
    opt.step(max_norm=1.0)
    if opt.steps % 2 == 0:
        opt.save("checkpoints")
if opt.rank == 0:
    print(opt.ranks, hashlib.sha256(params[0].tobytes() + params[1].tobytes()).hexdigest())
"""


def trained_alone():
    params = [np.zeros(9000, "f4"), np.ones((70, 30), "f4")]
    optimizer = fd.Synchronous(fastopt.AdamW, params, slices=4, lr=0.1)
    for step in range(6):
        for number, _ in optimizer.slices(4):
            rng = np.random.default_rng(10 * step + number)
            optimizer.add(number, [rng.standard_normal(p.shape).astype("f4") + p for p in params])
        optimizer.step(max_norm=1.0)
    import hashlib

    return hashlib.sha256(params[0].tobytes() + params[1].tobytes()).hexdigest()


@needs_mpi
def test_a_rank_that_is_killed_is_done_without(program):
    """One fewer goes on from the checkpoint, with the bits of a run that nothing disturbed."""
    process = program(TRAINING, "-n", "3", "--restarts", "2")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.split() == ["2", trained_alone()]
    assert "fastopt run: a process has failed; again with 2, 1 restart is left" in err


@needs_mpi
@pytest.mark.slow
def test_a_rank_that_is_killed_ends_all(program):
    process = program(TRAINING, "-n", "3")
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (137, "")


FAULTY = """
import os, signal, subprocess, sys
from fastopt.distributed import carriers, checkpoint, exchange, synchronous

point, fault = sys.argv[1:]
owner, name, count = {{
    "before a step": (synchronous.Synchronous, "_agree", 4),
    "before sums are received": (exchange.Flight, "receive", 4),
    "before an update is given": (exchange.Flight, "publish", 4),
    "before others' are taken": (exchange.Flight, "land", 4),
    "in a checkpoint": (checkpoint, "_write_shard", 2),
}}[point]
before, calls = getattr(owner, name), 0

def faulty(*arguments):
    global calls
    calls += 1
    if carriers.current().rank == 1 and calls == count and not os.path.exists("done"):
        open("done", "w").close()
        if fault == "raises":
            raise ZeroDivisionError("by this test")
        if fault == "stops":  # for a second
            subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {{os.getpid()}}"])
        os.kill(os.getpid(), signal.SIGSTOP if fault == "stops" else signal.SIGKILL)
    return before(*arguments)

setattr(owner, name, faulty)
{training}
"""
FAULTS = [
    ("before a step", "is killed"),
    ("before sums are received", "is killed"),
    ("before an update is given", "is killed"),
    ("before others' are taken", "is killed"),
    ("in a checkpoint", "is killed"),
    ("before an update is given", "stops"),
    ("before sums are received", "raises"),
    ("in a checkpoint", "raises"),
]


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize(("point", "fault"), FAULTS)
def test_a_fault_at_a_point(point, fault, program):
    """A rank that is killed is done without, one that stops is waited for, one that raises ends all."""
    text = FAULTY.format(training=TRAINING.replace("opt.steps == 3 and first and opt.rank == 1", "False"))
    again = [] if fault == "raises" else ["--restarts", "1"]
    process = program(text, "-n", "3", *again, arguments=[point, fault])
    out, err = process.communicate(timeout=120)
    assert (Path(process.args[-3]).parent / "done").exists()
    if fault == "raises":
        assert (process.returncode, out) == (1, "") and err.count("ZeroDivisionError: by this test") == 1
    else:
        assert process.returncode == 0, err
        assert out.split() == ["2" if fault == "is killed" else "3", trained_alone()]


FAILING = """
import sys, time
from fastopt.distributed.carriers import current

def fail():
    {what}

world = current()
if world.rank == 1:
    fail()
world.all_gather(None)
time.sleep(60)
"""


@needs_mpi
@pytest.mark.parametrize(
    ("what", "status", "told"),
    [
        ("raise ZeroDivisionError('by this test')", 1, "ZeroDivisionError: by this test"),
        pytest.param("sys.exit(7)", 7, None, marks=pytest.mark.slow),
        pytest.param("sys.exit('no more')", 1, "no more", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_fails_ends_all(what, status, told, program):
    process = program(FAILING.format(what=what), "-n", "3")
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert told is None or err.count(told) == 1
    assert err.count("Traceback") == what.startswith("raise")
    assert "runpy" not in err


RAISING = """
from fastopt.distributed.carriers import current

rank = current().rank
def fail(depth):
    if depth:
        fail(depth - 1)
    raise ValueError("odd" if rank % 2 else "even")

fail(5)
"""


@needs_mpi
def test_what_all_ranks_raise_is_shown_unmixed_and_ends_them(program):
    process = program(RAISING, "-n", "3", "--restarts", "2")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    shown = err[err.index("fastopt run: raised by") :]
    blocks = [block.splitlines() for block in shown.split("fastopt run: ")[1:]]
    headings = {block[0]: block for block in blocks}
    assert set(headings) == {
        "raised by 2 ranks alike, 0, 2:",
        "raised by rank 1:",
        "all processes raised an exception, and would again: no restart",
    }
    for heading, last in (("raised by 2 ranks alike, 0, 2:", "even"), ("raised by rank 1:", "odd")):
        block = headings[heading]
        assert block[1].startswith("Traceback") and block[-1] == f"ValueError: {last}"
        assert block[1:-1] == headings["raised by rank 1:"][1:-1] and len(block) > 10
    assert err.count("Traceback") == 2 and "again with" not in err


def test_who_raised_what_is_told(tmp_path, monkeypatch, capsys):
    def told(rank, error, text):
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
        raised.tell(error, text)

    monkeypatch.setattr(raised, "_PATIENCE", 0.0)
    told(1, ValueError(), "as it comes\n")
    assert capsys.readouterr().err == "as it comes\n"
    monkeypatch.setenv(raised.DIRECTORY, str(tmp_path))
    told(2, fd.RankDied(), "lost\n")
    found = raised.take(str(tmp_path))
    assert [(one.rank, one.by_loss) for one in found] == [(2, True)] and not list(tmp_path.iterdir())
    assert raised.report(found) == "fastopt run: raised by rank 2:\nlost\n"
    for rank, (error, text) in enumerate([(ValueError(), "a\n"), (fd.RankDied(), "lost\n"), (ValueError(), "a\n")]):
        told(rank, error, text)
    found = raised.take(str(tmp_path))
    assert raised.report(found) == "fastopt run: raised by 2 ranks alike, 0, 2:\na\n"  # a loss follows from it
    assert raised.report([]) == ""
    monkeypatch.setenv(raised.DIRECTORY, str(tmp_path / "gone"))
    told(0, ValueError(), "as it comes\n")
    assert capsys.readouterr().err == "as it comes\n"


@needs_mpi
@pytest.mark.parametrize(  # Ctrl-C reaches all that a terminal runs, SIGTERM only whom it is sent to
    ("number", "status", "send"), [(signal.SIGINT, 130, os.killpg), (signal.SIGTERM, 143, os.kill)]
)
def test_what_is_told_to_end_ends_all(number, status, send, program):
    process = program("import time\nprint('ready', flush=True)\ntime.sleep(60)", "-n", "2", "--restarts", "3")
    assert process.stdout.readline() == "ready\n" == process.stdout.readline()
    send(process.pid, number)
    process.communicate(timeout=30)
    assert process.returncode == status


def test_one_process_needs_no_mpi(program):
    text = "import os, sys\nprint(sys.argv, __name__, os.environ['OMP_NUM_THREADS'])\nsys.exit(len(sys.argv))"
    process = program(text, "-n", "1", arguments=["--epochs", "3"])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert out.endswith(f"train.py', '--epochs', '3'] __main__ {len(os.sched_getaffinity(0))}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py"], "found neither -n nor --hosts, expected a number of processes, as -n 4"),
        (["-n", "0", "train.py"], "found '0', expected a whole number >= 1"),
        (["-n", "5", "--hosts", "a:2,b:2", "train.py"], "found -n 5, expected at most 4"),
        (["--hosts", "a:x", "train.py"], "found 'a:x', expected machines with numbers of processes, as a:2,b:2"),
        (["-n", "2", "--restarts", "-1", "train.py"], "found '-1', expected a whole number >= 0"),
        (["-n", "2", "nonesuch.py"], "nonesuch.py: No such file"),
    ],
)
def test_wrong_commands(arguments, message, capsys):
    try:
        status = cli.main(["run", *arguments])
    except SystemExit as end:
        status = end.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err


def test_without_mpi_the_command_that_installs_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    (tmp_path / "train.py").write_text("")
    assert cli.main(["run", "-n", "2", str(tmp_path / "train.py")]) == 1
    assert "[distributed]" in capsys.readouterr().err


def test_machines_are_told_what_this_one_is(monkeypatch):
    commands = []
    monkeypatch.setattr(
        launch, "_wait", lambda command, environment, listen: commands.append((command, environment)) or 0
    )
    monkeypatch.setattr(launch, "find_spec", lambda name: True)
    monkeypatch.setattr(launch.shutil, "which", lambda name: "mpiexec")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda process: set(range(8)))
    launch.run(4, __file__, ["--fast"], hosts=[("a", 2), ("b", 2)])
    ((command, environment),) = commands
    assert environment["OMP_NUM_THREADS"] == "4"
    joined = " ".join(command)
    assert "-n 4" in joined and "--host a:2,b:2" in joined and "-x OMP_NUM_THREADS" in joined
    assert command[-2:] == [__file__, "--fast"]


@needs_mpi
@pytest.mark.parametrize("name", ["distributed_digits", pytest.param("split_digits", marks=pytest.mark.slow)])
def test_digits_have_one_digest(name):
    for package in ("sklearn", "threadpoolctl", "rich"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    program = ROOT / "benchmarks" / "workloads" / f"{name}.py"
    printed = [
        subprocess.run(
            [sys.executable, "-m", "fastopt", "run", "-n", n, program], capture_output=True, text=True, check=True
        ).stdout
        for n in "12"
    ]
    assert printed[0] == printed[1] and "parameters " in printed[0]
