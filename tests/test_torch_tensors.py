"""Tensors that are not what they seem: lazily negated ones and ones without memory, through every face."""

import warnings

import pytest

import fastopt
from fastopt import functional

torch = pytest.importorskip("torch", reason="torch is not installed")

import fastopt.torch as optim  # noqa: E402


def negated():
    """[-2, -4], whose memory holds [2, 4]."""
    return torch.tensor([1 + 2j, 3 + 4j]).conj().imag


def _class_step(p, g):
    fastopt.SGD([p], lr=1.0).step([g])


def _functional_step(p, g):
    functional.sgd(p, g, step=1, lr=1.0)


def _torch_step(p, g):
    p.grad = g
    optim.SGD([p], lr=1.0).step()


STEPS = {"class": _class_step, "functional": _functional_step, "torch": _torch_step}


class Wrapper(torch.Tensor):
    """A tensor that only stands for another."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, kinds, args=(), kwargs=None):
        own = [x.inner if isinstance(x, Wrapper) else x for x in args]
        return Wrapper(function(*own)) if function is torch.ops.aten.detach.default else function(*own)


def _fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(2)


def _of_vmap():
    kept = []
    torch.func.vmap(lambda x: (kept.append(x), x)[1])(torch.ones(3, 2))
    return kept[0]


def _freed():
    x = torch.ones(2)
    x.untyped_storage().resize_(0)
    return x


def _shortened():
    x = torch.ones(2)
    x.untyped_storage().resize_(4)
    return x


def _nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(1), torch.ones(1)])


# Tensors without memory, and the words of the error.
WITHOUT_MEMORY = {
    "wrapper": (lambda: Wrapper(torch.ones(2)), "Wrapper"),
    "fake": (_fake, "FakeTensor"),
    "torch.func": (_of_vmap, "Tensor that has no memory"),
    "freed": (_freed, "Tensor that has no memory"),
    "shortened": (_shortened, "beyond its storage, which has 4 bytes"),
    "nested": (_nested, "Tensor that has no memory"),
    "lazy": (torch.nn.parameter.UninitializedParameter, "UninitializedParameter.*call the lazy module once"),
}


@pytest.mark.parametrize("face", STEPS)
def test_a_negated_gradient_has_its_own_sign(face):
    p = torch.zeros(2)
    STEPS[face](p, negated())
    assert p.tolist() == [2.0, 4.0]
    p = torch.zeros(2)
    STEPS[face](p, torch._neg_view(torch.tensor([1.0, 2.0])))
    assert p.tolist() == [1.0, 2.0]


def test_a_negated_gradient_is_clipped():
    params = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    params[0].grad, params[2].grad = negated(), torch.tensor([0.0, 4.0])
    kept = params[2].grad
    assert float(optim.clip_grad_norm_(params, 3.0)) == 6.0
    assert not params[0].grad.is_neg() and params[1].grad is None and params[2].grad is kept
    assert [p.grad.tolist() for p in params[::2]] == [pytest.approx([-1.0, -2.0]), pytest.approx([0.0, 2.0])]


def test_what_is_no_parameter_is_named_wherever_it_is():
    group = {"params": [torch.zeros(2, requires_grad=True)]}
    with pytest.raises(TypeError, match=r"params\[1\]: found 5 of type int, expected a tensor"):
        optim.SGD([group, 5], lr=0.1)


@pytest.mark.parametrize("face", STEPS)
def test_a_negated_parameter_is_refused(face):
    p = negated()
    with pytest.raises(ValueError, match=r"found a lazily negated tensor \(its resolve_neg\(\).*expected a writable"):
        STEPS[face](p, torch.ones(2))
    assert p.tolist() == [-2.0, -4.0]


def test_a_negated_state_is_refused():
    state = negated()
    with pytest.raises(ValueError, match="momentum_buffer: found a lazily negated tensor"):
        functional.momentum(torch.zeros(2), torch.ones(2), state, step=2)
    p = torch.zeros(2)
    p.grad = torch.ones(2)
    optimizer = optim.SGD([p], lr=1.0, momentum=0.9)
    optimizer.step()
    optimizer.state[p]["momentum_buffer"] = state
    with pytest.raises(ValueError, match="found a lazily negated tensor"):
        optimizer.step()
    assert p.tolist() == [-1.0, -1.0] and state.tolist() == [-2.0, -4.0]


def test_negated_gradients_are_read_by_norms_and_not_written():
    # It holds for rows too, and where a negated gradient is zeroed.
    assert fastopt.global_norm([negated(), torch.ones(2)]) == pytest.approx(22**0.5)
    with pytest.raises(ValueError, match=r"grads\[0\]: found a lazily negated tensor"):
        fastopt.clip_grad_norm_([negated()], 1.0)
    p = torch.zeros(2)
    fastopt.SGD([p], lr=1.0).step([fastopt.RowSparse(torch.tensor([0, 1]), negated())])
    assert p.tolist() == [2.0, 4.0]
    p = torch.zeros(2)
    p.grad = negated()
    with pytest.raises(ValueError, match=r"the gradient of .* found a lazily negated tensor .* it is set to zero"):
        optim.SGD([p], lr=1.0).step(zero_grads=True)
    assert p.tolist() == [0.0, 0.0] and p.grad.tolist() == [-2.0, -4.0]


@pytest.mark.parametrize("face", STEPS)
@pytest.mark.parametrize("kind", WITHOUT_MEMORY)
def test_a_gradient_without_memory_is_refused(kind, face):
    make, said = WITHOUT_MEMORY[kind]
    p, grad = torch.zeros(2), make()
    if face == "torch":
        if kind in ("lazy", "nested"):
            pytest.skip("torch takes none as a gradient")
        p.grad = torch.ones(2)
        p.grad = grad
    with pytest.raises(TypeError, match=f"grad.*{said}"):
        STEPS[face](p, grad)
    assert p.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", WITHOUT_MEMORY)
def test_norms_refuse_what_has_no_memory(kind):
    make, said = WITHOUT_MEMORY[kind]
    for function in (fastopt.global_norm, lambda grads: fastopt.clip_grad_norm_(grads, 1.0)):
        with pytest.raises(TypeError, match=rf"grads\[0\].*{said}"):
            function([make()])
    with pytest.raises(TypeError, match=rf"params\[0\].*{said}"):
        fastopt.SGD([make()])


@pytest.mark.parametrize("face", STEPS)
def test_zeros_without_memory_are_zeros(face):
    p = torch.ones(2)
    STEPS[face](p, torch._efficientzerotensor(2))
    assert p.tolist() == [1.0, 1.0]
    assert fastopt.global_norm([torch._efficientzerotensor(2)]) == 0.0
    with pytest.raises(ValueError, match="found a tensor of zeros that has no memory, expected a writable"):
        fastopt.SGD([torch._efficientzerotensor(2)])


# ---- tensors whose owner changes them between steps ----


def _other_memory(x):
    return torch.full_like(x, 3.0)


def _transposed(x):
    return x.t()


CHANGES = {"negated": torch._neg_view, "other memory": _other_memory, "transposed": _transposed}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("face", ["class", "functional", "torch"])
def test_a_gradient_that_changes_where_it_is(face, change):
    p, g = torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    if face == "class":
        optimizer = fastopt.SGD([p], lr=1.0)
        steps = [lambda: optimizer.step([g])] * 2
    elif face == "functional":
        steps = [lambda: functional.sgd(p, g, step=1, lr=1.0)] * 2
    else:
        optimizer = optim.SGD([p], lr=1.0)
        p.grad = g
        steps = [optimizer.step] * 2
    steps[0]()
    p.zero_()
    g.data = CHANGES[change](g.data)
    want = -g.clone()
    steps[1]()
    assert torch.equal(p, want)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("which", [0, 1])
def test_a_plan_refuses_tensors_that_have_changed(which, change):
    p, g = torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    plan = fastopt.SGD([p], lr=1.0).bind([g])
    plan.step()
    changed = (p, g)[which]
    changed.data = CHANGES[change](changed.data)
    before = p.clone()
    with pytest.raises(ValueError, match=r"\[0\]: found a tensor that has other memory than at bind"):
        plan.step()
    assert torch.equal(p, before)
    with pytest.raises(ValueError, match=r"grads\[0\]: found a lazily negated tensor .* a plan can read again"):
        fastopt.SGD([torch.zeros(2)], lr=1.0).bind([negated()])


# ---- gradients that are sparse in several dimensions ----


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam"])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5)])
def test_several_sparse_dimensions(shape, name):
    indices, values = torch.tensor([[0, 2, 0, 0], [1, 0, 1, 3]]), torch.arange(1.0, 5.0)
    for axis in shape[2:]:
        values = values[..., None].expand(*values.shape, axis).contiguous()
    params = [torch.ones(shape, requires_grad=True) for _ in range(2)]
    theirs, ours = (getattr(m, name)([p], lr=0.1) for m, p in zip((torch.optim, optim), params, strict=True))
    for t in range(3):
        for p in params:
            p.grad = torch.sparse_coo_tensor(indices, values + t, shape, check_invariants=True)
        theirs.step()
        ours.step(max_norm=1e9)
        assert ours.last_grad_norm == pytest.approx(float(params[0].grad.to_dense().norm()), rel=1e-6)
    torch.testing.assert_close(params[1], params[0])
    # Elements that no index names stay, with their states.
    assert (params[1][1] == 1).all()


def test_a_parameter_with_other_strides_at_its_address_is_noticed_with_its_gradient():
    ours, theirs = (torch.arange(9.0).reshape(3, 3).requires_grad_() for _ in range(2))
    optimizers = [(ours, optim.SGD([ours], lr=1.0)), (theirs, torch.optim.SGD([theirs], lr=1.0))]
    for p, optimizer in optimizers:
        for turned in (False, True, False):
            at = p.data_ptr()
            p.data = p.data.t() if turned else p.data
            optimizer.zero_grad()
            (p * torch.arange(9.0).reshape(3, 3)).sum().backward()
            optimizer.step()
            assert p.data_ptr() == at
    assert ours.stride() == (1, 3) and torch.equal(ours, theirs)


def test_several_sparse_dimensions_of_what_is_not_contiguous():
    p = torch.ones(4, 3).t().requires_grad_()
    p.grad = torch.sparse_coo_tensor(torch.tensor([[0], [1]]), torch.ones(1), (3, 4), check_invariants=True)
    with pytest.raises(ValueError, match="the gradient of"):
        optim.SGD([p], lr=1.0).step()
    assert (p == 1).all()


def test_arrays_of_numpys_classes_are_no_distributed_tensors(tmp_path):
    """fastopt.torch has them: tests/test_torch_distributed.py."""
    distributed = pytest.importorskip("torch.distributed", reason="this torch has no torch.distributed")
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    from torch.distributed.tensor import distribute_tensor, init_device_mesh

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        whole = distribute_tensor(torch.ones(4), init_device_mesh("cpu", (1,)))
        with pytest.raises(TypeError, match=r"found a DTensor .*expected a plain one: x.to_local\(\) is this"):
            fastopt.Adam([whole])
    finally:
        distributed.destroy_process_group()
