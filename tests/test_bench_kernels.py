"""``fastopt bench --kernels``: registers and instructions of compiled CUDA kernels, without a GPU."""

import pytest

from fastopt.bench import assembly, kernels
from fastopt.bench.section import Options
from fastopt.errors import BackendUnavailable

# As nvdisasm writes it: ways through a loop that stores 16 bytes, a call, code for warps that diverge behind the
# end, from which it comes back, and a loop that stores less.
LOOP = """
.L_head | LDG.E.128 R4, desc[UR4][R2.64] | @!P0 BRA `(.L_fast) | CALL.ABS.NOINC `(slowpath) | BRA `(.L_join)
.L_fast | FMUL R0, R0, R1 | FMUL R0, R0, R1
.L_join | @P1 BRA `(.L_store) | FADD R0, R0, R1
.L_store | BRA.DIV UR4, `(.L_apart)
.L_back | STG.E.128 desc[UR4][R2.64], R4 | @P0 BRA `(.L_head)
.L_rest | STG.E desc[UR4][R2.64], R4 | @P0 BRA `(.L_rest) | EXIT
.L_apart | SHFL R0 | SHFL R0 | BRA `(.L_back)
"""


def test_the_way_around_a_loop():
    lines = [part.strip() for line in LOOP.strip().splitlines() for part in line.split("|")]
    # LDG, BRA, two FMULs, BRA, BRA.DIV, STG, BRA
    assert assembly.count_in_loop(lines) == 8


@pytest.mark.parametrize(
    ("registers", "blocks"), [(16, 8), (32, 8), (33, 6), (40, 6), (48, 5), (64, 4), (94, 2), (128, 2), (255, 1)]
)
def test_blocks_of_256_threads(registers, blocks):  # of NVIDIA's occupancy calculator
    assert kernels.blocks_of(registers, 256) == blocks


def test_kernels_as_compiled():
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    section = kernels.section(Options(rules=["sgd", "adam"]))
    sgd, adam, blocks = (section.measure(name, 1.0) for name in ("sgd", "adam", "adam, 8-bit states"))
    assert [row["bytes"] for row in (sgd, adam, blocks)] == [12, 28, 4 + 4 + 4 + 4 * 260 / 256]
    assert 16 <= sgd["registers"] < adam["registers"] < blocks["registers"] <= 128
    assert not any(row["spills"] for row in (sgd, adam, blocks))
    assert sgd["memory"] == pytest.approx(12e8 / 3e12)
    if assembly.find_disassembler():
        assert 5 < sgd["instructions"] < adam["instructions"] < blocks["instructions"] < 200
        assert 40 < adam["instructions"] < 60  # hardware counters found 55, with what is around the loop
    (table,) = section.tables([sgd, adam, blocks])
    assert [line[0] for line in table.rows] == ["sgd", "adam", "adam, 8-bit states"]


def test_kernels_of_rows():
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    section = kernels.section(Options(rules=[]))
    names = ["adagrad, rows", "lookups, ordered", "lookups, added up"]
    found = [section.measure(name, 1.0) for name in names]
    assert all(16 <= row["registers"] <= 85 and row["occupancy"] >= 3 / 8 and not row["spills"] for row in found)
    assert set(names) < set(section.names)
    (table,) = section.tables(found)
    assert [line[0] for line in table.rows] == names


@pytest.mark.parametrize("package", ["numba-cuda", "cuda-core"])
def test_without_a_compiler(monkeypatch, package):
    monkeypatch.setattr(kernels, "installed", lambda name: name != package)
    with pytest.raises(BackendUnavailable, match=rf"no {package} here; .*pip install"):
        kernels.check()
