"""Shared parts of the workloads: options, text, tables, pictures."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

_PACKAGES = {"sklearn": "scikit-learn"}  # what pip calls those that are imported under another name
_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))  # curves that coincide are all seen

WORKERS = (1, 2, 4)
IDENTIFIER = r"\b[^\W\d]\w+"  # of two characters or more; keywords and the words of comments among them


def explain(missing: ModuleNotFoundError) -> NoReturn:
    """Ends the command, saying how to install what it lacks."""
    package = (missing.name or "").partition(".")[0]
    sys.exit(f"no {package} here; install it: pip install {_PACKAGES.get(package, package)}")


try:
    import numpy as np
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from fastopt.cli import picture
    from fastopt.hogwild import Run
    from fastopt.info import configuration
    from fastopt.palette import COLOURS, STYLE, Look
except ModuleNotFoundError as missing:
    explain(missing)


def count(text: str) -> int:
    """A whole number >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number >= 1")
    return int(text)


def _picture(text: str) -> Path:
    """A file for a picture, in a folder that there is."""
    path = picture(text)
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as missing:  # now, rather than after the training
        explain(missing)
    return path


_tables: Path | None = None


def _record(text: str) -> Path:
    """A file for the tables, emptied now."""
    global _tables
    _tables = Path(text)
    try:
        _tables.write_text("")
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return _tables


def _fraction(text: str) -> float:
    """A number in (0, 1]."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number > 0 and <= 1")
    return number


def parser(description: str, epochs: int | None = None) -> argparse.ArgumentParser:
    """A parser with the options of every workload.

    Parameters
    ----------
    description : str
        The workload's docstring.
    epochs : int, optional
        The default, where training is counted in epochs.
    """
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if epochs is not None:
        options.add_argument("--epochs", type=count, default=epochs, help="passes over the data (default %(default)s)")
    options.add_argument("--plot", type=_picture, metavar="FILE", help="draws the losses there, as .png or .svg")
    add_tables(options)
    return options


def add_tables(options: argparse.ArgumentParser) -> None:
    """The option of all that show tables."""
    options.add_argument("--json", type=_record, metavar="FILE", help="also writes the tables there, one a line")


def add_workers(options: argparse.ArgumentParser) -> None:
    """The option of those that run Hogwild."""
    options.add_argument(
        "--workers", type=count, nargs="+", default=WORKERS, help="trains once with each of these numbers (1 2 4)"
    )


def add_size(options: argparse.ArgumentParser, of: str) -> None:
    """The option that makes a workload smaller."""
    options.add_argument("--size", type=_fraction, default=1.0, help=f"the share of {of} to take (default 1)")


def add_rounds(options: argparse.ArgumentParser, rounds: int) -> None:
    """The option of those that train anew in rounds, `rounds` by default."""
    options.add_argument("--rounds", type=count, default=rounds, help="trainings of each (default %(default)s)")


def sources(share: float) -> Iterator[tuple[bool, str]]:
    """The Python standard library's own sources: whether a file is in a directory of tests, and its text."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts]
    chosen = np.random.default_rng(0).permutation(len(files))[: max(2, round(share * len(files)))]
    for k in sorted(chosen):
        folders = files[k].relative_to(root).parts[:-1]
        test = any(folder in ("test", "tests", "idle_test") for folder in folders)
        yield test, files[k].read_text(encoding="utf-8", errors="replace")


def cached(name: str, share: float, build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the result of `build`, kept in ~/.cache/fastopt, or in $XDG_CACHE_HOME/fastopt."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastopt"
    path = folder / f"{name}-{platform.python_version()}-{share:g}.npz"
    if not path.exists():
        progress(f"building {path}")
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{os.getpid()}-{path.name}"
        np.savez(unfinished, **build())
        unfinished.replace(path)
    with np.load(path) as arrays:
        return dict(arrays)


def progress(text: str) -> None:
    """A line for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def in_turns(epochs: int, trainings: Mapping[Any, Callable[[int], Run]]) -> dict[Any, Run]:
    """Advances trainings in turns, epoch by epoch, so that a machine that slows down slows all of them.

    Parameters
    ----------
    epochs : int
        How many.
    trainings : mapping to callable
        Each does the epoch whose number, counted from 0, it gets; by number of workers, or by name.
    """
    done: dict[Any, list[Run]] = {name: [] for name in trainings}
    for epoch in range(epochs):
        for name, train in trainings.items():
            done[name].append(train(epoch))
        losses = ", ".join(f"{runs[-1].loss[0]:.5f}" for runs in done.values())
        progress(f"[{epoch + 1}/{epochs}] loss {losses}")
    return {
        name: Run(tuple(run.loss[0] for run in runs), tuple(run.seconds[0] for run in runs))
        for name, runs in done.items()
    }


def repeated(rounds: int, fits: Mapping[Any, Callable[[], Run]]) -> dict[Any, Run]:
    """Trains anew in each round, all in turns.

    Returns
    -------
    dict of Run
        The losses of the last round, and each epoch's median time over the rounds.
    """
    done: dict[Any, list[Run]] = {name: [] for name in fits}
    for k in range(1, rounds + 1):
        for name, fit in fits.items():
            done[name].append(fit())
            progress(f"[{k}/{rounds}] {name}: loss {done[name][-1].loss[-1]:.5f}, {sum(done[name][-1].seconds):.3f} s")
    return {
        name: Run(runs[-1].loss, tuple(map(median, zip(*(run.seconds for run in runs), strict=True))))
        for name, runs in done.items()
    }


def plural(workers: int) -> str:
    """A number of workers, in words."""
    return f"{workers} worker{'s' * (workers > 1)}"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", words: int = 1) -> None:
    """Prints a table whose first columns, as many as `words` says, are words, and the others numbers."""
    table = Table(box=box.SIMPLE_HEAD)
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k < words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.width = max(console.width, 120)
    console.print(f"\n{title}", table, sep="\n", markup=False, soft_wrap=True)
    if caption:
        console.print(caption, markup=False, soft_wrap=True)
    if _tables:
        with _tables.open("a") as file:
            print(json.dumps({"title": title, "header": columns, "rows": rows, "caption": caption}), file=file)


@dataclass
class Panel:
    """One pair of axes: curves by label, each of x and y; looks of their own, by label, where they have any."""

    curves: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]]
    xlabel: str
    ylabel: str
    yscale: str = "linear"
    looks: Mapping[str, Look] = field(default_factory=dict)


def draw(path: Path, title: str, *panels: Panel, columns: int = 0) -> None:
    """Draws the panels and says on which machine it was.

    They are side by side, with one legend where it is the same. With `columns` so many are side by side, on one y axis,
    and the next ones below, each with its legend.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    with rc_context({**STYLE, "font.size": 11}):
        across = columns or len(panels)
        down = -(-len(panels) // across)
        figure = Figure(figsize=((5 if columns else 7) * across, 4.5 * down), layout="constrained")
        axes: Any = None
        for k, panel in enumerate(panels, 1):
            shared = axes if columns and k % across != 1 else None
            own = {"xlabel": panel.xlabel, "ylabel": panel.ylabel, "yscale": panel.yscale, "sharey": shared}
            axes = figure.add_subplot(down, across, k, **own)
            if panel.yscale == "log":
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter("{x:g}")
            for j, (label, (x, y)) in enumerate(panel.curves.items()):
                own = panel.looks.get(label)
                colour, style = (own.colour, own.dashes) if own else (COLOURS[j % len(COLOURS)], _STYLES[j])
                axes.plot(x, y, color=colour, linestyle=style, linewidth=2, label=label)
            axes.grid(alpha=0.25)
            if len(panel.curves) > len(_STYLES):
                figure.legend(*axes.get_legend_handles_labels(), loc="outside left upper", fontsize=8)
            elif columns or k == 1 or panel.curves.keys() != panels[0].curves.keys():
                axes.legend()
        figure.suptitle(title)
        figure.supxlabel(f"Measured on {configuration()['processor']}", fontsize=9)
        figure.savefig(path, dpi=144)
    progress(f"wrote {path}")


def best_rate(loss: Callable[[float], float], near: float) -> float:
    """Return the learning rate of 1, 2, 5, 10, 20 ... and 0.5, 0.2 ... of which neither neighbour has less loss.

    Parameters
    ----------
    loss : callable
        The loss with a rate; where it is not finite, the rate is too large.
    near : float
        Where to begin.
    """
    losses: dict[int, tuple[float, int]] = {}

    def rate(k: int) -> float:
        return float(f"{(1, 2, 5)[k % 3]}e{k // 3}")

    def at(k: int) -> tuple[float, int]:
        if k not in losses:
            found = loss(rate(k))
            losses[k] = (found, 0) if math.isfinite(found) else (math.inf, k)
        return losses[k]

    best = min(range(-30, 30), key=lambda k: abs(math.log(rate(k) / near)))
    while (better := min((best, best - 1, best + 1), key=at)) != best:
        best = better
    return rate(best)


def against_time(runs: Mapping[str, Run]) -> dict[str, tuple[list[float], Sequence[float]]]:
    """The curves of a `Panel`: loss against seconds, at the end of each epoch."""
    return {name: (list(accumulate(done.seconds)), done.loss) for name, done in runs.items()}
