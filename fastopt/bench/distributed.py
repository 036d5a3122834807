"""Several processes: Adam's step by `fastopt.distributed` against the bare exchange of the same bytes by MPI."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import pictures
from .ending import output_of
from .peers import COMPETITORS
from .peers.base import installed
from .section import NOISY, Options, Row, Section, Show, Skip, Table, named, row_of, table, time_of
from .timing import Spread, ratio

PROCESSES = (2, 4)
MEGABYTES = (4, 48)
WAYS = ("common", "messages")
CASES = {
    f"{ranks} processes, {size} MB, {way}": (ranks, size, way)
    for ranks in PROCESSES
    for size in MEGABYTES
    for way in WAYS
}
#: What tables call who takes part, and the peer on whose account.
LABELS = {
    "fastopt": "fastopt",
    "reduce-scatter": "MPI's",
    "ddp": "torch DDP",
    "zero": "torch ZeRO",
    "deepspeed": "DeepSpeed",
}
_ASKED = {"ddp": "torch-fused", "zero": "torch-fused", "deepspeed": "deepspeed"}
_PROGRAM = Path(__file__).with_name("in_ranks.py")


def measure(name: str, budget: float, repeats: int = 21, peers: Sequence[str] = ()) -> Row:
    """Starts processes, which take turns of all.

    Raises
    ------
    Skip
        There is no MPI.
    """
    ranks, size, way = CASES[name]
    asked = [who for who, peer in _ASKED.items() if peer in peers and find_spec(COMPETITORS[peer].package)]
    arguments = [way, str(size * 10**6 // 4 // ranks * ranks), str(repeats), str(budget), *asked]
    times, beside = times_of(_PROGRAM, ranks, arguments)
    return row_of(name, times, beside=beside, faster=ratio(times["fastopt"], times["reduce-scatter"]))


def times_of(program: Path, ranks: int, arguments: Sequence[str]) -> tuple[Any, dict[str, Spread]]:
    """The times that a program's processes print as JSON, and of each its ratio to the bare exchange.

    Raises
    ------
    Skip
        There is no MPI.
    """
    if find_spec("mpi4py") is None:
        raise Skip("mpi4py is not installed")
    command = [sys.executable, "-m", "fastopt", "run", "-n", str(ranks), str(program)]
    printed = output_of([*command, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"})
    times = json.loads(next(line for line in printed.split("\n") if line.startswith("{")))  # amid what peers say
    return times, {who: ratio(own, times["bare"]) for who, own in times.items() if who != "bare"}


def of_bare(who: str) -> Show:
    """A column of times in those of the bare exchange."""

    def show(row: Row) -> str:
        if who not in row["beside"]:
            return "-"
        spread = Spread(*row["beside"][who])
        return f"{spread.mid:.2f}x ({spread.low:.2f}-{spread.high:.2f}){NOISY if spread.noisy else ' '}"

    return show


def _of_reduce_scatter(row: Row) -> str:
    return f"{row['faster'][1]:.2f}x"


def section(options: Options) -> Section:
    """The section of several processes."""
    title = "Adam's step in several processes, and the bare exchange of the same bytes"
    caption = (
        "bare: Alltoall and Allgather alone. MPI's: Reduce_scatter, Adam, Allgather. common: parameters and gradients "
        "are written in memory that all processes have. torch ZeRO: DDP and ZeroRedundancyOptimizer; DeepSpeed: "
        "ZeRO-1. The three use gloo, and begin with a backward pass that hands gradients over."
    )

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        columns = {
            "": named,
            "bare, ms": time_of("bare"),
            **{f"{label} / bare": of_bare(who) for who, label in LABELS.items()},
            "fastopt / MPI's": _of_reduce_scatter,
        }
        yield table(title, columns, rows, caption)

    def take(name: str, budget: float) -> Row:
        return measure(name, budget, options.repeats, options.peers)

    def draw(figure: Any, rows: Sequence[Row]) -> None:
        pictures.beside(figure, title, rows, LABELS)

    names = list(CASES) if installed("mpi4py") else []
    return Section("distributed", title, names, take, tables, draw, 10.0)
