"""Internal. Steps on a CUDA device beside the rules: storages, rows, clipping, time of the host, sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..binding.sparse import RowSparse
from ..optimizers import CLASSES
from . import kernels, pictures, sparse
from .cuda import Device, attempts, numbers, torch_on_device
from .peers.base import load
from .section import (
    Measure,
    Options,
    Row,
    Section,
    Table,
    against,
    named,
    row_of,
    share_of,
    table,
    time_of,
    value_of,
    whoever,
)
from .timing import Call, Times, ratio

F4 = np.dtype("f4")
#: Of `kernels.STORAGES` the dtype of parameters and gradients, and the class's options.
STORED: dict[str, tuple[str, dict[str, Any]]] = {
    "adam, 8-bit states": ("f4", {"state_dtype": "8bit"}),
    "adam, bfloat16 states": ("f4", {"state_dtype": "bfloat16"}),
    "adam, bfloat16": ("bf16", {}),
    "adam, bfloat16, 8-bit states": ("bf16", {"state_dtype": "8bit"}),
    "adam, bfloat16, stochastic": ("bf16", {"rounding": "stochastic"}),
    "adam, bfloat16, stochastic, 8-bit states": ("bf16", {"rounding": "stochastic", "state_dtype": "8bit"}),
    "adam, bfloat16, Kahan": ("bf16", {"rounding": "kahan"}),
    "adam, bfloat16, master": ("bf16", {"rounding": "master", "state_dtype": "float32"}),
    "adam, float16": ("f2", {"state_dtype": "float16"}),
}
#: Lookups of rows of a table: the exponent of their distribution, or None.
LOOKUPS = {"uniform": None, "Zipf 1.05": 1.05, "Zipf 1.2": 1.2}
ROWS = {
    f"{kind}, {lookups}, {duplicates}": (kind, lookups, duplicates)
    for kind in ("Adagrad", "RowwiseAdagrad")
    for lookups in LOOKUPS
    for duplicates in ("sum", "hogwild")
}
#: Options of a step that clips.
CLIPPING: dict[str, dict[str, Any]] = {
    "without": {},
    "max_norm": {"max_norm": 1.0},
    "clip_norm": {"clip_norm": 1.0},
    "skip_nonfinite": {"skip_nonfinite": True},
    "max_norm, skip_nonfinite": {"max_norm": 1.0, "skip_nonfinite": True},
}
CLIPPED = 300  # tensors
HOST = {"1 tensor": 1, "100 tensors": 100, "292 tensors": 292, "1000 tensors": 1000}
HOST_SIZE = 1000  # elements of each
SIZES = [10**k for k in range(4, 9)]
LR = 1e-3


class Sections:
    """What measures share: the options, and a device that is there once the first asks."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.reasons: dict[str, dict[str, str]] = defaultdict(dict)
        self._device: Device | None = None

    @property
    def device(self) -> Device:
        """The device."""
        if self._device is None:
            self._device = Device()
        return self._device

    def _timed(self, name: str, calls: dict[str, Call], moved: float = 0.0, **more: Any) -> Row:
        """The row of calls by the device's clock, among which a copy may be of as many bytes as are moved."""
        times = self.device.interleaved(calls, self.options.repeats)
        row = row_of(name, times, moved, times.pop("ceiling", None), device=self.device.name, **more)
        row["against"] = ratios(times)
        return row

    def storage(self, name: str, budget: float) -> Row:
        """Adam over floats and states stored in some way."""
        kind, options = STORED[name]
        size, dtype = self.options.size, floats(kind)
        param, grad = (self.device.array(numbers(size, dtype, seed)) for seed in (0, 1))
        step = CLASSES["Adam"]([param], lr=LR, **options).bind([grad]).step
        moved = kernels.kernel_of(name).bytes * size
        calls: dict[str, Call] = {"numba-cuda": step, "ceiling": self.device.copy(moved)}
        stored = name.partition(", ")[2]
        others = {who: partial(_low_bits, who, size, kind) for who in LOW_BITS.get(stored, ())}
        calls |= attempts(others, name, self.reasons["storages"])
        return self._timed(name, calls, moved, elements=size)

    def rows(self, name: str, budget: float) -> Row:
        """A step over some rows of a table."""
        kind, lookups, duplicates = ROWS[name]
        count, width = min(sparse.ROWS, self.options.size), sparse.WIDTH
        exponent, found = LOOKUPS[lookups], min(sparse.LOOKUPS, self.options.size)
        indices = np.random.default_rng(0).integers(0, count, found)
        if exponent is not None:
            indices = sparse.zipf(found, count, exponent)
        param = self.device.array(numbers(count * width, F4).reshape(count, width))
        values = self.device.array(numbers(found * width, F4, 1).reshape(found, width))
        gradient = RowSparse(self.device.array(indices), values, duplicates=duplicates)
        optimizer = CLASSES[kind]([param], lr=LR)
        calls: dict[str, Call] = {"numba-cuda": lambda: optimizer.step([gradient])}
        if duplicates == "sum":
            others = {"fbgemm": _fbgemm_rows} | ({"torch": _torch_rows} if kind == "Adagrad" else {})  # which it has
            makers = {who: partial(make, kind, count, width, indices) for who, make in others.items()}
            calls |= attempts(makers, name, self.reasons["rows"])
        return self._timed(name, calls)

    def clipping(self, name: str, budget: float) -> Row:
        """AdamW over many tensors, with a limit or without."""
        each = max(1, self.options.size * 3 // 2 // CLIPPED)
        params, grads = ([self.device.array(numbers(each, F4, seed)) for _ in range(CLIPPED)] for seed in (0, 1))
        step = partial(CLASSES["AdamW"](params, lr=LR).bind(grads).step, **CLIPPING[name])
        calls: dict[str, Call] = {"numba-cuda": step}
        if name in ("without", "max_norm"):
            others = {"torch-fused": _torch_clipped, "apex": _apex_clipped}
            makers = {who: partial(make, each, name == "max_norm") for who, make in others.items()}
            calls |= attempts(makers, name, self.reasons["clipping"])
        row = self._timed(name, calls, 28.0 * each * CLIPPED, elements=each * CLIPPED)
        row["host"] = self.device.host_seconds(step)
        return row

    def host(self, name: str, budget: float) -> Row:
        """What a step takes of the host, which does not wait for the device."""
        sizes = [HOST_SIZE] * HOST[name]
        params, grads = ([self.device.array(numbers(n, F4, seed)) for n in sizes] for seed in (0, 1))
        optimizer = CLASSES["Adam"](params, lr=LR)
        plan = optimizer.bind(grads)
        calls: dict[str, Call] = {
            "plan.step": plan.step,
            "numba-cuda": lambda: optimizer.step(grads),
            "max_norm": lambda: optimizer.step(grads, max_norm=1.0),
        }
        others = {"fastopt.torch": "fastopt", "torch-fused": "fused", "torch-foreach": "foreach"}
        makers = {who: partial(_torch_step, sizes, kind) for who, kind in others.items()}
        calls |= attempts(makers, name, self.reasons["host"])
        times: Times = {
            who: [self.device.host_seconds(call) for _ in range(self.options.repeats)] for who, call in calls.items()
        }
        return row_of(name, times, device=self.device.name, tensors=len(sizes)) | {"against": ratios(times)}

    def size(self, name: str, budget: float) -> Row:
        """Adam over one tensor."""
        size = int(name)
        param, grad = (self.device.array(numbers(size, F4, seed)) for seed in (0, 1))
        moved = 28.0 * size
        calls: dict[str, Call] = {
            "numba-cuda": CLASSES["Adam"]([param], lr=LR).bind([grad]).step,
            "ceiling": self.device.copy(moved),
        }
        torchs = {f"torch-{kind}": partial(_torch_step, [size], kind) for kind in ("fused", "foreach")}
        calls |= attempts(torchs, name, self.reasons["sizes"])
        return self._timed(name, calls, moved, elements=size, dtype="float32")


def ratios(times: Times) -> dict[str, Any]:
    """How many times as long as fastopt's each one's calls take, by round."""
    return {who: ratio(own, times["numba-cuda"]) for who, own in times.items() if who != "numba-cuda"}


def floats(kind: str) -> np.dtype:
    """The dtype of that name."""
    return np.dtype(load("ml_dtypes", "ml_dtypes").bfloat16 if kind == "bf16" else kind)


# ---- others, where they are installed ----


def _leaf(shape: Any, dtype: str = "float32") -> Any:
    torch = torch_on_device()
    found = torch.ones(shape, dtype=getattr(torch, dtype), device="cuda").requires_grad_()
    found.grad = torch.full_like(found, 0.5).detach()
    return found


def _torch_step(sizes: Sequence[int], kind: str) -> Call:
    torch = torch_on_device()
    params = [_leaf(size) for size in sizes]
    if kind == "fastopt":
        from .. import torch as optim

        return optim.Adam(params, lr=LR).step
    return torch.optim.Adam(params, lr=LR, **{kind: True}).step


def _torch_clipped(each: int, clips: bool) -> Call:
    torch = torch_on_device()
    params = [_leaf(each) for _ in range(CLIPPED)]
    optimizer = torch.optim.AdamW(params, lr=LR, fused=True)

    def step() -> None:
        if clips:
            torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        optimizer.step()

    return step


def _apex_clipped(each: int, clips: bool) -> Call:
    torch_on_device()
    params = [_leaf(each) for _ in range(CLIPPED)]
    optimizer = load("apex.optimizers", "apex").FusedAdam(params, lr=LR)
    clip = load("apex.contrib.clip_grad", "apex").clip_grad_norm_ if clips else None

    def step() -> None:
        if clip is not None:
            clip(params, 1.0)
        optimizer.step()

    return step


def _torch_rows(kind: str, rows: int, width: int, indices: np.ndarray) -> Call:
    torch = torch_on_device()
    table = torch.zeros((rows, width), device="cuda").requires_grad_()
    own, values = torch.from_numpy(indices).cuda()[None], torch.ones((len(indices), width), device="cuda")
    optimizer = getattr(torch.optim, kind)([table], lr=LR)

    def step() -> None:
        table.grad = torch.sparse_coo_tensor(own, values, table.shape, check_invariants=False)
        optimizer.step()

    return step


def _fbgemm_rows(kind: str, rows: int, width: int, indices: np.ndarray) -> Call:
    torch = torch_on_device()
    load("fbgemm_gpu", "fbgemm-gpu")
    training = load("fbgemm_gpu.split_table_batched_embeddings_ops_training", "fbgemm-gpu")
    device, cuda = training.EmbeddingLocation.DEVICE, training.ComputeDevice.CUDA
    name = {"Adagrad": "EXACT_ADAGRAD", "RowwiseAdagrad": "EXACT_ROWWISE_ADAGRAD"}[kind]
    tables = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, width, device, cuda)], optimizer=getattr(training.OptimType, name), learning_rate=LR, eps=1e-10
    )
    own, offsets = torch.from_numpy(indices).cuda(), torch.arange(len(indices) + 1).cuda()
    upstream = torch.ones((len(indices), width), device="cuda")
    return lambda: tables(own, offsets).backward(upstream)  # with the pass that looks up


def _low_bits(who: str, size: int, kind: str) -> Call:
    param = _leaf(size, _TORCHS[kind])
    if who == "bitsandbytes":
        optimizer = load("bitsandbytes", "bitsandbytes").optim.Adam8bit([param], lr=LR, min_8bit_size=1)
    elif who == "torchao":
        optimizer = load("torchao.optim", "torchao").Adam8bit([param], lr=LR)
    else:
        optimizer = torch_on_device().optim.Adam([param], lr=LR, fused=True)
    step: Call = optimizer.step
    return step


#: Who has a step like that of a storage.
LOW_BITS = {
    "8-bit states": ("bitsandbytes", "torchao"),
    "bfloat16, 8-bit states": ("bitsandbytes", "torchao"),
    "bfloat16": ("torch-fused",),
    "float16": ("torch-fused",),
}
_TORCHS = {"f4": "float32", "bf16": "bfloat16", "f2": "float16"}


# ---- the sections ----

_MILLISECONDS = {"": named, "ms": time_of("numba-cuda", 3)}
_OTHERS = {"torch fused\nms": "torch-fused", "bitsandbytes\nms": "bitsandbytes", "torchao\nms": "torchao"}
_OTHERS |= {"torch\nms": "torch", "FBGEMM\nms": "fbgemm", "apex\nms": "apex"}
_BESIDE = {header: against(who, 3) for header, who in _OTHERS.items()}


def sections(options: Options) -> Iterator[Section]:
    """The sections of a device beside that of rules."""
    shared = Sections(options)
    size = f"{options.size:,}"
    yield _section(
        shared, "storages", f"Adam over {size} elements by how they are stored, on a CUDA device", list(STORED),
        shared.storage, {**_MILLISECONDS, "share of\na copy": share_of("numba-cuda"), **_BESIDE},
    )  # fmt: skip
    title = f"{sparse.LOOKUPS:,} lookups of rows of {sparse.WIDTH} float32 on a CUDA device"
    yield _section(shared, "rows", title, list(ROWS), shared.rows, {**_MILLISECONDS, **_BESIDE})
    title = f"AdamW over {CLIPPED} tensors, {options.size * 3 // 2:,} elements, on a CUDA device"
    columns = {**_MILLISECONDS, "host, µs": value_of("host", 0, "", 1e6), **_BESIDE}
    yield _section(shared, "clipping", title, list(CLIPPING), shared.clipping, columns)
    columns = {"": named}
    for header, who in {
        "plan.step()": "plan.step", "opt.step()": "numba-cuda", "max_norm": "max_norm",
        "fastopt.torch": "fastopt.torch", "torch fused": "torch-fused", "torch foreach": "torch-foreach",
    }.items():  # fmt: skip
        columns[f"{header}\nµs"] = time_of(who, 1, 1e6)
    yield _section(
        shared, "host", f"Time of the host, Adam over tensors of {HOST_SIZE} elements", list(HOST), shared.host, columns
    )
    sizes = [str(n) for n in options.sizes or SIZES]
    columns = {"elements": named, "µs": time_of("numba-cuda", 1, 1e6), "share of\na copy": share_of("numba-cuda")}
    columns |= {f"torch {kind}\nµs": against(f"torch-{kind}", 1, 1e6) for kind in ("fused", "foreach")}
    title = "Adam on a CUDA device by size"

    def draw(figure: Any, rows: Sequence[Row]) -> None:
        whom = whoever(rows, ("ceiling", "numba-cuda", "torch-fused", "torch-foreach"))
        pictures.roofline(figure, title, rows, whom)

    yield _section(shared, "sizes", title, sizes, shared.size, columns, draw)


def _section(
    shared: Sections,
    key: str,
    title: str,
    names: Sequence[str],
    measure: Measure,
    columns: dict[str, Any],
    draw: Callable[[Any, Sequence[Row]], None] | None = None,
) -> Section:
    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        yield table(title, columns, rows)

    return Section(f"cuda-{key}", title, names, measure, tables, draw, 4.0, shared.reasons[key])
