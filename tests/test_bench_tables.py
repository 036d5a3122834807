"""Every table of ``fastopt bench`` fits 80 columns, with the longest names and numbers that may be expected."""

import io
from types import SimpleNamespace

import pytest

pytest.importorskip("rich", reason="rich is not installed")
from rich.console import Console

import fastopt
from fastopt.bench import baseline, command, distributed, goals, servers, sparse, tensors, workloads
from fastopt.bench.peers import COMPETITORS, PEERS
from fastopt.bench.section import Options, Table
from fastopt.rules import RULES

WHO = [
    *COMPETITORS, *tensors.WAYS, *distributed.LABELS, *servers.RULES, *servers.BY_RAY, "peer",
    "numba-cuda", "plan.step", "max_norm", "torch", "fbgemm", "apex", "bitsandbytes", "torchao",
]  # fmt: skip
WHOLE = ("elements", "steps", "registers", "spills", "instructions", "bytes")
REAL = ("lr", "each", "most", "accuracy", "occupancy", "host", "seconds", "memory", "issue", "sse2", "avx2", "avx512")


def widest(names):
    """A row of the longest name, by all who take part somewhere."""
    name = max(names, key=len)
    ratios = dict.fromkeys(WHO, (12.34, 23.45, 34.56))
    told = {
        "title": "t" * 99,
        "header": ["", "h" * 30, "held out"],
        "rows": [[f"{name}, " * 9, "1", "2"]],
        "caption": "",
    }
    return {
        "name": name, "rule": "sgd", "dtype": "bfloat16", "who": "native", "device": "NVIDIA H100 80GB HBM3",
        "times": dict.fromkeys([*WHO, "ceiling", "process", "bare"], (0.1, 9.87654, 12.3)),
        "shares": dict.fromkeys(WHO, (0.999, 1.01, 1.23)), "against": ratios, "beside": ratios,
        "faster": ratios["torch"], "of_ray": ratios["torch"], "tables": [told],
        **dict.fromkeys(WHOLE, 123_456_789), **dict.fromkeys(REAL, 0.9876),
    }  # fmt: skip


def fits(table):
    out = io.StringIO()
    command._print(Console(file=out, width=80, highlight=False), table)
    printed = out.getvalue()
    assert max(map(len, printed.splitlines())) <= 80 and "…" not in printed, printed
    for word in " ".join(table.header).split():
        assert word in printed, (word, printed)


@pytest.mark.skipif(fastopt.available_backends()["native"] != "available", reason="the native backend is not available")
@pytest.mark.parametrize("instead", [{}, {"cuda": True, "kernels": True}], ids=["processor", "cuda"])
def test_tables_fit_80_columns(monkeypatch, instead):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    monkeypatch.setattr(sparse, "Measure", lambda *given: SimpleNamespace(reasons={}))  # it has large arrays at once
    for module in (distributed, servers):
        monkeypatch.setattr(module, "installed", lambda package: True)
    flags = dict.fromkeys(("tensors", "matrices", "sparse", "precision", "scaling", "startup", "distributed"), True)
    options = Options(
        list(RULES), rows=list(sparse.CASES), dtypes=["float32", "bfloat16"], peers=PEERS, sizes=[10**9],
        workloads=workloads.NAMES, **flags, **instead,
    )  # fmt: skip
    sections = command._sections(options)
    rows = {own.key: [widest(own.names)] for own in sections}
    for own in sections:
        for table in own.tables(rows[own.key]):
            if table.rows:
                fits(table)
    fits(goals.table(rows))
    fits(baseline.table(rows, rows))
    fits(Table("Not measured", ["", "why"], [[", ".join(WHO), "it does not work here " * 9]], words=2))
