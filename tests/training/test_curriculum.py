"""Curricula: what is drawn, by strategy and level."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fastopt.training import Curriculum, check_gradient

FOLDER = Path(__file__).parents[2] / "benchmarks" / "workloads"
DIFFICULTY = np.array([3, 1, 2, 1, 3, 3, 1, 9, 2, 1])
LEVELS = {1: {1, 3, 6, 9}, 2: {2, 8}, 3: {0, 4, 5}, 4: {7}}


def frequencies(curriculum, batches=40, size=500):
    """The share of each level in what is drawn, each example within it alike."""
    rows = np.concatenate([curriculum.draw(size) for _ in range(batches)])
    counts = np.bincount(rows, minlength=len(DIFFICULTY)) / len(rows)
    for level in LEVELS.values():
        within = counts[sorted(level)]
        np.testing.assert_allclose(within, within.mean(), atol=0.01)
    return [counts[sorted(level)].sum() for level in LEVELS.values()]


@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("strategy", ["naive", "mixed", "combined"])
def test_shares_of_levels(strategy, level):
    curriculum = Curriculum(DIFFICULTY, strategy, seed=3)
    assert curriculum.levels == 4 and curriculum.level == 1
    for _ in range(level - 1):
        curriculum.advance()
    want = np.zeros(4)
    if strategy != "mixed":
        want[level - 1] += 1 if strategy == "naive" else 0.5
    if strategy != "naive":
        want += 0.25 if strategy == "mixed" else 0.125
    np.testing.assert_allclose(frequencies(curriculum), want, atol=0.015)


def test_the_last_level_stays():
    curriculum = Curriculum([1, 2])
    for level in (1, 2, 2):
        assert curriculum.level == level
        curriculum.advance()


@pytest.mark.parametrize(
    ("difficulty", "levels", "sizes"),
    [
        (np.arange(10), None, [1] * 10),
        (np.arange(10), 1, [10]),
        (np.arange(10), 3, [4, 3, 3]),
        (np.arange(10), 10, [1] * 10),
        ([0] * 8 + [1, 2], 3, [8, 1, 1]),
        ([0, 1] + [2] * 8, 3, [1, 1, 8]),
        ([0] * 5 + [1] * 5, 2, [5, 5]),
        ([1, 1, 1, 2, 3, 3, 9], 3, [3, 3, 1]),
    ],
)
def test_levels_of_as_many_examples(difficulty, levels, sizes):
    values = np.random.default_rng(0).permutation(np.asarray(difficulty, float))
    curriculum = Curriculum(values, "naive", levels=levels)
    assert curriculum.levels == len(sizes)
    before = -np.inf
    for size in sizes:
        drawn = np.unique(curriculum.draw(2000))
        assert len(drawn) == size and values[drawn].min() > before
        before = values[drawn].max()
        curriculum.advance()


@pytest.mark.parametrize("strategy", ["naive", "mixed", "combined"])
def test_resumed(strategy):
    def draws(curriculum, n):
        rows = []
        for _ in range(n):
            rows += curriculum.draw(5).tolist()
            if curriculum.batch % 3 == 0:
                curriculum.advance()
        return rows

    first = Curriculum(DIFFICULTY, strategy, seed=7)
    begun = draws(first, 4)
    saved = json.loads(json.dumps(first.state_dict()))
    rest = draws(first, 5)
    resumed = Curriculum(DIFFICULTY, strategy)
    resumed.load_state_dict(saved)
    assert draws(resumed, 5) == rest
    assert draws(Curriculum(DIFFICULTY, strategy, seed=7), 9) == begun + rest
    assert draws(Curriculum(DIFFICULTY, strategy, seed=8), 9) != begun + rest
    assert repr(resumed) == f"Curriculum(10 examples, {strategy}; level 4 of 4, batch 9)"


@pytest.mark.parametrize(
    ("difficulty", "options", "error", "said"),
    [
        (["easy", "hard"], {}, TypeError, "difficulty: found"),
        ([[1], [1, 2]], {}, TypeError, "difficulty: found"),
        ([[1, 2]], {}, ValueError, "difficulty: found"),
        ([], {}, ValueError, "difficulty: found"),
        ([1.0, np.nan], {}, ValueError, "a finite number for each example"),
        ([1, 2], {"strategy": "mix"}, ValueError, "strategy: found 'mix', expected one of naive, mixed, combined"),
        ([1, 2], {"levels": 3}, ValueError, "levels: found 3, expected an integer from 1 to 2"),
        ([1, 2], {"levels": 0}, ValueError, "levels: found 0"),
        ([1, 2], {"seed": 0.5}, TypeError, "seed: found 0.5"),
    ],
)
def test_refusals(difficulty, options, error, said):
    with pytest.raises(error, match=said):
        Curriculum(difficulty, **options)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"strategy": "mixed"}, ValueError, r"state_dict\['strategy'\]: found 'mixed', expected 'combined', as here"),
        ({"examples": 3}, ValueError, r"state_dict\['examples'\]: found 3, expected 10"),
        ({"level": 5}, ValueError, r"state_dict\['level'\]: found 5"),
        ({"batch": -1}, ValueError, r"state_dict\['batch'\]: found -1"),
        ({"more": 0}, ValueError, "too many: 'more'"),
    ],
)
def test_wrong_states_change_nothing(change, error, said):
    curriculum = Curriculum(DIFFICULTY)
    curriculum.draw(1)
    before = curriculum.state_dict()
    with pytest.raises(error, match=said):
        curriculum.load_state_dict({**before, "seed": 5, "level": 2, **change})
    with pytest.raises(TypeError, match="state_dict: found None"):
        curriculum.load_state_dict(None)
    for size in (0, 2**31):
        with pytest.raises(ValueError, match=f"size: found {size}"):
            curriculum.draw(size)
    assert curriculum.state_dict() == before


@pytest.fixture(scope="module")
def addition():
    """The workload's module."""
    pytest.importorskip("rich")
    pytest.importorskip("threadpoolctl")
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("addition", FOLDER / "curriculum.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_the_sums_of_the_workload(addition):
    lengths = np.array([3, 1, 4, 2, 4])
    read, bits, counts = addition.sums_of(np.random.default_rng(0), lengths)
    assert read.shape == (9, 5, 6) and bits.shape == counts.shape == (5, 5)
    assert (read[:4].sum(axis=2)[:, 2:5:2] == 2).all() and (read[4:, :, 5] == 1).all()
    for row, length in enumerate(lengths):
        one, other = (int("".join(str(int(bit)) for bit in read[4 - length : 4, row, k]), 2) for k in (1, 3))
        total = sum(int(bit) << place for place, bit in enumerate(bits[row]))
        assert one + other == total and counts[row].sum() == length + 1


def test_the_gradients_of_the_workload(addition):
    params = addition.new_network(0)
    batch = addition.sums_of(np.random.default_rng(1), np.array([1, 3, 2, 3]))
    found = check_gradient(
        lambda p: addition.backward(p, *batch)[0], params, lambda p: addition.backward(p, *batch)[1], samples=20
    )
    assert found, str(found)


def test_the_workload_learns(addition):
    params, path, level = addition.train("naive", 2, 200, 0)
    assert level == 2 and len(path) == 4
    assert addition.accuracy(params, 2, 200, 0) > 0.9
