"""Tensors are looked at before each step: by C where torch has the interfaces, with what asking each of them finds."""

import pytest

torch = pytest.importorskip("torch")

from fastopt import torch as optim  # noqa: E402
from fastopt.drop_in import looks  # noqa: E402

LAID_OUT = {
    "dense": torch.ones(3, 4),
    "transposed": torch.ones(4, 3).t(),
    "double": torch.ones(3, 4, dtype=torch.float64),
    "bfloat16": torch.ones(3, 4, dtype=torch.bfloat16),
    "flat": torch.ones(12),
    "number": torch.ones(()),
    "none": torch.ones(0, 4),
    "part": torch.ones(5, 4)[1:4, ::2],
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


class Other(torch.Tensor):
    """Tensors of another class."""


def asked(monkeypatch):
    monkeypatch.setattr(looks, "_readers", lambda: (None, None))


def test_c_finds_what_each_tensor_tells():
    tensors = tuple(LAID_OUT.values())
    layouts, addresses = looks.look(tensors)
    found = addresses if isinstance(addresses, list) else memoryview(addresses).cast("Q").tolist()
    assert found == [x.data_ptr() for x in tensors]
    again = looks.look(tuple(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in tensors))
    assert again[0] == layouts and again[1] != addresses
    assert len({repr(looks.look((x,))[0]) for x in tensors}) == len(tensors)


@pytest.mark.parametrize("count", [1, 50, 64, 65, 300])
def test_any_number_of_tensors_is_looked_at(count):
    kinds = list(LAID_OUT.values())
    tensors = tuple(kinds[i % len(kinds)] for i in range(count))
    layouts, addresses = looks.look(tensors)
    one_by_one = [looks.look((x,)) for x in tensors]
    if isinstance(layouts, bytes):
        assert layouts == b"".join(one[0] for one in one_by_one)
        assert addresses == b"".join(one[1] for one in one_by_one)
    places = looks.places_of((list(tensors), {}))
    if places is not None:
        assert memoryview(places[0]).cast("Q").tolist() == [x.data_ptr() for x in tensors]


@pytest.mark.parametrize("by_asking", [False, True])
@pytest.mark.parametrize(
    "other",
    [None, 1.0, torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta"), torch._efficientzerotensor((2,))],
    ids=["None", "float", "sparse", "meta", "zeros"],
)
def test_what_has_no_memory_is_not_looked_at(other, by_asking, monkeypatch):
    if by_asking:
        asked(monkeypatch)
    assert looks.look((torch.ones(3), other)) is None


def test_tensors_of_other_classes_are_asked():
    other = torch.ones(3).as_subclass(Other)
    assert looks.look((other,)) == (([(1,)], [12]), [other.data_ptr()])
    assert looks.places_of(([other], {})) is None and looks.places_of(([torch.ones(3)], {0: {"a": other}})) is None
    assert looks.places_of(([torch.ones(3), None], {})) is None


def _replace(state):
    state["exp_avg"] = state["exp_avg"].clone()


def _move(state):
    state["exp_avg"].data = state["exp_avg"].clone()


def _share(state):
    state["exp_avg"].share_memory_()


def _exchange(state):
    state["exp_avg"], state["exp_avg_sq"] = state["exp_avg_sq"], state["exp_avg"]


def _turn(state):
    before = dict(state)
    state.clear()
    state.update(reversed(before.items()))


def _add(state):
    state["own"] = object()


def _swap(state):
    torch.utils.swap_tensors(state["exp_avg"], torch.full_like(state["exp_avg"], 2.0))


@pytest.mark.parametrize("by_asking", [False, True])
@pytest.mark.parametrize("change", [_replace, _move, _share, _exchange, _turn, _add, _swap])
def test_a_changed_state_is_the_one_that_is_stepped(change, by_asking, monkeypatch):
    """As an optimizer does that is bound anew."""
    if by_asking:
        asked(monkeypatch)
    params = [[torch.ones(3, requires_grad=True) for _ in range(2)] for _ in range(2)]
    optimizers = [optim.Adam(own, lr=0.1) for own in params]
    for step in range(4):
        for own, optimizer in zip(params, optimizers, strict=True):
            for p in own:
                p.grad = torch.full_like(p, step + 1.0)
            if step == 2:
                change(optimizer.state[own[1]])
                optimizer._stepper.bound = None if optimizer is optimizers[1] else optimizer._stepper.bound
            optimizer.step()
    for p, q in zip(*params, strict=True):
        assert torch.equal(p, q)
        for name in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizers[0].state[p][name], optimizers[1].state[q][name])


@pytest.mark.parametrize("change", [_replace, _move, _share, _exchange, _swap])
def test_c_sees_every_change(change):
    if looks._readers()[1] is None:
        pytest.skip("fastopt has no C library here, or torch no interface for it")
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimizer = optim.Adam([p])
    optimizer.step()
    kept = optimizer._stepper.bound._kept
    before = kept._look([p], optimizer.state)
    assert before is not None and kept._look([p], optimizer.state) == before
    change(optimizer.state[p])
    assert kept._look([p], optimizer.state) != before and not kept.stay([p], optimizer.state)
