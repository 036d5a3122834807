"""The trainings on real data of ``benchmarks/workloads``, each a command of its own, run one after the other."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from .ending import output_of
from .section import Options, Row, Section, Skip, Table

FOLDER = Path("benchmarks", "workloads")
NAMES = (
    "text",
    "ratings",
    "glove",
    "torch_digits",
    "precision",
    "beyond_memory",
    "curriculum",
    "delayed",
    "asynchronous",
    "overview",
)


def find() -> Path:
    """The folder of the workloads, which are part of a clone and of no installed package.

    Raises
    ------
    Skip
        It is neither in the working directory nor beside the package.
    """
    for root in (Path(), Path(__file__).parents[2]):
        if (root / FOLDER).is_dir():
            return root / FOLDER
    raise Skip(f"no {FOLDER} here: run this in a clone of the repository")


def run(name: str, timeout: float | None) -> Row:
    """Runs a workload and collects its tables.

    Raises
    ------
    Skip
        Why there are none.
    """
    with TemporaryDirectory() as folder:
        found = Path(folder, "tables")
        command = [sys.executable, str(find() / f"{name}.py"), "--json", str(found)]
        began = perf_counter()
        output_of(command, timeout)
        tables = [json.loads(line) for line in found.read_text().splitlines()]
    return {"name": name, "seconds": perf_counter() - began, "tables": tables}


def section(options: Options) -> Section:
    """The section of workloads."""

    def measure(name: str, budget: float) -> Row:
        return run(name, budget if options.limited else None)

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        for row in rows:
            for found in row["tables"]:
                yield Table(f"{row['name']}: {found['title']}", found["header"], found["rows"], found["caption"])

    return Section("workloads", "Trainings on real data", options.workloads, measure, tables, None, 120.0)
