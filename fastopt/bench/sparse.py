"""Updates of some rows of a large table: by each backend, by FBGEMM's fused backward, and by torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..backends.choice import available_backends
from ..binding.sparse import RowSparse
from ..optimizers import CLASSES
from .machine import has_ceiling
from .peers.base import installed, load
from .peers.pytorch import load_torch
from .section import Options, Row, Section, Skip, Table, against, named, row_of, share_of, table, time_of
from .timing import Call, interleaved

ROWS, WIDTH, LOOKUPS = 1_000_000, 64, 82_000
LR = 0.01
FBGEMM = "fbgemm-gpu-cpu==1.8.0"

#: Our class and its options, torch's, FBGEMM's optimizer.
CASES: dict[str, tuple[str, dict[str, Any], str | None, str | None]] = {
    "rowwise_adagrad": ("RowwiseAdagrad", {}, None, "EXACT_ROWWISE_ADAGRAD"),
    "adagrad": ("Adagrad", {}, "Adagrad", "EXACT_ADAGRAD"),
    "sgd": ("SGD", {}, "SGD", "EXACT_SGD"),
    "adam": ("Adam", {"eps_hat": True}, "SparseAdam", None),
}


def zipf(lookups: int, rows: int, exponent: float = 1.05) -> np.ndarray:
    """Rows that are looked up, some far more often than others; which ones lies anywhere in the table."""
    rng = np.random.default_rng(0)
    weights = np.cumsum(np.arange(1, rows + 1) ** -exponent)
    return rng.permutation(rows)[np.searchsorted(weights / weights[-1], rng.random(lookups))]


class Measure:
    """Measures rules over tables of their own and the same lookups."""

    def __init__(
        self, threads: int, repeats: int, backends: Sequence[str], rows: int = ROWS, lookups: int = LOOKUPS
    ) -> None:
        self.threads, self.repeats, self.backends = threads, repeats, backends
        self.reasons: dict[str, str] = {}
        self.indices = zipf(lookups, rows)
        rng = np.random.default_rng(1)
        self.start = rng.standard_normal((rows, WIDTH), np.float32)
        self.values = rng.standard_normal((lookups, WIDTH), np.float32)

    def __call__(self, name: str, budget: float) -> Row:
        """Times one of `CASES`; results are compared first."""
        *_, theirs, fused = CASES[name]
        tables: dict[str, Callable[[], np.ndarray]] = {}
        calls: dict[str, Call] = {}
        before: dict[str, Call] = {}
        for backend in self.backends:
            if available_backends()[backend] == "available":
                calls[backend], tables[backend] = self.ours(name, backend)
        try:
            if fused and installed("fbgemm-gpu-cpu"):
                before["fbgemm"], calls["fbgemm"], tables["fbgemm"] = self._fbgemm(fused)
        except Skip as reason:
            self.reasons["fbgemm"] = str(reason)
        try:
            if theirs and installed("torch"):
                calls["torch"], tables["torch"] = self._torch(theirs)
        except Skip as reason:
            self.reasons["torch"] = str(reason)
        self._compare(name, calls, before, tables)
        if has_ceiling():
            calls["ceiling"] = self._ceiling(2 if name in ("sgd", "rowwise_adagrad") else 4 if name == "adam" else 3)
        times = interleaved(calls, self.repeats, budget, before)
        return row_of(name, times, ceiling=times.pop("ceiling", None))

    def _compare(self, name: str, calls: dict[str, Call], before: dict[str, Call], tables: dict[str, Any]) -> None:
        """Does one step by each: backends must agree to the bit; others up to rounding, or they are left out."""
        for who, call in calls.items():
            before.get(who, bool)()
            call()
        first = next(iter(tables))
        want = tables[first]()
        for who, found in tables.items():
            if who in self.backends:
                assert np.array_equal(found(), want), f"{name}: after one step {who} differs from {first}"
            elif not np.allclose(found(), want, rtol=1e-3, atol=1e-5):
                self.reasons[f"{who}, {name}"] = "its result after one step is another"
                del calls[who]

    def ours(self, name: str, backend: str) -> tuple[Call, Callable[[], np.ndarray]]:
        """A backend's step of one of `CASES`, and its table."""
        kind, options, *_ = CASES[name]
        table = self.start.copy()
        optimizer = CLASSES[kind](table, lr=LR, **options, backend=backend, threads=self.threads)
        return lambda: optimizer.step(RowSparse(self.indices, self.values)), lambda: table

    def _torch(self, theirs: str) -> tuple[Call, Callable[[], np.ndarray]]:
        torch = load_torch(self.threads)
        table = torch.nn.Parameter(torch.from_numpy(self.start.copy()))
        indices, values = torch.from_numpy(self.indices)[None], torch.from_numpy(self.values)
        table.grad = torch.sparse_coo_tensor(indices, values, table.shape, check_invariants=False)
        return getattr(torch.optim, theirs)([table], lr=LR).step, lambda: table.detach().numpy()

    def _fbgemm(self, fused: str) -> tuple[Call, Call, Callable[[], np.ndarray]]:
        torch = load_torch(self.threads)
        load("fbgemm_gpu", FBGEMM)
        training = load("fbgemm_gpu.split_table_batched_embeddings_ops_training", FBGEMM)
        host, cpu = training.EmbeddingLocation.HOST, training.ComputeDevice.CPU
        tables = training.SplitTableBatchedEmbeddingBagsCodegen(
            [(*self.start.shape, host, cpu)],
            optimizer=getattr(training.OptimType, fused),
            learning_rate=LR,
            eps=1e-10,
        )
        (weights,) = tables.split_embedding_weights()
        weights.copy_(torch.from_numpy(self.start))
        indices, offsets = torch.from_numpy(self.indices), torch.arange(len(self.indices) + 1)
        upstream = torch.from_numpy(self.values)
        output: list[Any] = []

        def forward() -> None:
            output[:] = [tables(indices, offsets)]

        return forward, lambda: output[0].backward(upstream), weights.numpy

    def _ceiling(self, arrays: int) -> Call:
        from ..backends.native import stream_rows

        places = np.argsort(self.indices, kind="stable")
        rows, starts = np.unique(self.indices[places], return_index=True)
        starts = np.append(starts, len(places)).astype(np.int64)
        streamed = [self.start.copy(), self.values, *(self.start.copy() for _ in range(arrays - 2))]
        return lambda: stream_rows(streamed, rows, starts, places, self.threads)


def section(options: Options) -> Section:
    """The section of rows."""
    measure = Measure(options.threads, options.repeats, options.backends)
    title = (
        f"One step of {LOOKUPS:,} Zipf-distributed lookups of rows of {WIDTH} float32, of a table of {ROWS:,} rows; "
        f"{options.threads} threads"
    )
    columns = {
        "rule": named,
        "ceiling\nms": time_of("ceiling"),
        "fastopt\nms": time_of("native"),
        "fastopt\nshare": share_of("native"),
        "fastopt (numba)\nms": time_of("numba"),
        "FBGEMM\nms": against("fbgemm"),
        "torch\nms": against("torch"),
    }

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        yield table(
            title,
            columns,
            rows,
            "Repeated rows are summed. fastopt: opt.step with a fresh RowSparse, ordering included; FBGEMM: its fused "
            "backward; torch: step() with a sparse gradient. ceiling: the same rows' traffic, its order known.",
        )

    return Section("sparse", title, options.rows, measure, tables, None, 3.0, measure.reasons)
