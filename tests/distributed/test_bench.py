"""``fastopt bench --distributed``."""

import pytest

from fastopt.bench import distributed
from fastopt.bench.section import Options, Skip

from .test_mpi import needs_mpi


@needs_mpi
@pytest.mark.parametrize(
    "name", ["2 processes, 4 MB, common", pytest.param("4 processes, 4 MB, messages", marks=pytest.mark.slow)]
)
def test_a_row_has_all_three(name):
    row = distributed.measure(name, 0.1, 3)
    assert set(row["times"]) == {"bare", "reduce-scatter", "fastopt"}
    (table,) = distributed.section(Options([])).tables([row])
    ((label, *figures),) = table.rows
    assert label == name and len(figures) == 4 and "x (" in figures[1] and figures[3].endswith("x")


def test_without_mpi_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(Skip, match="mpi4py is not installed"):
        distributed.measure("2 processes, 4 MB, common", 0.1)
