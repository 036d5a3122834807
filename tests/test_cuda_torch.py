"""fastopt.torch on a CUDA device: on the stub driver with tensors that say that they are there, else on a real one."""

import ctypes
import gc

import numpy as np
import pytest

from .support import assert_same_bits, one_of_each_kind

torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install -e ".[torch]"')
pytest.importorskip("numba_cuda", reason='numba-cuda is not installed: pip install -e ".[cuda]"')

import fastopt  # noqa: E402
from fastopt import GradientNoise  # noqa: E402
from fastopt import distributed as fd  # noqa: E402
from fastopt import torch as optim  # noqa: E402
from fastopt.distributed.carriers import run_threads  # noqa: E402
from fastopt.drop_in.groups import is_counted  # noqa: E402
from fastopt.rules import RULES  # noqa: E402

pytestmark = pytest.mark.stub_driver


class PretendedTensor(torch.Tensor):
    """A tensor on the CPU that says that it is on a CUDA device, where the stub driver finds it."""

    gpu = None
    storages: dict = {}  # noqa: RUF012 (they stay, as the driver knows them)
    device = property(lambda self: torch.device("cuda", 0))
    is_cuda = property(lambda self: True)

    @classmethod
    def __torch_function__(cls, function, kinds, args=(), kwargs=None):
        kwargs = {k: v for k, v in (kwargs or {}).items() if k != "device"}
        found = super().__torch_function__(function, kinds, args, kwargs)
        if isinstance(found, PretendedTensor):
            cls.register(found)
        return found

    @classmethod
    def register(cls, tensor):
        with torch._C.DisableTorchFunctionSubclass():
            storage = tensor.untyped_storage()
            address, nbytes = storage.data_ptr(), storage.nbytes()
        if nbytes and address not in cls.storages:
            memory = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
            cls.gpu.register(memory, f"tensor {len(cls.storages)}")
            cls.storages[address] = (storage, memory)


@pytest.fixture
def device(gpu, monkeypatch):
    """Return a maker of tensors on the device."""
    if not hasattr(gpu, "register"):
        return lambda x: x.detach().cuda()
    PretendedTensor.gpu = gpu
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 7, raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: gpu.capturing)

    def make(x):
        made = x.detach().clone().as_subclass(PretendedTensor)
        PretendedTensor.register(made)
        return made

    return make


def to_numpy(x):
    return x.detach().as_subclass(torch.Tensor).cpu().to(torch.float64).numpy()


#: Each class, with the arguments that choose each of its rules.
CASES = {
    f"{name}, {rule}": {"lr": 0.02, **chosen}
    for name, cls in optim.CLASSES.items()
    for rule, chosen in cls._arguments.choices.items()
}
GRAPHS = [case for case in CASES if not RULES[case.partition(", ")[2]].over_all]


def pair(case, device, capturable=False, dtype=torch.float32, **options):
    """Parameters there and here, with an optimizer each."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator).to(dtype) for shape in [(33, 5), (257,), (4100,)]]
    there, here = [device(x).requires_grad_() for x in start], [x.clone().requires_grad_() for x in start]
    kind = getattr(optim, case.partition(",")[0])
    options = {**CASES.get(case, {}), "weight_decay": 0.01, **options}
    ours = kind([{"params": there[:1]}, {"params": there[1:], "lr": 0.03}], capturable=capturable, **options)
    cpus = kind([{"params": here[:1]}, {"params": here[1:], "lr": 0.03}], **options)
    return there, here, ours, cpus


def give_gradients(there, here, seed, device):
    generator = torch.Generator().manual_seed(seed)
    for p, q in zip(there, here, strict=True):
        g = torch.randn(q.shape, generator=generator).to(q.dtype)
        q.grad = g
        if p.grad is None:
            p.grad = device(g)
        else:
            with torch.no_grad():
                p.grad.copy_(g)


def assert_equal(there, here):
    assert_same_bits([to_numpy(x) for x in there], [to_numpy(x) for x in here])


def assert_states_equal(ours, cpus, there, here):
    for p, q in zip(there, here, strict=True):
        assert set(ours.state[p]) == set(cpus.state[q])
        for name in cpus.state[q]:
            assert_same_bits([to_numpy(ours.state[p][name])], [to_numpy(cpus.state[q][name])])


@pytest.mark.parametrize("case", one_of_each_kind(CASES, ["SGD", "SGD, momentum", "Adam", "NAdam", "AggMo"]))
def test_every_class_has_the_cpus_bits(device, case):
    there, here, ours, cpus = pair(case, device)
    for step in range(3):
        give_gradients(there, here, step, device)
        ours.step()
        cpus.step()
    assert_equal(there, here)
    assert_states_equal(ours, cpus, there, here)


def test_low_precision_and_clipping(device):
    options = {"state_dtype": "8bit", "rounding": "kahan", "ema_decay": 0.9}
    there, here, ours, cpus = pair("SGD, momentum", device, dtype=torch.bfloat16, **options)
    for step in range(2):
        give_gradients(there, here, step, device)
        ours.step(max_norm=0.5, zero_grads=True)
        cpus.step(max_norm=0.5, zero_grads=True)
    assert ours.last_grad_norm == cpus.last_grad_norm
    assert_equal(there, here)
    assert not any(p.grad.any() for p in there)
    assert_states_equal(ours, cpus, there, here)


def test_streams_are_the_callers(gpu, device):
    there, here, ours, _ = pair("Adam", device)
    give_gradients(there, here, 0, device)
    ours.step()
    if gpu.launches:
        assert {launch.stream for launch in gpu.launches} == {7}


def test_states_are_loaded_onto_the_device(device):
    there, here, ours, cpus = pair("Adam", device)
    give_gradients(there, here, 0, device)
    ours.step()
    cpus.step()
    again_there, again_here, again, cpus_again = pair("Adam", device)
    again.load_state_dict(cpus.state_dict())
    cpus_again.load_state_dict(ours.state_dict())
    for p, q, a, b in zip(there, here, again_there, again_here, strict=True):
        with torch.no_grad():
            a.copy_(p)
            b.copy_(q)
    give_gradients(again_there, again_here, 1, device)
    again.step()
    cpus_again.step()
    assert all(again.state[p]["exp_avg"].is_cuda for p in again_there)
    assert_equal(again_there, again_here)


def test_a_mix_of_devices_is_refused(device):
    p = device(torch.ones(3)).requires_grad_()
    with pytest.raises(
        ValueError, match=r"found device cpu, expected cuda:0 as .* has: one optimizer works on one device"
    ):
        optim.SGD([p, torch.ones(3, requires_grad=True)], lr=0.1)
    with pytest.raises(
        ValueError, match="capturable: found True, expected False: CUDA graphs record no update on the CPU"
    ):
        optim.SGD([torch.ones(3, requires_grad=True)], lr=0.1, capturable=True)


def test_sparse_gradients(device):
    there, here = device(torch.ones(6, 4)).requires_grad_(), torch.ones(6, 4, requires_grad=True)
    indices, values = torch.tensor([[0, 5, 0]]), torch.arange(12.0).reshape(3, 4)
    here.grad = torch.sparse_coo_tensor(indices, values, (6, 4))
    ours, cpus = optim.Adagrad([there]), optim.Adagrad([here])
    cpus.step()
    if isinstance(there, PretendedTensor):  # of which torch makes no sparse ones
        from fastopt import RowSparse, functional

        gradient = RowSparse(device(indices[0]), device(values))
        functional.adagrad(there.detach(), gradient, ours.state[there]["sum"], step=1, lr=0.01, eps=1e-10)
    else:
        there.grad = torch.sparse_coo_tensor(indices.cuda(), values.cuda(), (6, 4))
        ours.step()
    assert_equal([there], [here])


def test_rows_are_accumulated_where_they_are(device):
    there, here = device(torch.ones(6, 4)), torch.ones(6, 4)
    ours, cpus = fastopt.Adagrad([there], lr=0.1), fastopt.Adagrad([here], lr=0.1)
    for first in (0, 2):
        indices, values = torch.tensor([first, 5, first]), torch.arange(12.0).reshape(3, 4) + first
        ours.accumulate([fastopt.RowSparse(device(indices), device(values))])
        cpus.accumulate([fastopt.RowSparse(indices, values)])
    ours.step()
    cpus.step()
    assert_equal([there], [here])


# ---- graphs ----


@pytest.fixture
def capture(gpu, device):
    """Return a recorder of calls, which returns the replay."""

    def stub(call):
        gpu.captured.clear()
        gpu.capturing = True
        try:
            call()
        finally:
            gpu.capturing = False
        recorded = list(gpu.captured)

        def replay():
            gpu.captured[:] = recorded
            gpu.replay()

        return replay

    def real(call):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    return stub if hasattr(gpu, "captured") else real


def close(there, here, dtype=torch.float32):
    """Equal up to the last bit of coefficients: powers are the device's own."""
    for p, q in zip(there, here, strict=True):
        np.testing.assert_allclose(to_numpy(p), to_numpy(q), rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=1e-7)


@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph_replays_steps(device, capture, case):
    there, here, ours, cpus = pair(case, device, capturable=True)
    give_gradients(there, here, 0, device)
    ours.step()
    cpus.step()
    replay = capture(ours.step)
    close(there, here)  # what is recorded is not done
    for step in range(1, 4):
        give_gradients(there, here, step, device)
        replay() if step != 2 else ours.step()  # and between replays it goes on as it is
        cpus.step()
    close(there, here)
    if is_counted(ours):
        assert all(float(ours.state[p]["step"]) == 4 for p in there)


def test_a_learning_rate_on_the_device_is_read_at_each_replay(device, capture):
    p, q = device(torch.ones(50)).requires_grad_(), torch.ones(50, requires_grad=True)
    lr = device(torch.tensor(0.5))
    ours, cpus = optim.SGD([p], lr=lr, capturable=True), optim.SGD([q], lr=0.5)
    give_gradients([p], [q], 0, device)
    ours.step()
    cpus.step()
    replay = capture(ours.step)
    with torch.no_grad():
        lr.fill_(0.25)
    cpus.param_groups[0]["lr"] = 0.25
    give_gradients([p], [q], 1, device)
    replay()
    cpus.step()
    assert_equal([p], [q])


def test_graphs_keep_their_own_learning_rates(device, capture):
    p, q = device(torch.ones(50)).requires_grad_(), torch.ones(50, requires_grad=True)
    ours, cpus = optim.SGD([p], lr=0.5, capturable=True), optim.SGD([q], lr=0.5)
    give_gradients([p], [q], 0, device)
    ours.step()
    cpus.step()
    first, second = capture(ours.step), capture(ours.step)
    ours.param_groups[0]["lr"] = 0.25
    third = capture(ours.step)
    for replay, lr in ((third, 0.25), (second, 0.5), (third, 0.25), (first, 0.5), (ours.step, 0.25)):
        replay()
        cpus.param_groups[0]["lr"] = lr
        cpus.step()
    assert_equal([p], [q])


def test_a_graph_outlives_steps_with_other_gradients(device, capture):
    there, here, ours, cpus = pair("Adam", device, capturable=True)
    give_gradients(there, here, 0, device)
    ours.step()
    cpus.step()
    replay, grads = capture(ours.step), [p.grad for p in there]
    there[1].grad, here[1].grad = None, None
    ours.step()  # of other tensors, for which there are other tables
    cpus.step()
    gc.collect()
    device(torch.zeros(5000))  # in whatever memory was given back
    for p, grad in zip(there, grads, strict=True):
        p.grad = grad
    give_gradients(there, here, 1, device)
    replay()
    cpus.step()
    close(there, here)


def test_capturable_is_not_for_noise(device):
    p = device(torch.ones(50)).requires_grad_()
    p.grad = device(torch.full((50,), 2.0))
    noise = GradientNoise(0.1)
    with pytest.raises(ValueError, match="capturable: found True, expected False: a graph does not record what devia"):
        optim.SGD([p], lr=1.0, capturable=True, gradient_noise=noise).step()
    assert (to_numpy(p) == 1).all()
    optimizer = optim.SGD([p], lr=1.0, capturable=True)
    optimizer.step(clip_value=0.25)
    assert (to_numpy(p) == 0.75).all()


def test_capturable_can_be_asked_for_later(device, capture):
    there, here, ours, cpus = pair("Adam", device)
    for step in range(2):
        give_gradients(there, here, step, device)
        ours.step()
        cpus.step()
        for group in ours.param_groups:
            group["capturable"] = True
    replay = capture(ours.step)
    replay()
    cpus.step()
    close(there, here)


def test_grad_scaler_without_waiting(gpu, device):
    p, q = device(torch.ones(50)).requires_grad_(), torch.ones(50, requires_grad=True)
    ours, cpus = optim.Adam([p], capturable=True), optim.Adam([q])
    give_gradients([p], [q], 0, device)
    ours.grad_scale, ours.found_inf = device(torch.tensor(8.0)), device(torch.tensor(1.0))
    before = gpu.synchronizations
    ours.step()
    with torch.no_grad():
        ours.found_inf.fill_(0.0)
    ours.step()
    assert gpu.synchronizations == before
    cpus.grad_scale = torch.tensor(8.0)
    cpus.step()
    close([p], [q])
    assert float(ours.state[p]["step"]) == 1


@pytest.mark.parametrize("how", [{}, {"max_norm": 0.5}, {"clip_norm": 0.5}, {"skip_nonfinite": True}], ids=str)
def test_grad_scaler_has_the_cpus_bits_without_waiting(gpu, device, how):
    """Steps that the device skips are not counted, in states either, once somebody asks."""
    there, here, ours, cpus = pair("NAdam", device, weight_decay=0.0)
    for step, inf in enumerate((0.0, 1.0, 0.0, 1.0)):
        give_gradients(there, here, step, device)
        for kind, make in ((ours, device), (cpus, lambda x: x)):
            kind.grad_scale, kind.found_inf = make(torch.tensor(8.0)), make(torch.tensor(inf))
        ours._settle()
        before = gpu.synchronizations
        ours.step(**how)
        assert gpu.synchronizations == before
        cpus.step(**how)
        if step % 2:
            assert ours.last_step_skipped is cpus.last_step_skipped is bool(inf)
            assert ours.last_grad_norm == cpus.last_grad_norm or inf  # which a step that is skipped need not find
        if not inf:
            assert_equal([p.grad for p in there], [q.grad for q in here])
    assert_equal(there, here)
    assert_states_equal(ours, cpus, there, here)
    del ours.grad_scale, ours.found_inf, cpus.grad_scale, cpus.found_inf
    ours.step()
    cpus.step()
    assert_equal(there, here)


@pytest.mark.parametrize("limit", ["max_norm", "clip_norm"])
def test_a_graph_limits_norms_and_skips(gpu, device, capture, limit):
    there, here, ours, cpus = pair("Adam", device, capturable=True)
    how = {limit: 0.5, "skip_nonfinite": True}
    give_gradients(there, here, 0, device)
    ours.step(**how)
    cpus.step(**how)
    for _ in range(2):  # of which only the second is replayed
        replay = capture(lambda: ours.step(**how))
    for step in range(1, 5):
        give_gradients(there, here, step, device)
        if step in (2, 3):
            for p in (there[1], here[1]):
                with torch.no_grad():
                    p.grad[7] = float("nan")
        before = gpu.synchronizations
        replay() if step != 3 else ours.step(**how)
        assert gpu.synchronizations == before
        cpus.step(**how)
        assert ours.last_step_skipped is cpus.last_step_skipped is (step in (2, 3))
        if limit == "max_norm":
            assert ours.last_grad_norm == pytest.approx(cpus.last_grad_norm, nan_ok=True, rel=0)
    close(there, here)
    assert all(float(ours.state[p]["step"]) == 3 for p in there)


def test_a_graph_that_limits_follows_a_step_that_does(device, capture):
    there, here, ours, _ = pair("Adam", device, capturable=True)
    give_gradients(there, here, 0, device)
    ours.step()
    with pytest.raises(RuntimeError, match="before the first step that limits norms"):
        capture(lambda: ours.step(max_norm=1.0))


def test_the_first_step_cannot_be_recorded(device, capture):
    p = device(torch.ones(50)).requires_grad_()
    ours = optim.Adam([p], capturable=True)
    p.grad = device(torch.ones(50))
    with pytest.raises(RuntimeError, match="before the first step"):
        capture(ours.step)
    assert not ours.state.get(p)


def test_a_step_that_is_not_capturable_is_not_recorded(gpu, device, capture):
    if not hasattr(gpu, "captured"):
        pytest.skip("an error while a real graph is captured spoils the stream for what follows")
    p = device(torch.ones(50)).requires_grad_()
    ours = optim.Adam([p])
    p.grad = device(torch.ones(50))
    ours.step()
    with pytest.raises(RuntimeError, match="capturable=True"):
        capture(ours.step)
    assert int(ours.state[p]["step"]) == 1


def test_too_little_memory_leaves_no_states_behind(gpu, device, monkeypatch):
    there, here, ours, _ = pair("Adam", device)
    give_gradients(there, here, 0, device)
    made = []

    def full_like(*args, **kwargs):
        made.append(args)
        if len(made) > 3:
            raise torch.OutOfMemoryError("no memory")
        return original(*args, **kwargs)

    original = torch.full_like
    monkeypatch.setattr(torch, "full_like", full_like)
    with pytest.raises(torch.OutOfMemoryError):
        ours.step()
    assert not ours.state
    monkeypatch.undo()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["fastopt.torch", "fastopt"])
def test_ranks_exchange_tensors_through_the_host(device, kind, dtype):
    def run(make):
        generator = torch.Generator().manual_seed(0)
        params = [
            make(torch.randn(shape, generator=generator).to(dtype)).requires_grad_() for shape in [(33, 5), (9000,)]
        ]
        cls = optim.AdamW if kind == "fastopt.torch" else fastopt.AdamW
        optimizer = fd.Synchronous(cls, params, slices=4, lr=0.1, rounding="master")
        for step in range(2):
            for number, _ in optimizer.slices(4):
                generator = torch.Generator().manual_seed(10 * step + number)
                for p in params:
                    p.grad = make(torch.randn(tuple(p.shape), generator=generator).to(dtype))
                optimizer.add(number)
            optimizer.step(max_norm=1.0)
        return [to_numpy(p) for p in params]

    expected = run(lambda x: x)
    for found in run_threads(2, lambda: run(device)):
        assert_same_bits(found, expected)
