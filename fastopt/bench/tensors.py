"""Overhead of a step beside memory: Adam over many small tensors, or one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import functional
from ..optimizers import CLASSES
from . import pictures
from .peers.pytorch import load_torch
from .section import Options, Row, Section, Skip, Table, named, row_of, table, time_of
from .timing import Call, interleaved

#: Tensors' sizes, by what they are called.
SETS = {
    "1 tensor of 10": [10],
    "10 tensors of 10": 10 * [10],
    "100 tensors of 10": 100 * [10],
    "1000 tensors of 10": 1000 * [10],
    "1000 tensors of 1000": 1000 * [1000],
    "29 of a transformer": [  # benchmarks/workloads/torch_digits.py's
        *(8 * 32, 32, 8 * 32),
        *2 * [96 * 32, 96, 32 * 32, 32, 64 * 32, 64, 32 * 64, 32, 32, 32, 32, 32],
        *(32 * 10, 10),
    ],
}
#: The participants: the key of the results, and the header.
WAYS = {
    "native": "plan.step()",
    "step": "opt.step(grads)",
    "functional": "functional.adam",
    "fastopt.torch": "fastopt.torch",
    "torch-fused": "torch fused",
    "torch-foreach": "torch foreach",
}


def tensors_of(sizes: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parameters and gradients."""
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(size, np.float32) for size in sizes] for _ in range(2))
    return params, grads


def measure(name: str, budget: float, options: Options) -> Row:
    """One of `SETS`, by each way of asking for a step."""
    sizes = SETS[name]
    params, grads = tensors_of(sizes)
    optimizer = CLASSES["Adam"](params, threads=options.threads)
    lists: list[list[np.ndarray]] = [params, grads, [p * 0 for p in params], [p * 0 for p in params]]
    arrays = lists if len(sizes) > 1 else [members[0] for members in lists]
    steps, adam = itertools.count(1), functional.adam
    calls: dict[str, Call] = {
        "native": optimizer.bind(grads).step,
        "step": lambda: optimizer.step(grads),
        "functional": lambda: adam(*arrays, step=next(steps)),
    }
    try:
        torch = load_torch(options.threads)
    except Skip:
        pass  # `peers` says so
    else:
        from .. import torch as fastopt_torch

        leaves = [[torch.from_numpy(p.copy()).requires_grad_() for p in params] for _ in range(3)]
        for leaf, grad in zip(itertools.chain(*leaves), itertools.cycle(grads), strict=False):
            leaf.grad = torch.from_numpy(grad)
        calls["fastopt.torch"] = fastopt_torch.CLASSES["Adam"](leaves[0], threads=options.threads).step
        calls["torch-fused"] = torch.optim.Adam(leaves[1], fused=True).step
        calls["torch-foreach"] = torch.optim.Adam(leaves[2], foreach=True).step
    for call in calls.values():  # which binds, and makes states: no later step takes that long
        call()
    times = interleaved(calls, options.repeats, budget)
    return row_of(name, times, sum(sizes) * 28, tensors=len(sizes), sizes=sorted(set(sizes)))


def section(options: Options) -> Section:
    """The section of small tensors."""
    title = "One step of Adam over small tensors, microseconds"

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        columns = {"": named, **{label: time_of(who, 1, 1e6) for who, label in WAYS.items()}}
        yield table(title, columns, rows, "plan: opt.bind(grads), for gradients that stay where they are.")

    def draw(figure: Any, rows: Sequence[Row]) -> None:
        pictures.overhead(figure, title, [row for row in rows if row["sizes"] == [10]], WAYS)

    return Section("tensors", title, list(SETS), lambda name, budget: measure(name, budget, options), tables, draw, 2.0)
