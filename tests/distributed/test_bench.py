"""``fastopt bench --distributed``."""

import pytest

from fastopt.bench import distributed, servers
from fastopt.bench.section import Options, Skip

from .test_mpi import needs_mpi


@needs_mpi
@pytest.mark.parametrize(
    "name", ["2 processes, 4 MB, common", pytest.param("4 processes, 4 MB, messages", marks=pytest.mark.slow)]
)
def test_a_row_has_all_three(name):
    row = distributed.measure(name, 0.1, 3)
    assert set(row["times"]) == {"bare", "reduce-scatter", "fastopt"}
    section = distributed.section(Options([]))
    (table,) = section.tables([row])
    ((label, *figures),) = table.rows
    assert label == name and len(figures) == 4 and "x (" in figures[1] and figures[3].endswith("x")


@needs_mpi
@pytest.mark.parametrize("name", ["4 MB", "82,000 rows"])
def test_a_row_of_servers_has_each_rule(name, monkeypatch):
    monkeypatch.setitem(servers.CASES, "82,000 rows", "1000,64,82")  # the whole table and its states are gigabytes
    row = servers.measure(name, 0.1, 3)
    assert list(row["times"]) == ["bare", *servers.RULES]
    (table,) = servers.section(Options([])).tables([row])
    ((label, *figures),) = table.rows
    assert label == name and len(figures) == 4 and all("x (" in figure for figure in figures[1:])


@needs_mpi
@pytest.mark.slow
def test_a_row_of_servers_has_ray_beside_them():
    pytest.importorskip("ray", reason="ray is not installed")
    row = servers.measure("4 MB", 0.1, 3, ray=True)
    assert list(row["times"]) == ["bare", *servers.RULES, *servers.BY_RAY]
    (table,) = servers.section(Options([])).tables([row])
    ((_, *figures),) = table.rows
    assert table.header[-1] == "SGD by Ray / Ray" and len(figures) == 7 and figures[-1].endswith("x")


@needs_mpi
@pytest.mark.slow
def test_peers_take_part():
    pytest.importorskip("torch")
    row = distributed.measure("2 processes, 4 MB, messages", 0.1, 3, ["torch-fused"])
    assert list(row["times"]) == ["bare", "reduce-scatter", "fastopt", "ddp", "zero"]
    (table,) = distributed.section(Options([])).tables([row])
    assert [header for header in table.header if "torch" in header] == ["torch DDP / bare", "torch ZeRO / bare"]


def test_the_picture_has_a_mark_for_each():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    rows = [{"name": name, "beside": {"fastopt": (0.5, 0.6, 0.8), "ddp": (2.0, 3.0, 5.0)}} for name in "ab"]
    section = distributed.section(Options([]))
    section.draw(figure, rows)
    (axes,) = figure.axes
    marks = {found.get_label(): found.lines[0].get_xdata().tolist() for found in axes.containers}
    assert marks == {"fastopt": [0.6, 0.6], "torch DDP": [3.0, 3.0]}


def test_without_mpi_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(Skip, match="mpi4py is not installed"):
        distributed.measure("2 processes, 4 MB, common", 0.1)
