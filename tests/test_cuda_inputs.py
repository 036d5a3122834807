"""Rules with inputs on the CUDA backend: the bits of the CPU's, by a toy rule."""

import numpy as np
import pytest

from fastopt import GradientNoise, RowSparse, use_backend

from .device import DeviceArray, assert_equal, on_both, without_waiting
from .toy import HYPER, MEASURED, START, TOY, registered

pytest.importorskip("numba_cuda", reason='numba-cuda is not installed: pip install -e ".[cuda]"')
ml_dtypes = pytest.importorskip("ml_dtypes")

pytestmark = [pytest.mark.stub_driver, pytest.mark.usefixtures("gpu")]

F4, F8, F2, BF = np.dtype("f4"), np.dtype("f8"), np.dtype("f2"), np.dtype(ml_dtypes.bfloat16)
SHAPES = [(2003,), (7, 9), (0,), (1,)]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy's functional form and class; its PTX is kept with the test, for no digest knows this file."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    with registered() as found, use_backend("numba"):
        yield found


def draw(shapes, steps=2, seed=0):
    """Of each shape a parameter and states, and of each step gradients and two inputs."""
    rng = np.random.default_rng(seed)
    owned = [
        [rng.standard_normal(s).astype(F4), *(np.zeros(s, F4) for _ in range(3)), np.full(s, START, F4)] for s in shapes
    ]
    return owned, [[[rng.standard_normal(s).astype(F4) for s in shapes] for _ in range(3)] for _ in range(steps)]


@pytest.mark.parametrize("layout", [{}, {"offset": 1}, {"step": 2}], ids=str)
def test_it_has_the_cpus_bits(gpu, toy, layout):
    function, _ = toy
    owned, given = draw(SHAPES)
    there, here = zip(*(on_both(arrays, **layout) for arrays in zip(*owned, strict=True)), strict=True)
    for step, (grads, *inputs) in enumerate(given, 1):
        read = [DeviceArray(x, read_only=True, **layout) for x in grads]
        old, drift = ([DeviceArray(x, read_only=True, **layout) for x in own] for own in inputs)
        with without_waiting(gpu):
            function(there[0], read, *there[1:], old=old, drift=drift, step=step, **HYPER, backend="numba-cuda")
        function(here[0], grads, *here[1:], old=inputs[0], drift=inputs[1], step=step, **HYPER)
        for device, own in zip((read, old, drift), (grads, *inputs), strict=True):
            assert_equal(device, own)
    for device, own in zip(there, here, strict=True):
        assert_equal(device, own)


NOISE = GradientNoise(0.3, seed=5)
STORED = {
    "float64": (F8, F8, {}, {}),
    "bfloat16, zeroing": (BF, BF, {}, {"zero_grads": True}),
    "inputs of another dtype": (F4, F2, {}, {}),
    "8 bits": (F4, F4, {"state_dtype": "8bit"}, {}),
    "8 bits of bfloat16, noise": (BF, F4, {"state_dtype": "8bit", "gradient_noise": NOISE}, {}),
    "kahan, average": (BF, F4, {"rounding": "kahan", "ema_decay": 0.9}, {"clip_value": 0.5}),
    "master, average": (F2, F2, {"rounding": "master", "ema_decay": 0.9, "state_dtype": "bfloat16"}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", STORED)
def test_storage_and_the_class_have_the_cpus_bits(toy, case):
    """Steps of the class, each with inputs that are elsewhere."""
    dtype, of_inputs, options, call = STORED[case]
    ((p0, *_),), given = draw([(4355,)], 3)
    results = []
    for backend in ("numba-cuda", "numba"):
        place = DeviceArray if backend == "numba-cuda" else np.array
        p = place(p0.astype(dtype))
        optimizer = toy[1](p, **HYPER, start=START, backend=backend, **options)
        for (g,), (old,), (drift,) in given:
            optimizer.step(
                place(g.astype(dtype)),
                inputs={"drift": place(drift.astype(of_inputs)), "old": place(old.astype(of_inputs))},
                **call,
            )
        states = [x for name, x in optimizer.state[0].items() if name not in ("step", *TOY.scalars)]
        results.append([p, *states])
    there, here = results
    got = [x.get() if isinstance(x, DeviceArray) else x.copy_to_host() for x in there]
    assert_equal([DeviceArray(x) for x in got], here)


@pytest.mark.slow
def test_rows_have_the_cpus_bits(toy):
    function, _ = toy
    ((p0, *states),), given = draw([(23, 17)])
    there, here = on_both([p0, *states])
    for step, ((g,), (old,), (drift,)) in enumerate(given, 1):
        for arrays, place in ((there, DeviceArray), (here, np.array)):
            rows = RowSparse(place(np.array([5, 0, 22, 5])), place(g[:4]))
            backend = "numba-cuda" if place is DeviceArray else "numba"
            function(
                arrays[0], rows, *arrays[1:], old=place(old), drift=place(drift), step=step, **HYPER, backend=backend
            )
    assert_equal(there, here)


@pytest.mark.slow
def test_a_stage_measures_inputs(gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    with registered(MEASURED) as (function, _):
        owned, given = draw([(9001,), (5,)])
        there, here = zip(*(on_both(arrays) for arrays in list(zip(*owned, strict=True))[:2]), strict=True)
        for step, (grads, olds, _) in enumerate(given, 1):
            for (p, m), place, backend in ((there, DeviceArray, "numba-cuda"), (here, np.array, "numba")):
                g, old = (list(map(place, own)) for own in (grads, olds))
                function(p, g, m, old=old, step=step, backend=backend)
    for device, own in zip(there, here, strict=True):
        assert_equal(device, own)
