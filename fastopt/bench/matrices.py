"""Steps of whole tensors: Muon and Adafactor by NumPy's and by torch's operations, beside torch's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..optimizers import MATRIX_CLASSES
from .peers.pytorch import load_torch
from .section import Options, Row, Section, Skip, Table, against, named, row_of, table
from .timing import Call, interleaved

#: Classes and shapes, by what they are called.
SHAPES = {
    f"{name}, {' x '.join(map(str, shape))}": (name, shape)
    for name, shapes in {
        "Muon": ((64, 64), (256, 256), (1024, 1024)),
        "Adafactor": ((64, 64), (1024, 1024), (4096, 1024), (64, 64, 3, 3), (4096,)),
    }.items()
    for shape in shapes
}
#: The participants: the key of the results, and the header.
WAYS = {
    "native": "fastopt, NumPy",
    "fastopt.torch": "fastopt.torch",
    "torch": "torch",
    "torch-foreach": "torch foreach",
}


def measure(name: str, budget: float, options: Options) -> Row:
    """One of `SHAPES`."""
    rng, (cls, shape) = np.random.default_rng(0), SHAPES[name]
    param, grad = (rng.standard_normal(shape, np.float32) for _ in range(2))
    calls: dict[str, Call] = {}
    try:
        torch = load_torch(options.threads)
    except Skip:
        pass  # `peers` says so
    else:
        from .. import torch as optim

        leaves = [torch.from_numpy(param.copy()).requires_grad_() for _ in range(3)]
        for leaf in leaves:
            leaf.grad = torch.from_numpy(grad)
        calls["fastopt.torch"] = optim.MATRIX_CLASSES[cls](leaves[:1], threads=options.threads).step
        if hasattr(torch.optim, cls):
            calls["torch"] = getattr(torch.optim, cls)(leaves[1:2]).step
            if cls == "Adafactor":  # torch's Muon has no such form
                calls["torch-foreach"] = torch.optim.Adafactor(leaves[2:], foreach=True).step
    optimizer: Any = MATRIX_CLASSES[cls](param, threads=options.threads)
    calls["native"] = optimizer.bind(grad).step
    return row_of(name, interleaved(calls, options.repeats, budget))


def section(options: Options) -> Section:
    """The section of rules that are none of the table: most of their time is that of a library's operations."""
    title = "One step over one tensor, milliseconds"

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        columns = {"": named, **{label: against(who) for who, label in WAYS.items()}}
        yield table(title, columns, rows, "x: its time to that of fastopt with NumPy.")

    return Section("matrices", title, list(SHAPES), lambda name, budget: measure(name, budget, options), tables)
