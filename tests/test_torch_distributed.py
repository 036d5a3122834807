"""fastopt.torch under FSDP2 and tensor parallelism: two processes with gloo do what one does."""

import multiprocessing
import traceback
import weakref
from multiprocessing.connection import wait

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this torch has no torch.distributed with gloo", allow_module_level=True)

from torch import nn  # noqa: E402
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import (  # noqa: E402
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)

import fastopt  # noqa: E402
import fastopt.torch as optim  # noqa: E402
from fastopt.drop_in.sharded import Shards  # noqa: E402
from fastopt.rules import RULES  # noqa: E402

RANKS, LIMIT = 2, 120  # seconds for a test
CLOSE = {"atol": 1e-6, "rtol": 1e-5}


# ---- two processes, which do what tests ask them for ----


def serve(rank, path, connection):
    """One of the processes: does what it is told by the name of a function here, and says what came of it."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=RANKS)
    while True:  # until it is killed, or the tests' process ends
        name, args = connection.recv()
        try:
            connection.send((True, globals()[name](rank, *args)))
        except BaseException:
            connection.send((False, traceback.format_exc()))


class Ranks:
    """Two processes. After a failure they may wait for each other: others take their place."""

    def __init__(self, folder):
        self.folder, self.count, self.processes = folder, 0, []

    def start(self):
        context = multiprocessing.get_context("spawn")
        self.count += 1
        pairs = [context.Pipe() for _ in range(RANKS)]
        path = self.folder / f"group{self.count}"
        self.connections = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=serve, args=(rank, path, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process, (_, theirs) in zip(self.processes, pairs, strict=True):
            process.start()
            theirs.close()

    def __call__(self, function, *args):
        """What a function of this module returns in each process: ``function(rank, *args)``."""
        if not self.processes:
            self.start()
        for connection in self.connections:
            connection.send((function.__name__, args))
        results = {}
        try:
            while len(results) < RANKS:  # the first that fails says why, while others may wait for it
                waiting = [connection for connection in self.connections if connection not in results]
                ready = wait(waiting, LIMIT)
                assert ready, f"{len(waiting)} of {RANKS} ranks say nothing for {LIMIT} s"
                for connection in ready:
                    good, results[connection] = connection.recv()
                    assert good, f"rank {self.connections.index(connection)}:\n{results[connection]}"
        except BaseException:
            self.kill()
            raise
        return [results[connection] for connection in self.connections]

    def kill(self):
        for process in self.processes:
            process.kill()
            process.join()
        self.processes = []


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums in torch's own kernels in the same order as in the processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    both = Ranks(tmp_path_factory.mktemp("ranks"))
    yield both
    both.kill()


# ---- what they train ----


def network(hidden=5):
    """Layers of 5 rows and of 1: the one is cut into 3 and 2, of the other the second process has nothing."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.LayerNorm(hidden), nn.Linear(hidden, 1))


def sharded_network(mesh=None):
    model = network()
    mesh = mesh or init_device_mesh("cpu", (RANKS,))
    for layer in (model[0], model[3]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def batch(k):
    generator = torch.Generator().manual_seed(k)
    return 10 * torch.randn(8, 4, generator=generator)


def train(model, optimizer, steps=range(4), **options):
    """Every process has the same examples, so that the mean of gradients is that of one."""
    norms = []
    for k in steps:
        optimizer.zero_grad()
        model(batch(k)).square().mean().backward()
        optimizer.step(**options)
        norms.append(optimizer.last_grad_norm if isinstance(optimizer, optim.Optimizer) else None)
    return norms


def whole(x):
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach().clone()


def wholes(model):
    return {name.replace("_orig_mod.", ""): whole(p) for name, p in model.named_parameters()}


def states_of(optimizer):
    return [{name: whole(x) for name, x in optimizer.state[p].items()} for p in params_of(optimizer)]


def assert_equal(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


OPTIONS = {"AdamW": {"weight_decay": 0.1}, "SGD": {"momentum": 0.9}, "Adagrad": {"initial_accumulator_value": 0.1}}


def fsdp(rank, name, options, step):
    model = sharded_network()
    optimizer = getattr(optim, name)(model.parameters(), lr=0.05, **options)
    norms = train(model, optimizer, **step)
    for p in params_of(optimizer):
        for entry, x in optimizer.state[p].items():
            if entry == "step" or entry in optimizer._arguments.rule(optimizer.param_groups[0]).scalars:
                continue
            lead = max(0, x.ndim - p.ndim)
            assert isinstance(x, DTensor), (entry, type(x))
            assert x.placements == tuple(Shard(q.dim + lead) for q in p.placements)
            assert x.device_mesh == p.device_mesh
    return wholes(model), states_of(optimizer), norms


BY_TENSOR = {rule.optimizer for rule in RULES.values() if rule.by_tensor}  # which are refused shards


@pytest.mark.parametrize("name", [name for name in optim.CLASSES if name not in BY_TENSOR])
def test_shards_have_the_bits_of_one_process(ranks, name):
    """Also where a process has nothing of a parameter. The mean of two gradients alike is the one."""
    model = network()
    options = OPTIONS.get(name, {})
    optimizer = getattr(optim, name)(model.parameters(), lr=0.05, **options)
    train(model, optimizer)
    for params, states, _ in ranks(fsdp, name, options, {}):
        assert_equal(params, wholes(model))
        assert_equal(states, states_of(optimizer))


def test_a_norm_is_that_of_all_ranks(ranks):
    model = network()
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    norms = train(model, optimizer, max_norm=0.5)
    assert max(norms) > 1
    found = ranks(fsdp, "AdamW", {}, {"max_norm": 0.5})
    for params, _, theirs in found:
        assert theirs == pytest.approx(norms, rel=1e-6)
        assert theirs == found[0][2]  # to the bit
        torch.testing.assert_close(params, wholes(model), **CLOSE)


# ---- tensor parallelism ----


def tensor_parallel(rank, shape, step):
    """Each kind of placement: rows, columns, replicas; the gradients of replicas are partial sums."""
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
    torch.manual_seed(2)
    placements = {"rows": [Replicate(), Shard(0)], "columns": [Shard(0), Shard(1)], "replica": [Replicate()] * 2}
    params = {name: torch.randn(5, 3) for name in [*placements, "plain"]}
    grads = {name: torch.randn(5, 3) for name in params}
    plain = [nn.Parameter(p.clone()) for p in params.values()]
    own = [
        nn.Parameter(distribute_tensor(p, mesh, placements[name]) if name in placements else p.clone())
        for name, p in params.items()
    ]
    one, many = optim.AdamW(plain, lr=0.1), optim.AdamW(own, lr=0.1, foreach=True)
    for k in range(3):
        for p, q, (name, grad) in zip(plain, own, grads.items(), strict=True):
            p.grad, q.grad = k * grad, k * grad
            if name == "replica":
                q.grad = DTensor.from_local(k * grad / RANKS, mesh, [Partial()] * 2)
            elif name in placements:
                q.grad = distribute_tensor(k * grad, mesh, placements[name])
        one.step(**step)
        many.step(**step)
        if step:
            assert many.last_grad_norm == pytest.approx(one.last_grad_norm, rel=1e-6)
    for p, q in zip(plain, own, strict=True):
        torch.testing.assert_close(whole(q), p.detach(), **CLOSE)
        for x, y in zip(one.state[p].values(), many.state[q].values(), strict=True):
            torch.testing.assert_close(whole(y), x, **CLOSE)
            assert not isinstance(q, DTensor) or y.ndim == 0 or y.placements == q.placements
    return many.last_grad_norm


@pytest.mark.parametrize(
    "step", [{}, {"max_norm": 1.0, "clip_value": 0.01}, {"max_norm": 1.0, "skip_nonfinite": True}], ids=str
)
@pytest.mark.parametrize("shape", [(1, 2), (2, 1)], ids=str)
def test_tensor_parallelism(ranks, shape, step):
    first, second = ranks(tensor_parallel, shape, step)
    assert first == second


def with_rows(rank):
    """A table beside distributed parameters, whose gradient is of some rows: one that is named twice counts once."""
    mesh = init_device_mesh("cpu", (RANKS,))
    table = nn.Parameter(torch.ones(4, 2))
    table.grad = torch.sparse_coo_tensor([[1, 3, 1]], torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]]), (4, 2))
    p = nn.Parameter(distribute_tensor(torch.ones(3), mesh, [Shard(0)]))
    p.grad = distribute_tensor(torch.full((3,), 2.0), mesh, [Shard(0)])
    optimizer = optim.Adagrad([table, p], lr=0.1)
    optimizer.step(max_norm=2.0)
    assert (whole(p) < 1).all() and (table < 1).any(1).tolist() == [False, True, False, True]
    return optimizer.last_grad_norm


def test_a_norm_has_gradients_of_rows_too(ranks):
    assert ranks(with_rows) == [20**0.5] * RANKS


# ---- what rounds by the number of an element ----


def numbered(rank, options, sharded=True):
    torch.manual_seed(3)
    values = [torch.randn(5, 3), torch.randn(7), torch.randn(4, 2)]
    grads = [torch.randn_like(x).bfloat16() for x in values]
    mesh = init_device_mesh("cpu", (RANKS,)) if sharded else None
    params = [nn.Parameter(x.bfloat16()) for x in values]
    if sharded:  # the last is not
        params[:2] = [nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in params[:2]]
    optimizer = optim.AdamW(params, lr=0.01, seed=5, **options)
    for _ in range(5):
        for p, grad in zip(params, grads, strict=True):
            p.grad = distribute_tensor(grad, mesh, [Shard(0)]) if isinstance(p, DTensor) else grad.clone()
        optimizer.step()
    return [whole(p) for p in params], states_of(optimizer)


@pytest.mark.parametrize(
    "options",
    [
        {"rounding": "stochastic"},
        {"rounding": "stochastic", "state_dtype": "bfloat16", "first_element": 1000},
        {"rounding": "kahan", "ema_decay": 0.9, "gradient_noise": fastopt.GradientNoise(0.1)},
        {"rounding": "master", "state_dtype": "float32"},
    ],
    ids=str,
)
def test_elements_have_the_numbers_of_one_process(ranks, options):
    """The second process's shards are numbered on, and what both have alike is rounded alike."""
    want = numbered(0, options, sharded=False)
    for found in ranks(numbered, options):
        assert_equal(found, want)


def differing(rank, name, values):
    mesh = init_device_mesh("cpu", (RANKS,))
    p = nn.Parameter(distribute_tensor(torch.zeros(4, 2), mesh, [Shard(0)]))
    with pytest.raises(ValueError, match=f"^{name}: found .* in one rank and .* in another, expected the same"):
        optim.AdamW([p], lr=0.01, **{name: values[rank]})


@pytest.mark.parametrize(
    ("name", "values"), [("seed", (0, 2**64 - 1)), ("gradient_noise", (None, fastopt.GradientNoise(0.1)))]
)
def test_ranks_that_round_by_other_numbers_are_told(ranks, name, values):
    ranks(differing, name, values)


def cut_by_columns(rank):
    """Shards of columns have numbers that no other shard has; replicas have the same."""
    from fastopt.drop_in.placements import first_element

    mesh = init_device_mesh("cpu", (RANKS,))
    p = distribute_tensor(torch.zeros(4, 5, 3), mesh, [Shard(1)])
    q = distribute_tensor(torch.zeros(4, 5, 3), mesh, [Replicate()])
    return first_element(p), p.to_local().numel(), first_element(q)


def test_elements_of_shards_of_columns_have_numbers_of_their_own(ranks):
    (first, count, replica), (second, rest, other) = ranks(cut_by_columns)
    assert (first, first + count, second + rest) == (0, second, 60)
    assert (replica, other) == (0, 0)


# ---- state dicts, checkpoints ----


def goes_on(rank, first, then):
    """Two steps with one library, two with the other, over FSDP2."""
    libraries = {"torch": torch.optim, "fastopt": optim}
    model = sharded_network()
    before = libraries[first].AdamW(model.parameters(), lr=0.05)
    train(model, before, range(2))
    after = libraries[then].AdamW(model.parameters(), lr=0.5)
    after.load_state_dict(before.state_dict())
    for p in params_of(after):
        assert after.state[p]["exp_avg"].placements == p.placements
        assert then == "torch" or after.state[p]["exp_avg"] is not before.state[p]["exp_avg"]
    train(model, after, range(2, 4))
    return wholes(model)


@pytest.mark.parametrize(("first", "then"), [("torch", "fastopt"), ("fastopt", "torch"), ("fastopt", "fastopt")])
def test_state_dicts_go_both_ways(ranks, first, then):
    model = network()
    train(model, torch.optim.AdamW(model.parameters(), lr=0.05))
    for params in ranks(goes_on, first, then):
        torch.testing.assert_close(params, wholes(model), **CLOSE)


def load_whole(rank, state_dict, values):
    """What one process saved, loaded by two: each takes its shard."""
    model = sharded_network()
    optimizer = optim.AggMo(model.parameters(), lr=0.05)
    optimizer.load_state_dict(state_dict)
    for p, value in zip(model.parameters(), values.values(), strict=True):
        p.data.copy_(distribute_tensor(value, p.device_mesh, p.placements))
    train(model, optimizer, range(2, 4))
    return wholes(model)


def test_a_state_dict_of_one_process_is_cut(ranks):
    model = network()
    optimizer = optim.AggMo(model.parameters(), lr=0.05)
    train(model, optimizer, range(2))
    found = ranks(load_whole, optimizer.state_dict(), wholes(model))
    train(model, optimizer, range(2, 4))
    for params in found:
        assert_equal(params, wholes(model))


def save_checkpoint(rank, path, library):
    model = sharded_network()
    optimizer = library_of(library).AdamW(model.parameters(), lr=0.05)
    train(model, optimizer, range(2))
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    torch.distributed.checkpoint.save(state, checkpoint_id=path)


def library_of(name):
    return {"torch": torch.optim, "fastopt": optim}[name]


def load_checkpoint(model, path, library):
    optimizer = library_of(library).AdamW(model.parameters(), lr=0.5)
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    planner = DefaultLoadPlanner(allow_partial_load=True)  # torch's groups have fewer entries
    torch.distributed.checkpoint.load(state, checkpoint_id=path, planner=planner)
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 0.05
    train(model, optimizer, range(2, 4))
    return wholes(model)


def load_sharded_checkpoint(rank, path, library):
    return load_checkpoint(sharded_network(), path, library)


def save_one(path, library):
    model = network()
    optimizer = library_of(library).AdamW(model.parameters(), lr=0.05)
    train(model, optimizer, range(2))
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    torch.distributed.checkpoint.save(state, checkpoint_id=path, no_dist=True)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, that there is no process group
@pytest.mark.parametrize(("saved", "loaded"), [("fastopt", "fastopt"), ("torch", "fastopt"), ("fastopt", "torch")])
@pytest.mark.parametrize(("p", "q"), [(2, 2), (2, 1), (1, 2)])
def test_checkpoints_do_not_know_the_number_of_ranks(ranks, tmp_path, p, q, saved, loaded):
    """torch.distributed.checkpoint saves with p ranks and loads with q."""
    model = network()
    train(model, torch.optim.AdamW(model.parameters(), lr=0.05))
    path = str(tmp_path / "checkpoint")
    if p == 1:
        save_one(path, saved)
    else:
        ranks(save_checkpoint, path, saved)
    found = ranks(load_sharded_checkpoint, path, loaded) if q > 1 else [load_checkpoint(network(), path, loaded)]
    for params in found:
        torch.testing.assert_close(params, wholes(model), **CLOSE)


def gathered(rank):
    """The whole state dict on the first rank, as it is exported."""
    model = sharded_network()
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    train(model, optimizer, range(2))
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    full = get_optimizer_state_dict(model, optimizer, options=options)
    assert bool(full) == (rank == 0)
    optimizer.zero_grad()  # torch makes states where there is no gradient
    other = optim.AdamW(model.parameters(), lr=0.5)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, other, full, options=options)
    train(model, other, range(2, 4))
    return wholes(model)


def test_whole_state_dicts(ranks):
    model = network()
    train(model, optim.AdamW(model.parameters(), lr=0.05))
    for params in ranks(gathered):
        assert_equal(params, wholes(model))


# ---- steps: hooks, skipping, zeroing, scaling, clipping ----


def hooked(rank):
    """Hooks, closures, schedules, copies; the steps after the first bind nothing anew, and state dicts are live."""
    model = sharded_network()
    optimizer = optim.AdamW(model.parameters(), lr=0.05, foreach=True)
    seen = []
    optimizer.register_step_pre_hook(lambda own, *_: seen.append(params_of(own)))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(model, optimizer, range(1))
    kept, bound = optimizer.state_dict(), optimizer._stepper.bound
    schedule.step()
    train(model, optimizer, range(1, 3))
    assert optimizer._stepper.bound is bound
    params_of(optimizer)[0].grad = None  # other gradients, other memory: bound anew
    optimizer.step()
    params_of(optimizer)[1].grad = params_of(optimizer)[1].grad.clone()
    train(model, optimizer, range(3, 4))
    assert len(seen) == 5 and all(isinstance(p, DTensor) for p in seen[0])
    now = optimizer.state_dict()
    for index, state in now["state"].items():
        assert all(state[name] is kept["state"][index][name] for name in state)
        assert float(state["step"]) == (5 if index else 4)
    for p in params_of(optimizer):
        version = p._version
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert p._version > version
    return wholes(model)


def test_steps_are_those_of_an_optimizer(ranks):
    first, second = ranks(hooked)
    assert_equal(first, second)


def lets_go(rank):
    """No gradient is kept alive, not that of a step that was skipped either."""
    model = sharded_network()
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    for value in (1.0, torch.inf):
        p = params_of(optimizer)[0]
        p.grad = torch.full_like(p, value)
        kept = weakref.ref(p.grad._local_tensor)
        optimizer.step(skip_nonfinite=True)
        assert optimizer.last_step_skipped == (value == torch.inf)
        p.grad = None
        assert kept() is None


def test_gradients_are_let_go(ranks):
    ranks(lets_go)


def skipping(rank):
    model = sharded_network()
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    train(model, optimizer, range(1))
    before = wholes(model)
    for options in ({}, {"max_norm": 1.0}):
        for p in params_of(optimizer):
            p.grad = torch.ones_like(p)
        if rank == 0:  # all the others are finite
            p.grad.to_local()[...] = torch.inf
        optimizer.step(skip_nonfinite=True, zero_grads=True, **options)
        assert optimizer.last_step_skipped
        assert optimizer.last_grad_norm == (torch.inf if options else None)
        assert float(optimizer.state[p]["step"]) == 1
        assert_equal(wholes(model), before)
        assert (params_of(optimizer)[0].grad.to_local() == 1).all()
    p.grad = torch.ones_like(p)
    optimizer.step(skip_nonfinite=True, zero_grads=True)
    assert not optimizer.last_step_skipped
    for p in params_of(optimizer):
        assert (whole(p.grad) == 0).all()
        assert float(optimizer.state[p]["step"]) == 2


def test_all_ranks_skip_a_step_or_none(ranks):
    ranks(skipping)


def scaled(rank, fused):
    """GradScaler, as torch's class has it: a step, one that overflows in one process, a step."""
    results = []
    for library in (torch.optim, optim):
        model = sharded_network()
        optimizer = library.AdamW(model.parameters(), lr=0.05, fused=fused or None)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for k in range(3):
            optimizer.zero_grad()
            scaler.scale(model(batch(k)).square().mean()).backward()
            if k == 1 and rank == 0:
                params_of(optimizer)[0].grad.to_local()[...] = torch.nan
            scaler.step(optimizer)
            scaler.update()
        results.append((wholes(model), scaler.get_scale()))
    torch.testing.assert_close(*results, **CLOSE)
    assert results[0][1] == 512


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_scales(ranks, fused):
    ranks(scaled, fused)


def clipped(rank):
    totals, grads = [], []
    for clip in (nn.utils.clip_grad_norm_, optim.clip_grad_norm_):
        model = sharded_network()
        model(batch(0)).square().mean().backward()
        totals.append(float(whole(clip(model.parameters(), 0.5))))
        grads.append([whole(p.grad) for p in model.parameters()])
    torch.testing.assert_close(grads[1], grads[0], **CLOSE)
    if rank == 0:  # all the others are finite
        next(model.parameters()).grad.to_local()[...] = torch.inf
    with pytest.raises(RuntimeError, match="not finite"):
        optim.clip_grad_norm_(model.parameters(), 0.5, error_if_nonfinite=True)
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)
    assert totals[0] > 1
    return totals[1]


def test_clip_grad_norm_(ranks):
    first, second = ranks(clipped)
    assert first == second


def swapped(rank):
    """Made of plain parameters that are distributed afterwards, as accelerate does it."""
    plain = network()
    optimizer = optim.AdamW(plain.parameters(), lr=0.05)
    model = sharded_network()
    optimizer.param_groups[0]["params"] = list(model.parameters())
    train(model, optimizer)
    return wholes(model)


def test_parameters_can_be_distributed_later(ranks):
    model = network()
    train(model, optim.AdamW(model.parameters(), lr=0.05))
    for params in ranks(swapped):
        assert_equal(params, wholes(model))


def materialized(rank):
    """On the meta device when the optimizer is made: the shards come later."""
    with torch.device("meta"):
        model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(2):  # memory anew, in the middle of the training too
        model.to_empty(device="cpu")
        for p, value in zip(model.parameters(), network().parameters(), strict=True):
            p.data.copy_(distribute_tensor(value.detach(), p.device_mesh, p.placements))
        train(model, optimizer, range(2))
    return wholes(model)


def test_shards_can_come_later(ranks):
    model = network()
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    train(model, optimizer, range(2))
    with torch.no_grad():
        for p, value in zip(model.parameters(), network().parameters(), strict=True):
            p.copy_(value)
    train(model, optimizer, range(2))
    for params in ranks(materialized):
        assert_equal(params, wholes(model))


# ---- what is refused, by name ----


def refused(rank):
    mesh = init_device_mesh("cpu", (RANKS,))

    def made(placement, n=4, name="AdamW", **options):
        p = nn.Parameter(distribute_tensor(torch.ones(n, 3), mesh, [placement]))
        return p, getattr(optim, name)([("w", p)], lr=0.1, **options)

    with pytest.raises(ValueError, match="state_dtype: found '8bit', expected another, as 'w' is distributed"):
        made(Shard(0), 4096, state_dtype="8bit")
    with pytest.raises(
        ValueError, match=r"'w': found placements \(Shard\(dim=1\),\), expected Shard\(0\) or Replicate"
    ):
        made(Shard(1), name="RowwiseAdagrad")
    for name in [*BY_TENSOR, "Muon", "Adafactor"]:
        with pytest.raises(ValueError, match=rf"expected Replicate\(\), for {name} m[a-z]+ whole"):
            made(Shard(0), name=name)
        p, optimizer = made(Replicate(), name=name)
        p.grad = distribute_tensor(torch.ones(4, 3), mesh, [Replicate()])
        optimizer.step()
        alone = nn.Parameter(torch.ones(4, 3))
        alone.grad = torch.ones(4, 3)
        getattr(optim, name)([alone], lr=0.1).step()
        assert_equal(whole(p), alone.detach())
    partial = nn.Parameter(DTensor.from_local(torch.ones(4, 3), mesh, [Partial()]))
    with pytest.raises(ValueError, match=r"'w': found placements \(Partial\(sum\),\), expected Shard or Replicate"):
        optim.SGD([("w", partial)])
    p, optimizer = made(Shard(0))
    p.grad = DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)])
    before = whole(p)
    for options in ({"max_norm": "1"}, {"max_norm": -1.0}, {"clip_norm": 1.0}, {"skip_nonfinite": 2}):
        with pytest.raises((TypeError, ValueError), match=next(iter(options))):
            optimizer.step(**options)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"lr: found -1\.0"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.state[p]["exp_avg"] = distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)])
    with pytest.raises(ValueError, match=r"'exp_avg' of 'w': found shape \(2, 4\)"):
        optimizer.step()
    assert_equal(whole(p), before)
    optimizer.param_groups[0]["capturable"] = True  # which a step refuses before where there is no CUDA device
    with pytest.raises(ValueError, match="capturable: found True, expected False, as 'w' is distributed"):
        Shards.of(optimizer)
    p, optimizer = made(Shard(0))
    p.grad = torch.ones(4, 3)
    with pytest.raises(TypeError, match="the gradient of 'w': found a plain tensor, expected a DTensor as 'w' is one"):
        optimizer.step()
    q = nn.Parameter(torch.ones(3))
    q.grad = distribute_tensor(torch.ones(3), mesh, [Replicate()])
    with pytest.raises(TypeError, match="the gradient of 'q': found a DTensor"):
        optim.SGD([("q", q)]).step()


def test_what_cannot_be_distributed_is_refused_by_name(ranks):
    ranks(refused)


# ---- where parameters are evaluated ----


def evaluated(rank, model=None):
    model = sharded_network() if model is None else model
    optimizer = optim.ScheduleFreeAdamW(model.parameters(), lr=0.05)
    train(model, optimizer)
    optimizer.eval()
    found = wholes(model)
    with pytest.raises(ValueError, match="eval mode"):
        optimizer.step()
    optimizer.train()
    train(model, optimizer, steps=range(4, 6))
    return found, wholes(model)


def test_each_rank_moves_its_shards_to_where_they_are_evaluated(ranks):
    alone = evaluated(0, network())
    for found in ranks(evaluated):
        torch.testing.assert_close(found, alone, **CLOSE)
