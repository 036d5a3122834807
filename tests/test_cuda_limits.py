"""Limits of norms on the device: the bits that the CPU leaves, and no host that waits."""

import math
from contextlib import nullcontext

import numpy as np
import pytest

import fastopt
from fastopt import RULES

from .device import DeviceArray, assert_equal, on_both, without_waiting
from .support import assert_same_bits

pytest.importorskip("numba_cuda", reason='numba-cuda is not installed: pip install -e ".[cuda]"')
ml_dtypes = pytest.importorskip("ml_dtypes")

pytestmark = [pytest.mark.stub_driver, pytest.mark.usefixtures("gpu")]

F4, F8, F2, BF = np.dtype("f4"), np.dtype("f8"), np.dtype("f2"), np.dtype(ml_dtypes.bfloat16)
SIZES = (5003, 63, 0, 1, 4097)
DTYPES = (F4, F8, BF, F4, F2)


def pair(kind=fastopt.AdamW, dtypes=DTYPES, **options):
    """Parameters of several dtypes there and here, in two groups, with an optimizer each."""
    rng = np.random.default_rng(0)
    there, here = on_both([rng.standard_normal(n).astype(d) for n, d in zip(SIZES, dtypes, strict=True)])

    def made(params):
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.05, "maximize": True}]
        return kind(groups, **{"lr": 0.1, "weight_decay": 0.1, **options})

    return there, here, made(there), made(here)


def draw(seed, dtypes=DTYPES, factor=1.0):
    rng = np.random.default_rng(seed)
    return [(factor * rng.standard_normal(n)).astype(d) for n, d in zip(SIZES, dtypes, strict=True)]


def split(grads):
    return [grads[:2], grads[2:]]


def assert_alike(there, here, ours, cpus):
    assert_equal(there, here)
    for i in range(len(here)):
        assert int(ours.state[i]["step"]) == int(cpus.state[i]["step"])
        for name in set(cpus.state[i]) - {"step"}:
            np.testing.assert_array_equal(ours.state_values(i, name), cpus.state_values(i, name))


HOW = {
    "clipped": {"max_norm": 0.5},
    "below the limit": {"max_norm": 1e9, "grad_scale": 0.25},
    "at infinity": {"max_norm": math.inf},
    "to zero": {"max_norm": 0.0},
    "each": {"clip_norm": 0.5, "grad_scale": -0.25},
    "and by value, zeroing": {"max_norm": 0.5, "clip_value": 1e-3, "zero_grads": True},
    "checked": {"skip_nonfinite": True, "grad_scale": 0.5},
    "checked, clipped": {"max_norm": 0.5, "skip_nonfinite": True},
    "checked, each": {"clip_norm": 0.5, "skip_nonfinite": True},
}


@pytest.mark.parametrize("how", HOW)
def test_steps_have_the_cpus_bits_and_nothing_waits(gpu, how):
    there, here, ours, cpus = pair()
    for step in range(3):
        grads_there, grads_here = on_both(draw(step))
        with without_waiting(gpu):
            ours.step(split(grads_there), **HOW[how])
        cpus.step(split(grads_here), **HOW[how])
        assert ours.last_grad_norm == cpus.last_grad_norm
        assert ours.last_step_skipped is cpus.last_step_skipped is False
        assert_equal(grads_there, grads_here)
    assert_alike(there, here, ours, cpus)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan], ids=str)
@pytest.mark.parametrize("how", ["clipped", "each", "checked", "checked, clipped", "checked, each"])
def test_gradients_that_are_not_finite(gpu, how, bad):
    """Skipped steps are not counted, whether or not somebody looks; NAdam has scalars of its steps too."""
    there, here, ours, cpus = pair(fastopt.NAdam, weight_decay=0.0)
    for step, factor in enumerate((1, bad, bad, 1, bad)):
        grads = draw(step)
        if factor == bad or factor != factor:
            grads[0][5], grads[4][4096] = bad, bad
        grads_there, grads_here = on_both(grads)
        ours.step(split(grads_there), **HOW[how])
        with np.errstate(all="ignore"):
            cpus.step(split(grads_here), **HOW[how])
        if step == 2:
            assert ours.last_step_skipped is cpus.last_step_skipped is ("checked" in how)
            assert_same_bits([np.array(ours.last_grad_norm, float)], [np.array(cpus.last_grad_norm, float)])
    assert_alike(there, here, ours, cpus)


def test_a_plan_waits_for_nothing_between_steps_that_may_be_skipped(gpu):
    there, here, ours, cpus = pair()
    grads_there, grads_here = on_both(draw(0))
    plans = ours.bind(split(grads_there)), cpus.bind(split(grads_here))
    with without_waiting(gpu):
        plans[0].step(max_norm=0.5)
        plans[0].step(max_norm=0.5)
        plans[0].step(skip_nonfinite=True)
    for how in ({"max_norm": 0.5}, {"max_norm": 0.5}, {"skip_nonfinite": True}):
        plans[1].step(**how)
    assert_alike(there, here, ours, cpus)


@pytest.mark.parametrize("name", ["lamb", "prodigy"])
def test_stages_measure_limited_gradients(gpu, name):
    there, here, ours, cpus = pair(getattr(fastopt, RULES[name].optimizer), dtypes=(F4,) * 5)
    for step, bad in enumerate((0, 1, 0)):
        grads = draw(step, (F4,) * 5)
        grads[0][0] = np.nan if bad else 1
        grads_there, grads_here = on_both(grads)
        with without_waiting(gpu):
            ours.step(split(grads_there), max_norm=0.5, skip_nonfinite=True)
        cpus.step(split(grads_here), max_norm=0.5, skip_nonfinite=True)
        assert ours.last_step_skipped is cpus.last_step_skipped is bool(bad)
    assert_alike(there, here, ours, cpus)


def rows_of(kind, seed, factor=1.0):
    """Gradients of some rows of a table, some named several times, and of a whole tensor."""
    rng = np.random.default_rng(seed)
    indices, values = rng.integers(0, 40, 150), factor * rng.standard_normal((150, 12))
    whole = rng.standard_normal(5003).astype(F4)
    return [fastopt.RowSparse(kind(indices), kind(values.astype(F4))), kind(whole)]


@pytest.mark.parametrize(
    ("how", "bad"),
    [
        ("and by value, zeroing", False),
        ("checked", True),
        ("checked, each", True),
        *(pytest.param(*own, marks=pytest.mark.slow) for own in (("each", True), ("checked, clipped", True))),
    ],
)
@pytest.mark.parametrize("kind", ["rows of a rule", "some rows"])
def test_rows_are_limited_as_on_the_cpu_and_nothing_waits(gpu, kind, how, bad):
    """Dense gradients of a rule of rows, and gradients of some rows, beside a whole tensor."""
    rng = np.random.default_rng(0)
    start = [rng.standard_normal((40, 12)).astype(F4), rng.standard_normal(5003).astype(F4)]
    there, here = on_both(start)
    made = fastopt.Adam if kind == "some rows" else fastopt.RowwiseAdagrad
    ours, cpus = made(there, lr=0.1), made(here, lr=0.1)
    for step in range(3):
        factor = np.nan if bad and step == 1 else 1.0
        if kind == "some rows":
            grads_there, grads_here = rows_of(DeviceArray, step, factor), rows_of(np.array, step, factor)
        else:
            grads = [(factor if k == 0 else 1) * rng.standard_normal(p.shape).astype(F4) for k, p in enumerate(here)]
            grads_there, grads_here = on_both([g.astype(F4) for g in grads])
        with nullcontext() if "zeroing" in how else without_waiting(gpu):  # Numba's arrays are zeroed by waiting
            ours.step(grads_there, **HOW[how])
        with np.errstate(all="ignore"):
            cpus.step(grads_here, **HOW[how])
        assert ours.last_step_skipped is cpus.last_step_skipped
        assert_same_bits([np.array(ours.last_grad_norm, float)], [np.array(cpus.last_grad_norm, float)])
    assert_alike(there, here, ours, cpus)


@pytest.mark.parametrize(
    ("rows", "lookups", "width", "dtype", "bags", "duplicates"),
    [
        (5, 33, 7, F8, "weighted", "sum"),
        (600, 1025, 8, BF, "mean", "sequential"),
        *(
            pytest.param(*own, marks=pytest.mark.slow)
            for own in [
                (1, 1, 1, F4, None, "sum"),
                (70_000, 1023, 4, F4, None, "sequential"),
                (3, 2100, 12, F2, None, "sequential"),
                (2100, 2100, 12, F2, None, "hogwild"),
                (70_000, 3000, 3, F4, None, "sum"),
                (300, 1024, 64, F4, "mean", "sum"),
            ]
        ),
    ],
    ids=str,
)
def test_the_norm_of_rows_is_that_of_their_sums(gpu, rows, lookups, width, dtype, bags, duplicates):
    """Of lookups and rows around what blocks and groups hold, in any order."""
    rng, real = np.random.default_rng(lookups), F8 if dtype == F8 else F4
    # Of rows that are named twice hogwild's updates race, which the interpreter refuses.
    indices = rng.permutation(rows) if duplicates == "hogwild" else rng.integers(0, rows, lookups)
    count = 20 if bags else lookups
    values, weights = rng.standard_normal((count, width)).astype(dtype), rng.standard_normal(lookups).astype(real)
    offsets = np.sort(np.append(rng.integers(0, lookups + 1, count - 1), 0))
    found = []
    for kind in (DeviceArray, np.array):
        given = kind(indices), *([kind(offsets)] if bags else []), kind(values)
        more = {"weights": kind(weights)} if bags == "weighted" else {"mode": bags} if bags else {}
        gradient = (fastopt.RowSparse.bags if bags else fastopt.RowSparse)(*given, duplicates=duplicates, **more)
        param = kind(np.zeros((rows, width), real))
        optimizer = fastopt.SGD([param], lr=0.1)
        for _ in range(2):
            optimizer.step([gradient], max_norm=1.0)
        found.append((optimizer.last_grad_norm, np.asarray(param.get() if kind is DeviceArray else param)))
    assert_same_bits([np.array(found[0][0]), found[0][1]], [np.array(found[1][0]), found[1][1]])


def test_an_index_out_of_range_has_no_norm():
    there, here = on_both([np.ones((5, 4), F4)])
    optimizer = fastopt.SGD(there, lr=0.1)
    with pytest.raises(ValueError, match="found index 7 in a step before"):
        for _ in range(2):
            gradient = fastopt.RowSparse(DeviceArray(np.array([0, 7, 1])), DeviceArray(np.ones((3, 4), F4)))
            optimizer.step([gradient], max_norm=1.0)
    assert optimizer.last_grad_norm == 0.0
    assert_equal(there, here)


def sums_of(*powers):
    return np.array([float.fromhex(p) if isinstance(p, str) else p for p in powers])


ULP = 2.0**-52


def told_apart(odd):
    """A number from 1.3 on, with a last bit that is odd or not, whose root is another one than that of the next."""
    numbers = (1.3 + k * ULP for k in range(100))
    return next(x for x in numbers if round(x / ULP) % 2 == odd and math.sqrt(x) != math.sqrt(x + ULP))


EVEN, ODD = told_apart(0), told_apart(1)
SUMS = {
    "one": [1.0],
    "halfway, to even": [EVEN, ULP / 2],
    "halfway, up": [ODD, ULP / 2],
    "above halfway by little": [EVEN, ULP / 2, 2.0**-70],
    "above halfway by less": [EVEN, ULP / 2, 2.0**-110],
    "above halfway by the least": [EVEN, ULP / 2, 5e-324],
    "below halfway": [ODD, ULP / 4, ULP / 8],
    "below halfway by the least": [ODD, ULP / 4, ULP / 4 - 2.0**-106],
    "carries": [2.0**53 - 1, 1.0, 2.0**-1000],
    "subnormal": [5e-324] * 3,
    "to the least normal": [2.0**-1022 - 5e-324, 5e-324],
    "beyond it": [2.0**-1022, 5e-324, 5e-324],
    "large": [1.7e308, 2.0**970],
    "beyond all": [1.7e308, 1.7e308],
    "to the largest": [np.finfo(float).max, 2.0**969],
    "rounded beyond": [np.finfo(float).max, 2.0**970],
    "zero": [0.0, 0.0],
    "infinite": [1.0, np.inf],
    "not a number": [np.inf, np.nan],
    "of every size": [2.0**k for k in range(-1074, 1023, 7)] * 9,
    "random": list(np.exp(np.random.default_rng(0).uniform(-700, 700, 3000))),
    "like each other": list(np.random.default_rng(1).uniform(3000, 5000, 2049)),
}


@pytest.mark.parametrize("case", SUMS)
def test_sums_are_rounded_once(gpu, case):
    """As by math.fsum, whatever the parts."""
    from fastopt.arrays.libraries import driver
    from fastopt.backends.numba_cuda import limits
    from fastopt.backends.numba_cuda.compiler import ptx_of
    from fastopt.backends.numba_cuda.kernels import LIMBS, PART_SUMS
    from fastopt.binding.norms import root_of

    device, sums = driver.device_of(0), np.array(SUMS[case])
    parts = -(-len(sums) // PART_SUMS)
    tables = np.array([0, len(sums), 0, parts])
    memory = device.allocate(8 * (4 + len(sums) + LIMBS * parts + 4), 0)
    at = memory.address
    device.upload(np.concatenate([tables.view(np.uint64), sums.view(np.uint64)]), at, 0)
    limbs = at + 8 * (4 + len(sums))
    cells = limbs + 8 * LIMBS * parts

    def run(kind, blocks, threads, *arguments, scale=1.0, place=3):
        kernel = device.kernel(ptx_of(kind, device.capability), kind.name, len(kind.arguments), threads)
        kernel.arguments[:place] = arguments[:place]
        if kind is not limits._ADD:
            kernel.arguments[place : place + 1].view(np.float64)[0] = scale
            kernel.arguments[place + 1 :] = arguments[place:]
        else:
            kernel.arguments[:] = arguments
        kernel.launch(blocks, 0)

    run(limits._BEGIN, 1, 1, cells, 0, 0)
    run(limits._ADD, parts, limits.ADDERS, at + 32, at, at + 16, 1, limbs)
    run(limits._LIMIT, 1, limits.LIMITERS, limbs, at + 16, cells, limits.OF_ALL, 0, scale=np.inf)
    found = np.empty(1)
    device.download(cells + limits.NORM, found, 0)
    assert_same_bits([found], [np.array([root_of([sums])])])
