"""Statistics of the benchmark: medians, intervals, marks, goals and the gate, from given times."""

from collections import Counter
from time import sleep

import pytest

from fastopt.bench import gate, section, tensors, timing
from fastopt.bench.goals import GOALS, Goal, table
from fastopt.bench.timing import Spread, confidence, interleaved, quartiles, ratio


def test_spreads():
    assert quartiles([3.0]) == (3, 3, 3)
    assert quartiles([5.0, 1.0, 2.0, 3.0, 4.0]) == (2, 3, 4)
    for n, k in ((3, 0), (5, 0), (6, 0), (9, 1), (11, 1), (21, 5)):  # of tables of the sign test
        assert confidence(list(range(n))) == (k, (n - 1) / 2, n - 1 - k)
    # A slow round changes no ratio; a participant of fewer rounds is compared in these.
    assert ratio([2.0, 20.0, 200.0], [1.0, 10.0]) == (2, 2, 2)


@pytest.mark.parametrize(
    ("spread", "noisy"),
    [
        ((0.96, 0.98, 1.00), False),  # within the digits
        ((0.80, 0.98, 1.10), True),
        ((1.50, 2.00, 2.50), False),  # wide, but twice is twice
        ((0.90, 1.08, 1.30), True),
    ],
)
def test_noise_is_marked(spread, noisy):
    assert Spread(*spread).noisy is noisy
    row = {"name": "adam", "times": {"numpy": (1e-3, 2e-3, 3e-3)}, "shares": {}, "against": {"numpy": spread}}
    shown = section.table("", {"rule": section.named, "NumPy": section.against("numpy")}, [row], "A caption.")
    assert shown.rows[0][1] == f"2.0 {spread[1]:6.2f}x" + ("~" if noisy else " ")
    assert (section.FOOTNOTE in shown.caption) is noisy and shown.caption.startswith("A caption.")
    row["shares"]["native"] = spread
    assert section.share_of("native", most=3)(row).endswith("~") is noisy


def test_a_share_above_the_ceiling_says_that_it_was_disturbed():
    row = {"name": "adam", "shares": {"native": (0.9, 1.04, 1.1), "numba": (0.9, 1.06, 1.1)}}
    assert section.share_of("native")(row) == "104 % (90-110)~"
    assert section.share_of("numba")(row) == "ceiling disturbed"


def test_columns_without_anything_are_left_out():
    row = {"name": "adam", "times": {}, "shares": {}, "against": {}}
    columns = {"rule": section.named, "a": section.time_of("a"), "b": section.rate_of("b"), "c": section.share_of("c")}
    assert section.table("", columns, [row]).header == ["rule"]


def test_interleaved():
    calls, prepared = [], []
    times = interleaved(
        {"slow": lambda: (calls.append("slow"), sleep(0.03)), "quick": lambda: calls.append("quick")},
        repeats=8,
        budget=0.3,
        before={"slow": lambda: prepared.append(len(calls))},
    )
    assert len(times["quick"]) == 8 and len(times["slow"]) in (3, 4)  # of 0.15 s for each
    assert min(times["slow"]) >= 0.03 and max(times["quick"]) < 0.01
    assert len(prepared) == calls.count("slow") == len(times["slow"]) + 2  # two to see how long it takes
    assert calls.count("quick") > 100  # short calls are timed in loops


def measured(*highs):
    shares = iter([Spread(high - 0.1, high - 0.05, high) for high in highs])
    return lambda: next(shares)


def test_the_gate():
    assert gate.settle(measured(0.90)).high == 0.90
    assert gate.settle(measured(0.60, 0.86)).high == 0.86  # a bad moment
    assert gate.settle(measured(0.60, 0.70, 0.80)).high < gate.BOUND  # a slower kernel
    assert gate.settle(measured(0.5), bound=0.4).high == 0.5


def test_goals():
    most = Goal(
        "a time", "tensors", lambda rows: (Spread(*rows["x"]["times"]["native"]).scaled(1e6), ""), 10, " µs", True
    )
    for times, verdict in (
        ((7e-6, 8e-6, 9e-6), "met"),
        ((9e-6, 11e-6, 12e-6), "missed~"),
        ((2e-3, 3e-3, 4e-3), "missed"),
    ):
        assert most.row({"x": {"times": {"native": times}}})[-1] == verdict
    assert most.row({"x": {"times": {"native": (1e-3, 2e-3, 3e-3)}}})[:3] == [
        "a time", "<= 10 µs", "2,000 µs (1,000 to 3,000)",
    ]  # fmt: skip
    assert most.row({}) == ["a time", "<= 10 µs", "-", "", "not measured"]
    shares = {"sgd": [0.97, 0.98, 0.99], "adam": [0.90, 0.93, 0.96]}
    rows = [{"name": name, "times": {}, "shares": {"native": own}, "against": {}} for name, own in shares.items()]
    text = {"hinge, sgd, 1 worker": "365", "hinge, sgd, 2 workers": "581"}
    found = [{"rows": [[name, "1", rate] for name, rate in text.items()]}]
    results = {
        "rules": rows,
        "sizes": [
            {"name": "1e6", "shares": {"native": [0.9, 1.0, 1.0]}, "times": {}, "against": {}},
            {"name": "1e9", "shares": {"native": [0.9, 0.9, 1.0]}, "times": {}, "against": {}},
        ],
        "workloads": [{"name": "text", "tables": found}],
    }
    lines = table(results).rows
    assert len(lines) == len(GOALS)
    by_name = {line[0]: line[2:] for line in lines}
    assert by_name["the slowest rule, native: share of the ceiling"] == ["0.93 (0.9 to 0.96)", "adam, of 2", "missed"]
    assert by_name["the slowest rule, numba: share of the ceiling"][-1] == "not measured"
    assert by_name["Hogwild SVM on text, one thread, million nonzeros/s"][-1] == "met"
    assert by_name["Hogwild SVM on text, two threads against one"] == ["1.59x (1.59 to 1.59)", "", "missed"]
    assert by_name["an element's cost, beside the ceiling's, at the largest size"][1:] == ["10^6 to 1e9", "missed~"]


def test_small_tensors_are_timed_once_all_is_bound(monkeypatch):
    """The first step of many binds them; taken for what a step takes, it would leave no time for rounds."""
    found = {}

    def timed(calls, repeats, budget):
        found.update(calls)
        return {name: [1.0] for name in calls}

    monkeypatch.setattr(tensors, "interleaved", timed)
    tensors.measure("10 tensors of 10", 1.0, section.Options(()))
    assert found["native"].__self__._owned.states[0]["step"] == 2  # by a plan and by a step
    for name in {"fastopt.torch", "torch-fused", "torch-foreach"}.intersection(found):
        assert len(found[name].__self__.state) == 10


def test_a_longer_call_has_as_many_before_it_as_a_shorter_one(monkeypatch):
    calls = Counter()

    def taking(seconds):
        calls[seconds] += 1
        return seconds

    monkeypatch.setattr(timing, "seconds", lambda call: call())
    monkeypatch.setattr(timing, "rest", lambda: None)
    times = interleaved({x: lambda x=x: taking(x) for x in (1.6e-3, 2.8e-3, 15e-3, 40e-3)}, 3)
    assert times == {x: [x] * 3 for x in times}
    assert {x: count - 2 - 3 for x, count in calls.items()} == {1.6e-3: 9, 2.8e-3: 9, 15e-3: 3, 40e-3: 0}
