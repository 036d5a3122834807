"""``fastopt bench``: measures, prints, and writes what it found."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .. import settings
from ..dispatch import available_backends
from ..info import configuration
from ..rules import RULES, Rule
from . import peers, precision, sparse, tensors
from .timing import Call, interleaved, ratio

Row = dict[str, Any]
AHEAD = (0, 512, 1024)
CHECKED = 131_101  # elements that results are compared on: two threads' worth, and a remainder


@dataclass
class Section:
    """A table in the making: what is measured under which names, and how a row is shown."""

    key: str
    title: str
    names: Sequence[str]
    measure: Callable[[str], Row]
    columns: Mapping[str, Callable[[Row], str]]
    caption: str = ""

    def table(self, rows: Sequence[Row]) -> Table:
        """The rows so far, for people."""
        table = Table()
        for k, header in enumerate(self.columns):
            table.add_column(header, justify="right" if k else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(show(row) for show in self.columns.values()))
        return table


def _number(key: str, digits: int = 1, unit: str = "", scale: float = 1.0) -> Callable[[Row], str]:
    return lambda row: "-" if row.get(key) is None else f"{row[key] * scale:.{digits}f}{unit}"


class _Rules:
    """Measures rules over large arrays, of which those that nobody writes, and the ceiling's, serve all rules."""

    def __init__(self, size: int, names: Sequence[str], threads: int, repeats: int) -> None:
        self.threads, self.repeats = threads, repeats
        rng = np.random.default_rng(0)
        self.start, self.grad = (rng.standard_normal(size, np.float32) for _ in range(2))
        self.native = available_backends()["native"] == "available"
        widest = max(peers.count_arrays(RULES[name]) for name in names) if self.native else 2
        self.streamed = [self.start.copy(), self.grad, *(self.start.copy() for _ in range(widest - 2))]

    def _ceiling(self, arrays: int) -> dict[str, Call]:
        if not self.native:
            return {}
        from ..backends.native import stream

        return {f"ceiling {ahead}": partial(stream, self.streamed[:arrays], ahead, self.threads) for ahead in AHEAD}

    def __call__(self, name: str) -> Row:
        rule: Rule = RULES[name]
        arrays = peers.count_arrays(rule)
        peers.check(rule, min(CHECKED, self.start.size), self.threads)
        found = peers.build(rule, self.start, self.grad, self.threads)
        calls = {**self._ceiling(arrays), **{who: peer.step for who, peer in found.items()}}
        times = interleaved(calls, self.repeats)
        moved = (2 * arrays - 1) * self.start.nbytes
        ceiling = min((own for call, own in times.items() if call.startswith("ceiling")), key=median, default=None)
        row: Row = {"rule": name, "bytes": moved, "torch": found["torch"].how if "torch" in found else None}
        for who, own in {**({"ceiling": ceiling} if ceiling else {}), **{who: times[who] for who in found}}.items():
            row |= {f"{who}_ms": 1e3 * median(own), f"{who}_gbs": moved / median(own) / 1e9}
            row |= {f"{who}_share": ratio(ceiling, own)} if ceiling else {}
        if "torch" in found and "native" in found:
            row["speedup"] = ratio(times["torch"], times["native"])
        return row


def _sections(
    size: int, rules: Sequence[str], threads: int, repeats: int, small: bool, rows: bool, bits: bool, digits: bool
) -> Iterator[Section]:
    if digits:
        from .digits import LEFT_OUT, train  # at once: its packages may be missing
    yield Section(
        "rules",
        f"One step over {size:,} float32 elements, {threads} thread{'s' * (threads > 1)}",
        rules,
        _Rules(size, rules, threads, repeats),
        {
            "rule": lambda row: row["rule"],
            "ceiling\nGB/s": _number("ceiling_gbs"),
            "native\nms": _number("native_ms", 2),
            "native\nGB/s": _number("native_gbs"),
            "native\nshare": _number("native_share", 0, " %", 100),
            "numba\nms": _number("numba_ms", 2),
            "numba\nshare": _number("numba_share", 0, " %", 100),
            "NumPy\nms": _number("numpy_ms"),
            "torch\nms": lambda row: _number("torch_ms")(row) + (f" {row['torch']:7}" if row["torch"] else " " * 8),
            "native\nvs torch": _number("speedup", 2, "x"),
        },
        "share: of the ceiling, the fastest streaming kernel found with the same reads and writes, in the same run.\n"
        "Medians of interleaved rounds; share and vs torch are medians of the rounds' ratios.\n"
        "Compared after one step: native and numba gave the same bits, the others the same numbers up to rounding.",
    )
    if small:
        yield Section(
            "tensors",
            "One step of Adam over small tensors, microseconds",
            list(tensors.SETS),
            partial(tensors.measure, repeats=repeats, threads=threads),
            {
                "": lambda row: row["tensors"],
                "plan.step()": _number("plan_us"),
                "opt.step(grads)": _number("step_us"),
                "functional.adam": _number("functional_us"),
                "fastopt.torch": _number("fastopt_torch_us"),
                "torch fused": _number("torch_us"),
            },
        )
    if rows:
        yield Section(
            "sparse",
            f"One step of {sparse.LOOKUPS:,} Zipf-distributed lookups of rows of {sparse.WIDTH} float32, of a table of "
            f"{sparse.ROWS:,} rows",
            list(sparse.CASES),
            sparse.Measure(threads, repeats),
            {
                "rule": lambda row: row["rule"],
                "ceiling\nms": _number("ceiling_ms", 2),
                "native\nms": _number("native_ms", 2),
                "native\nshare": _number("native_share", 0, " %", 100),
                "numba\nms": _number("numba_ms", 2),
                "FBGEMM\nms": _number("fbgemm_ms", 2),
                "FBGEMM/\nnative": _number("fbgemm_ratio", 1, "x"),
                "torch\nms": _number("torch_ms", 2),
                "torch/\nnative": _number("torch_ratio", 1, "x"),
            },
            "Repeated rows are summed. native, numba: opt.step with a fresh RowSparse, ordering included; FBGEMM: its\n"
            "fused backward; torch: step() with a sparse gradient. ceiling: the same rows' traffic, its order known.\n"
            + sparse.missing(),
        )
    if bits:
        yield Section(
            "precision",
            f"One step of Adam over {size:,} parameters, by what they are stored in; {threads} threads",
            list(precision.CASES),
            precision.Measure(size, threads, repeats),
            {
                "parameter, gradient:\nstates": lambda row: row["storage"],
                "bytes": _number("bytes", 1),
                "\nms": _number("ms", 2),
                "\nGB/s": _number("gbs"),
                "10^9\nupdates/s": _number("updates", 2),
                "x float32\nceiling": _number("against", 2),
                "by bytes\nalone": _number("most", 2),
                **{f"cached\n{level}": _number(level, 2, " ns") for level in precision.levels()},
            },
            "bytes: moved for each parameter. x float32 ceiling: updates per second, to those of the fastest\n"
            "streaming kernel with the reads and writes of Adam in float32, in the same run. cached: nanoseconds per\n"
            f"parameter for {precision.IN_CACHE:,} of them, in one thread: what conversions and the update cost where\n"
            "memory does not count.",
        )
    if digits:
        yield Section(
            "digits",
            "Handwritten digits: a 64-64-10 network in NumPy, 15 epochs of batches of 64",
            [name for name in dict.fromkeys(RULES[rule].optimizer for rule in rules) if name not in LEFT_OUT],
            partial(train, threads=threads),
            {
                "optimizer": lambda row: row["optimizer"],
                "lr": _number("lr", 3),
                "held-out accuracy": _number("accuracy", 1, " %", 100),
                "steps": _number("steps", 0),
                "updates ms": _number("seconds", 2, scale=1e3),
                "µs an update": lambda row: f"{1e6 * row['seconds'] / row['steps']:.1f}",
            },
        )


def _each(names: Sequence[str], title: str, console: Console) -> Iterator[str]:
    """The names, with a bar on a terminal and plain lines elsewhere."""
    if console.is_terminal:
        yield from track(names, title, console=console, transient=True)
        return
    for k, name in enumerate(names, 1):
        print(f"[{k}/{len(names)}] {name}", file=sys.stderr, flush=True)
        yield name


def _peers() -> str:
    torch = peers.load_torch()
    return f"NumPy {np.__version__}, " + (f"torch {torch.__version__}" if torch else "no torch: pip install torch")


def bench(
    size: int,
    rules: Sequence[str],
    threads: int | None = None,
    repeats: int = 9,
    tensors: bool = False,
    sparse: bool = False,
    precision: bool = False,
    digits: bool = True,
    json: str | None = None,
) -> int:
    """Runs the benchmark and prints it.

    Parameters
    ----------
    size : int
        Elements of an array.
    rules : sequence of str
        Names of rules.
    threads : int, optional
        Threads of all but NumPy; by default the process's number.
    repeats : int
        Rounds.
    tensors, sparse, precision, digits : bool
        Whether to time small tensors; updates of rows; storage in fewer bits; whether to train.
    json : str, optional
        A file for the results.

    Returns
    -------
    int
        The exit status: 0, or 130 after Ctrl-C, which prints what there is.
    """
    started, interrupted = perf_counter(), False
    if threads is not None:
        settings.set_num_threads(threads)
    threads = settings.get_num_threads()
    out, progress = Console(highlight=False), Console(stderr=True)
    out.width = max(out.width, 120)
    report: dict[str, Any] = {"configuration": {**configuration(), "peers": _peers()}}
    report |= {"size": size, "threads": threads, "repeats": repeats}
    for heading, text in report["configuration"].items():
        out.print(f"{heading + ':':20} {text}", markup=False, soft_wrap=True)
    try:
        for section in _sections(size, rules, threads, repeats, tensors, sparse, precision, digits):
            rows = report[section.key] = []
            try:
                for name in _each(section.names, section.title, progress):
                    rows.append(section.measure(name))
            finally:
                if rows:
                    out.print("", section.title, section.table(rows), *filter(None, [section.caption]), sep="\n")
    except KeyboardInterrupt:
        interrupted = True
    report["seconds"] = perf_counter() - started
    if json:
        _write(json, report)
    out.print(f"\n{'Interrupted after' if interrupted else 'Total time'} {report['seconds']:.0f} s.")
    return 130 if interrupted else 0


def _write(path: str, report: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
