"""The CUDA backend against the CPU's: kernels are run as they are launched, and what they leave has the same bits."""

import gc
import json

import numpy as np
import pytest

import fastopt
from fastopt import RULES, RowSparse, functional
from fastopt.arrays.blocks import block_bytes
from fastopt.arrays.libraries.matrices import OfNumPy, Room
from fastopt.binding.norms import read

from .device import DeviceArray, assert_equal, hyper_of, on_both, without_waiting
from .support import assert_same_bits, gradients, make_states, one_of_each_kind, parameter

pytest.importorskip("numba_cuda", reason='numba-cuda is not installed: pip install -e ".[cuda]"')
ml_dtypes = pytest.importorskip("ml_dtypes")

pytestmark = [pytest.mark.stub_driver, pytest.mark.usefixtures("gpu")]

F4, F8, F2, BF = np.dtype("f4"), np.dtype("f8"), np.dtype("f2"), np.dtype(ml_dtypes.bfloat16)
BLOCKS = np.dtype("u1")
ELEMENTWISE = [name for name, rule in RULES.items() if not rule.by_row]
SHAPES = [(5003,), (7, 9), (0,), (1,), (4096,), (8195,)]


def compare(gpu, name, shapes, dtype, steps=3, **layout):
    """Steps of a functional form over lists of tensors, there and here."""
    rng = np.random.default_rng(0)
    host = [[rng.standard_normal(shape).astype(dtype) for shape in shapes] for _ in range(2)]
    states = zip(*(make_states(name, hyper_of(name), p) for p in host[0]), strict=True)
    there, here = zip(*(on_both(arrays, **layout) for arrays in [*host, *states]), strict=True)
    for step in range(1, steps + 1):
        with without_waiting(gpu):
            getattr(functional, name)(*there, step=step, grad_scale=0.5, **hyper_of(name))
        getattr(functional, name)(*here, step=step, grad_scale=0.5, **hyper_of(name))
    for device, own in zip(there, here, strict=True):
        assert_equal(device, own)


def assert_every_tensor_has_the_cpus_bits(gpu, name, dtype):
    compare(gpu, name, SHAPES, dtype)
    updates = [launch for launch in gpu.launches if launch.name.startswith(f"fastopt_{RULES[name].kernel}_float")]
    assert len(updates) == (3 if gpu.launches else 0), "one launch a step, whatever the number of tensors"
    for launch in updates:
        arrays = RULES[name].count_arrays(4 if RULES[name].vector else 1)
        whole = sum(np.prod(shape) // (16 // dtype.itemsize) for shape in SHAPES)
        if not RULES[name].vector:  # copies of an odd size are misaligned
            assert launch.statistics["ld", 16] == arrays * whole
            assert launch.statistics["st", 16] == (arrays - 1) * whole


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_rule_has_the_cpus_bits(gpu, name):
    assert_every_tensor_has_the_cpus_bits(gpu, name, F4)


@pytest.mark.parametrize("name", one_of_each_kind(ELEMENTWISE))
def test_every_rule_has_the_cpus_bits_in_float64(gpu, name):
    assert_every_tensor_has_the_cpus_bits(gpu, name, F8)


@pytest.mark.parametrize("layout", [{"offset": 1}, {"offset": 3}, {"step": 2}, {"offset": 2, "step": 3}], ids=str)
@pytest.mark.parametrize("dtype", [F4, F8], ids=str)
def test_misaligned_and_strided_views(gpu, dtype, layout):
    compare(gpu, "adam", SHAPES, dtype, steps=2, **layout)


def test_mixed_layouts_in_one_launch(gpu):
    rng = np.random.default_rng(0)
    host = [rng.standard_normal((37, 53)).astype(F4) for _ in range(8)]
    layouts = [{}, {"offset": 1}, {"step": 2}, {}]
    there = [[DeviceArray(x, **layouts[(i + j) % 4]) for j, x in enumerate(host[4 * i : 4 * i + 4])] for i in range(2)]
    here = [[x.copy() for x in host[4 * i : 4 * i + 4]] for i in range(2)]
    functional.sgd(*there, step=1, lr=0.1)
    functional.sgd(*here, step=1, lr=0.1)
    assert_equal(there[0], here[0])
    assert sum("sgd" in launch.name for launch in gpu.launches) <= 1


STORED = {
    "bfloat16": ("adam", BF, BF, BF),
    "float16": ("adam", F2, F2, F2),
    "mixed": ("amsgrad", BF, F4, F2),
    "bfloat16 states": ("adagrad", F4, F4, BF),
    "8-bit states": ("adam", F4, F4, BLOCKS),
    "8-bit states of bfloat16": ("amsgrad", BF, BF, BLOCKS),
    "8-bit copies": ("aggmo", F4, BF, BLOCKS),
}


@pytest.mark.parametrize("size", [1, 255, 256, 513, 4096, 9001])
@pytest.mark.parametrize("case", STORED)
def test_storage_has_the_cpus_bits(case, size):
    assert_storage_has_the_cpus_bits(case, size)


def assert_storage_has_the_cpus_bits(case, size):
    """Up to 513 elements with one that is not finite, in a part of a block, in a block, in one of two: at first."""
    name, *dtypes = STORED[case]
    rng = np.random.default_rng(size)
    param, grad = (rng.standard_normal(size).astype(dtype) for dtype in dtypes[:2])
    states = make_states(name, hyper_of(name), param)
    if dtypes[2] == BLOCKS:
        states = [np.zeros((*s.shape[:-1], block_bytes(size)), BLOCKS) for s in states]
    states = [s.astype(dtypes[2]) for s in states]
    first = grad.copy()
    first[size // 2] = {255: np.inf, 256: np.nan, 513: -np.inf}.get(size, grad[size // 2])
    there, here = on_both([param, first, param, grad, *states])
    for step in range(1, 4):  # then states alone may tell of it
        for p, g, next_p, next_g, *own in (there, here):
            now = (p, g) if step == 1 else (next_p, next_g)
            getattr(functional, name)(*now, *own, step=step, **hyper_of(name))
    assert_equal(there, here)


def test_every_float16_is_read_and_rounded_to_as_the_cpu_does():
    """The device's own conversions: each number, and what lies halfway between it and the next, and beside that."""
    numbers = np.arange(65536, dtype=np.uint16).view(F2)
    numbers = numbers[~np.isnan(numbers)]
    finite = np.sort(np.unique(numbers[np.isfinite(numbers)].astype(F4)))
    halfway = (finite[:-1] + finite[1:]) / 2
    beyond = F4.type([65519.996, 65520, 65536, 1e30, np.inf, 2**-25, 2**-26, 1e-40, 0.0])
    values = np.concatenate([halfway, np.nextafter(halfway, F4.type(-1e9)), np.nextafter(halfway, F4.type(1e9))])
    for param, grad in (
        (numbers, np.zeros(len(numbers), F4)),
        (np.zeros(len(values), F2), -values),
        (np.zeros(2 * len(beyond), F2), np.concatenate([beyond, -beyond])),
    ):
        there, here = on_both([param, grad])
        for arrays in (there, here):
            functional.sgd(*arrays, step=1, lr=1.0)
        assert_equal(there, here)


def test_every_float32_is_rounded_to_bfloat16_as_the_cpu_does():
    """The same: each pair of an exponent and a mantissa, with what decides about rounding behind them."""
    upper = np.arange(65536, dtype=np.uint32) << np.uint32(16)
    values = (upper[:, None] | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).reshape(-1).view(F4)
    values = values[~np.isnan(values)]
    there, here = on_both([np.zeros(len(values), BF), -values])
    for arrays in (there, here):
        functional.sgd(*arrays, step=1, lr=1.0)
    assert_equal(there, here)


NOISE = fastopt.GradientNoise(eta=0.3, gamma=0.55, seed=2**40 + 7)
OPTIONS = {
    "stochastic": (BF, BF, {"rounding": "stochastic", "seed": 2**40 + 5}, {}),
    "stochastic, odd first element": (F2, BF, {"rounding": "stochastic", "first_element": 7}, {}),
    "kahan, average": (BF, BF, {"rounding": "kahan", "ema_decay": 0.9, "state_dtype": "float32"}, {}),
    "master, average, zeroing": (
        BF,
        F4,
        {"rounding": "master", "ema_decay": 0.9, "state_dtype": "bfloat16"},
        {"zero_grads": True},
    ),
    "8 bits": (F4, F4, {"state_dtype": "8bit"}, {}),
    "noise": (F4, F4, {"gradient_noise": NOISE, "first_element": 7}, {"grad_scale": 0.5}),
    "noise of float64": (F8, F8, {"gradient_noise": NOISE}, {}),
    "noise, 8 bits, zeroing": (
        BF,
        F4,
        {"gradient_noise": NOISE, "state_dtype": "8bit", "rounding": "kahan"},
        {"zero_grads": True},
    ),
    "stochastic, 8 bits": (BF, F4, {"rounding": "stochastic", "state_dtype": "8bit"}, {}),
    "clipped": (F4, F4, {}, {"max_norm": 0.5}),
    "clipped by value": (F4, F4, {}, {"clip_value": 0.25, "grad_scale": 0.5}),
    "each clipped": (F4, BF, {"state_dtype": "bfloat16"}, {"clip_norm": 0.5, "clip_value": 0.02}),
    "noise, clipped by value": (F8, F8, {"gradient_noise": NOISE}, {"clip_value": 0.25}),
    "float16, clipped and checked": (F2, F2, {}, {"max_norm": 0.5, "skip_nonfinite": True}),
}


@pytest.mark.parametrize(
    ("case", "groups"),
    [
        *((case, False) for case in OPTIONS),
        *(pytest.param(case, True, marks=[pytest.mark.slow] * (case != "clipped")) for case in OPTIONS),
    ],
)
def test_optimizers_have_the_cpus_bits(case, groups):
    param_dtype, grad_dtype, options, how = OPTIONS[case]
    rng = np.random.default_rng(0)
    shapes = [(5003,), (70, 70), (0,), (4099,)]
    params, grads = ([rng.standard_normal(s).astype(d) for s in shapes] for d in (param_dtype, grad_dtype))
    there, here = on_both(params)
    grads_there, grads_here = on_both(grads)

    def optimizer(params):
        own = [{"params": params[:2]}, {"params": params[2:], "lr": 0.01, "weight_decay": 0.3}] if groups else params
        return fastopt.Adam(own, weight_decay=0.1, **options)

    ours, cpus = optimizer(there), optimizer(here)
    for _ in range(3):
        ours.step(grads_there, **how)
        cpus.step(grads_here, **how)
        assert ours.last_grad_norm == cpus.last_grad_norm
    assert_equal(there, here)
    assert_equal(grads_there, grads_here)
    for i in range(len(shapes)):
        for name in ours.state[i]:
            if name != "step":
                np.testing.assert_array_equal(ours.state_values(i, name), cpus.state_values(i, name))
    saved = ours.state_dict()
    again = optimizer(on_both(params)[0])
    again.load_state_dict(saved)
    np.testing.assert_array_equal(again.state_values(1, "exp_avg_sq"), cpus.state_values(1, "exp_avg_sq"))


def test_sums_of_several_batches_have_the_cpus_bits():
    rng = np.random.default_rng(0)
    shapes = [(503,), (7, 70), (0,)]
    params = [rng.standard_normal(s).astype(d) for s, d in zip(shapes, (F4, BF, F4), strict=True)]
    there, here = on_both(params)
    ours, cpus = fastopt.Adam(there, lr=0.1), fastopt.Adam(here, lr=0.1)
    for _ in range(2):
        for _ in range(2):
            grads = [rng.standard_normal(p.shape).astype(p.dtype) for p in params]
            grads_there, grads_here = on_both(grads)
            ours.accumulate(grads_there)
            cpus.accumulate(grads_here)
        ours.step(grad_scale=0.5, max_norm=1.0)
        cpus.step(grad_scale=0.5, max_norm=1.0)
        assert ours.last_grad_norm == cpus.last_grad_norm
    assert_equal(there, here)


@pytest.mark.parametrize("cls", [fastopt.Adagrad, fastopt.RowwiseAdagrad])
def test_sums_of_rows_of_several_batches_have_the_cpus_bits(cls):
    """Of bags too, and of a batch that names no row; what a batch was is not read again."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((9, 20)).astype(F4)
    there, here = on_both([table])
    ours, cpus = cls(there, lr=0.1), cls(here, lr=0.1)
    for count in (40, 0, 3, 70):
        indices, values = rng.integers(0, 9, count), rng.standard_normal((count, 20)).astype(F4)
        offsets = np.arange(count)
        on_device = DeviceArray(indices), DeviceArray(values), DeviceArray(offsets)
        if count == 3:
            ours.accumulate([fastopt.RowSparse.bags(on_device[0], on_device[2], on_device[1])])
            cpus.accumulate([fastopt.RowSparse.bags(indices, offsets, values)])
        else:
            ours.accumulate([fastopt.RowSparse(*on_device[:2])])
            cpus.accumulate([fastopt.RowSparse(indices, values)])
        on_device[1].memory.copy_to_device(np.full(values.nbytes, 255, "u1"))
    ours.step(max_norm=1.0)
    cpus.step(max_norm=1.0)
    assert ours.last_grad_norm == cpus.last_grad_norm
    assert_equal(there, here)
    with pytest.raises(ValueError, match=r"found index 9, expected 0 to 8, as params\[0\] has 9 rows"):
        ours.accumulate([fastopt.RowSparse(DeviceArray(np.array([9])), DeviceArray(values[:1]))])


@pytest.mark.parametrize("first", [0, 1, 64, 128])
def test_random_numbers_are_exchanged_where_counters_and_warps_begin_together(first):
    """And drawn by each thread elsewhere: the first tensor's elements begin at `first`, others' at odd numbers."""
    rng = np.random.default_rng(first)
    sizes = [256, 512, 4096, 127, 255, 257, 8192 + 384, 5]
    host = [[rng.standard_normal(n).astype(BF) for n in sizes] for _ in range(2)]
    there, here = zip(*(on_both(arrays) for arrays in host), strict=True)
    for params, grads in (there, here):
        opt = fastopt.SGD(params, lr=1e-2, rounding="stochastic", seed=2**40 + 5, first_element=first)
        for _ in range(2):
            opt.step(grads)
    assert_equal(there[0], here[0])


def test_tables_of_many_tensors():
    """They are written to the device in several parts."""
    there, here = on_both([np.full(3, k, F4) for k in range(600)])
    fastopt.SGD(there[:300], lr=0.5).step(there[300:])
    fastopt.SGD(here[:300], lr=0.5).step(here[300:])
    assert_equal(there, here)


def test_a_functional_form_finds_an_array_that_was_put_elsewhere():
    there, here = on_both([parameter(300).astype(F4) for _ in range(2)])
    functional.sgd(*there, step=1, lr=0.1)
    functional.sgd(*here, step=1, lr=0.1)
    there[1].memory = DeviceArray(2 * there[1].get()).memory
    functional.sgd(*there, step=1, lr=0.1)
    functional.sgd(here[0], 2 * here[1], step=1, lr=0.1)
    assert_equal(there[:1], here[:1])


def test_tensors_at_different_steps_have_coefficients_of_their_own():
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(257).astype(F4) for _ in range(5)] for _ in range(2))
    (there, here), (grads_there, grads_here) = on_both(params), on_both(grads)
    ours, cpus = fastopt.NAdam(there), fastopt.NAdam(here)
    for step in range(4):
        present = [i % 4 >= step for i in range(5)]
        ours.step([g if p else None for g, p in zip(grads_there, present, strict=True)])
        cpus.step([g if p else None for g, p in zip(grads_here, present, strict=True)])
    assert_equal(there, here)


def test_other_gradients_than_the_step_before(gpu):
    (there,), (here,) = on_both([parameter(1000).astype(F4)])
    ours, cpus = fastopt.Adam(there), fastopt.Adam(here)
    for g in gradients(1000, 3):
        g, there_now = g.astype(F4), DeviceArray(g.astype(F4))
        with without_waiting(gpu):
            ours.step(there_now)
        del there_now
        cpus.step(g)
        gc.collect()
    assert_equal([there], [here])
    plan = ours.bind(DeviceArray(g))  # which nobody but the plan has
    gc.collect()
    with without_waiting(gpu):
        plan.step()
    cpus.step(g)
    assert_equal([there], [here])


# ---- norms ----


@pytest.mark.parametrize("dtype", [F4, F8, F2, BF], ids=str)
def test_norms_have_the_cpus_bits(dtype):
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(s).astype(dtype) for s in [(9001,), (0,), (5, 7), (4096,)]]
    there, here = on_both(grads)
    assert fastopt.global_norm(there) == fastopt.global_norm(here)
    rows = rng.integers(0, 9, 30), rng.standard_normal((30, 3)).astype(dtype)
    there, here = RowSparse(*map(DeviceArray, rows)), RowSparse(*rows)
    assert fastopt.global_norm([there]) == fastopt.global_norm([here])


def test_gradients_are_clipped_in_place():
    there, here = on_both([np.full(300, 2.0, F4), np.full((3, 4), 1.0, BF)], step=2)
    assert fastopt.clip_grad_norm_(there, 1.0) == fastopt.clip_grad_norm_(here, 1.0)
    assert_equal(there, here)


# ---- what is refused ----


def ones(n=6, dtype=F4, **layout):
    return DeviceArray(np.ones(n, dtype), **layout)


def test_bad_input_gets_a_named_error_and_changes_nothing(tmp_path):
    param = ones()
    cases = {
        "read-only": ({"param": ones(read_only=True)}, ValueError, "param: found a read-only array"),
        "read-only state": ({"state": ones(read_only=True)}, ValueError, "momentum_buffer: found a read-only array"),
        "host gradient": ({"grad": np.ones(6, F4)}, ValueError, "grad: .* on cpu, expected one on cuda:0 as param is"),
        "host state": ({"state": np.ones(6, F4)}, ValueError, "momentum_buffer: .* cpu, expected one on cuda:0"),
        "shape": ({"grad": ones(5)}, ValueError, r"grad: found shape \(5,\), expected \(6,\)"),
        "dtype": ({"grad": ones(dtype=np.dtype("i4"))}, TypeError, "grad: found dtype int32"),
        "overlap": ({"grad": param, "state": param}, ValueError, "found memory shared with"),
        "backend": ({"backend": "native"}, ValueError, "backend: found 'native', expected 'numba-cuda'"),
    }
    for case, (changes, error, message) in cases.items():
        call = {"param": param, "grad": ones(), "state": ones(), "backend": None, **changes}
        with pytest.raises(error, match=message):
            functional.momentum(call["param"], call["grad"], call["state"], step=1, backend=call["backend"])
        assert (param.get() == 1).all(), case
    with pytest.raises(
        ValueError, match=r"params\[1\]: found an array on cpu, expected one on cuda:0 as params\[0\] is"
    ):
        fastopt.Adam([param, np.ones(3, F4)])
    with pytest.raises(ValueError, match=r"state_dir: .* expected None for parameters on cuda:0"):
        fastopt.Adam([param], state_dir=tmp_path)
    with pytest.raises(ValueError, match="grads: found an array on cpu, expected one on cuda:0 as params is"):
        fastopt.SGD(param).step(RowSparse(np.arange(1), np.ones(1, F4)))
    with pytest.raises(ValueError, match="expected 'native' or 'numba' for arrays on cpu"):
        fastopt.Adam([np.ones(3, F4)], backend="numba-cuda")
    with pytest.raises(ValueError, match=r"param: found the address \d+, expected a multiple of the 4"):
        odd = ones()
        interface = dict(odd.__cuda_array_interface__, data=(odd.__cuda_array_interface__["data"][0] + 2, False))
        functional.sgd(type("Odd", (), {"__cuda_array_interface__": interface, "dtype": F4})(), ones(), step=1)
    with pytest.raises(TypeError, match="no CUDA device's"):
        interface = dict(ones().__cuda_array_interface__, data=(np.ones(6, F4).ctypes.data, False))
        functional.sgd(type("Host", (), {"__cuda_array_interface__": interface, "dtype": F4})(), ones(), step=1)


def test_arrays_of_jax_are_read_and_never_written():
    kind = type("ArrayImpl", (DeviceArray,), {"__module__": "jaxlib._jax"})
    with pytest.raises(ValueError, match="param: found a JAX array, which nothing may change, expected a writable one"):
        functional.sgd(kind(np.ones(6, F4)), ones(), step=1)
    param = ones()
    functional.sgd(param, kind(np.ones(6, F4)), step=1, lr=0.5)
    assert (param.get() == 0.5).all()


def test_strided_indices_are_refused():
    with pytest.raises(ValueError, match=r"indices: found strides .*, expected a contiguous array"):
        RowSparse(DeviceArray(np.arange(3), step=2), ones(3))
    with pytest.raises(ValueError, match="indices: found an array on cpu, expected one on cuda:0 as values is"):
        RowSparse(np.arange(3), ones(3))


def test_too_little_memory_leaves_everything_as_it_was(gpu):
    if not hasattr(gpu, "fail_allocations_after"):
        pytest.skip("memory of a real device does not run out on demand")
    param, grads = ones(100_000), [ones(100_000)]
    gpu.fail_allocations_after(0)
    with pytest.raises(MemoryError):
        fastopt.Adam([param])
    gpu.fail_allocations_after(None)
    optimizer = fastopt.Adam([param])
    gpu.fail_allocations_after(0)
    with pytest.raises(MemoryError):
        optimizer.step(grads)
    gpu.fail_allocations_after(None)
    assert optimizer.state[0]["step"] == 0
    assert (param.get() == 1).all()
    optimizer.step(grads)
    assert optimizer.state[0]["step"] == 1


def test_a_captured_step_is_refused_before_it_counts(gpu):
    if not hasattr(gpu, "capturing"):
        pytest.skip("needs the stub driver, whose streams capture at will")
    param = ones()
    optimizer = fastopt.Adam([param])
    grads = [ones()]
    optimizer.step(grads)
    gpu.capturing = True
    with pytest.raises(RuntimeError, match=r"captured in a CUDA graph.*capturable=True"):
        optimizer.step(grads)
    with pytest.raises(RuntimeError, match=r"captured in a CUDA graph.*capturable=True"):
        optimizer.step(grads, max_norm=1.0)
    with pytest.raises(RuntimeError, match="leave them out there"):
        fastopt.global_norm(grads)
    gpu.capturing = False
    assert optimizer.state[0]["step"] == 1


def test_states_are_numbas_arrays():
    optimizer = fastopt.Adam([ones()], state_dtype="bfloat16", ema_decay=0.9)
    state = optimizer.state[0]
    assert state["exp_avg"].dtype == BF
    assert (state["ema"].copy_to_host() == 1).all()


def test_the_benchmark_of_a_device(gpu, capsys, tmp_path):
    pytest.importorskip("rich", reason='rich is not installed: pip install -e ".[bench]"')
    pytest.importorskip("matplotlib", reason='matplotlib is not installed: pip install -e ".[bench]"')
    from fastopt.bench import on_device
    from fastopt.cli import main

    if not hasattr(gpu, "execute"):
        pytest.skip("on a real device it takes longer than all other tests, and .ci/gpu runs it by itself")
    gpu.execute = False
    size = ["--size", "5000", "--sizes", "1e3,1e4", "--repeats", "2"]
    files = ["--plot", str(tmp_path / "x.svg"), "--json", str(tmp_path / "x.json")]
    assert main(["bench", "--cuda", *size, "--rules", "adam", *files]) == 0
    printed = capsys.readouterr().out
    for part in (
        "One step over 5,000 float32 elements on a CUDA device",
        "1000 tensors of 1000",
        "Adam over 5,000 elements by how they are stored",
        "lookups of rows of 64 float32",
        "AdamW over 300 tensors",
        "Time of the host",
        "Adam on a CUDA device by size",
    ):
        assert part in printed
    rows = json.loads((tmp_path / "x.json").read_text())
    kinds = {
        "cuda-storages": on_device.STORED, "cuda-rows": on_device.ROWS, "cuda-clipping": on_device.CLIPPING,
        "cuda-host": on_device.HOST, "cuda-sizes": ["1000", "10000"],
    }  # fmt: skip
    for key, names in kinds.items():
        assert [row["name"] for row in rows[key]] == list(names), key
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["x-cuda-sizes.svg", "x-cuda.svg"]


def test_what_the_process_says_of_the_backend():
    assert fastopt.available_backends()["numba-cuda"] == "available"


class OnTheHost(Room):
    """Products of matrices by NumPy, for arrays of Numba, which has none."""

    def clear(self, matrix):
        matrix.copy_to_device(np.zeros(matrix.shape, F4))

    def apply(self, update, matrix, values):
        x = matrix.copy_to_host()
        gram, other = np.empty((2, min(x.shape), min(x.shape)), F4)
        matrix.copy_to_device(update(OfNumPy(np), x, np.empty_like(x), gram, other, *values))


def test_the_ends_of_a_matrix_rule(gpu, monkeypatch):
    """What storage asks for, on the device; the products between them are the libraries'."""
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(shape).astype(F4) for shape in ((5, 7), (9, 4))] for _ in range(2))
    options = {"lr": 0.1, "gradient_noise": fastopt.GradientNoise(0.1, 0.55, 3), "ema_decay": 0.9}
    there, here = on_both(params)
    with pytest.raises(TypeError, match=r"params\[0\]: found a DeviceArray on cuda:0, expected a tensor of torch or"):
        fastopt.Muon(there)
    on_host = fastopt.Muon(here, **options)
    limits = {"max_norm": 2.0}, {"clip_norm": 1.0}, {"clip_norm": 1.0, "skip_nonfinite": True}, {}
    for how in limits:
        on_host.step(grads, grad_scale=0.5, **how)
    for module in ("arrays.libraries.matrices", "binding.owned"):
        monkeypatch.setattr(f"fastopt.{module}.library_of", lambda *_: OfNumPy(np))
    monkeypatch.setattr("fastopt.jobs.tables.Room", OnTheHost)
    on_device = fastopt.Muon(there, **options)
    waited = []
    monkeypatch.setattr("fastopt.binding.binding.read", lambda *given: waited.append(given) or read(*given))
    for how in limits:
        own, _ = on_both(grads)
        on_device.step(own, grad_scale=0.5, zero_grads=True, **how)
        assert not any(g.get().any() for g in own)
        assert len(waited) == ("skip_nonfinite" in how), "norms are waited for where a step may be skipped"
        waited.clear()
    assert on_device.last_grad_norm == on_host.last_grad_norm
    for p, want, state, expected in zip(there, here, on_device.state, on_host.state, strict=True):
        buffer, average = (state[name].copy_to_host() for name in ("momentum_buffer", "ema"))
        assert_same_bits([p.get(), buffer, average], [want, expected["momentum_buffer"], expected["ema"]])
        assert int(state["step"]) == len(limits)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.over_all])
def test_a_stage_over_all_tensors_adds_up_those_of_all_jobs(gpu, name):
    """Two storages are two jobs, one of whose tensors has no elements; nothing waits."""
    hyper, rng = hyper_of(name), np.random.default_rng(0)
    params = [rng.standard_normal(n).astype(dtype) for n, dtype in ((300, "f4"), (0, "f4"), (5000, "f4"), (70, "f2"))]
    states = [make_states(name, hyper, param) for param in params]
    lists = [params, *map(list, zip(*states, strict=True))]
    pairs = [on_both(arrays) for arrays in lists]
    for step in (1, 2, 3):
        grads, own_grads = on_both([rng.standard_normal(param.size).astype(param.dtype) for param in params])
        with without_waiting(gpu):
            getattr(functional, name)(pairs[0][0], grads, *(pair[0] for pair in pairs[1:]), step=step, **hyper)
        getattr(functional, name)(pairs[0][1], own_grads, *(pair[1] for pair in pairs[1:]), step=step, **hyper)
    for on_device, on_host in pairs:
        assert_equal(on_device, on_host)
