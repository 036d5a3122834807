"""LocalSGD, Elastic, DiLoCo: against formulas by hand."""

import numpy as np
import pytest

import fastopt
from fastopt import distributed as fd
from fastopt.distributed.carriers import current, run_threads

from .test_synchronous import WAYS

SHAPES = {"w": (5000,), "b": (3, 4)}


def parameters(dtype="f8"):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def gradient(params, rank, step):
    """That of a rank's own quadratic."""
    rng = np.random.default_rng(1 + rank)
    return {name: (p - rng.standard_normal(p.shape) + 0.1 * step).astype(p.dtype) for name, p in params.items()}


def trained(make, steps=6, dtype="f8", inner=lambda params: fastopt.SGD(params, lr=0.1)):
    """A rank's training: its parameters, and what it trained with."""
    params = parameters(dtype)
    optimizer = make(inner(params))
    for step in range(steps):
        optimizer.step(gradient(params, optimizer.rank, step))
    return params, optimizer


def by_hand(ranks, steps, every, exchange):
    """The parameters of all ranks by the formulas; `exchange` is what they do with those of one name."""
    of_ranks = [parameters() for _ in range(ranks)]
    memory = {name: {"c": p.copy()} for name, p in of_ranks[0].items()}
    for step in range(steps):
        for rank, params in enumerate(of_ranks):
            for name, g in gradient(params, rank, step).items():
                params[name] -= 0.1 * g
        if (step + 1) % every == 0:
            for name in SHAPES:
                exchange([params[name] for params in of_ranks], memory[name])
    return of_ranks, {name: own["c"] for name, own in memory.items()}


def local(xs, memory):
    mean = sum(xs) / len(xs)
    for x in xs:
        x[...] = mean


def elastic(xs, memory):
    c = memory["c"]
    mean = sum(xs) / len(xs)
    for x in xs:
        x -= 0.6 / len(xs) * (x - c)
    memory["c"] = c + 0.6 * (mean - c)


def diloco(xs, memory):
    """Nesterov's momentum as torch has it: b = 0.8*b + D; theta -= 0.5*(D + 0.8*b)."""
    theta = memory["c"]
    d = theta - sum(xs) / len(xs)
    b = memory["b"] = d if "b" not in memory else 0.8 * memory["b"] + d
    memory["c"] = theta - 0.5 * (d + 0.8 * b)
    for x in xs:
        x[...] = memory["c"]


FORMS = {
    "LocalSGD": (lambda own: fd.LocalSGD(own, every=2), local),
    "Elastic": (lambda own: fd.Elastic(own, every=2, beta=0.6), elastic),
    "DiLoCo": (lambda own: fd.DiLoCo(own, every=2, outer_lr=0.5, outer_momentum=0.8), diloco),
}


@WAYS
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("form", FORMS)
def test_they_do_as_their_formulas_say(form, ranks, machines):
    make, exchange = FORMS[form]
    expected, centre = by_hand(ranks, 6, 2, exchange)
    found = run_threads(ranks, lambda: trained(make), machines=machines(ranks))
    for rank, (params, optimizer) in enumerate(found):
        assert optimizer.rank == rank and optimizer.steps == 6
        for i, (name, p) in enumerate(params.items()):
            np.testing.assert_allclose(p, expected[rank][name], rtol=0, atol=1e-13)
            if form == "Elastic":
                np.testing.assert_allclose(optimizer.center[i], centre[name], rtol=0, atol=1e-13)
                assert optimizer.center[i].tobytes() == found[0][1].center[i].tobytes()


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_the_mean_of_one_is_itself(dtype):
    alone = parameters(dtype)
    optimizer = fastopt.SGD(alone, lr=0.1)
    for step in range(6):
        optimizer.step(gradient(alone, 0, step))
    params, _ = trained(FORMS["LocalSGD"][0], dtype=dtype)
    for name, p in params.items():
        assert p.tobytes() == alone[name].tobytes()


def test_one_worker_steps_as_its_inner_optimizer():
    """With a step of 1 by the outer gradient theta is where the inner optimizer came to, up to one rounding."""
    alone = parameters("f4")
    optimizer = fastopt.SGD(alone, lr=0.1)
    optimizer.step(gradient(alone, 0, 0))
    params, _ = trained(lambda own: fd.DiLoCo(own, every=1, outer_lr=1.0, outer_momentum=0.0), 1, "f4")
    start = parameters("f4")
    for name, p in params.items():
        assert np.abs(p - alone[name]).max() <= np.spacing(np.abs(start[name]).max())
        assert np.abs(p - start[name]).max() > 0.05


def test_inner_states_stay_and_the_outers_are_cut():
    def run():
        params, optimizer = trained(FORMS["DiLoCo"][0], inner=lambda params: fastopt.AdamW(params, lr=0.1))
        outer = sum(state["momentum_buffer"].size for state in optimizer.outer.optimizer.state)
        return int(optimizer.optimizer.state[0]["step"]), optimizer.outer.steps, outer, params["w"].tobytes()

    found = run_threads(2, run)
    assert [own[:2] for own in found] == [(6, 3), (6, 3)]
    assert sum(own[2] for own in found) == 5012 and max(own[2] for own in found) < 5012
    assert found[0][3] == found[1][3]


def test_torch_trains_so():
    torch = pytest.importorskip("torch")
    from fastopt import torch as optim

    def run():
        p = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
        optimizer = fd.LocalSGD(optim.SGD([p], lr=1.0), every=1)
        p.grad = torch.full_like(p, 2.0 * optimizer.rank)
        optimizer.step()
        return p.tolist()

    assert run_threads(2, run) == [[0.0, 1.0]] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda own: fd.LocalSGD(own, every=0), r"^every: found 0, expected an integer >= 1"),
        (lambda own: fd.LocalSGD([1], every=1), r"^optimizer: found \[1\] of type list, expected an optimizer"),
        (lambda own: fd.Elastic(own, beta=2.0), r"^beta: found 2.0"),
        (lambda own: fd.DiLoCo(own, outer_lr=-1.0), r"^outer_lr: found -1.0"),
        (lambda own: fd.DiLoCo(own, outer_momentum="x"), r"^outer_momentum: found 'x'"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(fastopt.SGD(np.ones(3), lr=0.1))


def test_ranks_that_differ_are_told():
    def run(what):
        rank = current().rank
        params = np.ones(3) * (1 + (what == "elements" and rank))
        inner = fastopt.SGD(params, lr=0.1 + (what == "lr" and rank))
        with pytest.raises(ValueError, match=r"in rank 1, expected .* as in rank 0"):
            fd.Elastic(inner, every=4 + (what == "every" and rank))

    for what in ("elements", "lr", "every"):
        run_threads(2, lambda what=what: run(what))
