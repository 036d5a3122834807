"""Updates of some rows of a large table: by each backend, by FBGEMM's fused backward, and by torch."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from ..dispatch import available_backends
from ..optimizers import CLASSES
from ..sparse import RowSparse
from .peers import load_torch
from .timing import Call, interleaved, ratio

ROWS, WIDTH, LOOKUPS = 1_000_000, 64, 82_000
LR = 0.01

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


def load_fbgemm() -> Any:
    """The module of FBGEMM's fused embeddings, where it is installed and loads; else the reason why not."""
    try:
        import fbgemm_gpu  # noqa: F401
        from fbgemm_gpu import split_table_batched_embeddings_ops_training as training
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"no FBGEMM ({error}): pip install fbgemm-gpu-cpu==1.8.0"
    return training


def missing() -> str:
    """Which peers are not here, and how to get them."""
    found = load_fbgemm()
    reasons = [found] if isinstance(found, str) else []
    return "; ".join(reasons + ([] if load_torch() else ["no torch: pip install torch"]))


class Measure:
    """Measures rules over tables of their own and the same lookups."""

    def __init__(self, threads: int, repeats: int, rows: int = ROWS, lookups: int = LOOKUPS) -> None:
        self.threads, self.repeats = threads, repeats
        self.indices = zipf(lookups, rows)
        rng = np.random.default_rng(1)
        self.start = rng.standard_normal((rows, WIDTH), np.float32)
        self.values = rng.standard_normal((lookups, WIDTH), np.float32)

    def __call__(self, name: str) -> dict[str, Any]:
        """Times one of `CASES`; results are compared first."""
        ours, options, theirs, fused = CASES[name]
        tables: dict[str, Callable[[], np.ndarray]] = {}
        calls: dict[str, Call] = {}
        before: dict[str, Call] = {}
        for backend in ("native", "numba"):
            if available_backends()[backend] == "available":
                calls[backend], tables[backend] = self._ours(ours, options, backend)
        if theirs and load_torch():
            calls["torch"], tables["torch"] = self._torch(theirs)
        if fused and not isinstance(load_fbgemm(), str):
            before["fbgemm"], calls["fbgemm"], tables["fbgemm"] = self._fbgemm(fused)
        self._compare(name, calls, before, tables)
        if available_backends()["native"] == "available":
            calls["ceiling"] = self._ceiling(2 if name in ("sgd", "rowwise_adagrad") else 4 if name == "adam" else 3)
        times = interleaved(calls, self.repeats, before=before)
        row: dict[str, Any] = {"rule": name} | {f"{who}_ms": 1e3 * median(own) for who, own in times.items()}
        if "native" in times:
            row["native_share"] = ratio(times["ceiling"], times["native"])
            row |= {f"{who}_ratio": ratio(times[who], times["native"]) for who in ("fbgemm", "torch") if who in times}
        return row

    def _compare(self, name: str, calls: dict[str, Call], before: dict[str, Call], tables: dict[str, Any]) -> None:
        """Does one step by each: backends must agree to the bit, others up to rounding."""
        for who, call in calls.items():
            before.get(who, lambda: None)()
            call()
        first = next(iter(tables))
        want = tables[first]()
        for who, table in tables.items():
            same = np.array_equal if {first, who} == {"native", "numba"} else _close
            if not same(table(), want):
                raise AssertionError(f"{name}: after one step {who} differs from {first}")

    def _ours(self, ours: str, options: dict[str, Any], backend: str) -> tuple[Call, Callable[[], np.ndarray]]:
        table = self.start.copy()
        optimizer = CLASSES[ours](table, lr=LR, **options, backend=backend, threads=self.threads)
        return lambda: optimizer.step(RowSparse(self.indices, self.values)), lambda: table

    def _torch(self, theirs: str) -> tuple[Call, Callable[[], np.ndarray]]:
        torch = load_torch()
        assert torch is not None
        torch.set_num_threads(self.threads)
        table = torch.nn.Parameter(torch.from_numpy(self.start.copy()))
        indices, values = torch.from_numpy(self.indices)[None], torch.from_numpy(self.values)
        table.grad = torch.sparse_coo_tensor(indices, values, table.shape, check_invariants=False)
        return getattr(torch.optim, theirs)([table], lr=LR).step, lambda: table.detach().numpy()

    def _fbgemm(self, fused: str) -> tuple[Call, Call, Callable[[], np.ndarray]]:
        torch, training = load_torch(), load_fbgemm()
        assert torch is not None
        torch.set_num_threads(self.threads)
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


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return np.allclose(a, b, rtol=1e-3, atol=1e-5)
