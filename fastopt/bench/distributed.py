"""Several processes: Adam's step by `fastopt.distributed` against the bare exchange of the same bytes by MPI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

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
_PROGRAM = Path(__file__).with_name("in_ranks.py")


def measure(name: str, budget: float, repeats: int = 21) -> Row:
    """Starts processes, which take turns of all three.

    Raises
    ------
    Skip
        There is no MPI.
    """
    ranks, size, way = CASES[name]
    if find_spec("mpi4py") is None:
        raise Skip("mpi4py is not installed")
    command = [sys.executable, "-m", "fastopt", "run", "-n", str(ranks), str(_PROGRAM)]
    arguments = [way, str(size * 10**6 // 4 // ranks * ranks), str(repeats), str(budget)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise Skip(done.stderr.strip().rpartition("\n")[2] or f"processes ended with {done.returncode}")
    times = json.loads(done.stdout)
    beside = {who: ratio(times[who], times["bare"]) for who in ("fastopt", "reduce-scatter")}
    return row_of(name, times, beside=beside, faster=ratio(times["fastopt"], times["reduce-scatter"]))


def _of_bare(who: str) -> Show:
    def show(row: Row) -> str:
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
        "are written in memory that all processes have."
    )

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        columns = {
            "": named,
            "bare, ms": time_of("bare"),
            "fastopt / bare": _of_bare("fastopt"),
            "MPI's / bare": _of_bare("reduce-scatter"),
            "fastopt / MPI's": _of_reduce_scatter,
        }
        yield table(title, columns, rows, caption)

    def take(name: str, budget: float) -> Row:
        return measure(name, budget, options.repeats)

    return Section("distributed", title, list(CASES), take, tables, None, 10.0)
