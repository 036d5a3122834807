"""Peers in several processes: torch's and DeepSpeed's data parallel training, with gloo."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from typing import Any


def peers(comm: Any, size: int, names: Collection[str]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Steps of Adam by peers of these names: their backward pass only hands gradients over.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        The processes.
    size : int
        Elements of all parameters.
    names : collection of str
        Of "ddp", "zero" and "deepspeed".
    """
    if not names:
        return
    import torch
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    handle, path = tempfile.mkstemp() if comm.rank == 0 else (-1, "")
    path = comm.bcast(path)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=comm.rank, world_size=comm.size)
    comm.Barrier()
    if comm.rank == 0:
        os.close(handle)

    class Given(torch.autograd.Function):
        """A loss with a gradient that is there already."""

        @staticmethod
        def forward(ctx: Any, param: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
            ctx.grad = grad
            return param.new_zeros(())

        @staticmethod
        def backward(ctx: Any, *_: torch.Tensor) -> Any:
            return ctx.grad, None

    class Model(torch.nn.Module):
        """As many parameters as there are processes, for whole ones are given to each."""

        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ParameterList(torch.zeros(size // comm.size) for _ in range(comm.size))
            self.grads = [torch.randn(size // comm.size) for _ in range(comm.size)]

        def forward(self) -> torch.Tensor:
            return sum((Given.apply(p, g) for p, g in zip(self.parts, self.grads, strict=True)), torch.zeros(()))

    def step_of(model: Any, optimizer: Any) -> Callable[[], object]:
        def step() -> None:
            optimizer.zero_grad()
            model().backward()
            optimizer.step()

        return step

    if "ddp" in names:
        model = DistributedDataParallel(Model(), gradient_as_bucket_view=True)
        yield "ddp", step_of(model, torch.optim.Adam(model.parameters(), fused=True))
    if "zero" in names:
        model = DistributedDataParallel(Model(), gradient_as_bucket_view=True)
        yield "zero", step_of(model, ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, fused=True))
    if "deepspeed" not in names:
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    inner = Model()
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}}
    optimizer = torch.optim.Adam(inner.parameters(), fused=True)
    engine, *_ = deepspeed.initialize(model=inner, optimizer=optimizer, config=config)

    def step() -> None:
        engine.backward(engine())
        engine.step()

    yield "deepspeed", step
