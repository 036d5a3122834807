"""``fastopt bench``, as a user calls it: what it prints and writes, its budget, Ctrl-C, its errors."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import fastopt
from fastopt import cli

pytest.importorskip("rich", reason="rich is not installed")
from fastopt.bench import (
    command,
    cuda,
    distributed,
    ending,
    machine,
    matrices,
    rules,
    scaling,
    section,
    servers,
    sparse,
    workloads,
)
from fastopt.bench.baseline import table as against_baseline
from fastopt.bench.peers.base import count_moved
from fastopt.bench.plan import Plan, alarm
from fastopt.bench.timing import OutOfTime, interleaved, rest
from fastopt.errors import install_command
from fastopt.rules import RULES

QUICK = ("bench", "--size", "1e4", "--repeats", "2", "--threads", "1", "--no-digits", "--peers", "numpy")
OURS = [name for name in ("native", "numba") if fastopt.available_backends()[name] == "available"]
needs_native = pytest.mark.skipif("native" not in OURS, reason="the native backend is not available")


def lines(printed):
    """The first cells of the tables' rows, without the table at the head, of who is not installed."""
    rows = [line.split("│") for line in printed.splitlines() if line.startswith("│")]
    return [row[1].strip() for row in rows if row[2].strip() != "not installed"]


def shown(printed):
    """All from the first section's title on."""
    return printed[printed.index("One step over") :]


def test_matrices(monkeypatch, capsys):
    monkeypatch.setattr(matrices, "SHAPES", {"first": ("Muon", (6, 4)), "small": ("Adafactor", (6, 4))})
    assert cli.main([*QUICK, "--rules", "sgd", "--matrices"]) == 0
    assert lines(capsys.readouterr().out)[-1] == "small"


def without(*packages):
    """The command in a process where packages cannot be imported."""
    hidden = "".join(f"sys.modules[{name!r}] = None; " for name in packages)
    return f"import sys; {hidden}from fastopt.cli import main; sys.exit(main())"


def test_everything_quickly(tmp_path, capsys):
    """Rules, dtypes, sizes, threads, tensors, pictures, the page, and a second run beside the first."""
    results, again = tmp_path / "bench.json", tmp_path / "again.json"
    more = ("--sizes", "1e2,1e4", "--scaling", "--tensors", "--dtypes", "float32,float64")
    assert (
        cli.main([*QUICK, "--rules", "adam,aggmo", *more, "--json", str(results), "--plot", f"{tmp_path}/x.svg"]) == 0
    )
    printed = capsys.readouterr().out
    assert "Total time" in printed and "…" not in printed and "Left out" not in printed
    assert lines(printed)[:4] == ["adam", "aggmo", "adam float64", "aggmo float64"]
    tables = [line for line in printed.splitlines() if line[:1] in "┏┃┡│└"]
    assert tables and max(map(len, tables)) <= 80
    found = json.loads(results.read_text())
    assert found["summary"].startswith("adam over 10,000 elements takes ") and found["summary"] in " ".join(
        printed.split()
    )
    assert found["configuration"]["host"] and found["configuration"]["date"].startswith("20")
    assert found["size"] == 10_000 and found["threads"] == 1 and "digits" not in found and not found["left_out"]
    adam, aggmo, wide, _ = found["rules"]
    assert [row["bytes"] for row in (adam, aggmo, wide)] == [4 * 7 * 10_000, 4 * 9 * 10_000, 8 * 7 * 10_000]
    for row in found["rules"]:
        for who in (*OURS, "numpy"):
            low, mid, high = row["times"][who]
            assert 0 < low <= mid <= high
            assert "native" not in OURS or who == "native" or row["against"][who][1] > 0
        assert "native" not in OURS or row["shares"]["native"][1] > 0
    assert [row["name"] for row in found["sizes"]] == ["1e2", "1e4"]
    assert [row["name"] for row in found["scaling"]] == ["1"]
    assert {row["name"]: row["tensors"] for row in found["tensors"]}["29 of a transformer"] == 29
    for part in ("rules", "sizes", "scaling", "tensors"):
        assert (tmp_path / f"x-{part}.svg").read_text().startswith("<svg")
    drawn = [(tmp_path / f"x-{part}.svg").read_text() for part in ("rules", "sizes")]
    assert cli.main(["bench", "--draw", str(results), "--plot", f"{tmp_path}/x.svg"]) == 0
    again_printed = capsys.readouterr().out
    assert shown(again_printed) == shown(printed) and "Total time" in again_printed
    assert [(tmp_path / f"x-{part}.svg").read_text() for part in ("rules", "sizes")] == drawn
    assert cli.main(["bench", "--draw", str(results), "--rules", "aggmo"]) == 0
    assert lines(capsys.readouterr().out)[:2] == ["aggmo", "aggmo float64"]

    options = ("--baseline", str(results), "--json", str(again), "--plot", f"{tmp_path}/y.png")
    assert cli.main([*QUICK, "--rules", "adam", *options, "--report", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert "native" not in OURS or lines(printed)[-len(OURS) :] == ["adam"] * len(OURS)
    assert (tmp_path / "y-rules.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "new" / "fastopt-bench.html").read_text()
    assert page.count("<svg") == 1 and "native" in page and "fastopt bench --size 1e4" in page
    assert "Against the baseline" in page
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)|url\((?!#)|@import|<script|<link", page)


def test_the_page_escapes_text(tmp_path):
    from fastopt.bench import report

    table = section.Table("a < b", ["<i>"], [["&"]], "caption")
    page = report.write(tmp_path, {"command": "<b>"}, "<p>", [([table], "<svg></svg>")], {"rules": "<u>"}).read_text()
    for text in ("a &lt; b", "&lt;i&gt;", "&amp;", "&lt;b&gt;", "&lt;p&gt;", "&lt;u&gt;", "<svg></svg>"):
        assert text in page


@pytest.mark.parametrize("package", ["rich", "sklearn"])
def test_without_its_extra(package):
    arguments = ("bench", "--size", "1e4", "--rules", "sgd", "--peers", "none")
    code = [sys.executable, "-c", without(package), *arguments]
    done = subprocess.run(code, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert install_command("bench") in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rules", "adam,adma"], "found 'adma', expected some of adam, adamw, sgd,"),
        (["--peers", "toch"], "found 'toch', expected some of numpy,"),
        (["--backends", "cuda"], "found 'cuda', expected some of native, numba"),
        (["--dtypes", "float8"], "found 'float8', expected some of float32,"),
        (["--workloads", "poker"], "found 'poker', expected some of text,"),
        (["--size", "0"], "found '0', expected a whole number >= 1"),
        (["--sizes", "1e2,x"], "found 'x', expected a whole number >= 1"),
        (["--threads", "1.5"], "found '1.5', expected a whole number >= 1"),
        (["--budget", "-1"], "found '-1', expected a number of seconds > 0"),
        (["--json", "/nowhere/at/all"], "No such file"),
        (["--plot", "x.pdf"], "found 'x.pdf', expected a name ending in .png or .svg"),
        (["--baseline", "/nowhere/at/all"], "No such file"),
        (["--baseline", __file__], "test_bench.py', expected what fastopt bench --json wrote: "),
    ],
)
def test_refusals(capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *arguments])
    assert stop.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def interrupt(monkeypatch, error):
    measure = rules.Measure.__call__

    def interrupted(self, name, budget):
        if name == "adam":
            raise error
        return measure(self, name, budget)

    monkeypatch.setattr(rules.Measure, "__call__", interrupted)


def test_columns_that_do_not_fit_have_a_table_of_their_own():
    wide = section.Table("", ["rule", "a" * 30, "b" * 30, "c" * 30, "d\nd"], [["adam", "1", "2", "3", "4"]])
    assert list(command._fitting(wide, 80)) == [[0, 1, 2], [0, 3, 4]]
    assert list(command._fitting(wide, 200)) == [[0, 1, 2, 3, 4]]
    assert list(command._fitting(section.Table("", ["rule", "x" * 99], [["adam", "1"]]), 80)) == [[0, 1]]
    assert list(command._fitting(section.Table("", ["", "why"], [["x", "w" * 200]], words=2), 80)) == [[0, 1]]
    goals = section.Table("", ["what", "asked for", "x" * 60, "y" * 60], [["x y", "1", "2", "3"]], words=2)
    assert list(command._fitting(goals, 80)) == [[0, 1, 2], [0, 1, 3]]


def test_who_is_not_installed_is_said_at_the_head(monkeypatch, capsys):
    for module in (command, distributed, servers):
        monkeypatch.setattr(module, "installed", lambda package: package not in ("torch", "mpi4py"))
    assert cli.main([*QUICK[:-1], "numpy,torch-fused,torch-foreach", "--rules", "sgd", "--distributed"]) == 0
    _, _, printed = capsys.readouterr().out.partition("Not measured")  # before it is what `fastopt info` prints
    assert re.search(r"│ torch +│ not installed", printed) and "pip install" not in printed
    assert printed.index("not installed") < printed.index("One step over") and "Not measured: " not in printed


def test_classes_are_taken_for_rules(capsys):
    assert cli.main([*QUICK, "--rules", "AdamW,NAG,sgd"]) == 0
    assert lines(capsys.readouterr().out)[:3] == ["adamw", "nesterov", "sgd"]


def test_rows_left_out_are_taken_up_while_time_remains(monkeypatch, capsys):
    def rows(self, own):
        yield from [(own.names[0], 0.1)]  # as if time were left for one row of each section only

    monkeypatch.setattr(Plan, "rows", rows)
    assert cli.main([*QUICK, "--rules", "sgd,adam,lion", "--budget", "60"]) == 0
    printed = capsys.readouterr().out
    assert lines(printed)[:3] == ["sgd", "adam", "lion"] and "Left out" not in printed


def test_a_baseline_of_another_size_is_said_before(tmp_path, capsys):
    cli.main([*QUICK, "--rules", "sgd", "--json", str(tmp_path / "x")])
    capsys.readouterr()
    cli.main([*QUICK, "--size", "2e4", "--rules", "sgd", "--baseline", str(tmp_path / "x")])
    printed = " ".join(capsys.readouterr().out.split())
    said = "The baseline has size 10,000, here 20,000: shares differ with these."
    assert printed.index(said) < printed.index("One step over")


@pytest.mark.parametrize("ends", ["with the block", "when its parent is killed"])
def test_neighbours_are_there_as_long_as_asked(ends):
    code = (
        "import sys, time\nfrom fastopt.bench.neighbours import neighbours\n"
        "with neighbours(2):\n    print('up', flush=True); sys.stdin.readline()\nprint('down', flush=True)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "up\n"
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) == 2
    if ends == "with the block":
        assert parent.communicate("\n")[0] == "down\n"
    else:
        parent.kill()
        parent.communicate()
    until = time.monotonic() + 20
    while any(Path("/proc", child).exists() for child in children):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_ctrl_c_prints_what_there_is(monkeypatch, capsys):
    interrupt(monkeypatch, KeyboardInterrupt)
    assert cli.main([*QUICK, "--rules", "sgd,adam", "--tensors"]) == 130
    printed = capsys.readouterr().out
    assert set(lines(printed)) == {"sgd"} and "Interrupted after" in printed
    assert "Left out of rules: no time was left for adam." in printed
    assert "Left out of tensors: no time was left." in printed


def test_the_end_of_the_budget_prints_what_there_is(monkeypatch, capsys):
    interrupt(monkeypatch, OutOfTime)
    assert cli.main([*QUICK, "--rules", "sgd,adam", "--budget", "60"]) == 0
    printed = capsys.readouterr().out
    assert set(lines(printed)) == {"sgd"} and "Total time" in printed
    assert "Left out of rules: no time was left for adam." in printed


def test_what_cannot_be_measured_says_why(monkeypatch, capsys):
    interrupt(monkeypatch, section.Skip("needs 9 GB of memory"))
    assert cli.main([*QUICK, "--rules", "sgd,adam"]) == 0
    printed = capsys.readouterr().out
    assert "\nNot measured: adam: needs 9 GB of memory.\n" in printed and "Left out" not in printed
    assert printed.count("┃ why") <= 1  # one table, at the head


def test_a_row_that_fails_is_named_and_ends_nothing(monkeypatch, capsys, tmp_path):
    interrupt(monkeypatch, MemoryError("no room\nfor it"))
    path = tmp_path / "x.json"
    assert cli.main([*QUICK, "--rules", "adam,sgd", "--json", str(path)]) == 1
    printed = capsys.readouterr()
    assert "\nNot measured: adam: it failed: MemoryError: no room for it.\n" in printed.out
    assert "Traceback" in printed.err and set(lines(printed.out)) == {"sgd"}
    assert [row["name"] for row in json.loads(path.read_text())["rules"]] == ["sgd"]


def test_what_is_measured_is_kept_though_all_ends(monkeypatch, tmp_path):
    def crash(*_):
        raise SystemExit

    monkeypatch.setattr(command, "_close", crash)
    path = tmp_path / "x.json"
    with pytest.raises(SystemExit):
        cli.main([*QUICK, "--rules", "sgd", "--json", str(path)])
    assert [row["name"] for row in json.loads(path.read_text())["rules"]] == ["sgd"]


def test_a_budget_is_kept(capsys):
    start = time.perf_counter()
    assert cli.main([*QUICK, "--size", "3e6", "--budget", "1"]) == 0
    assert time.perf_counter() - start < 10
    assert "Left out of rules: no time was left for" in capsys.readouterr().out


def test_the_alarm_rings_once_and_is_put_back():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(OutOfTime), alarm(0.05):
        time.sleep(5)
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    with alarm(None):
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def sections(*rows):
    return [section.Section(str(k), "", list(names), None, None, seconds=2.0) for k, names in enumerate(rows)]


def test_a_plan_deals_out_the_budget():
    one, other = sections("ab", "cdefgh")
    plan = Plan([one, other], 8.0)
    assert [(name, round(seconds, 1)) for name, seconds in plan.rows(one)] == [("a", 1.0), ("b", 2.0)]
    assert next(round(seconds, 1) for _, seconds in plan.rows(other)) == 1.3  # what the first left is the second's
    assert [seconds for _, seconds in Plan([one], None).rows(one)] == [2.0, 2.0]
    assert [seconds for _, seconds in Plan([one], 1e9).rows(one)] == [2.0, 2.0]
    assert list(Plan([one], -1.0).rows(one)) == []


def test_a_row_as_long_as_the_last_is_not_begun_late():
    (one,) = sections("abc")
    plan = Plan([one], 0.6)
    begun = []
    for name, _ in plan.rows(one):
        begun.append(name)
        time.sleep(0.25)
    assert begun == ["a", "b"]  # the time of the first, which loads and compiles, tells nothing


def test_what_people_ask_first_has_the_whole_budget():
    one, other = sections("abcd", "efghijkl")
    one.first = 3
    begun = []
    for name, _ in Plan([one, other], 0.6).rows(one):
        begun.append(name)
        time.sleep(0.1)  # its part of the budget would end after two
    assert begun == ["a", "b", "c"]


def test_what_was_timed_when_the_budget_ends_counts():
    calls = 0

    def call():
        nonlocal calls
        calls += 1
        time.sleep(0.02)
        if calls > 8:
            raise OutOfTime

    assert 1 <= len(interleaved({"one": call, "other": lambda: None}, 100, 60)["one"]) < 8
    with pytest.raises(OutOfTime):
        interleaved({"one": call}, 100, 60)


def test_rest_waits_for_threads_that_spin():
    end = time.perf_counter() + 0.03
    begin = time.perf_counter()

    def spin():
        while time.perf_counter() < end:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    rest()
    thread.join()
    assert time.perf_counter() - begin >= 0.03
    times = []
    for _ in range(9):  # on a busy machine some sleep long
        begin = time.perf_counter()
        rest()
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.03


def test_a_rule_of_rows_needs_a_table(monkeypatch, capsys):
    assert cli.main([*QUICK, "--rules", "RowwiseAdagrad"]) == 2
    assert "rowwise_adagrad without --sparse" in capsys.readouterr().err
    measured = []
    monkeypatch.setattr(sparse, "Measure", lambda *given: Quiet(measured))
    assert cli.main([*QUICK, "--rules", "RowwiseAdagrad", "--sparse"]) == 0
    assert measured == ["rowwise_adagrad"]
    capsys.readouterr()
    assert cli.main([*QUICK, "--rules", "rowwise_adagrad,sgd", "--sparse"]) == 0
    assert measured == ["rowwise_adagrad", "rowwise_adagrad", "sgd"]
    assert lines(capsys.readouterr().out)[0] == "sgd"


class Quiet:
    """Measures nothing, and knows what it was asked for."""

    def __init__(self, measured):
        self.measured, self.reasons = measured, {}

    def __call__(self, name, budget):
        self.measured.append(name)
        raise section.Skip("is quiet")


def test_a_device_that_is_not_there_is_a_line(monkeypatch, capsys):
    def load(name):
        raise fastopt.BackendUnavailable(f"backend {name}: no NVIDIA driver was found")

    monkeypatch.setattr(cli, "load_backend", load)
    assert cli.main(["bench", "--cuda"]) == 1
    assert capsys.readouterr() == ("", "fastopt bench: backend numba-cuda: no NVIDIA driver was found\n")


def fail():
    raise RuntimeError("no kernel\nfor this device")


def test_whoever_does_not_work_on_a_device_says_why(monkeypatch):
    monkeypatch.setattr(cuda, "installed", lambda package: package != "apex")
    reasons = {}
    makers = {"torch-fused": lambda: fail, "torch": lambda: int, "fbgemm": fail, "apex": fail}
    assert list(cuda.attempts(makers, "uniform, sum", reasons)) == ["torch"]
    why = "RuntimeError: no kernel for this device"
    assert reasons == {"torch-fused, uniform, sum": why, "fbgemm, uniform, sum": why}
    assert command._absence(reasons) == f"Not measured: torch-fused, uniform, sum; fbgemm, uniform, sum: {why}."


def test_what_a_command_started_ends_with_it(tmp_path):
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(OutOfTime), alarm(2):
        ending.output_of([sys.executable, "-c", code])
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()


def test_kernels_need_a_compiler():
    code = (
        "from fastopt.bench import kernels; from fastopt.cli import main; import sys; "
        "kernels.installed = lambda package: False; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code, "bench", "--kernels"], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count("\n") == 1 and install_command("cuda") in done.stderr


def report_of(**shares):
    rows = [{"name": "adam", "times": {}, "shares": shares, "against": {}}]
    return {"configuration": {}, "rules": rows, "size": 1}


def test_baseline():
    then = report_of(native=[0.90, 0.95, 0.99], numba=[0.80, 0.82, 0.84], numpy=[0.1, 0.1, 0.1])
    now = report_of(native=[0.60, 0.70, 0.80], numba=[0.83, 0.86, 0.90], numpy=[0.2, 0.2, 0.2])
    table = against_baseline(then, now)
    assert [(row[1], row[4], row[5]) for row in table.rows] == [
        ("fastopt", "0.74x", "slower"),
        ("fastopt (numba)", "1.05x", "same"),
    ]
    assert against_baseline(now, then).rows[0][5] == "faster"
    assert "nothing in common" in against_baseline(report_of(), now).caption


def test_machine(tmp_path):
    for k, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M")]
    ):
        folder = tmp_path / f"index{k}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    assert machine.caches(tmp_path) == {"L1": 48 << 10, "L2": 2 << 20}
    assert machine.caches(tmp_path / "none") == {}
    assert machine.memory() > 1 << 20
    assert machine.take_ceiling({}) is None
    times = {"ceiling 0": [2.0], "ceiling 512": [1.0], "native": [3.0]}
    assert machine.take_ceiling(times) == [1.0] and list(times) == ["native"]
    times = {"ceiling 0": [2.0, 3.0], "reading 0": [1.0, 1.0], "reading 512": [4.0, 0.5]}
    assert machine.take_ceiling(times) == [3.0, 4.0] and not times


def test_too_large_a_size_says_so(monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: 2 << 30)
    with pytest.raises(section.Skip, match=r"needs 7\.2 GB of memory, 2\.1 can be had"):
        rules.Updates([], 1, 1).measure("adam", "adam", 200_000_000, "float32", 1.0)


def test_threads_of_scaling():
    assert [scaling.counts(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_a_step_moves_all_but_the_gradient_twice_and_what_is_measured_once_more():
    moved = {name: count_moved(RULES[name]) for name in ("sgd", "adam", "lars", "lamb")}
    assert moved == {"sgd": 3, "adam": 7, "lars": 5 + 2, "lamb": 7 + 4}


def test_workloads(monkeypatch, tmp_path):
    # Those that print tables; others are of several processes, and print digests.
    tabled = [path.stem for path in workloads.find().glob("*.py") if "common.show(" in path.read_text()]
    assert sorted(workloads.NAMES) == sorted(tabled)
    (tmp_path / workloads.FOLDER).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    script = tmp_path / workloads.FOLDER / "text.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1] / workloads.FOLDER)!r}); import common\n"
        "common.parser('').parse_args(); common.show('t', ['a', 'b'], [['x', '1']], 'c')\n"
    )
    row = workloads.run("text", 60)
    assert row["name"] == "text" and row["seconds"] > 0
    (table,) = workloads.section(section.Options(["sgd"], workloads=["text"])).tables([row])
    assert table == ("text: t", ["a", "b"], [["x", "1"]], "c", 1)
    script.write_text("import sys; sys.exit('no luck')")
    with pytest.raises(section.Skip, match="no luck"):
        workloads.run("text", None)
    script.write_text("import time; time.sleep(60)")
    with pytest.raises(section.Skip, match="did not end within 0 s"):
        workloads.run("text", 0.2)
    monkeypatch.setattr(workloads, "FOLDER", Path("nowhere"))
    with pytest.raises(section.Skip, match="in a clone"):
        workloads.find()


@needs_native
def test_precision(monkeypatch):
    from fastopt.bench import precision

    monkeypatch.setattr(precision, "LOWBIT", {})
    own = precision.section(section.Options(["adam"], size=10_000, repeats=2))
    assert own.names == list(precision.CASES)
    rows = [own.measure(name, 0.1) for name in own.names[:3]]
    assert [row["each"] for row in rows] == [28, 20, pytest.approx(16.06, abs=0.01)]
    (table,) = own.tables(rows)
    assert [row[0] for row in table.rows] == own.names[:3]


@pytest.mark.parametrize("name", ["rowwise_adagrad", "adagrad", "sgd", "adam"])
def test_rows(name):
    from fastopt.bench import sparse

    row = sparse.Measure(1, 2, ("native", "numba"), rows=3000, lookups=900)(name, 0.1)
    assert set(OURS) <= set(row["times"])
    assert "native" not in OURS or row["shares"]["native"][1] > 0


def test_digits():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from fastopt.bench.digits import train

    trained = train("Adam", epochs=2)
    assert trained["steps"] == 46 and trained["accuracy"] > 0.8


def test_it_is_not_imported_by_fastopt():
    code = "import sys, fastopt; assert not any(name.startswith('fastopt.bench') for name in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


STUBBORN = """
import sys, time
from fastopt import cli
from fastopt.bench import rules

class Measure(rules.Measure):
    def __call__(self, name, budget):
        if name == "adam":
            return super().__call__(name, budget)
        print("stubborn", file=sys.stderr, flush=True)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass

rules.Measure = Measure
sys.exit(cli.main())
"""


def test_ctrl_c_ends_what_does_not_listen(tmp_path):
    arguments = [*QUICK, "--rules", "adam,sgd,lion", "--json", str(tmp_path / "x.json")]
    command_line = [sys.executable, "-c", STUBBORN, *arguments]
    process = subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.stderr.readline() != "stubborn\n":
        pass
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and set(lines(printed)) == {"adam"} and "Interrupted after" in printed
    assert "Left out of rules: no time was left for sgd, lion." in printed
    assert [row["name"] for row in json.loads((tmp_path / "x.json").read_text())["rules"]] == ["adam"]
