"""Steps of whole matrices: Muon by NumPy's and by torch's products, beside torch's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..optimizers import MATRIX_CLASSES
from .peers.pytorch import load_torch
from .section import Options, Row, Section, Skip, Table, against, named, row_of, table
from .timing import Call, interleaved

#: Matrices, by what they are called.
SHAPES = {f"Muon, {rows} x {columns}": (rows, columns) for rows, columns in ((64, 64), (256, 256), (1024, 1024))}
#: The participants: the key of the results, and the header.
WAYS = {
    "native": "fastopt.Muon: NumPy, float32",
    "fastopt.torch": "fastopt.torch.Muon: bfloat16",
    "torch": "torch.optim.Muon: bfloat16",
}


def measure(name: str, budget: float, options: Options) -> Row:
    """One of `SHAPES`."""
    rng = np.random.default_rng(0)
    param, grad = (rng.standard_normal(SHAPES[name], np.float32) for _ in range(2))
    calls: dict[str, Call] = {}
    try:
        torch = load_torch(options.threads)
    except Skip:
        pass  # `peers` says so
    else:
        from .. import torch as optim

        leaves = [torch.from_numpy(param.copy()).requires_grad_() for _ in range(2)]
        for leaf in leaves:
            leaf.grad = torch.from_numpy(grad)
        calls["fastopt.torch"] = optim.MATRIX_CLASSES["Muon"](leaves[:1], threads=options.threads).step
        if hasattr(torch.optim, "Muon"):
            calls["torch"] = torch.optim.Muon(leaves[1:]).step
    optimizer: Any = MATRIX_CLASSES["Muon"](param, threads=options.threads)
    calls["native"] = optimizer.bind(grad).step
    return row_of(name, interleaved(calls, options.repeats, budget))


def section(options: Options) -> Section:
    """The section of whole matrices, which are no rule of the table: nearly all of their time is that of products."""
    title = "One step over one matrix, milliseconds"

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        yield table(title, {"": named, **{label: against(who) for who, label in WAYS.items()}}, rows)

    return Section("matrices", title, list(SHAPES), lambda name, budget: measure(name, budget, options), tables)
