"""Startup: the import, and each backend's first step, in a new process."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from .ending import output_of
from .section import Options, Row, Section, Table, named, row_of, table, time_of

_STEP = (
    "import numpy as np, fastopt; p = np.ones(1000, 'f4'); g = p.copy(); opt = fastopt.Adam(p, backend={!r}); "
    "start = perf_counter(); opt.step(g)"
)
CASES = {
    "import fastopt": "start = perf_counter(); import fastopt",
    "first step, native": _STEP.format("native"),
    "first step, numba": _STEP.format("numba"),
}
PROCESSES = 5


def measure(name: str, budget: float) -> Row:
    """Starts processes, of which the first, which may fill caches on disk, does not count."""
    code = f"from time import perf_counter; {CASES[name]}; print(perf_counter() - start)"
    times = [float(output_of([sys.executable, "-c", code])) for _ in range(PROCESSES + 1)]
    return row_of(name, {"process": times[1:]})


def section(options: Options) -> Section:
    """The section of beginnings."""
    title = "In a new process"

    def tables(rows: Sequence[Row]) -> Iterator[Table]:
        yield table(title, {"": named, "ms": time_of("process")}, rows)

    return Section("startup", title, list(CASES), measure, tables, None, 4.0)
