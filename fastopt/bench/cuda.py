"""The rules on a CUDA device: each beside a device-to-device copy, torch's fused and foreach, in turns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from random import Random
from time import perf_counter
from typing import Any

import numpy as np

from .. import functional
from ..optimizers import CLASSES
from ..rules import REQUIRED, RULES
from . import pictures
from .peers import COMPETITORS, pytorch
from .peers.base import count_moved, hyper_of, installed
from .section import (
    Options,
    Row,
    Section,
    Skip,
    Table,
    against,
    named,
    reason,
    row_of,
    share_of,
    table,
    time_of,
    whoever,
)
from .timing import Call, Times, ratio

SMALL = {"1000 tensors of 1000": 1000 * [1000], "1 tensor of 10^6": [1_000_000]}
WARM, SHORTEST = 3, 2e-3  # calls before, and seconds of, each timing


class Device:
    """The device's clock and its arrays; Numba's, so that torch need not be there."""

    def __init__(self) -> None:
        from numba import cuda

        self.cuda = cuda
        self.name = cuda.get_current_device().name
        self.name = self.name.decode() if isinstance(self.name, bytes) else self.name

    def array(self, values: np.ndarray) -> Any:
        """A copy on the device, of any dtype."""
        found = self.cuda.device_array(values.shape, values.dtype)
        found.view(np.uint8).copy_to_device(values.view(np.uint8))
        return found

    def copy(self, moved: float) -> Call:
        """A copy that reads and writes so many bytes."""
        of, to = (self.cuda.device_array(max(1, round(moved / 2)), np.uint8) for _ in "12")
        return partial(to.copy_to_device, of)

    def host_seconds(self, call: Call, loops: int = 20) -> float:
        """Time of the host for a call, whatever the device is at."""
        for _ in range(WARM):
            call()
        self.cuda.synchronize()
        begin = perf_counter()
        for _ in range(loops):
            call()
        found = (perf_counter() - begin) / loops
        self.cuda.synchronize()
        return found

    def zeros(self, shape: Any) -> Any:
        """float32 zeros on the device."""
        found = self.cuda.device_array(shape, np.float32)
        self.cuda.cudadrv.driver.device_memset(found, 0, found.nbytes)
        return found

    def seconds(self, call: Call, loops: int) -> float:
        """Time a call by the device's own clock."""
        begin, end = self.cuda.event(), self.cuda.event()
        for _ in range(WARM):
            call()
        begin.record()
        for _ in range(loops):
            call()
        end.record()
        end.synchronize()
        return self.cuda.event_elapsed_time(begin, end) / 1e3 / loops

    def interleaved(self, calls: dict[str, Call], repeats: int) -> Times:
        """Seconds of each call by round, in turns."""
        loops = {who: max(1, int(SHORTEST / max(self.seconds(call, 1), 1e-6))) for who, call in calls.items()}
        shuffle = Random(0)
        times: Times = {who: [] for who in calls}
        for _ in range(repeats):
            for who in shuffle.sample(list(calls), len(calls)):
                times[who].append(self.seconds(calls[who], loops[who]))
        return times


def numbers(size: int, dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """Normal numbers, that repeat themselves: so many would take seconds."""
    return np.resize(_some_numbers(seed), size).astype(dtype, copy=False)


@cache
def _some_numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(1 << 20, np.float32)


def torch_on_device() -> Any:
    """torch; raises `Skip` where it is missing, or has no CUDA device."""
    torch = pytorch.load_torch()
    if not torch.cuda.is_available():
        raise Skip("torch finds no CUDA device")
    return torch


#: The packages of those who are not torch's own.
_PACKAGES = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "fbgemm": "fbgemm-gpu", "apex": "apex"}


def attempts(makers: Mapping[str, Callable[[], Call]], name: str, reasons: dict[str, str]) -> dict[str, Call]:
    """The calls of all that are installed and do a first step of a row; `reasons` says why others do not."""
    found = {}
    for who, make in makers.items():
        if not installed(_PACKAGES.get(who, "torch")):
            continue  # the head says so
        try:
            call = make()
            call()
        except Exception as error:
            reasons[who if isinstance(error, Skip) else f"{who}, {name}"] = reason(error)
        else:
            found[who] = call
    return found


def _torch_step(name: str, kernel: str, values: np.ndarray) -> Call:
    """torch's step over a tensor of these values."""
    torch = torch_on_device()
    kind, options = pytorch.CLASSES[name]
    own = torch.from_numpy(values).cuda().requires_grad_()
    own.grad = own.detach().clone()
    step: Call = getattr(torch.optim, kind)([own], lr=hyper_of(RULES[name])["lr"], **{kernel: True}, **options).step
    return step


class Measure:
    """Measures rules at one size, and small tensors."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.reasons: dict[str, str] = {}
        self._device: Device | None = None

    def __call__(self, name: str, budget: float) -> Row:
        """The row of a rule, or of small tensors."""
        if self._device is None:
            self._device = Device()
        return self._small(name) if name in SMALL else self._rule(name)

    def _small(self, name: str) -> Row:
        device = self._device
        assert device is not None
        params, grads = ([device.array(np.ones(size, np.float32)) for size in SMALL[name]] for _ in range(2))
        step = CLASSES["Adam"](params).bind(grads).step
        moved = 7 * 4 * sum(SMALL[name])
        return row_of(name, device.interleaved({"numba-cuda": step}, self.options.repeats), moved)

    def _rule(self, name: str) -> Row:
        device, rule = self._device, RULES[name]
        assert device is not None
        size = self.options.size
        values = numbers(size, np.dtype(np.float32))
        param, grad, copied = device.array(values), device.array(values), device.zeros(size)
        copies = len(hyper_of(rule)["betas"]) if rule.vector else 1
        states = [device.zeros(rule.state_shape(name, (size,), copies)) for name in rule.state_names]
        required = {key: 1e-3 for key, hyper in rule.hyper.items() if hyper.default is REQUIRED}
        count, function = itertools.count(1), getattr(functional, name)

        def step() -> None:
            function(param, grad, *states, step=next(count), **required)

        calls: dict[str, Call] = {"copy": partial(copied.copy_to_device, param), "numba-cuda": step}
        kernels = [kernel for kernel in ("fused", "foreach") if name in COMPETITORS[f"torch-{kernel}"].rules]
        theirs = {f"torch-{kernel}": partial(_torch_step, name, kernel, values) for kernel in kernels}
        calls |= attempts(theirs, name, self.reasons)
        times = device.interleaved(calls, self.options.repeats)
        moved = count_moved(rule) * values.nbytes
        ceiling = [seconds * moved / (2 * values.nbytes) for seconds in times.pop("copy")]
        row = row_of(name, times, moved, ceiling, elements=size, device=device.name)
        row["against"] = {who: ratio(own, times["numba-cuda"]) for who, own in times.items() if who != "numba-cuda"}
        return row


def section(options: Options) -> Section:
    """The section of a CUDA device."""
    names = [*options.rules, *SMALL]
    title = f"One step over {options.size:,} float32 elements on a CUDA device"

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        large = [row for row in rows if row["name"] not in SMALL]
        device = f" ({large[0]['device']})" if large else ""
        columns = {
            "rule": named,
            "ms": time_of("numba-cuda", 3),
            "TB/s": _terabytes,
            "share of\na copy": share_of("numba-cuda"),
            "torch fused\nms": against("torch-fused", 3),
            "torch foreach\nms": against("torch-foreach", 3),
        }
        yield table(title + device, columns, large, CAPTION)
        small = [row for row in rows if row["name"] in SMALL]
        yield table("Adam over small tensors there", {"": named, "µs": time_of("numba-cuda", 2, 1e6)}, small)

    measure = Measure(options)
    return Section("cuda", title, names, measure, tables, draw, 6.0, measure.reasons)


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Rates of rules, with a mark at that of a copy."""
    large = [row for row in rows if row["name"] not in SMALL]
    if large:
        title = f"One step over {large[0]['elements']:,} float32 elements, {large[0]['device']}"
        whom = whoever(large, ("numba-cuda", "torch-fused", "torch-foreach"))
        pictures.bars(figure, title, large, whom, "a copy on the device")


def _terabytes(row: Row) -> str:
    return f"{row['bytes'] / row['times']['numba-cuda'][1] / 1e12:.2f}"


CAPTION = (
    "copy: device to device, in the same run; its bytes a second are what the share is of. By the device's own clock; "
    "medians of rounds in turns, in brackets the interval that holds the true one with 95 % confidence. x: torch's "
    "time to fastopt's."
)
