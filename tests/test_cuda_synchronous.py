"""Ranks whose parameters and gradients are on a CUDA device: the bits of those on the CPU."""

import functools

import numpy as np
import pytest

import fastopt
from fastopt import distributed as fd
from fastopt.distributed.carriers import run_threads

from .device import DeviceArray
from .distributed import test_synchronous as host

pytest.importorskip("numba_cuda", reason='numba-cuda is not installed: pip install -e ".[cuda]"')
ml_dtypes = pytest.importorskip("ml_dtypes")

pytestmark = [pytest.mark.stub_driver, pytest.mark.usefixtures("gpu")]


def there(arrays, **layout):
    return {name: DeviceArray(x, **layout) for name, x in arrays.items()}


def here(arrays):
    return {name: x.get() for name, x in arrays.items()}


def gradient_there(values, step, number):
    """Gradients on the device, some of other strides; rows with their indices there."""
    grads = host.gradient(values, step, number)
    return {name: DeviceArray(g, step=1 + (name == "table")) for name, g in grads.items()}


def rows_there(values, step, number):
    return {
        name: fastopt.RowSparse(DeviceArray(g.indices), DeviceArray(g.values.numpy()))
        if isinstance(g, fastopt.RowSparse)
        else DeviceArray(g)
        for name, g in host.sparse(values, step, number).items()
    }


def trained(cls, dtypes, options, steps, max_norm, gradient=gradient_there, wire="float32", **clip):
    """As of the CPU's tests."""
    params = there(host.parameters(dtypes))
    optimizer = fd.Synchronous(cls, params, slices=host.SLICES, wire=wire, **options)
    norms = []
    for step in range(steps):
        for number, _ in optimizer.slices(host.SLICES):
            optimizer.add(number, gradient(here(params), step, number))
        optimizer.step(max_norm=max_norm, **clip)
        norms.append(optimizer.last_grad_norm)
    return here(params), optimizer.state_dict(), norms


@host.WAYS
@pytest.mark.parametrize("what", ["bfloat16 with master", "several"])
def test_bits_are_those_of_the_cpu(what, machines):
    dtypes, options = host.STORED[what]
    expected = host.trained_alone(fastopt.AdamW, dtypes, options, 2, 0.5)
    run = functools.partial(trained, fastopt.AdamW, dtypes, options, 2, 0.5)
    for found in [run(), *run_threads(3, run, machines=machines(3))]:
        host.assert_same(found, expected)


def test_the_device_class_has_these_bits():
    """What one process does on the device."""
    values, grads = np.random.default_rng(0).standard_normal((2, 300)).astype("f4")

    def run(distributed):
        param = DeviceArray(values)
        if not distributed:
            fastopt.AdamW(param).step(DeviceArray(grads + grads), grad_scale=0.5)
            return param.get()
        optimizer = fd.Synchronous(fastopt.AdamW, param, slices=2)
        for number, _ in optimizer.slices(2):
            optimizer.add(number, DeviceArray(grads))
        optimizer.step()
        return param.get()

    expected = run(False)
    for found in run_threads(2, lambda: run(True)):
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("ranks", [1, 3])
def test_rows(ranks):
    expected = host.trained(fastopt.Adam, "f4", {}, 2, 1.0, gradient=host.sparse)
    for found in run_threads(ranks, lambda: trained(fastopt.Adam, "f4", {}, 2, 1.0, gradient=rows_there)):
        host.assert_same(found, expected)


def test_rows_that_there_are_none_of_are_refused():
    optimizer = fd.Synchronous(fastopt.SGD, DeviceArray(np.zeros((3, 2), "f4")), slices=1)
    rows = fastopt.RowSparse(DeviceArray(np.array([1, 3])), DeviceArray(np.ones((2, 2), "f4")))
    with pytest.raises((IndexError, ValueError), match=r"^grads: found .*3"):
        optimizer.add(0, rows)


def test_gradients_may_be_here_or_there():
    def run(make):
        params = there(host.parameters())
        optimizer = fd.Synchronous(fastopt.SGD, params, slices=host.SLICES, lr=0.1)
        for number, _ in optimizer.slices(host.SLICES):
            grads = host.gradient(here(params), 0, number)
            if make is None:
                for name, own in optimizer.grads.items():
                    own[...] = grads[name]
                grads = optimizer.grads
            optimizer.add(number, make(grads) if make else grads)
        optimizer.step()
        return here(params)

    expected = run(there)
    for make in dict, None:
        for name, own in run(make).items():
            assert own.tobytes() == expected[name].tobytes()
    optimizer = fd.Synchronous(fastopt.SGD, np.zeros(3, "f4"), slices=1)
    with pytest.raises(ValueError, match=r"^grads: found an array on cuda:0, expected one on cpu"):
        optimizer.add(0, DeviceArray(np.ones(3, "f4")))


def test_what_a_user_writes_between_steps_is_stepped_from():
    def run():
        param = DeviceArray(np.zeros(9000, "f4"))
        optimizer = fd.Synchronous(fastopt.SGD, param, slices=2, lr=1.0)
        for start in 0.0, 5.0:
            param.memory.copy_to_device(np.full(9000, start, "f4").view(np.uint8))
            for number, _ in optimizer.slices(2):
                optimizer.add(number, DeviceArray(np.ones(9000, "f4")))
            optimizer.step()
        return param.get()

    for found in run_threads(2, run):
        assert (found == 4.0).all()


def test_schedule_free_parameters_are_moved():
    def run(make):
        params = make(host.parameters())
        optimizer = fd.Synchronous(fastopt.ScheduleFreeAdamW, params, slices=host.SLICES)
        found = []
        for step in range(2):
            for number, _ in optimizer.slices(host.SLICES):
                optimizer.add(number, make(host.gradient(host.parameters(), step, number)))
            optimizer.step()
            optimizer.eval()
            found.append({name: np.copy(x.get() if make is there else x) for name, x in params.items()})
            optimizer.train()
        return found

    expected = run(dict)
    for found in run_threads(2, lambda: run(there)):
        for one, other in zip(found, expected, strict=True):
            for name, own in one.items():
                assert own.tobytes() == other[name].tobytes()


def test_checkpoints_go_from_there_to_here(tmp_path):
    def begin():
        params = there(host.parameters())
        optimizer = fd.Synchronous(fastopt.Adam, params, slices=host.SLICES)
        step(optimizer, here(params), there)
        optimizer.save(tmp_path)
        step(optimizer, here(params), there)
        return here(params)

    def step(optimizer, values, make):
        for number, _ in optimizer.slices(host.SLICES):
            optimizer.add(number, make(host.gradient(values, optimizer.steps, number)))
        optimizer.step()

    def go_on(make):
        params = make({name: np.zeros_like(x) for name, x in host.parameters().items()})
        optimizer = fd.Synchronous(fastopt.Adam, params, slices=host.SLICES)
        assert optimizer.load(tmp_path) == 1
        step(optimizer, here(params) if make is there else params, make)
        return here(params) if make is there else params

    expected = run_threads(2, begin)[0]
    for found in [go_on(dict), *run_threads(3, lambda: go_on(there))]:
        for name, own in found.items():
            assert own.tobytes() == expected[name].tobytes()


@pytest.mark.parametrize(
    "make",
    [
        lambda own: fd.LocalSGD(own, every=2),
        lambda own: fd.Elastic(own, every=2),
        lambda own: fd.DiLoCo(own, every=2),
    ],
    ids=["LocalSGD", "Elastic", "DiLoCo"],
)
def test_optimizers_on_the_device_come_together(make, tmp_path):
    def run(place, start, steps, loads=False):
        param = place(np.full(300, start, "f4"))
        optimizer = make(fastopt.SGD([param], lr=0.1))
        assert not loads or optimizer.load(tmp_path / place.__name__) == 2
        for step in steps:
            rng = np.random.default_rng([step, optimizer.rank])
            optimizer.step([place(rng.standard_normal(300).astype("f4"))])
            if step == 1:
                optimizer.save(tmp_path / place.__name__)
        return param.get() if place is DeviceArray else param

    expected = run_threads(2, lambda: run(np.array, 1.0, range(4)))
    for found in (
        run_threads(2, lambda: run(DeviceArray, 1.0, range(4))),
        run_threads(2, lambda: run(DeviceArray, 0.0, range(2, 4), loads=True)),
    ):
        for one, other in zip(found, expected, strict=True):
            assert one.tobytes() == other.tobytes() != np.ones(300, "f4").tobytes()


def test_memory_in_common_is_the_cpus():
    with pytest.raises(ValueError, match=r"^params: found an array on a device, expected one on the CPU"):
        fd.shared(DeviceArray(np.zeros(3, "f4")))
