"""A class of fastopt.torch beside torch's own of the same name, for tests of one rule."""

import copy
import io

import numpy as np
import pytest


def torch_with(name):
    """Torch, where it is installed and has the class."""
    found = pytest.importorskip("torch", reason="torch is not installed")
    if not hasattr(found.optim, name):
        pytest.skip(f"this torch has no {name}")
    return found


def both(torch, name, dtype="float32", shape=(5, 7), **options):
    """A parameter of fastopt's and of torch's class, the optimizers, and gradients."""
    from fastopt import torch as optim

    rng = np.random.default_rng(1)
    p0 = torch.tensor(rng.standard_normal(shape)).to(getattr(torch, dtype))
    params = [torch.nn.Parameter(p0.clone()) for _ in range(2)]
    opts = [getattr(module, name)([p], **options) for module, p in zip((optim, torch.optim), params, strict=True)]
    return params, opts, [torch.tensor(rng.standard_normal(shape)).to(p0.dtype) for _ in range(8)]


def step_both(params, opts, g):
    for p, opt in zip(params, opts, strict=True):
        p.grad = g.clone()
        opt.step()


def exchange(torch, opts):
    """Each loads the other's checkpoint, torch's from a file."""
    states = [opt.state_dict() for opt in opts]
    opts[0].load_state_dict(copy.deepcopy(states[1]))
    file = io.BytesIO()
    torch.save(states[0], file)
    file.seek(0)
    opts[1].load_state_dict(torch.load(file, weights_only=True))


def step_all(torch, params, opts, grads):
    """Step both by all gradients, at a rate that is halved, and with states that are exchanged on the way."""
    for t, g in enumerate(grads):
        if t == 4:
            for opt in opts:
                opt.param_groups[0]["lr"] *= 0.5
        if t == 6:
            exchange(torch, opts)
        step_both(params, opts, g)


def step_scheduled(torch, params, opts, grads, **options):
    """Step both under a scheduler, and fastopt's under a scaler of gradients."""
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(opt, 0.2, 10, **options) for opt in opts]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for g in grads:
        params[0].grad, params[1].grad = 4.0 * g, g.clone()
        scaler.scale(torch.ones(()))
        scaler.step(opts[0])
        scaler.update()
        opts[1].step()
        for scheduler in schedulers:
            scheduler.step()
    assert copy.deepcopy(opts[0]).state_dict()["param_groups"] == opts[0].state_dict()["param_groups"]


def own_table(torch, name):
    """The line of PyTorch's own table of optimizers."""
    pytest.importorskip("expecttest", reason="PyTorch's table of optimizers needs it: pip install expecttest")
    from torch.testing._internal.common_optimizers import optim_db

    return next(info for info in optim_db if info.optim_cls is getattr(torch.optim, name))


def check_error_cases(torch, name):
    """What torch's table says is wrong is so here."""
    from fastopt import torch as optim

    for case in own_table(torch, name).optim_error_inputs_func(device="cpu", dtype=torch.float32):
        if case.error_type is RuntimeError:  # of a complex parameter: it is checked once it has a gradient
            continue
        given, warned = case.optimizer_error_input, issubclass(case.error_type, Warning)
        with pytest.warns(case.error_type) if warned else pytest.raises((ValueError, TypeError)):
            getattr(optim, name)(given.params, **given.kwargs)
