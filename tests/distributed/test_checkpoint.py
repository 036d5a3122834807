"""Checkpoints: saved by some ranks, loaded by others, whole or not there."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt import distributed as fd
from fastopt.distributed import checkpoint
from fastopt.distributed.carriers import current, run_threads

from .test_mpi import ROOT
from .test_synchronous import SLICES, assert_same, gradient, parameters, trained_alone


def go_on(directory, cls, dtypes="f4", options=(), steps=2):
    """Load what is there, do some steps, and save."""
    params = parameters(dtypes)
    optimizer = fd.Synchronous(cls, params, slices=SLICES, **dict(options))
    for p in params.values():
        p[...] = 0 if optimizer.load(directory) else p
    done = optimizer.load(directory)
    assert optimizer.steps == done
    for step in range(done, done + steps):
        for number, _ in optimizer.slices(SLICES):
            optimizer.add(number, gradient(params, step, number))
        optimizer.step()
    optimizer.save(directory)
    return params, optimizer.state_dict(), [None] * (done + steps)


def by(ranks, *arguments, **more):
    run = functools.partial(go_on, *arguments, **more)
    return [run()] if ranks is None else run_threads(ranks, run)


CASES = {
    "AdamW, 8 bits": (fastopt.AdamW, "f4", {"state_dtype": "8bit"}),
    "AdamW, bfloat16": (fastopt.AdamW, ml_dtypes.bfloat16, {"rounding": "master"}),
    "AggMo": (fastopt.AggMo, "f4", {}),
    "RowwiseAdagrad": (fastopt.RowwiseAdagrad, "f4", {}),
    "a schedule": (fastopt.NAdam, "f8", {"lr": fastopt.schedules.Cosine(1e-2, steps=9)}),
}


@pytest.mark.parametrize("what", CASES)
def test_saved_by_some_loaded_by_others(what, tmp_path):
    cls, dtypes, options = CASES[what]
    for done, ranks in enumerate((2, 3, None, 4), 1):
        expected = trained_alone(cls, dtypes, options, 2 * done, None)
        for found in by(ranks, tmp_path, cls, dtypes, options):
            assert_same(found, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-6", "step-8"]


@pytest.mark.slow
@pytest.mark.parametrize("saving", range(1, 5))
@pytest.mark.parametrize("loading", range(1, 5))
def test_any_number_loads_what_any_number_saved(saving, loading, tmp_path):
    expected = trained_alone(fastopt.AdamW, "f4", {}, 4, None)
    by(saving, tmp_path, fastopt.AdamW)
    for found in by(loading, tmp_path, fastopt.AdamW):
        assert_same(found, expected)


def test_one_process_and_torch_load_it(tmp_path):
    by(3, tmp_path, fastopt.AdamW)
    params, states, _ = trained_alone(fastopt.AdamW, "f4", {}, 2, None)
    found = fd.read_checkpoint(tmp_path)
    assert found.steps == 2
    loaded = dict(zip(params, found.params, strict=True))
    alone = fastopt.AdamW(loaded)
    alone.load_state_dict(found.state_dict)
    assert_same((loaded, alone.state_dict(), []), (params, states, []))
    torch = pytest.importorskip("torch")
    tensors = [torch.from_numpy(p) for p in found.params]
    optimizer = torch.optim.AdamW(tensors)
    optimizer.load_state_dict(fastopt.torch_state_dict(found.state_dict))
    assert optimizer.state[tensors[1]]["exp_avg"].numpy().tobytes() == states["state"][1]["exp_avg"].tobytes()
    assert optimizer.state[tensors[1]]["step"] == 2


# ---- of ranks that train on their own ----

PERIODIC = {
    "LocalSGD": lambda own: fd.LocalSGD(own, every=2),
    "Elastic": lambda own: fd.Elastic(own, every=2),
    "DiLoCo": lambda own: fd.DiLoCo(own, every=2),
}


def go_on_alone(directory, form, inner, steps):
    """Load what is there, and train on; returns the parameters, and what ranks have in common."""
    params = parameters()
    optimizer = PERIODIC[form](inner(params))
    done = optimizer.load(directory)
    assert optimizer.steps == done
    for step in range(done, done + steps):
        optimizer.step(gradient(params, step, optimizer.rank))
    optimizer.save(directory)
    return [p.tobytes() for p in params.values()], [x.tobytes() for x in getattr(optimizer, "center", [])]


@pytest.mark.parametrize("form", PERIODIC)
def test_ranks_that_train_on_their_own_go_on(form, tmp_path):
    def inner(params):
        lr = fastopt.schedules.Cosine(1e-1, steps=9)
        return fastopt.AdamW(params, lr=lr, state_dtype="bfloat16", ema_decay=0.9)

    def by(ranks, directory, steps):
        return run_threads(ranks, lambda: go_on_alone(directory, form, inner, steps))

    expected = by(3, tmp_path / "at once", 7)
    by(3, tmp_path / "in parts", 3)  # between two exchanges
    assert by(3, tmp_path / "in parts", 4) == expected
    assert by(2, tmp_path / "in parts", 0) == expected[:2]
    assert [own[0] for own in by(4, tmp_path / "at once", 0)] == [expected[r][0] for r in (0, 1, 2, 0)]
    with pytest.raises(ValueError, match=f"^directory: found a checkpoint of {form} of AdamW, expected one of Sync"):
        fd.read_checkpoint(tmp_path / "at once")
    with pytest.raises(ValueError, match=f"^directory: found a checkpoint of {form} of AdamW, expected one of AdamW"):
        fd.Synchronous(fastopt.AdamW, parameters(), slices=1).load(tmp_path / "at once")


def test_torch_goes_on_so(tmp_path):
    torch = pytest.importorskip("torch")
    from fastopt import torch as optim

    def train(directory, steps):
        p = torch.nn.Parameter(torch.arange(6, dtype=torch.bfloat16))
        optimizer = fd.DiLoCo(optim.AdamW([p], lr=0.1), every=2)
        done = optimizer.load(directory)
        for step in range(done, done + steps):
            p.grad = torch.full_like(p, step - 2.5 + optimizer.rank)
            optimizer.step()
        optimizer.save(directory)
        return p.tolist(), optimizer.optimizer.state[p]["exp_avg"].tolist()

    expected = run_threads(2, lambda: train(tmp_path / "at once", 5))
    run_threads(2, lambda: train(tmp_path / "in parts", 3))
    assert run_threads(2, lambda: train(tmp_path / "in parts", 2)) == expected


def test_the_same_step_twice_is_two_checkpoints(tmp_path):
    for value in (1.0, 2.0, 3.0):
        fd.Synchronous(fastopt.SGD, np.full(3, value), slices=1).save(tmp_path)
        assert fd.read_checkpoint(tmp_path).params[0].tolist() == [value] * 3
    assert len(list(tmp_path.glob("step-*"))) == 2


def test_what_is_not_there_is_told(tmp_path):
    optimizer = fd.Synchronous(fastopt.SGD, np.ones(3), slices=1)
    assert optimizer.load(tmp_path / "none") == 0
    with pytest.raises(FileNotFoundError, match="found no checkpoint"):
        fd.read_checkpoint(tmp_path)
    optimizer.add(0, np.ones(3))
    with pytest.raises(ValueError, match="found some added, expected none in a checkpoint"):
        optimizer.save(tmp_path)
    schedule = fd.Synchronous(fastopt.SGD, np.ones(3), slices=1, lr=lambda t: 1.0)
    with pytest.raises(TypeError, match="a file of arrays cannot hold"):
        schedule.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_optimizers_checkpoint_is_refused(tmp_path):
    fd.Synchronous(fastopt.SGD, {"w": np.ones(3)}, slices=1).save(tmp_path)
    for cls, params, message in [
        (fastopt.Adam, {"w": np.ones(3)}, "^directory: found a checkpoint of SGD, expected one of Adam"),
        (
            fastopt.SGD,
            {"w": np.ones(3), "b": np.ones(3)},
            "^directory: found 1 parameters in the checkpoint, expected 2",
        ),
        (fastopt.SGD, {"w": np.ones(4)}, r"^params\['w'\]: found params\['w'\], float64 of shape \(3,\) in the"),
        (fastopt.SGD, {"v": np.ones(3)}, r"^params\['v'\]: found params\['w'\]"),
    ]:
        before = [p.copy() for p in params.values()]
        with pytest.raises(ValueError, match=message):
            fd.Synchronous(cls, params, slices=1).load(tmp_path)
        assert all((p == q).all() for p, q in zip(params.values(), before, strict=True))
    index = tmp_path / "step-0" / "index.json"
    index.write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match=r"^directory: found a checkpoint of format 99"):
        fd.read_checkpoint(tmp_path)
    index.write_text("{")
    with pytest.raises(ValueError, match=r"^directory: found no index"):
        fd.read_checkpoint(tmp_path)


@pytest.mark.parametrize("failing", ["_write_shard", "_write_text"])
def test_a_full_disk_leaves_the_checkpoint_before(failing, tmp_path, monkeypatch):
    by(3, tmp_path, fastopt.AdamW)
    write = getattr(checkpoint, failing)
    failed = 0 if failing == "_write_text" else 1

    def full(path, *what):
        if current().rank == failed:
            raise OSError(28, "No space left on device", str(path))
        write(path, *what)

    monkeypatch.setattr(checkpoint, failing, full)
    errors = []

    def run():
        try:
            go_on(tmp_path, fastopt.AdamW)
        except OSError as error:
            errors.append((error.errno, error.strerror, error.filename))

    run_threads(3, run)
    assert len(errors) == 3 and len(set(errors)) == 1
    assert errors[0][:2] == (28, f"No space left on device, in rank {failed}") and ".step-4.part" in errors[0][2]
    monkeypatch.undo()
    assert fd.read_checkpoint(tmp_path).steps == 2
    assert by(2, tmp_path, fastopt.AdamW)[0][2] == [None] * 4
    assert not list(tmp_path.glob(".step-*"))


WRITERS = """
import os, sys
import fastopt, numpy as np
from fastopt import distributed as fd

def write():
    params = [np.zeros(200_000, "f4"), np.zeros(3, "f4")]
    opt = fd.Synchronous(fastopt.Adam, params, slices=1)
    opt.load(sys.argv[1])
    print(os.getpid(), flush=True)
    while True:
        for p in params:
            p[...] = opt.steps
        opt.save(sys.argv[1])
        opt.add(0, [np.full_like(p, opt.steps) for p in params])
        opt.step()

for line in sys.stdin:
    child = os.fork()  # which need not import anything
    if not child:
        write()
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.fixture
def writers(tmp_path):
    """A process that starts another, which writes checkpoints, for each line that it is told."""
    command = [sys.executable, "-c", WRITERS, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_what_is_killed_while_it_writes_leaves_a_whole_one(times, writers, tmp_path):
    before = -1
    for n in range(times):
        writers.stdin.write("\n")
        writers.stdin.flush()
        writer = int(writers.stdout.readline())
        while checkpoint.latest(tmp_path) is None:  # on a busy machine the first takes long
            time.sleep(0.01)
        time.sleep(random.Random(n).random() * 0.1)
        os.kill(writer, signal.SIGKILL)
        assert writers.stdout.readline() == "ended\n"
        found = fd.read_checkpoint(tmp_path)
        assert found.steps >= before
        assert all((p == found.steps).all() for p in found.params)
        assert found.state_dict["state"][0]["step"] == found.steps or found.steps == 0
        before = found.steps


def test_noise_is_told(tmp_path):
    def noisy(rank=0):
        return {"gradient_noise": fastopt.GradientNoise(seed=rank), "rounding": "stochastic", "seed": 9}

    opt = fd.Synchronous(fastopt.SGD, parameters(), slices=1, **noisy())
    opt.save(tmp_path / "whole")
    fd.Synchronous(fastopt.SGD, parameters(), slices=1, **noisy()).load(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"\['gradient_noise'\]: found \(0.3, 0.55, 0\), expected None"):
        fd.Synchronous(fastopt.SGD, parameters(), slices=1).load(tmp_path / "whole")

    def alone(first=0):
        def work():
            rank = current().rank + first
            return fd.LocalSGD(fastopt.SGD(parameters(), **noisy(rank)), every=2)

        return work

    run_threads(2, lambda: alone()().save(tmp_path / "each"))
    run_threads(3, lambda: alone()().load(tmp_path / "each"))  # each rank's own, and a new one's
    with pytest.raises(
        ValueError, match=r"\['gradient_noise'\]: found \(0.3, 0.55, [01]\), expected \(0.3, 0.55, [12]\)"
    ):
        run_threads(2, lambda: alone(1)().load(tmp_path / "each"))


OVER_ALL = {"Prodigy": {"d0": 1e-2}, "SWATS": {"over": "all", "eps": 0.1, "betas": (0.5, 0.5)}}


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("name", OVER_ALL)
def test_what_is_measured_of_all_tensors_is_each_ranks_own(name, library, tmp_path):
    """Ranks find rates of their own, and go on with them."""
    module = fastopt
    if library == "torch":
        torch = pytest.importorskip("torch")
        from fastopt import torch as module

    def train(directory, steps):
        params = [np.linspace(-1, 1, 24, dtype="f4").reshape(4, 6), np.ones(3, "f4")]
        if library == "torch":
            params = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
        optimizer = fd.DiLoCo(getattr(module, name)(params, **OVER_ALL[name]), every=2)
        done = optimizer.load(directory)
        for step in range(done, done + steps):
            if library == "torch":
                for p in params:
                    p.grad = p.detach() + 0.1 * step + optimizer.rank
                optimizer.step()
            else:
                optimizer.step([p + np.float32(0.1 * step + optimizer.rank) for p in params])
        optimizer.save(directory)
        inner = optimizer.optimizer
        state = inner.state[params[1]] if library == "torch" else inner.state[1]
        singles = inner._arguments.rule(inner.param_groups[0]).singles
        return [p.tolist() for p in params], [float(state[single]) for single in singles]

    expected = run_threads(2, lambda: train(tmp_path / "at once", 7))
    assert expected[0][1] != expected[1][1] != [1e-2, 1e-2, 0.0]
    run_threads(2, lambda: train(tmp_path / "in parts", 3))
    assert run_threads(2, lambda: train(tmp_path / "in parts", 4)) == expected
