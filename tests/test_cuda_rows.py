"""Gradients of rows on the CUDA backend against the CPU's: lookups are ordered on the device, rows updated there."""

import sys

import numpy as np
import pytest

import fastopt
from fastopt import RULES, GradientNoise, RowSparse, functional

from .device import DeviceArray, assert_equal, hyper_of, on_both, without_waiting
from .support import make_states, one_of_each_kind

pytest.importorskip("numba_cuda", reason='numba-cuda is not installed: pip install -e ".[cuda]"')
pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from fastopt.arrays.libraries import driver
from fastopt.backends import fold
from fastopt.backends.numba_cuda import compiler, lookups, rows
from fastopt.backends.numba_cuda.kernels import THREADS

ml_dtypes = pytest.importorskip("ml_dtypes")

pytestmark = [pytest.mark.stub_driver, pytest.mark.usefixtures("gpu")]

F4, F8, BF = np.dtype("f4"), np.dtype("f8"), np.dtype(ml_dtypes.bfloat16)
ELEMENTWISE = [name for name, rule in RULES.items() if rule.elementwise]

ROWS = {
    "adagrad": ("adagrad", (1000, 64), (F4, F4, F4), "sum"),
    "adam in turn": ("adam", (300, 13), (F8, F8, F8), "sequential"),
    "adam, bfloat16": ("adam", (100_000, 8), (BF, BF, F4), "sum"),
    "numbers": ("ftrl", (500,), (F4, F4, F4), "sum"),
    "by row": ("rowwise_adagrad", (300, 50), (F4, F4, F4), "sum"),
    "by row, in turn": ("rowwise_adagrad", (100, 7), (BF, F4, BF), "sequential"),
    "copies": ("aggmo", (300, 12), (F4, F4, F4), "sum"),
}
IN_ROWS = {name for name, *_ in ROWS.values()}


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("indices_dtype", ["i4", pytest.param("i8", marks=pytest.mark.slow)])
def test_rows_have_the_cpus_bits(gpu, case, indices_dtype):
    name, shape, dtypes, duplicates = ROWS[case]
    rng = np.random.default_rng(0)
    lookups = 150 if RULES[name].by_row else 700
    indices = (rng.zipf(1.3, lookups) % shape[0]).astype(indices_dtype)
    param = rng.standard_normal(shape).astype(dtypes[0])
    values = rng.standard_normal((lookups, *shape[1:])).astype(dtypes[1])
    states = [state.astype(dtypes[2]) for state in make_states(name, hyper_of(name), param)]
    there, here = on_both([param, *states])
    gradient = RowSparse(DeviceArray(indices), DeviceArray(values, read_only=True), duplicates=duplicates)
    for step in (1, 2):
        with without_waiting(gpu):
            getattr(functional, name)(there[0], gradient, *there[1:], step=step, **hyper_of(name))
        own = RowSparse(indices, values, duplicates=duplicates)
        getattr(functional, name)(here[0], own, *here[1:], step=step, threads=1, **hyper_of(name))
    assert_equal(there, here)


@pytest.mark.parametrize(("name", "sizes", "width", "dtypes"), [
    ("sgd", (1, 31, 0, 32, 33, 64, 65), 6, (F4, F4)),  # element by element
    ("adagrad", (1, 31, 0, 32, 33, 64, 65), 8, (F4, F4)),  # by 16 bytes
    ("sgd", (40, 33, 100), 20, (BF, BF)),  # both, of 8 elements
    ("adagrad", (40, 33, 100), 10, (F8, F8)),
    ("rowwise_adagrad", (33, 70, 5), 7, (F4, F4)),
    ("rowwise_adagrad", (1, 100, 0, 32, 65), 72, (F4, BF)),
    ("sgd", (7, 1023, 5, 1024, 1025, 1057, 2080), 1, (F4, F4)),
    ("rowwise_adagrad", (3, 1025), 4, (F4, F4)),
    pytest.param("sgd", (3, 32768, 32769 + 1024, 40), 1, (F4, F4), marks=pytest.mark.slow),
    pytest.param("adagrad", (32767, 2, 33824), 4, (F4, F4), marks=pytest.mark.slow),
], ids=str)  # fmt: skip
def test_rows_of_many_lookups_have_the_cpus_tree(gpu, name, sizes, width, dtypes):
    rng = np.random.default_rng(0)
    indices = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    values = rng.standard_normal((len(indices), width)).astype(dtypes[1])
    param = rng.standard_normal((len(sizes), width)).astype(dtypes[0])
    there, here = on_both([param, *make_states(name, hyper_of(name), param)])
    gradient = RowSparse(DeviceArray(indices), DeviceArray(values, read_only=True))
    with without_waiting(gpu):
        getattr(functional, name)(there[0], gradient, *there[1:], step=1, **hyper_of(name))
    getattr(functional, name)(here[0], RowSparse(indices, values), *here[1:], step=1, **hyper_of(name))
    assert_equal(there, here)


@pytest.mark.parametrize(("lookups", "count"), [(1023, 1), (1024, 2), (1025, 256), (3000, 257), (2049, 70_000)])
def test_lookups_are_ordered_by_several_blocks(lookups, count):
    """In each row's own order, of which its sum's bits tell; the numbers of rows need one to three digits."""
    rng = np.random.default_rng(0)
    indices = rng.zipf(1.2, lookups) % count
    indices[:: lookups // 7] = count - 1
    values, param = (rng.standard_normal(n).astype(F4) for n in (lookups, count))
    there, here = on_both([param])
    for arrays, kind in ((there, DeviceArray), (here, np.array)):
        functional.sgd(arrays[0], RowSparse(kind(indices), kind(values)), step=1, lr=0.1)
    assert_equal(there, here)


@pytest.mark.parametrize("blocks", [1, 255, 256, 257, 600])
def test_counters_are_added_up_before_each_block(blocks):
    """As many blocks' as there are, which takes a row of so many lookups that no interpreter would end."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 1000, (3, blocks), np.int32)
    counters, totals = DeviceArray(counts), DeviceArray(np.full(3, -1, np.int32))
    device, kind = driver.device_of(0), lookups.ADD_UP
    kernel = device.kernel(compiler.ptx_of(kind, device.capability), kind.name, len(kind.arguments), THREADS)
    addresses = [array.__cuda_array_interface__["data"][0] for array in (counters, totals)]
    kernel.arguments[:] = *addresses, blocks
    kernel.launch(3, 0)
    sums = counts.cumsum(axis=1)
    np.testing.assert_array_equal(counters.get(), sums - counts)
    np.testing.assert_array_equal(totals.get(), sums[:, -1])


@pytest.mark.parametrize("duplicates", ["sum", "sequential"])
def test_teams_that_update_several_rows(monkeypatch, duplicates):
    monkeypatch.setattr(rows, "_TEAMS", 16)
    rng = np.random.default_rng(0)
    param, indices = rng.standard_normal((40, 24)).astype(F4), rng.integers(0, 40, 70)
    values = rng.standard_normal((70, 24)).astype(F4)
    there, here = on_both([param, np.zeros(40, F4)])
    for arrays, kind in ((there, DeviceArray), (here, np.array)):
        gradient = RowSparse(kind(indices), kind(values), duplicates=duplicates)
        functional.rowwise_adagrad(arrays[0], gradient, arrays[1], step=1, lr=0.1)
    assert_equal(there, here)


@pytest.mark.parametrize("name", ["adam", "rowwise_adagrad"])
def test_rows_have_the_cpus_noise(name):
    rng = np.random.default_rng(0)
    param, values = rng.standard_normal((40, 13)).astype(F4), rng.standard_normal((60, 13)).astype(F4)
    indices = rng.integers(0, 40, 60)
    there, here = on_both([param, *make_states(name, hyper_of(name), param)])
    noise = {"gradient_noise": GradientNoise(eta=0.3, seed=2**40 + 7), "first_element": 7}
    for arrays, kind in ((there, DeviceArray), (here, np.array)):
        gradient = RowSparse(kind(indices), kind(values))
        getattr(functional, name)(arrays[0], gradient, *arrays[1:], step=3, **noise, **hyper_of(name))
    assert_equal(there, here)


@pytest.mark.parametrize("name", one_of_each_kind(name for name in ELEMENTWISE if name not in IN_ROWS))
def test_rows_of_every_rule(name):
    rng = np.random.default_rng(0)
    param, values = rng.standard_normal((40, 9)).astype(F4), rng.standard_normal((60, 9)).astype(F4)
    indices = rng.integers(0, 40, 60)
    there, here = on_both([param, *make_states(name, hyper_of(name), param)])
    for arrays, kind in ((there, DeviceArray), (here, np.array)):
        getattr(functional, name)(
            arrays[0], RowSparse(kind(indices), kind(values)), *arrays[1:], step=1, **hyper_of(name)
        )
    assert_equal(there, here)


def test_a_library_that_is_not_there_is_looked_for_once(monkeypatch):
    """Each step binds rows anew."""
    asked = []

    class Refusing:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "fastopt.backends.native":
                asked.append(name)
                raise fastopt.BackendUnavailable("of another version")

    (there,), (here,) = on_both([np.ones((5, 4), F4)])
    ours, cpus = fastopt.Adagrad([there], lr=0.1), fastopt.Adagrad([here], lr=0.1)
    fold._native.cache_clear()
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "fastopt.backends.native")
        patch.setattr(sys, "meta_path", [Refusing, *sys.meta_path])
        for _ in range(3):
            ours.step([RowSparse(DeviceArray(np.array([0, 2, 0])), DeviceArray(np.ones((3, 4), F4)))])
    fold._native.cache_clear()
    for _ in range(3):
        cpus.step([RowSparse(np.array([0, 2, 0]), np.ones((3, 4), F4))])
    assert len(asked) == 1
    assert_equal([there], [here])


@pytest.mark.parametrize("name", ["Adagrad", "RowwiseAdagrad"])
def test_a_plans_launches_are_made_once(gpu, monkeypatch, name):
    """What changes from step to step is what the arrays hold, coefficients, and where the step's memory is."""
    rng = np.random.default_rng(0)
    param, values = (rng.standard_normal((n, 12)).astype(F4) for n in (9, 50))
    indices = rng.integers(0, 9, 50)
    there, here = on_both([param])
    plans, held = [], []
    for arrays, kind in ((there, DeviceArray), (here, np.array)):
        optimizer = getattr(fastopt, name)(arrays, lr=lambda t: 1 / t)
        plans.append(optimizer.bind([RowSparse(kind(indices), kind(values))]))
        plans[-1].step()
    monkeypatch.setattr(driver.Device, "load", None)
    for _ in range(2):
        held.append(driver.device_of(0).allocate(4096, 0))  # so that the next step's memory is elsewhere
        for plan in plans:
            plan.step()
    assert_equal(there, here)


def test_a_row_rules_dense_gradient_is_of_all_rows():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((33, 20)).astype(F4) for _ in range(2)] + [np.zeros(33, F4)]
    there, here = on_both(arrays)
    for own in (there, here):
        functional.rowwise_adagrad(*own, step=1, lr=0.1)
    assert_equal(there, here)


@pytest.mark.parametrize("indices_dtype", ["i4", "i8"])
@pytest.mark.parametrize("mode", ["sum", "mean", "weighted"])
def test_bags(mode, indices_dtype):
    rng = np.random.default_rng(0)
    param, values = rng.standard_normal((50, 16)).astype(F4), rng.standard_normal((30, 16)).astype(F4)
    indices, offsets = rng.integers(0, 50, 200), np.sort(rng.integers(0, 201, 30))
    offsets[0] = 0
    weights = rng.standard_normal(200).astype(F4)
    there, here = on_both([param, np.zeros_like(param)])
    for arrays, kind in ((there, DeviceArray), (here, np.array)):
        gradient = RowSparse.bags(
            kind(indices.astype(indices_dtype)),
            kind(offsets.astype(indices_dtype)),
            kind(values),
            kind(weights) if mode == "weighted" else None,
            mode="mean" if mode == "mean" else "sum",
        )
        functional.adagrad(arrays[0], gradient, arrays[1], step=1, lr=0.1)
    assert_equal(there, here)


def test_hogwild_rows_that_are_named_once(gpu):
    rng = np.random.default_rng(0)
    param, values, indices = rng.standard_normal((40, 9)), rng.standard_normal((30, 9)), rng.permutation(40)[:30]
    there, here = on_both([param])
    for arrays, kind in ((there, DeviceArray), (here, np.array)):
        functional.sgd(arrays[0], RowSparse(kind(indices), kind(values), duplicates="hogwild"), step=1, lr=0.1)
    assert_equal(there, here)


def test_an_index_out_of_range_updates_nothing_and_is_told_later():
    there, here = on_both([np.ones((5, 4), F4)])
    optimizer = fastopt.SGD(there, lr=0.1)
    values = DeviceArray(np.ones((3, 4), F4))
    optimizer.step([RowSparse(DeviceArray(np.array([0, 7, 1])), values)])
    assert_equal(there, here)
    with pytest.raises(ValueError, match="found index 7 in a step before"):
        optimizer.step([RowSparse(DeviceArray(np.array([0, 2, 1])), values)])
    optimizer.step([RowSparse(DeviceArray(np.array([0, 2, 1])), values)])
    here[0][:3] -= np.float32(0.1)
    assert_equal(there, here)


def test_too_little_memory_leaves_everything_as_it_was(gpu):
    if not hasattr(gpu, "fail_allocations_after"):
        pytest.skip("memory of a real device does not run out on demand")
    there, here = on_both([np.ones((5, 4), F4)])
    optimizer = fastopt.SGD(there, lr=0.1, momentum=0.9)
    gradient = RowSparse(DeviceArray(np.array([0, 2, 1])), DeviceArray(np.ones((3, 4), F4)))
    gpu.fail_allocations_after(0)
    with pytest.raises(MemoryError):
        optimizer.step([gradient])
    gpu.fail_allocations_after(None)
    assert optimizer.state[0]["step"] == 0
    assert_equal(there, here)
