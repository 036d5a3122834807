"""The speeds that were set as goals, each beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .peers.base import ELEMENTWISE
from .section import NOISY, Row, Table
from .timing import Spread

Rows = Mapping[str, Row]
#: Finds the figure among a section's rows; the text says whose it is. A missing one is a `KeyError`.
Find = Callable[[Rows], tuple[Spread, str]]


@dataclass(frozen=True)
class Goal:
    """A figure, and what it should be.

    Attributes
    ----------
    what : str
        In words.
    section : str
        Among whose rows `find` finds it.
    bound : float
        The figure should be this or more; or, where `most`, this or less.
    unit : str
        Written after the figure.
    """

    what: str
    section: str
    find: Find
    bound: float
    unit: str = "x"
    most: bool = False

    def row(self, rows: Rows) -> list[str]:
        """The goal as a line of the table."""
        asked = f"{'<=' if self.most else '>='} {self.bound:g}{self.unit}"
        try:
            figure, whose = self.find(rows)
        except (KeyError, ValueError):
            return [self.what, asked, "-", "", "not measured"]
        met = figure.mid <= self.bound if self.most else figure.mid >= self.bound
        mark = NOISY if figure.low < self.bound < figure.high else ""
        low, mid, high = (f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in figure)
        interval = f"{mid}{self.unit} ({low} to {high})"
        return [self.what, asked, interval, whose, ("met" if met else "missed") + mark]


def _get(name: str, key: str, who: str, scale: float = 1.0) -> Find:
    """Return a function that finds the figure of one row, scaled."""
    return lambda rows: (Spread(*rows[name][key][who]).scaled(scale), "")


def _least(key: str, who: str) -> Find:
    """The smallest among the rules."""

    def find(rows: Rows) -> tuple[Spread, str]:
        found = {name: Spread(*row[key][who]) for name, row in rows.items() if name in ELEMENTWISE and who in row[key]}
        name = min(found, key=lambda name: found[name].mid)
        return found[name], f"{name}, of {len(found)}"

    return find


def _flat(rows: Rows) -> tuple[Spread, str]:
    """An element's cost at the largest size to that at a million, beside the ceiling's."""
    first, last = Spread(*rows["1e6"]["shares"]["native"]), Spread(*list(rows.values())[-1]["shares"]["native"])
    name = list(rows)[-1]
    return Spread(first.low / last.high, first.mid / last.mid, first.high / last.low), f"10^6 to {name}"


def _rate(model: str) -> Callable[[Rows], float]:
    def find(rows: Rows) -> float:
        lines = [line for found in rows["text"]["tables"] for line in found["rows"]]
        return float({line[0]: line for line in lines}[f"hinge, sgd, {model}"][2])

    return find


def _one_worker(rows: Rows) -> tuple[Spread, str]:
    rate = _rate("1 worker")(rows)
    return Spread(rate, rate, rate), ""


def _two_workers(rows: Rows) -> tuple[Spread, str]:
    gain = _rate("2 workers")(rows) / _rate("1 worker")(rows)
    return Spread(gain, gain, gain), ""


#: The peers of rules that the goals name.
PEERS = ("torch-fused", "torch-foreach")
_FOREACH = ("rmsprop", "adadelta", "adamax", "nadam")
_STORED = {
    "float32: bfloat16": 1.3,
    "bfloat16: bfloat16": 1.6,
    "float32: 8bit": 1.5,
    "bfloat16: 8bit": 2.0,
}
GOALS = (
    Goal("the slowest rule, native: share of the ceiling", "rules", _least("shares", "native"), 0.97, ""),
    Goal("the slowest rule, numba: share of the ceiling", "rules", _least("shares", "numba"), 0.92, ""),
    Goal("adam against torch fused", "rules", _get("adam", "against", "torch-fused"), 1.15),
    *(Goal(f"{rule} against torch foreach", "rules", _get(rule, "against", "torch-foreach"), 5.0) for rule in _FOREACH),
    Goal("adam in cache, 10^6 elements, against torch fused", "sizes", _get("1e6", "against", "torch-fused"), 1.2),
    Goal("an element's cost, beside the ceiling's, at the largest size", "sizes", _flat, 1.1, most=True),
    *(
        Goal(what, "tensors", _get(name, "times", who, 1e6), bound, " µs", most=True)
        for what, name, who, bound in (
            ("1000 tensors of 10, plan.step()", "1000 tensors of 10", "native", 100),
            ("1000 tensors of 10, opt.step(grads)", "1000 tensors of 10", "step", 300),
            ("1000 tensors of 1000, plan.step()", "1000 tensors of 1000", "native", 400),
            ("one tensor of 10, functional.adam", "1 tensor of 10", "functional", 2),
            ("one tensor of 10, plan.step()", "1 tensor of 10", "native", 1),
            ("1000 tensors of 10, fastopt.torch", "1000 tensors of 10", "fastopt.torch", 1000),
            ("one tensor of 10, fastopt.torch", "1 tensor of 10", "fastopt.torch", 8),
        )
    ),
    Goal("rows, row-wise Adagrad, against FBGEMM", "sparse", _get("rowwise_adagrad", "against", "fbgemm"), 4.0),
    Goal("rows, exact Adagrad, against FBGEMM", "sparse", _get("adagrad", "against", "fbgemm"), 4.0),
    Goal("rows, exact Adagrad, against torch", "sparse", _get("adagrad", "against", "torch"), 8.0),
    *(
        Goal(f"Adam, {name}: updates/s against float32's ceiling", "precision", _get(name, "shares", "native"), bound)
        for name, bound in _STORED.items()
    ),
    Goal("Hogwild SVM on text, one thread, million nonzeros/s", "workloads", _one_worker, 125, ""),
    Goal("Hogwild SVM on text, two threads against one", "workloads", _two_workers, 1.6),
    *(
        Goal(f"{name}", "startup", _get(name, "times", "process", 1e3), bound, " ms", most=True)
        for name, bound in (("import fastopt", 150), ("first step, numba", 500))
    ),
)


def table(results: Mapping[str, Sequence[Row]]) -> Table:
    """Every goal beside its figure, from the rows of all sections."""
    rows = {key: {row["name"]: row for row in own} for key, own in results.items()}
    return Table(
        "Goals",
        ["", "asked for", "measured", "by", ""],
        [goal.row(rows.get(goal.section, {})) for goal in GOALS],
        f"In brackets the interval of the median, or quartiles of times. {NOISY}: it lies on both sides of the goal.",
        words=2,
    )
