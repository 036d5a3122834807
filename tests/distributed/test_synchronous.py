"""Synchronous: the bits of one process, for any number of ranks, on threads."""

import functools
import threading

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt import distributed as fd
from fastopt.distributed.carriers import Threads, current, run_threads

from ..test_optimizers import EVERY, REQUIRED

SHAPES = {"long": (9001,), "table": (150, 60), "bias": (7,), "last": (3, 2000)}
SLICES = 8


def parameters(dtypes="f4"):
    rng = np.random.default_rng(0)
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,) * len(SHAPES)
    return {
        name: rng.standard_normal(shape).astype("f4").astype(dtype)
        for (name, shape), dtype in zip(SHAPES.items(), dtypes, strict=True)
    }


def gradient(params, step, number):
    """The gradient of a slice: it depends on the parameters too, so that what goes astray spreads."""
    rng = np.random.default_rng(100 * step + number)
    return {
        name: (rng.standard_normal(p.shape) + 0.1 * p.astype("f4")).astype(p.dtype if p.dtype.itemsize > 2 else "f4")
        for name, p in params.items()
    }


def tree_sum(leaves):
    half = len(leaves) // 2
    return leaves[0] if not half else tree_sum(leaves[:half]) + tree_sum(leaves[half:])


def trained_alone(cls, dtypes, options, steps, max_norm, gradient=gradient, **clip):
    """The training by the class itself, with the sum of the slices."""
    params = parameters(dtypes)
    optimizer = cls(params, **options)
    norms = []
    for step in range(steps):
        slices = [gradient(params, step, number) for number in range(SLICES)]
        grads = {
            name: None if slices[0][name] is None else tree_sum([grads[name] for grads in slices]) for name in params
        }
        optimizer.step(grads, grad_scale=1 / SLICES, max_norm=max_norm, **clip)
        norms.append(optimizer.last_grad_norm)
    return params, optimizer.state_dict(), norms


def trained(cls, dtypes, options, steps, max_norm, gradient=gradient, wire="float32", **clip):
    """The same by this rank."""
    params = parameters(dtypes)
    optimizer = fd.Synchronous(cls, params, slices=SLICES, wire=wire, **options)
    norms = []
    for step in range(steps):
        for number, _ in optimizer.slices(2 * SLICES):
            optimizer.add(number, gradient(params, step, number))
        optimizer.step(max_norm=max_norm, **clip)
        norms.append(optimizer.last_grad_norm)
    return params, optimizer.state_dict(), norms


def assert_same(found, expected):
    params, states, norms = found
    assert norms == expected[2]
    for name, own in params.items():
        assert own.tobytes() == expected[0][name].tobytes(), name
    if states is None:
        return
    assert states["param_groups"] == expected[1]["param_groups"]
    for i, state in expected[1]["state"].items():
        assert states["state"][i].keys() == state.keys()
        for name, own in state.items():
            other = states["state"][i][name]
            assert np.shape(other) == np.shape(own) and other.dtype == own.dtype, (i, name)
            assert np.asarray(other).tobytes() == np.asarray(own).tobytes(), (i, name)


def check(cls, ranks, dtypes="f4", options=(), steps=2, max_norm=None, machines=None, **more):
    options = {**REQUIRED.get(cls.__name__, {}), **dict(options)}
    expected = trained_alone(cls, dtypes, options, steps, max_norm, **more)
    run = functools.partial(trained, cls, dtypes, options, steps, max_norm, **more)
    results = [run()] if ranks is None else run_threads(ranks, run, machines=machines and machines(ranks))
    for found in results:
        assert_same(found, expected)
    assert [found[1] is None for found in results] == [rank > 0 for rank in range(len(results))]


#: On which machine each rank is.
PLACES = {
    "shared memory": lambda ranks: [0] * ranks,
    "messages": range,
    "two machines": lambda ranks: [rank >= ranks // 2 for rank in range(ranks)],
}
WAYS = pytest.mark.parametrize("machines", PLACES.values(), ids=PLACES)


@WAYS
@pytest.mark.parametrize("ranks", [None, 1, 2, 3, 4, 5, 7, 8])
def test_bits_are_those_of_one_process(ranks, machines):
    check(fastopt.AdamW, ranks, machines=machines)
    check(fastopt.AdamW, ranks, machines=machines, max_norm=0.5)


@pytest.mark.parametrize("places", [[0, 1, 0, 1], [1, 0, 0, 1, 2], [0, 0, 0, 1], [0, 1, 1, 0, 0, 1, 2]], ids=str)
def test_ranks_may_be_on_any_machine(places):
    def machines(ranks):
        return places

    check(fastopt.AdamW, len(places), STORED["several"][0], max_norm=0.5, machines=machines)
    check(fastopt.AdamW, len(places), options={"state_dtype": "8bit"}, machines=machines)
    expected = trained(fastopt.AdamW, "f4", {}, 2, 1.0, gradient=sparse)
    for found in run_threads(len(places), lambda: with_memory_in_common({}, sparse), machines=places):
        assert_same(found, (*expected[:2], []))


def test_one_sum_goes_to_each_rank_elsewhere(monkeypatch):
    """Of all ranks on a machine together, and one copy of what comes back: the bytes do not grow with their number."""
    sent, send = [], Threads.send
    monkeypatch.setattr(Threads, "send", lambda self, to, array: sent.append(array.nbytes) or send(self, to, array))

    def run():
        params = fd.shared([np.zeros(3 * 4096, "f4")])
        optimizer = fd.Synchronous(fastopt.SGD, params, slices=8)
        for number, _ in optimizer.slices(8):
            optimizer.add(number, optimizer.grads)
        optimizer.step()

    for places in [0, 1], [0, 0, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1]:
        sent.clear()
        run_threads(len(places), run, machines=places)
        assert sum(sent) == 2 * 2 * 3 * 4096 * 4 / 2  # there and back, each machine half, for float32


@WAYS
@pytest.mark.parametrize("limits", [{"clip_norm": 0.5}, {"clip_value": 0.1}, {"clip_norm": 5.0, "clip_value": 0.1}])
def test_gradients_are_clipped_each_by_itself(limits, machines):
    for ranks in (None, 2, 3):
        check(fastopt.AdamW, ranks, machines=machines, **limits)
    several, options = STORED["several"][0], {"gradient_noise": fastopt.GradientNoise(0.1, 0.5, 1)}
    check(fastopt.LARS, 3, several, machines=machines, **limits)
    check(fastopt.RowwiseAdagrad, 3, machines=machines, **limits)
    check(fastopt.SGD, 5, options=options, machines=machines, **limits)


def test_what_was_clipped_is_no_longer_so():
    def run():
        params = [np.zeros(9000, "f4"), np.zeros(3, "f4")]
        optimizer = fd.Synchronous(fastopt.SGD, params, slices=2, lr=1.0)
        for limits in {"clip_norm": 1.0}, {}, {"clip_value": 0.5}, {}:
            for number, _ in optimizer.slices(2):
                optimizer.add(number, [np.full(9000, 8.0, "f4"), np.full(3, 1.0, "f4")])
            optimizer.step(**limits)
        return [param[[0, -1]].tolist() for param in params]

    first, second = 16.5 + 1 / 9000**0.5, 2.5 + 1 / 3**0.5
    for ranks in 1, 2:
        for found in run_threads(ranks, run):
            np.testing.assert_allclose(found, [[-first] * 2, [-second] * 2], rtol=1e-6)


#: The classes whose shards can be updated by themselves.
PARTED = [case for case in EVERY if not getattr(fastopt, case[0])._arguments.rules[0].over_all]


@pytest.mark.parametrize(("name", "options"), PARTED)
def test_every_rule(name, options):
    check(getattr(fastopt, name), 3, options={**options, "weight_decay": 0.01}, max_norm=1.0)
    check(getattr(fastopt, name), 4, options=options, machines=range)


STORED = {
    "float64": ("f8", {}),
    "bfloat16": (ml_dtypes.bfloat16, {}),
    "float16": ("f2", {}),
    "bfloat16 with master": (ml_dtypes.bfloat16, {"rounding": "master"}),
    "bfloat16, stochastic": (ml_dtypes.bfloat16, {"rounding": "stochastic", "seed": 3, "first_element": 17}),
    "8-bit states": ("f4", {"state_dtype": "8bit"}),
    "bfloat16 states": ("f4", {"state_dtype": "bfloat16"}),
    "an average": ("f4", {"ema_decay": 0.9}),
    "noise": ("f4", {"gradient_noise": fastopt.GradientNoise(0.1, 0.5, 1)}),
    "a schedule": ("f4", {"lr": fastopt.schedules.Cosine(1e-2, steps=5)}),
    "several": (("f8", "f4", ml_dtypes.bfloat16, "f4"), {}),
}


@WAYS
@pytest.mark.parametrize("what", STORED)
def test_every_storage(what, machines):
    dtypes, options = STORED[what]
    check(fastopt.AdamW, 3, dtypes, options, max_norm=1.0, machines=machines)
    check(fastopt.AggMo, 2, dtypes, options, machines=machines)


@WAYS
def test_sums_are_added_up_within_the_pass(machines, monkeypatch):
    native = pytest.importorskip("fastopt.backends.native", exc_type=ImportError)

    def run():
        params = parameters()
        optimizer = fd.Synchronous(fastopt.AdamW, params, slices=SLICES)
        for number, _ in optimizer.slices(SLICES):
            optimizer.add(number, gradient(params, 0, number))
        optimizer.step()
        return [own.any() for own in optimizer._exchange._summed.values()]

    assert run_threads(3, run, machines=machines(3)) == [[False]] * 3
    monkeypatch.setattr(native, "prepare_sums", None)  # as of a backend that cannot
    assert run_threads(3, run, machines=machines(3)) == [[True]] * 3
    check(fastopt.AdamW, 3, machines=machines)


def test_groups_keep_their_own():
    def run(ranks):
        params = parameters()
        names = list(params)
        groups = [
            {"params": {name: params[name] for name in names[:2]}, "lr": 0.1, "name": "first"},
            {"params": [params[name] for name in names[2:]], "momentum": 0.0, "weight_decay": 0.1},
        ]
        if ranks is None:
            optimizer = fastopt.SGD(groups, momentum=0.9, lr=0.01)
        else:
            optimizer = fd.Synchronous(fastopt.SGD, groups, slices=SLICES, momentum=0.9, lr=0.01)
        for step in range(3):
            slices = [gradient(params, step, number) for number in range(SLICES)]
            if ranks is None:
                optimizer.step([tree_sum([g[name] for g in slices]) for name in names], grad_scale=1 / SLICES)
                optimizer.param_groups[0]["lr"] = 0.05
            else:
                for number, _ in optimizer.slices(SLICES):
                    optimizer.add(number, list(slices[number].values()))
                optimizer.step()
                optimizer.optimizer.param_groups[0]["lr"] = 0.05
        saved = optimizer.state_dict()
        return params, saved, []

    expected = run(None)
    for found in [*run_threads(3, lambda: run(3)), *run_threads(1, lambda: run(1))]:
        assert_same(found, expected)


def some_missing(params, step, number):
    grads = gradient(params, step, number)
    return {name: None if (name == "table" and step == 1) or name == "bias" else g for name, g in grads.items()}


@WAYS
def test_schedule_free_parameters_are_moved_in_all_ranks(machines):
    def run(distributed):
        params = parameters()
        cls = fastopt.ScheduleFreeAdamW
        optimizer = fd.Synchronous(cls, params, slices=SLICES) if distributed else cls(params)
        for step in range(2):
            slices = [gradient(params, step, number) for number in range(SLICES)]
            if distributed:
                for number, _ in optimizer.slices(SLICES):
                    optimizer.add(number, slices[number])
                optimizer.step()
            else:
                optimizer.step({name: tree_sum([g[name] for g in slices]) for name in params}, grad_scale=1 / SLICES)
        optimizer.eval()
        found = [p.copy() for p in params.values()]
        if distributed:
            for number, _ in optimizer.slices(SLICES):
                optimizer.add(number, slices[number])
            with pytest.raises(ValueError, match="eval mode"):
                optimizer.step()
        optimizer.train()
        if distributed:
            optimizer.step()
        else:
            optimizer.step({name: tree_sum([g[name] for g in slices]) for name in params}, grad_scale=1 / SLICES)
        return [*found, *params.values()]

    expected = run(False)
    for found in run_threads(3, lambda: run(True), machines=machines(3)):
        for own, other in zip(found, expected, strict=True):
            assert own.tobytes() == other.tobytes()
    with pytest.raises(TypeError, match=r"^optimizer: found SGD, expected a Schedule-Free class"):
        fd.Synchronous(fastopt.SGD, parameters(), slices=1).eval()


@WAYS
def test_a_parameter_without_gradients_stays(machines):
    check(fastopt.AdamW, 3, gradient=some_missing, machines=machines, max_norm=1.0)


def sparse(params, step, number):
    """Rows of the table and of the long vector, some named several times, some by several slices."""
    rng = np.random.default_rng(100 * step + number)
    grads = gradient(params, step, number)
    for name, rows in (("table", 150), ("long", 9001), ("last", 3)):
        chosen = rng.integers(0, rows, min(40, 3 * rows))
        grads[name] = fastopt.RowSparse(
            chosen, rng.standard_normal((len(chosen), *params[name].shape[1:])).astype("f4")
        )
    return grads


@WAYS
@pytest.mark.parametrize("ranks", [None, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5))])
@pytest.mark.parametrize("name", ["Adam", "RowwiseAdagrad", pytest.param("Adagrad", marks=pytest.mark.slow)])
def test_rows_are_updated_by_the_ranks_that_have_them(name, ranks, machines):
    """One process accumulates the slices' rows, in order."""
    cls = getattr(fastopt, name)

    def alone(**limits):
        params = parameters()
        optimizer = cls(params)
        norms = []
        for step in range(3):
            slices = [sparse(params, step, number) for number in range(SLICES)]
            for grads in slices:
                optimizer.accumulate({**grads, "bias": None})
            grads = optimizer._owned.sums.gradients(len(SHAPES))
            optimizer._owned.sums.clear()
            grads = dict(zip(SHAPES, grads, strict=True))
            grads["bias"] = tree_sum([own["bias"] for own in slices])
            optimizer.step(grads, grad_scale=1 / SLICES, **limits)
            norms.append(optimizer.last_grad_norm)
        return params, optimizer.state_dict(), norms

    for limits in {"max_norm": 1.0}, {"max_norm": None, "clip_norm": 0.5, "clip_value": 0.05}:
        run = functools.partial(trained, cls, "f4", {}, 3, gradient=sparse, **limits)
        expected = alone(**limits)
        for found in [run()] if ranks is None else run_threads(ranks, run, machines=machines(ranks)):
            assert_same(found, expected)


def test_slices_may_be_added_in_any_order():
    def run(order):
        params = parameters()
        optimizer = fd.Synchronous(fastopt.SGD, params, slices=SLICES, lr=0.1)
        for step in range(2):
            grads = [gradient(params, step, number) for number in range(SLICES)]
            for number in order(number for number, _ in optimizer.slices(SLICES)):
                optimizer.add(number, grads[number])
            optimizer.step()
        return params

    expected = run(list)
    for order in (lambda numbers: list(numbers)[::-1], lambda numbers: sorted(numbers, key=lambda n: (n % 3, n))):
        for found in [run(order), *run_threads(3, lambda order=order: run(order))]:
            for name, own in found.items():
                assert own.tobytes() == expected[name].tobytes()


def test_sums_travel_in_bfloat16():
    """Each block that leaves a rank is rounded once, to the nearest."""
    results = run_threads(
        2, functools.partial(trained, fastopt.SGD, "f4", {"lr": 1.0}, 1, None, wire="bfloat16"), machines=[0, 1]
    )
    before = parameters()
    slices = [gradient(before, 0, number) for number in range(SLICES)]
    halves = [{name: tree_sum([g[name] for g in part]) for name in before} for part in (slices[:4], slices[4:])]
    first, second = (np.concatenate([half[name].reshape(-1) for name in before]) for half in halves)
    rounded_first, rounded_second = (half.astype(ml_dtypes.bfloat16).astype("f4") for half in (first, second))
    start, found = (np.concatenate([p[name].reshape(-1) for name in before]) for p in (before, results[0][0]))
    of_first = found == start - (first + rounded_second) / np.float32(8)
    of_second = found == start - (rounded_first + second) / np.float32(8)
    cut = int(np.argmin(of_first))  # where the second rank's shard begins
    assert 0 < cut < len(found) and of_second[cut:].all()
    assert_same(results[1], (results[0][0], None, results[0][2]))
    of_machines = run_threads(
        4, functools.partial(trained, fastopt.SGD, "f4", {"lr": 1.0}, 1, None, wire="bfloat16"), machines=[0, 0, 1, 1]
    )
    for own in of_machines:  # each machine's sum is rounded once, as that of one rank there
        assert_same((own[0], None, own[2]), (of_machines[0][0], None, results[0][2]))
    found = np.concatenate([p.reshape(-1) for p in of_machines[0][0].values()])
    assert (found[:cut] == start[:cut] - (first + rounded_second)[:cut] / np.float32(8)).all()
    assert (found[cut:] == start[cut:] - (rounded_first + second)[cut:] / np.float32(8)).all()
    with pytest.raises(ValueError, match=r"^wire: found 'bfloat16' with a float64 parameter"):
        fd.Synchronous(fastopt.SGD, parameters("f8"), slices=2, wire="bfloat16")


def test_numbers_that_are_none_travel_in_bfloat16():
    from fastopt.distributed.wire import Wire

    wire = Wire("bfloat16", {})
    values = np.array([np.nan, -np.inf, 3.4e38, 1e-45, -0.0, 1.00390625], "f4")
    values[0:1].view("u4")[0] = 0x7F800001
    found = wire.widened(wire.narrowed(values))
    with np.errstate(invalid="ignore"):
        want = values.astype(ml_dtypes.bfloat16).astype("f4")
    assert np.isnan(found[0]) and found[1:].tobytes() == want[1:].tobytes()


# ---- memory in common ----


def with_memory_in_common(options, gradient=gradient):
    """As `trained`, with parameters that are there once, and gradients written where they are to be."""
    params = fd.shared(parameters())
    optimizer = fd.Synchronous(fastopt.AdamW, params, slices=SLICES, **options)
    for step in range(2):
        found = []
        for number, _ in optimizer.slices(SLICES):
            grads = optimizer.grads
            for name, g in gradient(params, step, number).items():
                if isinstance(g, np.ndarray):
                    grads[name][...] = g
                else:
                    grads[name] = g
            found.append(grads)
            optimizer.add(number, grads)
        optimizer.step(max_norm=1.0)
    return params, optimizer.state_dict(), []


@WAYS
@pytest.mark.parametrize("ranks", [None, 2, 3, 8])
def test_parameters_and_gradients_in_common_memory(ranks, machines):
    expected = trained_alone(fastopt.AdamW, "f4", {}, 2, 1.0)
    results = (
        [with_memory_in_common({})]
        if ranks is None
        else run_threads(ranks, lambda: with_memory_in_common({}), machines=machines(ranks))
    )
    for found in results:
        assert_same(found, (*expected[:2], []))
    addresses = {found[0]["table"].ctypes.data for found in results}
    assert len(addresses) == (len({*machines(ranks)}) if ranks else 1)


def test_rows_in_common_memory():
    expected = trained(fastopt.AdamW, "f4", {}, 2, 1.0, gradient=sparse)
    for found in run_threads(3, lambda: with_memory_in_common({}, sparse)):
        assert_same(found, (*expected[:2], []))


def test_memory_that_is_no_longer_common_is_forgotten():
    from fastopt.distributed import commons

    before = dict(commons._blocks)
    params = fd.shared([np.ones(3), np.ones((2, 2), ml_dtypes.bfloat16)])
    assert [p.tolist() for p in params] == [[1.0] * 3, [[1.0] * 2] * 2] and len(commons._blocks) == len(before) + 1
    with pytest.raises(ValueError, match=r"^optimizer: found parameters that ranks have in common"):
        fd.LocalSGD(fastopt.SGD(params), every=1)
    del params
    assert commons._blocks == before
    with pytest.raises(TypeError, match=r"^params: found groups"):
        fd.shared([{"params": np.ones(3)}])


# ---- states ----


@pytest.mark.parametrize(("saving", "loading"), [(2, 3), (3, None), (None, 4)])
@pytest.mark.parametrize(("cls", "options"), [(fastopt.AdamW, {"state_dtype": "8bit"}), (fastopt.AggMo, {})])
def test_states_of_some_ranks_load_into_others(cls, options, saving, loading):
    params, states, _ = (
        trained(cls, "f4", options, 2, None)
        if saving is None
        else run_threads(saving, lambda: trained(cls, "f4", options, 2, None))[0]
    )

    def go_on():
        own = {name: p.copy() for name, p in params.items()}
        optimizer = fd.Synchronous(cls, own, slices=SLICES, **options)
        optimizer.load_state_dict(states)
        for step in range(2, 4):
            for number, _ in optimizer.slices(SLICES):
                optimizer.add(number, gradient(own, step, number))
            optimizer.step()
        return own, optimizer.state_dict(), []

    expected = trained_alone(cls, "f4", options, 4, None)
    for found in [go_on()] if loading is None else run_threads(loading, go_on):
        assert_same((*found[:2], expected[2]), expected)


# ---- what is wrong ----


def differing(rank):
    """Calls of which those of rank 1 are others."""
    params = parameters()
    one = rank == 1
    altered = parameters()
    altered["table"][3, 5] += 1
    return {
        "optimizer": (fastopt.Adam if one else fastopt.AdamW, params, {}),
        "slices": (fastopt.AdamW, params, {"slices": 16 if one else 8}),
        "wire": (fastopt.AdamW, params, {"wire": "bfloat16" if one else "float32"}),
        "lr": (fastopt.AdamW, params, {"lr": 0.1 if one else 0.2}),
        "seed": (fastopt.AdamW, params, {"seed": rank}),
        r"the elements of params\['table'\]": (fastopt.AdamW, altered if one else params, {}),
        r"params\['bias'\]": (fastopt.AdamW, {**params, "bias": np.ones(8 if one else 7, "f4")}, {}),
    }


@pytest.mark.parametrize("what", differing(0))
def test_ranks_that_differ_are_told(what):
    errors = []

    def run():
        cls, params, options = differing(current().rank)[what]
        with pytest.raises(ValueError, match=f"^{what}: found .* in rank 1, expected .* rank 0") as error:
            fd.Synchronous(cls, params, **{"slices": 8, **options})
        errors.append(str(error.value))

    run_threads(3, run)
    assert len(set(errors)) == 1 and len(errors) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slices": 3}, r"^slices: found 3, expected a power of two, at least 1"),
        ({"slices": 2048}, r"^slices: found 2048, expected a power of two"),
        ({"slices": 8, "wire": "float16"}, r"^wire: found 'float16', expected one of float32, bfloat16"),
        ({"slices": 8, "state_dir": "x"}, r"^state_dir: found 'x', expected None"),
        ({"slices": 8, "rate": 1.0}, r"^AdamW: found 'rate'"),
        ({"slices": 8, "lr": -1.0}, r"^lr: found -1.0"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fd.Synchronous(fastopt.AdamW, parameters(), **options)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": np.ones((4, 4), "f4").T}, r"^params\['w'\]: found strides \(4, 16\), expected a contiguous array"),
        ({"w": np.ones(0, "f4")}, r"^params\['w'\]: found shape \(0,\)"),
        ({"w": np.ones(3, "i4")}, r"^params\['w'\]: found dtype int32"),
        ({"w": [1.0]}, r"^params\['w'\]\[0\]: found float"),
    ],
)
def test_wrong_parameters(params, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fd.Synchronous(fastopt.AdamW, params, slices=8)


def test_wrong_calls_add_nothing():
    params = parameters()
    before = {name: p.copy() for name, p in params.items()}
    optimizer = fd.Synchronous(fastopt.AdamW, params, slices=2, state_dtype="8bit")
    grads = gradient(params, 0, 0)
    rows = fastopt.RowSparse([1], np.ones((1, 60), "f4"))
    for call, message in [
        (lambda: optimizer.slices(3), r"^examples: found 3, expected a multiple of slices, which is 2"),
        (lambda: optimizer.slices(0), r"^examples: found 0"),
        (lambda: optimizer.add(2, grads), r"^number: found 2, expected a slice of rank 0, 0 to 1"),
        (lambda: optimizer.add(0, {**grads, "more": None}), r"^grads: found other keys"),
        (lambda: optimizer.add(0, {**grads, "bias": np.ones(8, "f4")}), r"^grads\['bias'\]: found shape \(8,\)"),
        (lambda: optimizer.add(0, {**grads, "table": rows}), r"^grads\['table'\]: found rows, .* 8-bit blocks"),
        (lambda: optimizer.add(0), r"^grads: found none, expected gradients, for params\['long'\] is no tensor"),
        (lambda: optimizer.step(), r"^grads: found slice 0 of rank 0 not added"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    optimizer.add(0, grads)
    with pytest.raises(ValueError, match=r"^number: found 0, expected a slice that has not been added"):
        optimizer.add(0, grads)
    with pytest.raises(ValueError, match=r"^grads\['bias'\]: found another kind of gradient than in other slices"):
        optimizer.add(1, {**grads, "bias": None})
    with pytest.raises(ValueError, match=r"^grads: found slice 1 of rank 0 not added"):
        optimizer.step()
    for name, p in params.items():
        assert p.tobytes() == before[name].tobytes()


@pytest.mark.parametrize(("name", "options"), [("Prodigy", {}), ("SWATS", {"over": "all"})])
def test_what_measures_all_tensors_together_is_refused(name, options):
    params = [np.ones(5, "f4")]
    with pytest.raises(ValueError, match=r"^optimizer: found .*, expected another: it measures all tensors together"):
        fd.Synchronous(getattr(fastopt, name), params, slices=2, lr=0.1, **options)
    assert (params[0] == 1).all()


def test_a_step_is_refused_in_all_ranks():
    def run(wrong):
        params = {"w": np.zeros(3, "f4"), "b": np.zeros(2, "f4")}
        optimizer = fd.Synchronous(fastopt.SGD, params, slices=4)
        one = optimizer.rank == 1
        for number, _ in optimizer.slices(4):
            if not (wrong == "slice" and number == 3):
                missing = wrong == "kind" and one
                optimizer.add(number, {"w": np.ones(3, "f4"), "b": None if missing else np.ones(2, "f4")})
        with pytest.raises(ValueError, match=messages[wrong]):
            optimizer.step(max_norm=2.0 if wrong == "max_norm" and one else 1.0)
        assert not params["w"].any()

    messages = {
        "slice": r"^grads: found slice 3 of rank 1 not added",
        "kind": r"^grads\['b'\]: found another kind of gradient in rank 1",
        "max_norm": r"^max_norm: found 2.0 in rank 1, expected 1.0 as in rank 0",
    }
    for wrong in messages:
        run_threads(2, lambda wrong=wrong: run(wrong))


@WAYS
def test_an_exception_in_a_rank_ends_all(machines):
    def run():
        params = parameters()
        optimizer = fd.Synchronous(fastopt.SGD, params, slices=4)
        for step in range(3):
            if step == 2 and optimizer.rank == 1:
                raise ZeroDivisionError("by this test")
            for number, _ in optimizer.slices(4):
                optimizer.add(number, gradient(params, step, number))
            optimizer.step()

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="by this test"):
        run_threads(4, run, machines=machines(4))
    assert threading.active_count() == before


def test_memory_of_states_is_shared_out():
    def run():
        params = [np.zeros(3_000_000, "f4"), np.zeros((500, 1000), "f4")]
        optimizer = fd.Synchronous(fastopt.Adam, params, slices=4)
        return sum(own["exp_avg"].nbytes for own in optimizer.optimizer.state)

    found = run_threads(4, run)
    assert sum(found) == 3_500_000 * 4 and max(found) <= 3_500_000 * 4 / 4 * 1.05


def test_tensors_of_torch_give_their_gradients():
    torch = pytest.importorskip("torch")

    def run():
        torch.manual_seed(0)
        model = torch.nn.Linear(300, 40)
        optimizer = fd.Synchronous(fastopt.AdamW, model.parameters(), slices=4, lr=0.1)
        for step in range(2):
            for number, part in optimizer.slices(8):
                model.zero_grad()
                x = torch.from_numpy(np.random.default_rng(step).standard_normal((8, 300)).astype("f4"))
                model(x[part]).square().mean().backward()
                optimizer.add(number)
            optimizer.step()
        return [p.detach().numpy().copy() for p in model.parameters()]

    expected = run()
    for found in run_threads(1, run):
        for own, other in zip(found, expected, strict=True):
            assert own.tobytes() == other.tobytes()


def test_torchs_classes_are_taken():
    """They have torch's arguments, and torch's state dicts, which one process goes on from."""
    torch = pytest.importorskip("torch")
    from fastopt import torch as optim

    options = {"lr": 0.1, "betas": (0.8, 0.9), "amsgrad": True, "foreach": True}

    def train(step, make):
        p = [torch.nn.Parameter(torch.linspace(-1, 1, 5000)), torch.nn.Parameter(torch.ones(3, 2))]
        optimizer = make(p)
        step(optimizer, p)
        return [x.tolist() for x in p], optimizer.state_dict()

    def alone(optimizer, params):
        for s in range(3):
            for p in params:
                p.grad = torch.full_like(p, s + 0.5)
            optimizer.step(max_norm=1.0)

    def together(optimizer, params):
        for s in range(3):
            for number, _ in optimizer.slices(2):
                for p in params:
                    p.grad = torch.full_like(p, s + number)
                optimizer.add(number)
            optimizer.step(max_norm=1.0)

    expected, states = train(alone, lambda p: optim.AdamW([{"params": p[:1]}, {"params": p[1:], "lr": 0.2}], **options))

    def run():
        def make(p):
            return fd.Synchronous(optim.AdamW, [{"params": p[:1]}, {"params": p[1:], "lr": 0.2}], slices=2, **options)

        return train(together, make)

    for found, told in [run(), *run_threads(2, run)]:
        assert found == expected
        if told is not None:
            p = [torch.nn.Parameter(torch.zeros(5000)), torch.nn.Parameter(torch.zeros(3, 2))]
            optimizer = torch.optim.AdamW([{"params": p[:1]}, {"params": p[1:]}])
            optimizer.load_state_dict(told)
            assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
            for i, x in enumerate(p):
                assert torch.equal(optimizer.state[x]["max_exp_avg_sq"], states["state"][i]["max_exp_avg_sq"])
    with pytest.raises(ValueError, match=r"^capturable: found True, expected False"):
        fd.Synchronous(optim.SGD, [torch.zeros(3)], slices=1, capturable=True)
    with pytest.raises(TypeError, match=r"^optimizer: found .*SparseAdam"):
        fd.Synchronous(optim.SparseAdam, [torch.zeros(3)], slices=1)


SCHEDULERS = {
    "StepLR": lambda rates, o: rates.StepLR(o, 2, gamma=0.1),
    "LambdaLR": lambda rates, o: rates.LambdaLR(o, [lambda e: 0.9**e, lambda e: 0.5**e]),
    "OneCycleLR": lambda rates, o: rates.OneCycleLR(o, max_lr=[0.1, 0.2], total_steps=8),
    "CyclicLR": lambda rates, o: rates.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "SequentialLR": lambda rates, o: rates.SequentialLR(
        o, [rates.ConstantLR(o, 0.1, 2), rates.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    "ReduceLROnPlateau": lambda rates, o: rates.ReduceLROnPlateau(o, patience=0),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "tensor_lr", "name"),
    [
        *(("AdamW", False, name) for name in SCHEDULERS),
        ("SGD", False, "OneCycleLR"),
        ("AdamW", True, "StepLR"),
        ("AdamW", True, "OneCycleLR"),
    ],
)
def test_torchs_schedulers_have_the_rates_of_one_process(kind, tensor_lr, name):
    """Of two ranks, saved halfway and loaded into one with its scheduler: the parameters that fastopt.torch trains."""
    torch = pytest.importorskip("torch")
    from fastopt import torch as optim

    def begin(make):
        params = [torch.nn.Parameter(torch.linspace(-1, 1, 5000)), torch.nn.Parameter(torch.ones(3, 2))]
        options = {"lr": torch.tensor(0.1) if tensor_lr else 0.1, **({"momentum": 0.9} if kind == "SGD" else {})}
        optimizer = make([{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.1}], **options)
        rated = optimizer.optimizer if isinstance(optimizer, fd.Synchronous) else optimizer
        return params, optimizer, rated, SCHEDULERS[name](torch.optim.lr_scheduler, rated)

    def train(steps, params, optimizer, rated, scheduler):
        rates = []
        for step in steps:
            for p in params:
                p.grad = p.detach() * (step + 1)
            for number, _ in optimizer.slices(2) if isinstance(optimizer, fd.Synchronous) else ():
                optimizer.add(number)
            optimizer.step()
            rated.zero_grad()
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            rates.append([float(group["lr"]) for group in rated.param_groups])
        return rates

    def together(groups, **options):
        return fd.Synchronous(getattr(optim, kind), groups, slices=2, **options)

    def first():
        params, optimizer, rated, scheduler = begin(together)
        rates = train(range(4), params, optimizer, rated, scheduler)
        return rates, [p.detach() for p in params], rated.state_dict(), scheduler.state_dict()

    alone = begin(getattr(optim, kind))
    expected = train(range(7), *alone)
    rates, values, states, rate = run_threads(2, first)[0]
    params, optimizer, rated, scheduler = begin(together)
    with torch.no_grad():
        for p, value in zip(params, values, strict=True):
            p.copy_(value)
    rated.load_state_dict(states)
    scheduler.load_state_dict(rate)
    rates += train(range(4, 7), params, optimizer, rated, scheduler)
    assert rates == expected and len({tuple(own) for own in rates}) > 1
    for found, p in zip(params, alone[0], strict=True):
        assert torch.equal(found, p)
