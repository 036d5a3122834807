"""Pictures of results, in PNG and SVG, for light pages and for dark ones."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from textwrap import wrap
from typing import Any

from ..palette import GREY, STYLE, Look, look, looks
from . import machine
from .section import LABELS, Row

_LOOKS = looks(
    (
        *("native", "numba", "torch-fused", "torch-foreach", "optax", "numpy", "deepspeed", "thinc"),
        *("step", "functional", "fastopt.torch", "torch-loop", "numba-loop", "torch-compile"),
    )
)
_LOOKS |= {"ceiling": Look(GREY, "--", "", ""), "numba-cuda": _LOOKS["native"]}


class Picture:
    """Picture of a section's rows.

    Parameters
    ----------
    draw : callable
        Draws rows on a figure.
    rows : sequence of dict
        The rows.
    caption : str
        What it was measured on, and with.
    """

    def __init__(self, draw: Any, rows: Sequence[Row], caption: str) -> None:
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        self._context = rc_context
        with rc_context(STYLE):
            self._figure = Figure(figsize=(9, 5.2), layout="constrained")
            draw(self._figure, rows)
            self._figure.supxlabel(
                "\n".join(chain.from_iterable(wrap(line, 125) for line in caption.split("\n"))), fontsize=8
            )

    def write(self, path: Path) -> None:
        """Writes a file; its name says in which format."""
        if path.suffix == ".svg":
            path.write_text(self.svg(), encoding="utf-8")
            return
        with self._context(STYLE):
            self._figure.savefig(path, dpi=144)

    def svg(self) -> str:
        """The picture as one element: a file of its own, or a part of an HTML page."""
        file = io.StringIO()
        with self._context(STYLE):
            self._figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        text = file.getvalue()
        return text[text.index("<svg") :]


def _axes(figure: Any, title: str, xlabel: str, ylabel: str, **scales: str) -> Any:
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, title=title, **scales)
    axes.grid(alpha=0.25)
    return axes


def curve(
    axes: Any, who: str, x: Sequence[float], spreads: Sequence[Sequence[float]], label: str | None = None
) -> None:
    """Someone's line through medians, with the spread as a band; the ceiling's is broad and grey."""
    lows, mids, highs = zip(*spreads, strict=True)
    colour, dashes, marker, _ = _LOOKS[who]
    axes.plot(
        x, mids, color=colour, linestyle=dashes, marker=marker, linewidth=3 if who == "ceiling" else 1.5,
        label=label or LABELS.get(who, who), markersize=5,
    )  # fmt: skip
    axes.fill_between(x, lows, highs, color=colour, alpha=0.2, linewidth=0)


def _rates(row: Row, who: str) -> list[float]:
    """Gigabytes a second: of the quartiles."""
    return [row["bytes"] / seconds / 1e9 for seconds in reversed(row["times"][who])]


def roofline(figure: Any, title: str, rows: Sequence[Row], whom: Sequence[str]) -> None:
    """Speed against size, with the ceiling and the caches."""
    axes = _axes(figure, title, "elements of an array", "GB/s read and written", xscale="log", yscale="log")
    for who in whom:
        mine = [row for row in rows if who in row["times"]]
        curve(axes, who, [row["elements"] for row in mine], [_rates(row, who) for row in mine])
    axes.yaxis.set_major_formatter("{x:g}")
    touched = _touched(rows[0])
    for level, size in machine.caches().items():
        if rows[0]["elements"] < size / touched < rows[-1]["elements"]:
            axes.axvline(size / touched, color=GREY, linewidth=1, linestyle=":")
            axes.annotate(
                level, (size / touched, 1), xycoords=("data", "axes fraction"), xytext=(3, -10),
                textcoords="offset points", fontsize=9,
            )  # fmt: skip
    axes.legend(ncols=2, fontsize=9)


def _touched(row: Row) -> float:
    """Bytes of an element in all arrays: every array is read once, all but one are written."""
    width = {"float64": 8, "float32": 4}.get(row["dtype"], 2)
    return (row["bytes"] / row["elements"] + width) / 2


def bars(figure: Any, title: str, rows: Sequence[Row], whom: Sequence[str], ceiling: str = "ceiling") -> None:
    """A group of bars for each rule, and a mark at its ceiling, which is called so."""
    figure.set_size_inches(9, max(4.0, 0.8 + len(rows) * (0.16 + 0.075 * len(whom))))
    axes = _axes(figure, title, "GB/s read and written", "")
    height = 0.84 / len(whom)
    for k, who in enumerate(whom):
        mine = [(i, row) for i, row in enumerate(rows) if who in row["times"]]
        places = [i + (k - (len(whom) - 1) / 2) * height for i, _ in mine]
        rates = [_rates(row, who)[1] for _, row in mine]
        colour, _, _, hatch = _LOOKS[who]
        axes.barh(
            places, rates, height, color=colour, hatch=hatch, edgecolor=GREY, linewidth=0, label=LABELS.get(who, who)
        )
    tops = {i: _rates(row, "ceiling")[1] for i, row in enumerate(rows) if "ceiling" in row["times"]}
    ends = [i - 0.45 for i in tops], [i + 0.45 for i in tops]
    axes.vlines(list(tops.values()), *ends, color=GREY, linewidth=2, label=ceiling)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)


def scaling(figure: Any, title: str, rows: Sequence[Row], whom: Sequence[str]) -> None:
    """Speed against threads."""
    axes = _axes(figure, title, "threads", "GB/s read and written")
    for who in whom:
        mine = [row for row in rows if who in row["times"]]
        curve(axes, who, [int(row["name"]) for row in mine], [_rates(row, who) for row in mine])
    axes.set_xticks([int(row["name"]) for row in rows])
    axes.set_ylim(bottom=0)
    axes.legend(ncols=2, fontsize=9)


def overhead(figure: Any, title: str, rows: Sequence[Row], labels: Mapping[str, str]) -> None:
    """Time against the number of tensors."""
    axes = _axes(figure, title, "tensors of 10 elements", "µs a step", xscale="log", yscale="log")
    for who in (who for who in labels if any(who in row["times"] for row in rows)):
        spreads = [[1e6 * seconds for seconds in row["times"][who]] for row in rows]
        curve(axes, who, [row["tensors"] for row in rows], spreads, labels[who])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(fontsize=9)


def beside(figure: Any, title: str, rows: Sequence[Row], labels: Mapping[str, str]) -> None:
    """What each takes in times of the bare exchange, a line for each case."""
    axes = _axes(figure, title, "times of the bare exchange", "", xscale="log")
    axes.axvline(1, color=GREY, linewidth=3, linestyle="--")
    for k, who in enumerate(who for who in labels if any(who in row["beside"] for row in rows)):
        found = [(i, *row["beside"][who]) for i, row in enumerate(rows) if who in row["beside"]]
        places, lows, mids, highs = zip(*found, strict=True)
        ends = [[mid - low for low, mid in zip(lows, mids, strict=True)]]
        ends.append([high - mid for mid, high in zip(mids, highs, strict=True)])
        axes.errorbar(mids, places, xerr=ends, color=look(k).colour, fmt=look(k).marker, label=labels[who])
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(fontsize=9)


def precision(figure: Any, title: str, rows: Sequence[Row]) -> None:
    """Updates per second against bytes per parameter, and what bytes alone would allow."""
    axes = _axes(figure, title, "bytes read and written for a parameter", "10⁹ updates/s")
    top = max(row["ceiling_gbs"] for row in rows)
    widths = [0.25 * k for k in range(4 * 8, 4 * 32)]
    axes.plot(widths, [top / width for width in widths], "--", color=GREY, linewidth=3, label="ceiling, by bytes alone")
    for k, row in enumerate(rows):
        low, mid, high = (row["elements"] / seconds / 1e9 for seconds in reversed(row["times"][row["who"]]))
        axes.errorbar(
            row["each"], mid, [[mid - low], [high - mid]], color=look(k).colour, fmt=look(k).marker, label=row["name"]
        )
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9, title="parameter, gradient: states")
