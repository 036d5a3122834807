"""The workloads of benchmarks/, as a user calls them, on little data."""

import importlib
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastopt.rules import RULES

FOLDER = Path(__file__).parents[1] / "benchmarks" / "workloads"
TINY = ("--size", 0.1, "--epochs", 4, "--workers", 1, 2)
PICTURES = {".png": b"\x89PNG", ".svg": b"<?xml"}


def run(name, *arguments, cache, packages=("rich", "sklearn", "matplotlib")):
    """Run a workload; return its output."""
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed")
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        # Passive: on a busy machine torch's threads would else spin for whole time slices.
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_WAIT_POLICY": "passive"},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "[1/" in done.stderr
    return done.stdout


def rows(printed, title):
    """The cells of the table under a title."""
    lines = iter(printed[printed.index(title) :].splitlines())
    next(line for line in lines if line.startswith(" ─"))
    table = []
    for line in lines:
        if not line.strip():
            return table
        table.append(re.split(r"\s{2,}", line.strip()))
    return table


def assert_picture(path):
    assert path.read_bytes().startswith(PICTURES[path.suffix])


@pytest.mark.slow
def test_torch_digits(tmp_path):
    picture = tmp_path / "losses.svg"
    packages = ("rich", "sklearn", "matplotlib", "torch")
    printed = run("torch_digits", "--epochs", 3, "--plot", picture, cache=tmp_path, packages=packages)
    epochs = [[float(cell) for cell in row] for row in rows(printed, "Mean loss")]
    assert [epoch for epoch, _, _ in epochs] == [1, 2, 3]
    assert epochs[-1][1] < 0.7 * epochs[0][1]
    for _, theirs, ours in epochs:
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert float(printed.split()[-1]) < 1e-4
    steps = rows(printed, "step() over 29 tensors")
    assert [step[0] for step in steps] == ["torch.optim.AdamW(fused=True)", "fastopt.torch.AdamW"]
    for _, microseconds, total, accuracy in steps:
        assert float(microseconds) > 0 and float(total) > 0 and float(accuracy.rstrip("%")) > 40
    assert_picture(picture)


@pytest.mark.slow
def test_glove(tmp_path):
    picture = tmp_path / "losses.png"
    printed = run("glove", *TINY, "--plot", picture, cache=tmp_path)
    trainings = rows(printed, "GloVe:")
    assert [training[0] for training in trainings] == ["1", "2"]
    for _, first, last, _, rate in trainings:
        assert float(last) < 0.8 * float(first) and float(rate) > 0
    neighbours = dict(rows(printed, "Nearest"))
    assert neighbours["self"].count(",") == 5
    assert len(list((tmp_path / "fastopt").glob("glove-*.npz"))) == 1
    assert_picture(picture)


@pytest.mark.slow
def test_text(tmp_path):
    picture = tmp_path / "losses.svg"
    printed = run("text", *TINY, "--rounds", 2, "--plot", picture, cache=tmp_path)
    models = rows(printed, "chunks of text")
    assert [model[0].partition(",")[0] for model in models] == 3 * ["hinge"] + 3 * ["logistic"]
    for _, milliseconds, rate, loss, accuracy in models:
        assert float(milliseconds) > 0 and float(rate) > 0 and float(loss) < 0.69
        assert float(accuracy.rstrip("%")) > 85
    assert_picture(picture)


@pytest.mark.slow
def test_ratings(tmp_path):
    picture = tmp_path / "losses.png"
    printed = run("ratings", *TINY, "--rounds", 1, "--plot", picture, cache=tmp_path)
    trainings = rows(printed, "ratings of")
    assert [training[0] for training in trainings] == ["1 worker", "2 workers"]
    for _, milliseconds, rate, error, share in trainings:
        assert float(milliseconds) > 0 and float(rate) > 0
        assert 0.5 < float(error) < 0.8 and float(share) == pytest.approx(float(error) / 0.5, abs=1e-3)
    assert_picture(picture)


@pytest.mark.slow
def test_precision(tmp_path):
    picture = tmp_path / "losses.svg"
    packages = ("rich", "sklearn", "matplotlib", "torch")
    options = ("--size", 0.1, "--steps", 40, "--codes", "--plot", picture)
    printed = run("precision", *options, cache=tmp_path, packages=packages)
    each = {
        "float32": 12,
        "bf16 states": 8,
        "8-bit states": pytest.approx(6.2, abs=0.15),
        "bf16, float32 master": 10,
        "bf16, Kahan": 8,
        "bf16, stochastic": 6,
        "bf16, nearest": 6,
    }
    for task, guessing in (("digits:", 2.3), ("text:", 4.6)):
        trainings = rows(printed, task)
        assert {name: float(size) for name, size, *_ in trainings} == each
        shares = [float(share) for _, _, _, share, _, _ in trainings]
        assert shares[:-1] == pytest.approx([1] * 6, abs=0.01) and shares[-1] > max(shares[:-1])
        for _, _, loss, _, held_out, accuracy in trainings:
            assert float(loss) < 0.9 * guessing and float(held_out) < 0.9 * guessing
            assert float(accuracy.rstrip("%")) > 20
    codes = {name: [float(cell) for cell in cells] for name, *cells in rows(printed, "Codes of the states")}
    assert len(codes) == 8
    exact, half, ours, *_, linear = codes.values()
    for code in (half, ours):
        assert code[0] == pytest.approx(exact[0], rel=0.01) and code[3] == pytest.approx(1, abs=0.05)
    assert exact[2:] == [1, 1, 1] and linear[3] < 0.1
    assert_picture(picture)


@pytest.mark.slow
def test_curriculum(tmp_path):
    picture = tmp_path / "paths.svg"
    options = ("--bits", 3, "--steps", 300, "--rounds", 1, "--plot", picture)
    printed = run("curriculum", *options, cache=tmp_path, packages=("rich", "matplotlib", "threadpoolctl"))
    table = {row[0]: row[1:] for row in rows(printed, "Sums of 3-bit numbers")}
    assert list(table) == ["none", "naive", "mixed", "combined"]
    for cells in table.values():
        assert float(cells[0].rstrip("%")) > 50
    assert_picture(picture)


@pytest.mark.parametrize(("best", "near"), [(0.5, 0.5), (1000, 2), (0.02, 100), (5, 1e-3)])
def test_the_best_rate_is_between_two_that_are_worse(monkeypatch, best, near):
    pytest.importorskip("rich", reason="rich is not installed")
    monkeypatch.syspath_prepend(FOLDER)
    common = importlib.import_module("common")
    tried = []

    def loss(rate):
        tried.append(rate)
        return math.nan if rate > 20 * best else abs(math.log(rate / best))

    assert common.best_rate(loss, near) == best
    assert len(tried) == len(set(tried)) and min(tried) < best < max(tried)
    assert common.best_rate(lambda rate: 1.0, near) > 0  # an end, where the rate changes nothing


@pytest.mark.slow
def test_delayed(tmp_path):
    printed = run(
        "delayed", "--size", 0.05, "--passes", 4, "--workers", 20, cache=tmp_path, packages=("rich", "sklearn")
    )
    table = {row[0]: row[1:] for row in rows(printed, "Online loss after 4 passes")}
    assert list(table) == ["1", "20, in order", "20, stragglers"]
    delay, *losses = table["1"]
    assert (delay, losses[:2]) == ("0.0", losses[2:])  # without delay they are one
    for delay, *losses in list(table.values())[1:]:
        assert 15 < float(delay) < 19
        assert float(losses[3]) < 0.9 * float(losses[1])  # at the rate that is best without delay


@pytest.mark.slow
def test_asynchronous(tmp_path):
    picture = tmp_path / "losses.svg"
    options = ("--size", 0.02, "--passes", 1, "--workers", 1, 2, "--plot", picture)
    printed = run("asynchronous", *options, cache=tmp_path, packages=("rich", "scipy", "sklearn", "matplotlib"))
    for task, guessing in (("digits: loss after", 2.3), ("text: loss after", 0.69)):
        table = {row[0]: row[1:] for row in rows(printed, task)}
        assert list(table) == ["SGD", "DC-ASGD", "Adagrad", "AdaptiveRevision", "EASGD", "EAMSGD"]
        for _, alone, _, tuned, *seconds in table.values():
            assert float(alone) < 0.5 * guessing and float(tuned.partition(" ")[0]) < 1.01 * guessing
            assert float(seconds[1]) < 0.6 * float(seconds[0])
        # Without delay the corrections for it do nothing.
        assert table["AdaptiveRevision"][1] == table["Adagrad"][1] and table["DC-ASGD"][1] == table["SGD"][1]
    assert_picture(picture)
    assert_picture(tmp_path / "losses-text.svg")


@pytest.mark.slow
def test_overview(tmp_path):
    picture = tmp_path / "losses.svg"
    packages = ("rich", "sklearn", "matplotlib", "threadpoolctl")
    printed = run("overview", "--epochs", 6, "--plot", picture, cache=tmp_path, packages=packages)
    table = {row[0]: row[1:] for row in rows(printed, "Handwritten digits")}
    assert list(table) == list(RULES)
    for lr, right, loss, best, epochs, microseconds in table.values():
        assert float(lr) > 0 and float(microseconds) > 0
        assert float(right.rstrip("%")) > 50 and float(loss) < 2
        assert 1 <= int(best) <= int(epochs) <= 6
    assert max(float(row[1].rstrip("%")) for row in table.values()) > 95
    assert_picture(picture)


def test_the_gradient_of_the_overview_is_checked(monkeypatch):
    for package in ("rich", "sklearn", "threadpoolctl"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.syspath_prepend(FOLDER)
    overview = importlib.import_module("overview")
    digits = overview.Digits.load()
    assert overview.check(digits).startswith("gradient right")
    backward = overview.Network.backward
    monkeypatch.setattr(overview.Network, "backward", lambda *given: {**backward(*given), "offset": np.ones(10)})
    with pytest.raises(SystemExit, match=r"gradient NOT right.*params\['offset'\]"):
        overview.check(digits)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="state_memory needs Linux")
def test_beyond_memory(tmp_path):
    arguments = ("--states", 220, "--limit", 200, "--memory", 32, "--rounds", 1, "--folder", tmp_path)
    printed = run("beyond_memory", *arguments, cache=tmp_path, packages=["rich"])
    assert "28,835,840 float32 elements" in printed and not list(tmp_path.iterdir())
    table = {row[0]: row[1:] for row in rows(printed, "Adam on")}
    assert table["states in memory"] == ["out of memory"]
    for way in ("state_dir", "state_dir, state_memory"):
        assert float(table[way][0]) > 0 and 0 < float(table[way][3]) <= 200
    shares = [int(table[way][2].rstrip(" %")) for way in ("the disk, through the cache", "the disk, past the cache")]
    assert max(shares) == 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epochs", "0"], "found '0', expected a whole number >= 1"),
        (["--size", "2"], "found '2', expected a number > 0 and <= 1"),
        (["--plot", "losses.txt"], "found 'losses.txt', expected a name ending in .png or .svg"),
    ],
)
def test_refusals(arguments, said):
    pytest.importorskip("rich", reason="rich is not installed")
    done = subprocess.run([sys.executable, FOLDER / "glove.py", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common"))
def test_without_a_package(name):
    """It says what to install."""
    hidden = f"import runpy, sys; sys.path.insert(0, {str(FOLDER)!r}); sys.modules['rich'] = None; "
    code = hidden + f"runpy.run_path({str(FOLDER / name)!r} + '.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "no rich here; install it: pip install rich\n"
