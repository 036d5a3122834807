"""The command line, as a user calls it, and the benchmark's parts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastopt
from fastopt import cli


def run(*arguments, code="import sys; from fastopt.cli import main; sys.exit(main())"):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)


def without(*packages):
    """The command in a process where packages cannot be imported."""
    hidden = "".join(f"sys.modules[{name!r}] = None; " for name in packages)
    return f"import sys; {hidden}from fastopt.cli import main; sys.exit(main())"


def test_info():
    done = run("info", code=without("rich", "click", "sklearn", "torch"))
    assert done.returncode == 0, done.stderr
    for text in (fastopt.__version__, "threads:", "backend native:", "backend numba:", "backend chosen:"):
        assert text in done.stdout


def test_bench(tmp_path):
    pytest.importorskip("rich")
    path = tmp_path / "bench.json"
    done = run(
        *("bench", "--size", "1e4", "--rules", "adam,aggmo", "--repeats", "2", "--threads", "1"),
        *("--tensors", "--no-digits", "--json", str(path)),
    )
    assert done.returncode == 0, done.stderr
    assert "Total time" in done.stdout and "…" not in done.stdout
    lines = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("│ a")]
    assert lines == ["adam", "aggmo"]
    report = json.loads(path.read_text())
    assert report["size"] == 10_000 and report["threads"] == 1 and "digits" not in report
    adam, aggmo = report["rules"]
    assert adam["bytes"] == 4 * (4 + 3) * 10_000 and aggmo["bytes"] == 4 * (5 + 4) * 10_000
    available = [name for name in ("native", "numba") if fastopt.available_backends()[name] == "available"]
    for row in (adam, aggmo):
        for name in (*available, "numpy"):
            assert row[f"{name}_ms"] > 0 and row[f"{name}_gbs"] > 0
        assert "native" not in available or row["native_share"] > 0
    assert [row["tensors"] for row in report["tensors"]] == [
        "1000 tensors of 10",
        "1000 tensors of 1000",
        "1 tensor of 10",
    ]


@pytest.mark.parametrize("package", ["rich", "sklearn"])
def test_bench_without_its_extra(package):
    pytest.importorskip("rich")
    done = run("bench", "--size", "1e4", "--rules", "sgd", code=without(package))
    assert done.returncode == 1
    assert 'pip install "fastopt[bench]"' in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rules", "adam,adma"], "found 'adma', expected some of sgd,"),
        (["--size", "0"], "found '0', expected a whole number >= 1"),
        (["--threads", "1.5"], "found '1.5', expected a whole number >= 1"),
        (["--json", "/nowhere/at/all"], "No such file"),
    ],
)
def test_bench_refuses(capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *arguments])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_bench_interrupted(monkeypatch, capsys):
    pytest.importorskip("rich")
    from fastopt.bench import peers

    check = peers.check

    def interrupt(rule, *arguments):
        if rule.name == "adam":
            raise KeyboardInterrupt
        check(rule, *arguments)

    monkeypatch.setattr(peers, "check", interrupt)
    assert cli.main(["bench", "--size", "1e4", "--rules", "sgd,adam", "--repeats", "2", "--no-digits"]) == 130
    printed = capsys.readouterr().out
    assert "│ sgd" in printed and "│ adam" not in printed and "Interrupted after" in printed


@pytest.mark.parametrize("name", [name for name, rule in fastopt.RULES.items() if not rule.by_row])
def test_peers_agree(name):
    from fastopt.bench import peers

    peers.check(fastopt.RULES[name], 1003)


@pytest.mark.parametrize("name", ["rowwise_adagrad", "adagrad", "sgd", "adam"])
def test_bench_of_rows(name):
    from fastopt.bench import sparse

    row = sparse.Measure(threads=1, repeats=2, rows=3000, lookups=900)(name)
    for who in ("native", "ceiling"):
        assert fastopt.available_backends()["native"] != "available" or row[f"{who}_ms"] > 0
    assert row["numba_ms"] > 0
    assert isinstance(sparse.missing(), str)


def test_digits():
    pytest.importorskip("sklearn")
    from fastopt.bench.digits import train

    trained = train("Adam", epochs=2)
    assert trained["steps"] == 46 and trained["accuracy"] > 0.8


def test_readme_has_the_table_of_rules(capsys):
    assert cli.main(["info", "--rules"]) == 0
    assert capsys.readouterr().out.strip() in (Path(__file__).parents[1] / "README.md").read_text()
