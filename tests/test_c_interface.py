"""The C interface: fastopt.h and libfastopt from C, C++, ctypes and Numba, and the same bits as from Python."""

import ctypes
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import cli, functional, info, settings
from fastopt.arrays import libraries
from fastopt.backends import native
from fastopt.jobs.job import Progress
from fastopt.jobs.tables import Tensor, make_jobs
from fastopt.rules import MAX_COPIES, PROLOGUE, REQUIRED, RULES

from .pages import example as example_of
from .pages import page
from .support import CASES, VARIED

ffi, lib = native.ffi, native.lib
HEADER = Path(fastopt.get_include(), "fastopt.h").read_text()
LANGUAGES = {"c": ["gcc", "-std=c11"], "c++": ["g++", "-std=c++11", "-x", "c++"]}
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
DTYPES = {"float": (np.float32, lib.FASTOPT_FLOAT32), "double": (np.float64, lib.FASTOPT_FLOAT64)}


def message(code):
    return ffi.string(lib.fastopt_message(code)).decode()


def describe(number):
    """All that the library says of a rule."""
    found = lib.fastopt_get_rule(number)
    states = [ffi.string(found.state_names[i]).decode() for i in range(found.states + found.singles)]
    hypers = [found.hypers[i] for i in range(found.hyper)]
    return found, states, {ffi.string(hyper.name).decode(): hyper for hyper in hypers}


# ---- C and C++ ----


def compiled(tmp_path, source, language, *flags):
    """The program made of a C source with no more than what `fastopt info` prints."""
    command = LANGUAGES[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    asked = subprocess.run(
        [sys.executable, "-c", "from fastopt.cli import main; main()", "info", "--cflags", "--libs"],
        capture_output=True,
        text=True,
        check=True,
    )
    program = tmp_path / "program"
    line = [*command, "-O2", "-ffp-contract=off", *WARNINGS, *flags, str(source), "-x", "none", "-o", str(program)]
    done = subprocess.run([*line, *asked.stdout.split(), "-lm"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return program


def output(program, *arguments):
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(name, hyper, dtype):
    """Repeat tests/c/logistic.c, operation by operation."""
    state, samples = 1, np.zeros((64, 5))
    for i in range(64):
        for j in range(5):
            state = (state * 1664525 + 1013904223) % 2**32
            samples[i, j] = (state >> 8) / 8388608.0 - 1.0
    samples = samples.tolist()
    labels = [float(sum(x) > 0.25) for x in samples]
    copies, rule = len(hyper["betas"]) if RULES[name].vector else 1, RULES[name]
    params = [np.zeros(n, dtype) for n in (5, 1)]
    grads = [np.zeros(n, dtype) for n in (5, 1)]
    states = [[np.zeros(rule.state_shape(s, (n,), copies), dtype) for n in (5, 1)] for s in rule.state_names]
    for t in range(1, 31):
        weights, (bias,) = (p.tolist() for p in params)
        sums = [0.0] * 6
        for x, y in zip(samples, labels, strict=True):
            z = bias
            for j in range(5):
                z += weights[j] * x[j]
            error = 1.0 / (1.0 + math.exp(-z)) - y
            for j in range(5):
                sums[j] += error * x[j]
            sums[5] += error
        grads[0][:] = [s / 64 for s in sums[:5]]
        grads[1][:] = sums[5] / 64
        getattr(functional, name)(params, grads, *states, step=t, **hyper)
    return [*params[0].tolist(), *params[1].tolist()]


def arguments(hyper):
    """Hyper-parameters as the C program takes them; None is NaN."""
    given = {key: value if isinstance(value, tuple) else (value,) for key, value in hyper.items()}
    numbers = [(key, math.nan if v is None else float(v)) for key, values in given.items() for v in values]
    return [f"{key}={number!r}" for key, number in numbers]


@pytest.mark.parametrize("real", DTYPES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_training_in_c_gives_the_bits_of_python(tmp_path, language, real):
    dtype = f"FASTOPT_FLOAT{np.dtype(DTYPES[real][0]).itemsize * 8}"
    source = Path(__file__).parent / "c" / "logistic.c"
    program = compiled(tmp_path, source, language, f"-DREAL={real}", f"-DDTYPE={dtype}")
    for case, (name, hyper) in CASES.items():
        if RULES[name].by_row or name in ("adaptive_revision", "prodigy"):  # whose states do not begin at zero
            continue
        got = [float.fromhex(line) for line in output(program, name, *arguments(hyper)).split()]
        assert got == train(name, hyper, DTYPES[real][0]), case
        assert all(map(math.isfinite, got)) and any(got), case


@pytest.mark.parametrize("duplicates", [lib.FASTOPT_SUM, lib.FASTOPT_SEQUENTIAL])
@pytest.mark.parametrize("name", ["rowwise_adagrad", "adam", "sgd"])
def test_rows_have_the_bits_of_python(name, duplicates):
    rng = np.random.default_rng(0)
    indices, values = rng.integers(0, 20, 50), rng.standard_normal((50, 6))
    params = [np.ones((20, 6)) for _ in range(2)]
    states = [[np.zeros(RULES[name].state_shape(s, (20, 6), 1)) for s in RULES[name].state_names] for _ in range(2)]
    gradient = fastopt.RowSparse(indices, values, duplicates=["sum", "sequential"][duplicates])
    rule, hyper, coefficients = lib.fastopt_find_rule(name.encode()), ffi.new("double[24]"), ffi.new("double[24]")
    assert lib.fastopt_defaults(rule, hyper, ffi.NULL) == 0
    assert lib.fastopt_set_hyper(rule, hyper, b"weight_decay", 0.1) == 0
    arrays = [params[0], values, *states[0]]
    addresses = [ffi.cast("void *", array.ctypes.data) for array in arrays]
    rows = {"rows": 20, "width": 6, "count": 50, "index_size": 8, "duplicates": duplicates}
    rows["indices"] = ffi.cast("void *", indices.ctypes.data)

    def update(threads=2, **changed):
        table = ffi.new("fastopt_rows *", {**rows, **changed})
        strides = [array.strides[0] for array in arrays]
        return lib.fastopt_update_rows(rule, lib.FASTOPT_FLOAT64, 1, table, addresses, strides, coefficients, threads)

    for t in range(1, 4):
        assert lib.fastopt_fold(rule, t, 1.0, hyper, ffi.NULL, coefficients) == 0
        assert update() == 0
        getattr(functional, name)(params[1], gradient, *states[1], step=t, weight_decay=0.1)
    before = [a.copy() for a in arrays]
    for a, b in zip([params[0], *states[0]], [params[1], *states[1]], strict=True):
        np.testing.assert_array_equal(a, b)
    for changed, said in (
        ({"rows": 19}, "an index below 0, or not below the number of rows"),
        ({"count": -1}, "negative"),
        ({"index_size": 2}, "negative"),
        ({"duplicates": 3}, "outside its domain"),
        ({"indices": ffi.NULL}, "null pointer"),
        ({"threads": 0}, "number of threads"),
    ):
        assert said in message(update(**changed))
        for a, b in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(a, b)
    assert update(count=0, indices=ffi.NULL) == 0
    if RULES[name].by_row:
        call = [lib.FASTOPT_FLOAT64, 1, 1, [120], addresses, coefficients, 1]
        assert "fastopt_update_rows takes it" in message(lib.fastopt_update(rule, *call))


class Rows:
    """Three rows of a parameter with one state, and a call that updates them, some of its arguments changed."""

    def __init__(self, name="adagrad"):
        self.rule = lib.fastopt_find_rule(name.encode())
        self.arrays = [np.full((20, 6), 1.0), np.full((3, 6), 2.0), np.full((20, 6), 3.0)]
        if RULES[name].by_row:
            self.arrays[2] = np.full(20, 3.0)
        hyper, self.coefficients = ffi.new("double[24]"), ffi.new("double[24]")
        assert lib.fastopt_defaults(self.rule, hyper, ffi.NULL) == 0
        assert lib.fastopt_fold(self.rule, 1, 1.0, hyper, ffi.NULL, self.coefficients) == 0
        self.indices = np.array([4, 0, 4])

    def update(self, lost=(), stride=None, rows=None, **changed):
        given = {"rows": 20, "width": 6, "count": 3, "index_size": 8, "indices": self.indices, **(rows or {})}
        if given["indices"] is not None:
            given["indices"] = ffi.cast("void *", given["indices"].ctypes.data)
        addresses = [0 if k in lost else array.ctypes.data for k, array in enumerate(self.arrays)]
        own = [array.strides[0] for array in self.arrays]
        call = {
            "rule": self.rule,
            "dtype": lib.FASTOPT_FLOAT64,
            "copies": 1,
            "rows": ffi.new("fastopt_rows *", {key: ffi.NULL if x is None else x for key, x in given.items()}),
            "addresses": ffi.new("void *[]", [ffi.cast("void *", address) for address in addresses]),
            "strides": [(stride or {}).get(k, bytes_) for k, bytes_ in enumerate(own)],
            "coefficients": self.coefficients,
            "threads": 2,
            **changed,
        }
        return lib.fastopt_update_rows(*[ffi.NULL if value is None else value for value in call.values()])


BEYOND = "larger than any memory"


@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        *(({"rows": {"width": width}}, BEYOND) for width in (2**63 - 1, 2**62, 2**61, 2**60, 2**59, 2**53, 2**50, -1)),
        *(({"rows": {"width": 2**50, "rows": rows}}, BEYOND) for rows in (2**32 - 1, 16, 9)),
        *(({"rows": {"rows": rows}}, BEYOND) for rows in (2**63 - 1, 2**32, -1, -(2**63))),
        *(({"rows": {"count": count}}, BEYOND) for count in (2**63 - 1, 2**32, -1, -(2**63))),
        *(({"stride": {k: stride}}, BEYOND) for k in range(3) for stride in (2**63 - 1, 2**62, -(2**63), -(2**62))),
        *(({"stride": {0: stride}}, "rows overlap") for stride in (0, 8, -8, 47, -47)),
        ({"stride": {2: 7}}, "rows overlap"),
        ({"rows": {"index_size": 0}}, "negative"),
        ({"rows": {"indices": None}}, "null pointer"),
        ({"rows": {"indices": np.array([4, 0, 20])}}, "an index below 0"),
        ({"rows": {"indices": np.array([4, 0, -1])}}, "an index below 0"),
        ({"rows": {"rows": 0}}, "an index below 0"),
        *(({key: None}, "null pointer") for key in ("addresses", "strides", "coefficients")),
        *(({"lost": (k,)}, "null pointer") for k in range(3)),
        ({"threads": -1}, "number of threads"),
        ({"rule": len(RULES)}, "unknown rule"),
        ({"dtype": 2}, "unknown dtype"),
        ({"copies": 9}, "number of copies"),
    ],
    ids=str,
)
def test_rows_refuse_and_write_nothing(name, changed, said):
    tensor = Rows(name)
    before = [array.copy() for array in tensor.arrays]
    assert said in message(tensor.update(**changed))
    for array, old in zip(tensor.arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)
    assert tensor.update() == lib.FASTOPT_OK
    assert (np.flatnonzero(tensor.arrays[0][:, 0] != 1) == [0, 4]).all()


def built_for_race_detection(folder, monkeypatch):
    """tests/c/racing_rows.c with the library's own sources, instrumented."""
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(str(root / "csrc"))
    import generate
    import library

    flags = ["-std=gnu11", "-O1", "-g", "-fsanitize=thread", "-ffp-contract=off"]
    lowest = dict([next(iter(library.levels().items()))])
    (folder / "rule_table.h").write_text(generate.rule_table(generate.load_rules(), lowest))
    try:
        objects = library.compile_all(["gcc"], flags, lowest, [folder, fastopt.get_include()], folder)
        program = ["-I", fastopt.get_include(), root / "tests/c/racing_rows.c", *objects, "-lm", "-pthread"]
        subprocess.run(["gcc", *flags, *program, "-o", folder / "racing"], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"ThreadSanitizer is not there: {error.stderr.decode().strip().splitlines()[-1]}")
    return folder / "racing"


@pytest.mark.slow
def test_threads_race_only_where_they_mean_to(tmp_path, monkeypatch):
    """Under ThreadSanitizer: rows of their own without a race; the same rows with races in the rows' updates alone."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    program = built_for_race_detection(tmp_path, monkeypatch)
    intended = tmp_path / "intended"
    intended.write_text("race:run_elements_f32\nrace:run_adagrad_1_f32\n")

    def run(*arguments, suppressions=""):
        options = f"exitcode=66 halt_on_error=0 suppressions={suppressions}" if suppressions else "exitcode=66"
        return subprocess.run(
            [program, *arguments],
            env={"TSAN_OPTIONS": options},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    apart = run()
    if "unexpected memory mapping" in apart.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert apart.returncode == 0, apart.stderr
    # On a busy machine one thread may have ended before the other comes to the same row: then there is none to be seen.
    assert any(racing.returncode == 66 and "data race" in racing.stderr for racing in (run("racing") for _ in range(9)))
    meant = run("racing", suppressions=str(intended))
    assert meant.returncode == 0, meant.stderr


def test_a_program_in_c_prints_the_same_bits_on_every_instruction_set(tmp_path):
    program = compiled(tmp_path, Path(__file__).parent / "c" / "bits.c", "c")
    first, *others = (output(program, isa) for isa in native.isa_supported())
    assert {line.split()[0] for line in first.splitlines()} == set(RULES)
    for other in others:
        assert other == first


def test_a_c_program_is_told_what_is_wrong(tmp_path):
    source = Path(__file__).parent / "c" / "logistic.c"
    program = compiled(tmp_path, source, "c", "-DREAL=double", "-DDTYPE=FASTOPT_FLOAT64")
    for given, said in (
        (["nonesuch"], "unknown rule"),
        (["adam", "betas=0.5"], "does not have"),
        (["adam", "beta1=1"], "outside its domain"),
        (["qhm"], "must be set"),
    ):
        done = subprocess.run([program, *given], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert said in done.stderr


def example():
    """The program in the header's opening comment."""
    lines = HEADER.partition("A complete program:\n *\n")[2].partition("\n *\n * Errors.")[0].splitlines()
    return "\n".join(line.removeprefix(" *").removeprefix("     ") for line in lines) + "\n"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_example_of_the_header_and_the_readme(tmp_path, language):
    assert f"```c\n{example()}```" in page("csrc")
    source = tmp_path / "train.c"
    source.write_text(example())
    said, _, numbers = output(compiled(tmp_path, source, language)).partition(": ")
    assert said == "no error"
    p, m, v = np.array([1, 2, 3], "f4"), np.zeros(3, "f4"), np.zeros(3, "f4")
    for t in range(1, 101):
        functional.adamw(p, 2 * p, m, v, step=t, lr=0.1)
    assert numbers.split() == [f"{value:g}" for value in p]


def place_for(heading):
    """A line of `fastopt info`."""
    return info._places()[heading]


def test_the_example_by_pkg_config(tmp_path):
    if not (shutil.which("pkg-config") and shutil.which("gcc")):
        pytest.skip("no pkg-config or gcc here")
    (tmp_path / "train.c").write_text(example())
    environment = os.environ | {"PKG_CONFIG_PATH": place_for("for pkg-config")}

    def ask(*flags):
        done = subprocess.run(["pkg-config", *flags, "fastopt"], env=environment, capture_output=True, check=True)
        return done.stdout.decode().split()

    assert ask("--modversion") == [fastopt.__version__]
    command = ["gcc", "train.c", *ask("--cflags", "--libs"), "-o", "train"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert output(tmp_path / "train").startswith("no error: ")


@pytest.mark.parametrize(("version", "found"), [("", True), (fastopt.__version__, True), ("9.9", False)])
def test_the_example_by_cmake(tmp_path, version, found):
    if not (shutil.which("cmake") and shutil.which("gcc") and (shutil.which("make") or shutil.which("ninja"))):
        pytest.skip("no CMake, or no make or gcc here")
    (tmp_path / "train.c").write_text(example())
    (tmp_path / "CMakeLists.txt").write_text(f"""
cmake_minimum_required(VERSION 3.15)
project(train C)
find_package(fastopt {version} REQUIRED)
add_executable(train train.c)
target_link_libraries(train fastopt::fastopt)
""")
    own = [f"-DCMAKE_PREFIX_PATH={place_for('for CMake')}", *(["-GNinja"] if not shutil.which("make") else [])]
    done = subprocess.run(["cmake", "-S", tmp_path, "-B", tmp_path, *own], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == found, done.stderr
    if found:
        subprocess.run(["cmake", "--build", tmp_path], capture_output=True, check=True)
        assert output(tmp_path / "train").startswith("no error: ")
    else:
        assert "version" in done.stderr


def test_the_library_has_its_series_in_its_name():
    """So that a program linked with one is not run with another, which may break it."""
    if sys.platform != "linux" or not shutil.which("readelf"):
        pytest.skip("not Linux, or no readelf here")
    library = Path(fastopt.get_library())
    series = fastopt.__version__.rsplit(".", 1)[0] if fastopt.__version__.startswith("0.") else "1"
    assert library.name == f"libfastopt.so.{series}"
    told = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert f"soname: [{library.name}]" in told


def test_the_library_shows_what_its_headers_declare():
    if sys.platform != "linux" or not shutil.which("nm"):
        pytest.skip("not Linux, or no nm here")
    told = subprocess.run(
        ["nm", "-D", "--defined-only", fastopt.get_library()], capture_output=True, text=True, check=True
    )
    assert {line.split()[-1] for line in told.stdout.splitlines()} == {
        name for name in dir(lib) if name.startswith("fastopt_")
    }


@pytest.mark.parametrize("compiler", [["gcc", "-std=c99"], ["g++", "-std=c++20"]], ids=lambda command: command[0])
def test_the_header_stands_alone(tmp_path, compiler):
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no {compiler[0]} here")
    source = tmp_path / ("alone.c" if compiler[0] == "gcc" else "alone.cpp")
    source.write_text("#include <fastopt.h>\n#include <fastopt.h>\n")
    done = subprocess.run(
        [*compiler, *WARNINGS, "-c", str(source), "-I", fastopt.get_include(), "-o", str(tmp_path / "alone.o")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- where it is ----


@pytest.mark.parametrize("flags", [["--cflags"], ["--libs"], ["--libs", "--cflags"]])
def test_info_prints_flags_and_nothing_else(capsys, flags):
    assert cli.main(["info", *flags]) == 0
    folder = Path(fastopt.get_library()).parent
    want = [f"-I{fastopt.get_include()}"] if "--cflags" in flags else []
    want += [f"-L{folder}", "-lfastopt", f"-Wl,-rpath,{folder}"] if "--libs" in flags else []
    assert capsys.readouterr().out == " ".join(want) + "\n"


def test_without_the_library_the_way_out_is_told():
    hidden = "sys.modules['fastopt.backends.native._native'] = None"
    code = f"import sys; {hidden}; from fastopt.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "info", "--cflags"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install" in done.stderr and "Traceback" not in done.stderr


def test_version():
    assert ffi.string(lib.fastopt_version()).decode() == fastopt.__version__
    assert f'#define FASTOPT_VERSION "{fastopt.__version__}"' in HEADER
    numbers = [re.search(rf"#define FASTOPT_VERSION_{part} (\d+)", HEADER)[1] for part in ("MAJOR", "MINOR")]
    assert numbers == fastopt.__version__.split(".")[:2]


# ---- what it says of the rules ----


@pytest.mark.parametrize("number", range(len(RULES)))
def test_c_knows_the_rules_as_python_does(number):
    rule = list(RULES.values())[number]
    found, states, hypers = describe(number)
    assert ffi.string(found.name).decode() == rule.name and lib.fastopt_find_rule(rule.name.encode()) == number
    assert tuple(states) == rule.state_names and found.state_names[len(states)] == ffi.NULL
    assert tuple(hypers) == rule.row
    assert found.coefficients == len(PROLOGUE) + len(rule.coefficients)
    assert found.scalars == len(rule.scalars)
    assert found.max_copies == (MAX_COPIES if rule.vector else 1)
    row, scalars = ffi.new("double[]", found.hyper), ffi.new("double[]", found.scalars + 1)
    assert lib.fastopt_defaults(number, row, scalars) == 0
    assert list(scalars)[: found.scalars] == list(rule.scalars.values())
    for i, name in enumerate(hypers):
        default = None if name in ("copies", rule.vector) else rule.hyper[name].default
        assert math.isnan(row[i]) if default in (None, REQUIRED) else row[i] == default


@pytest.mark.parametrize("number", range(len(RULES)))
def test_c_takes_the_hyper_parameters_that_python_takes(number):
    rule = list(RULES.values())[number]
    found, _, hypers = describe(number)
    below_one, tiny, huge = math.nextafter(1, 0), 5e-324, sys.float_info.max
    for i, name in enumerate(hypers):
        for value in (-huge, -1.0, -tiny, 0.0, tiny, 0.5, below_one, 1.0, 1.5, 8.0, 9.0, huge, math.inf, -math.inf):
            row = ffi.new("double[]", [7.0] * found.hyper)
            code = lib.fastopt_set_hyper(number, row, name.encode(), value)
            assert code in (lib.FASTOPT_OK, lib.FASTOPT_BAD_VALUE)
            assert list(row) == [7.0] * i + [7.0 if code else value] + [7.0] * (found.hyper - i - 1)
            if name == "copies":
                assert (code == 0) == (value in range(1, MAX_COPIES + 1))
                continue
            try:
                rule.hyper[name].check(name, value)
            except ValueError:
                assert code == lib.FASTOPT_BAD_VALUE, (name, value)
            else:
                assert code == lib.FASTOPT_OK, (name, value)
        code = lib.fastopt_set_hyper(number, ffi.new("double[]", found.hyper), name.encode(), math.nan)
        assert (code == 0) == (name != "copies" and rule.hyper[name].optional)


def test_the_header_has_every_rule():
    """With what its hyper-parameters mean, in which some rules differ from others."""
    text = "\n".join(line[3:] for line in HEADER.partition("\n#ifndef")[0].splitlines())
    rules, _, hypers = text.partition("\nThe hyper-parameters:\n")
    meanings = {}
    for line in re.sub(r"\n {4}", " ", hypers).splitlines():
        if line:
            names, domain, meaning = re.fullmatch(r"([\w, ]+) \((.*?)\): (.+)", line).groups()
            name, _, special = names.partition(" of ")
            for rule in special.split(", ") if special else RULES:
                meanings[rule, name] = domain, meaning
    for number, rule in enumerate(RULES.values()):
        entry = rules.partition(f"\n{rule.name} - ")[2].partition("\n\n")[0]
        summary, *formula, states, values, source = map(str.strip, re.sub(r"\n( {8}| {6})", " ", entry).splitlines())
        assert summary == f"{rule.summary}."
        assert "; ".join(formula) == rule.formula
        assert re.sub(r" \(.*?\)|;.*", "", states) == f"states: {', '.join(rule.state_names) or 'none'}"
        assert ("one element for each row" in states) == (rule.by_row is not None)
        assert source == f"source: {rule.source}"
        row = ffi.new("double[]", lib.fastopt_get_rule(number).hyper)
        lib.fastopt_defaults(number, row, ffi.new("double[4]"))
        defaults = ", ".join(f"{name}={value:g}" for name, value in zip(rule.row, row, strict=True))
        assert values == f"hyper-parameters: {defaults.replace('=nan', '=NaN')}"
        for name in rule.row:
            domain, meaning = meanings[rule.name, name]
            if name in rule.hyper and not rule.hyper[name].vector:
                told = rule.hyper[name].domain.replace("True or False", "0 or 1"), rule.hyper[name].meaning
                assert (domain, meaning) == tuple(part.replace("None", "NaN") for part in told)


def test_a_decoupled_rule_has_one_decay():
    number, row, coefficients = lib.fastopt_find_rule(b"adamw"), ffi.new("double[24]"), ffi.new("double[24]")
    assert lib.fastopt_defaults(number, row, ffi.NULL) == 0
    assert lib.fastopt_set_hyper(number, row, b"decoupled_weight_decay", 0.5) == lib.FASTOPT_BAD_HYPER
    assert lib.fastopt_set_hyper(number, row, b"weight_decay", 0.5) == 0
    assert lib.fastopt_set_hyper(number, row, b"lr", 0.1) == 0
    assert lib.fastopt_fold(number, 1, 1.0, row, ffi.NULL, coefficients) == 0
    assert list(coefficients)[:3] == [1.0, 0.0, 1 - 0.1 * 0.5]


def test_coefficients_are_numbers_of_the_dtype():
    number, row, coefficients = lib.fastopt_find_rule(b"sgd"), ffi.new("double[24]"), ffi.new("double[24]")
    lib.fastopt_defaults(number, row, ffi.NULL)
    p, g, size = np.ones(3, "f4"), np.zeros(3, "f4"), ffi.new("int64_t[]", [3])
    arrays = ffi.new("void *[]", [ffi.cast("void *", p.ctypes.data), ffi.cast("void *", g.ctypes.data)])
    for lr, grad_scale, code in [
        (3e38, 1.0, 0),
        (1e39, 1.0, lib.FASTOPT_BAD_VALUE),
        (0.1, -1e39, lib.FASTOPT_BAD_VALUE),
    ]:
        assert lib.fastopt_set_hyper(number, row, b"lr", lr) == 0
        assert lib.fastopt_fold(number, 1, grad_scale, row, ffi.NULL, coefficients) == 0
        assert lib.fastopt_update(number, lib.FASTOPT_FLOAT32, 1, 1, size, arrays, coefficients, 1) == code
        rows = ffi.new("fastopt_rows *", {"rows": 1, "width": 3, "count": 1, "index_size": 8})
        index, strides = ffi.new("int64_t[1]"), ffi.new("int64_t[]", [12, 12])
        rows.indices = index
        assert lib.fastopt_update_rows(number, lib.FASTOPT_FLOAT32, 1, rows, arrays, strides, coefficients, 1) == code
        np.testing.assert_array_equal(p, 1)


def test_limits_are_python_s():
    assert lib.FASTOPT_MAX_THREADS == settings.MAX_THREADS
    assert lib.FASTOPT_MAX_COPIES == MAX_COPIES
    assert 1 <= lib.fastopt_default_threads() <= settings.cpus()


# ---- errors ----


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": -1}, "unknown rule"),
        ({"rule": len(RULES)}, "unknown rule"),
        ({"t": 0}, "steps are counted from 1"),
        ({"t": -(2**63)}, "steps are counted from 1"),
        ({"grad_scale": math.inf}, "grad_scale or option outside its domain"),
        ({"grad_scale": math.nan}, "grad_scale or option outside its domain"),
        ({"hyper": None}, "null pointer"),
        ({"scalars": None}, "null pointer"),
        ({"coefficients": None}, "null pointer"),
        ({"lr": -1.0}, "outside its domain"),
        ({"maximize": 0.5}, "outside its domain"),
        ({"beta2": math.nan}, "outside its domain"),
    ],
    ids=str,
)
def test_fold_refuses(change, said):
    rule = change.get("rule", lib.fastopt_find_rule(b"nadam"))
    found, _, hypers = describe(lib.fastopt_find_rule(b"nadam"))
    hyper, scalars = ffi.new("double[]", found.hyper), ffi.new("double[]", found.scalars)
    lib.fastopt_defaults(lib.fastopt_find_rule(b"nadam"), hyper, scalars)
    for i, name in enumerate(hypers):
        hyper[i] = change.get(name, hyper[i])
    scalars[0] = 0.5
    coefficients = ffi.new("double[]", [7.0] * found.coefficients)
    given = {"hyper": hyper, "scalars": scalars, "coefficients": coefficients}
    given = {key: ffi.NULL if change.get(key, 1) is None else array for key, array in given.items()}
    code = lib.fastopt_fold(rule, change.get("t", 1), change.get("grad_scale", 1.0), *given.values())
    assert said in message(code)
    assert list(coefficients) == [7.0] * found.coefficients
    assert scalars[0] == 0.5


@pytest.mark.parametrize("name", ["qhm", "aggmo"])
def test_what_has_no_default_must_be_set(name):
    rule = lib.fastopt_find_rule(name.encode())
    hyper, coefficients = ffi.new("double[24]"), ffi.new("double[24]")
    assert lib.fastopt_defaults(rule, hyper, ffi.NULL) == 0
    assert "must be set" in message(lib.fastopt_fold(rule, 1, 1.0, hyper, ffi.NULL, coefficients))


def test_defaults_and_names_are_refused_too():
    adam, hyper = lib.fastopt_find_rule(b"adam"), ffi.new("double[]", [7.0] * 24)
    assert lib.fastopt_defaults(-1, hyper, ffi.NULL) == lib.FASTOPT_BAD_RULE
    assert lib.fastopt_defaults(adam, ffi.NULL, ffi.NULL) == lib.FASTOPT_NULL_POINTER
    assert lib.fastopt_defaults(lib.fastopt_find_rule(b"nadam"), hyper, ffi.NULL) == lib.FASTOPT_NULL_POINTER
    assert lib.fastopt_set_hyper(99, hyper, b"lr", 0.1) == lib.FASTOPT_BAD_RULE
    assert lib.fastopt_set_hyper(adam, hyper, b"betas", 0.1) == lib.FASTOPT_BAD_HYPER
    assert lib.fastopt_set_hyper(adam, hyper, ffi.NULL, 0.1) == lib.FASTOPT_NULL_POINTER
    assert lib.fastopt_set_hyper(adam, ffi.NULL, b"lr", 0.1) == lib.FASTOPT_NULL_POINTER
    assert list(hyper) == [7.0] * 24
    assert lib.fastopt_get_rule(-1) == lib.fastopt_get_rule(len(RULES)) == ffi.NULL


class Momentum:
    """Two tensors under momentum, and a call that updates them, some of its arguments changed."""

    def __init__(self):
        self.arrays = [np.full(n, 1.0 + j) for n in (5, 3) for j in range(3)]
        self.rule = lib.fastopt_find_rule(b"momentum")
        hyper, self.coefficients = ffi.new("double[24]"), ffi.new("double[24]")
        assert lib.fastopt_defaults(self.rule, hyper, ffi.NULL) == 0
        assert lib.fastopt_fold(self.rule, 1, 1.0, hyper, ffi.NULL, self.coefficients) == 0

    def update(self, lost=(), **changed):
        addresses = [0 if k in lost else array.ctypes.data for k, array in enumerate(self.arrays)]
        call = {
            "rule": self.rule,
            "dtype": lib.FASTOPT_FLOAT64,
            "copies": 1,
            "tensors": 2,
            "sizes": [5, 3],
            "arrays": ffi.new("void *[]", [ffi.cast("void *", address) for address in addresses]),
            "coefficients": self.coefficients,
            "threads": 2,
            **changed,
        }
        call = {key: ffi.NULL if value is None else value for key, value in call.items()}
        return lib.fastopt_update(*call.values())

    def untouched(self):
        return all((array == 1.0 + k % 3).all() for k, array in enumerate(self.arrays))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rule": -1}, "unknown rule"),
        ({"rule": 999}, "unknown rule"),
        ({"dtype": 2}, "unknown dtype"),
        ({"copies": 0}, "number of copies"),
        ({"copies": 2}, "number of copies"),
        ({"tensors": -1}, "negative"),
        ({"sizes": [5, -3]}, "negative"),
        *(({"sizes": [5, size]}, "larger than any memory") for size in (2**63 - 1, 2**62, 2**61, 2**60, 2**54)),
        ({"sizes": [2**53, 1]}, "larger than any memory"),
        ({"tensors": 2**62}, "out of memory"),
        ({"threads": 0}, "number of threads"),
        ({"threads": -(2**31)}, "number of threads"),
        ({"threads": 1025}, "number of threads"),
        ({"sizes": None}, "null pointer"),
        ({"arrays": None}, "null pointer"),
        ({"coefficients": None}, "null pointer"),
        *(({"lost": (k,)}, "null pointer") for k in range(6)),
    ],
    ids=str,
)
def test_update_refuses_and_writes_nothing(changed, said):
    tensors = Momentum()
    assert said in message(tensors.update(**changed))
    assert tensors.untouched()
    assert tensors.update() == lib.FASTOPT_OK
    assert not tensors.untouched()


def test_nothing_to_update_is_no_error():
    tensors = Momentum()
    assert tensors.update(tensors=0, sizes=None, arrays=None, coefficients=None) == lib.FASTOPT_OK
    assert tensors.update(sizes=[0, 0], lost=range(6)) == lib.FASTOPT_OK
    assert tensors.untouched()
    assert tensors.update(sizes=[0, 3], lost=(0, 1, 2)) == lib.FASTOPT_OK
    assert (tensors.arrays[0] == 1).all() and (tensors.arrays[3] != 1).all()


def test_step_refuses_and_writes_nothing():
    param, grad = np.ones(4), np.ones(4)
    runner = native.prepare(
        make_jobs(
            [Progress.of(RULES["sgd"], 1, 1, 1)],
            [Tensor(0, 0, [libraries.view(param, "param"), libraries.view(grad, "grad")])],
            [["param", "grad"]],
        )
    )
    jobs = runner._jobs

    def step(n, jobs=jobs, threads=1):
        return lib.fastopt_step(jobs, n, 1.0, threads)

    def calls():
        return step(1), lib.fastopt_advance(jobs, 1, 1.0), lib.fastopt_update_part(jobs, 0, 4, 1)

    assert step(-1) == lib.FASTOPT_BAD_SIZE
    assert step(0, ffi.NULL) == lib.FASTOPT_OK
    assert step(1, ffi.NULL) == lib.FASTOPT_NULL_POINTER
    assert step(1, threads=0) == lib.fastopt_update_part(jobs, 0, 4, 0) == lib.FASTOPT_BAD_THREADS
    bad = {"rule": -1, "dtype": 9, "copies": 2, "runs": -1, "tensors": -1}
    tables = ("addresses", "offsets", "tensor_of", "parameter", "group", "steps", "hyper", "coefficients", "row_of")
    for key, value in {**bad, **dict.fromkeys(tables, ffi.NULL)}.items():
        before = getattr(jobs[0], key)
        setattr(jobs[0], key, value)
        assert lib.FASTOPT_OK not in calls(), key
        setattr(jobs[0], key, before)
    for key in ("tensors", "runs"):
        before = getattr(jobs[0], key)
        setattr(jobs[0], key, 2**62)
        assert set(calls()) == {lib.FASTOPT_BAD_SIZE}, key
        setattr(jobs[0], key, before)
    for begin, end in ((0, 5), (-1, 4), (3, 2)):
        assert lib.fastopt_update_part(jobs, begin, end, 1) == lib.FASTOPT_BAD_SIZE
    assert step(2**62) == lib.FASTOPT_BAD_SIZE
    for steps in (2**63 - 1, -1, -(2**63)):
        jobs[0].steps[0] = steps
        assert step(1) == lib.fastopt_advance(jobs, 1, 1.0) == lib.FASTOPT_BAD_STEP
        assert jobs[0].steps[0] == steps
    jobs[0].steps[0] = 0
    jobs[0].rule = lib.fastopt_find_rule(b"nadam")
    assert step(1) == lib.FASTOPT_NULL_POINTER  # it has scalars
    assert (param == 1).all() and jobs[0].steps[0] == 0


def test_norm_and_stream_refuse():
    null = ffi.NULL
    assert lib.fastopt_square_sums(7, 0, null, null, null, null, null, 1) == lib.FASTOPT_BAD_DTYPE
    assert lib.fastopt_square_sums(0, -1, null, null, null, null, null, 1) == lib.FASTOPT_BAD_SIZE
    assert lib.fastopt_square_sums(0, 1, null, null, null, null, null, 1) == lib.FASTOPT_NULL_POINTER
    assert lib.fastopt_square_sums(0, 0, null, null, null, null, null, 0) == lib.FASTOPT_BAD_THREADS
    assert lib.fastopt_stream(8, 7, null, 0, 1) == lib.fastopt_stream(-1, 2, null, 0, 1) == lib.FASTOPT_BAD_SIZE
    assert lib.fastopt_square_sums(0, 2**62, *[ffi.cast("void *", 8)] * 5, 1) == lib.FASTOPT_BAD_SIZE
    assert lib.fastopt_stream(2**62, 2, null, 0, 1) == lib.FASTOPT_BAD_SIZE
    assert lib.fastopt_stream(8, 2, null, 0, 1) == lib.FASTOPT_NULL_POINTER
    assert lib.fastopt_stream_reads(8, 2, null, 0, 1) == lib.FASTOPT_NULL_POINTER
    table = ffi.new("int64_t[]", [0, 0])
    arrays = ffi.new("float *[]", [ffi.NULL, ffi.NULL])
    for segments, width, count in ((-1, 1, 2), (2**62, 1, 2), (1, 0, 2), (1, 2**62, 2), (1, 1, 1), (1, 1, 7)):
        code = lib.fastopt_stream_rows(segments, table, table, table, width, count, arrays, 1)
        assert code == lib.FASTOPT_BAD_SIZE
    assert lib.fastopt_stream_rows(1, table, table, table, 1, 2, arrays, 1) == lib.FASTOPT_NULL_POINTER
    assert lib.fastopt_stream_rows(1, null, table, table, 1, 2, arrays, 1) == lib.FASTOPT_NULL_POINTER
    two = ffi.new("float *[]", [ffi.new("float[8]"), ffi.new("float[8]")])
    assert lib.fastopt_stream(0, 2, two, 0, 0) == lib.FASTOPT_BAD_THREADS


MEMORY = 2**56  # bytes: as many as a call takes


@pytest.mark.parametrize("more", [0, 1])
def test_the_largest_that_is_taken(more):
    """The largest sizes are refused only for the null pointers, or the bad index, that come with them."""
    refused = lib.FASTOPT_BAD_SIZE if more else lib.FASTOPT_NULL_POINTER
    null = ffi.NULL
    assert lib.fastopt_step(null, MEMORY // ffi.sizeof("fastopt_job") + more, 1.0, 1) == refused
    for key, most in (("runs", MEMORY // 8), ("tensors", 2**31 - 1)):
        job = ffi.new("fastopt_job *", {"copies": 1, "tensors": 1, key: most + more})
        assert lib.fastopt_step(job, 1, 1.0, 1) == refused
    assert lib.fastopt_square_sums(0, MEMORY // 8 + more, *[null] * 5, 1) == refused
    assert lib.fastopt_stream(MEMORY // 4 + more, 2, null, 0, 1) == refused
    assert lib.fastopt_stream_rows(MEMORY // 8 + more, null, null, null, 1, 2, null, 1) == refused
    assert lib.fastopt_stream_rows(1, null, null, null, MEMORY // 4 + more, 2, null, 1) == refused
    assert Momentum().update(sizes=[MEMORY // 8 - 3 + more, 3], lost=(3,)) == refused
    tensor = Rows()
    for rows in ({"rows": 2**32 - 1 + more}, {"count": 2**32 - 1 + more}):
        assert tensor.update(rows=rows, strides=None) == refused
    for key in ("rows", "count"):
        assert tensor.update(rows={key: 2**31, "width": MEMORY // 2**34 + more}, strides=None) == refused
    refused = lib.FASTOPT_BAD_SIZE if more else lib.FASTOPT_BAD_INDEX
    for sign, k, n in ((1, 0, 16), (-1, 0, 16), (1, 1, 4), (-1, 1, 4), (1, 2, 16), (-1, 2, 16)):
        rows = {"rows": 16, "count": 4, "indices": np.array([4, 0, 4, 16])}
        assert tensor.update(rows=rows, stride={k: sign * (MEMORY // n + more)}) == refused


def test_each_error_has_a_message():
    said = [message(code) for code in range(16)]
    assert len(set(said)) == 16 and "unknown error code" not in said
    assert {message(code) for code in (-(2**31), -1, 16, 17, 2**31 - 1)} == {"unknown error code"}


# ---- arrays of other dtypes ----


class Stored:
    """Two bfloat16 tensors under Adam with 8-bit states, a master and an average; and a call, some of it changed."""

    SIZES = (5003, 300)

    def __init__(self):
        rng = np.random.default_rng(0)
        self.rule = lib.fastopt_find_rule(b"adam")
        self.hyper, self.coefficients = ffi.new("double[24]"), ffi.new("double[24]")
        assert lib.fastopt_defaults(self.rule, self.hyper, ffi.NULL) == 0
        self.arrays = []
        for n in self.SIZES:
            param = (rng.standard_normal(n).astype("f4").view("u4") >> 16).astype("u2")
            exact = (param.astype("u4") << 16).view("f4")
            blocks = [np.zeros(-(-n // 256) * 260, "u1") for _ in range(2)]
            self.arrays.append([param, np.ones(n, "f4"), *blocks, exact.copy(), exact.copy()])
        b, f = lib.FASTOPT_BFLOAT16, lib.FASTOPT_FLOAT32
        self.dtypes = [b, f, lib.FASTOPT_BLOCKS_SIGNED, lib.FASTOPT_BLOCKS_POSITIVE, f, f]
        self.options = lib.FASTOPT_MASTER | lib.FASTOPT_AVERAGE
        self.before = [[a.copy() for a in arrays] for arrays in self.arrays]

    def update(
        self,
        t=1,
        dtype=lib.FASTOPT_FLOAT32,
        dtypes=None,
        options=None,
        decay=0.9,
        storage=True,
        noise=(0.3, 0.55, 7),
        clip_value=0.25,
    ):
        assert lib.fastopt_fold(self.rule, max(t, 1), 1.0, self.hyper, ffi.NULL, self.coefficients) == 0
        kinds = ffi.new("int32_t[]", dtypes or self.dtypes)
        options = self.options if options is None else options
        held = ffi.new("fastopt_storage *", (kinds, options, decay, 0, 0, *noise, clip_value)) if storage else ffi.NULL
        addresses = ffi.new("void *[]", [ffi.cast("void *", a.ctypes.data) for own in self.arrays for a in own])
        return lib.fastopt_update_stored(
            self.rule, dtype, 1, 2, list(self.SIZES), addresses, self.coefficients, held, t, 2
        )

    def untouched(self):
        return all(
            (a == b).all() for x, y in zip(self.arrays, self.before, strict=True) for a, b in zip(x, y, strict=True)
        )


@pytest.mark.parametrize("clip_value", [None, 0.25])
@pytest.mark.parametrize("noise", [None, fastopt.GradientNoise(0.3, 0.55, 7)], ids=str)
def test_stored_arrays_have_the_bits_of_python(noise, clip_value):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    tensors = Stored()
    tensors.options |= (lib.FASTOPT_NOISE if noise else 0) | (lib.FASTOPT_CLIP if clip_value else 0)
    params = [arrays[0].copy().view(ml_dtypes.bfloat16) for arrays in tensors.arrays]
    opt = fastopt.Adam(params, state_dtype="8bit", rounding="master", ema_decay=0.9, gradient_noise=noise)
    small = opt.state[1]  # too small for blocks in Python: the library leaves that to its caller
    for t in (1, 2, 3):
        assert tensors.update(t) == lib.FASTOPT_OK
        opt.step([np.ones(n, "f4") for n in Stored.SIZES], clip_value=clip_value)
    assert small["exp_avg"].dtype == np.float32
    for k, name in enumerate(("exp_avg", "exp_avg_sq", "master", "ema"), 2):
        np.testing.assert_array_equal(tensors.arrays[0][k], opt.state[0][name])
    np.testing.assert_array_equal(tensors.arrays[0][0], params[0].view("u2"))
    assert not tensors.untouched()


F, D, B, S = lib.FASTOPT_FLOAT32, lib.FASTOPT_FLOAT64, lib.FASTOPT_BFLOAT16, lib.FASTOPT_BLOCKS_SIGNED


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"t": 0}, "a step below 1"),
        ({"storage": False}, "null pointer"),
        ({"dtype": lib.FASTOPT_BFLOAT16}, "unknown dtype"),
        ({"dtypes": [B, F, 6, S, F, F]}, "unknown dtype"),
        ({"dtypes": [B, F, -1, S, F, F]}, "unknown dtype"),
        ({"dtypes": [S, F, S, S, F, F]}, "do not go together"),  # a parameter in blocks
        *(({"dtypes": [param, F, S, S], "options": 0}, "unknown dtype") for param in (-1, 6)),
        *(({"dtypes": [param, F, S, S], "options": 0}, "do not go together") for param in (S, D)),
        ({"dtypes": [B, S, S, S, F, F]}, "do not go together"),  # a gradient
        ({"dtypes": [B, F, S, S, F, S]}, "do not go together"),  # an average
        ({"dtypes": [B, D, S, S, F, F]}, "do not go together"),
        ({"dtypes": [D, D, D, D, D, D]}, "do not go together"),
        ({"dtypes": [F, F, S, S, F, F]}, "do not go together"),  # a master of a float32 parameter
        ({"dtypes": [B, F, S, S, B, F]}, "do not go together"),  # a bfloat16 master
        ({"options": lib.FASTOPT_KAHAN | lib.FASTOPT_MASTER}, "do not go together"),
        ({"options": 256}, "do not go together"),
        *(
            ({"options": lib.FASTOPT_CLIP | lib.FASTOPT_MASTER | lib.FASTOPT_AVERAGE, "clip_value": limit}, "do not go")
            for limit in (-1.0, math.nan)
        ),
        *(
            ({"options": lib.FASTOPT_NOISE | lib.FASTOPT_MASTER | lib.FASTOPT_AVERAGE, "noise": noise}, "do not go")
            for noise in ((-1.0, 0.55, 7), (math.nan, 0.55, 7), (1e39, 0.55, 7), (0.3, -1.0, 7), (0.3, math.inf, 7))
        ),
        ({"decay": 1.5}, "do not go together"),
        ({"decay": math.nan}, "do not go together"),
    ],
    ids=str,
)
def test_stored_arrays_refused(changed, said):
    tensors = Stored()
    assert said in message(tensors.update(**changed))
    assert tensors.untouched()


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_an_average_may_follow_at_once_or_never(decay):
    tensors = Stored()
    assert tensors.update(decay=decay) == lib.FASTOPT_OK
    master, average = tensors.arrays[0][4:]
    np.testing.assert_array_equal(average, tensors.before[0][5] if decay else master)
    assert (master != tensors.before[0][4]).all()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is protected as on Linux")
@pytest.mark.parametrize("edge", ["begin", "end"])
def test_calls_touch_nothing_outside_their_arrays(edge):
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "tests.guarded", edge]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"ended by signal {-done.returncode}"
    assert int(done.stdout) > 600


# ---- updates beyond the small ----


@pytest.mark.parametrize("real", DTYPES)
def test_large_and_unaligned_tensors_on_several_threads(real):
    dtype, number = DTYPES[real]
    rng = np.random.default_rng(0)
    sizes = [100_003, 0, 7, 50_000]
    raw = [[np.zeros(n * np.dtype(dtype).itemsize + 1, np.uint8) for _ in range(4)] for n in sizes]
    mine = [
        [b[k % 2 :][: n * np.dtype(dtype).itemsize].view(dtype) for k, b in enumerate(bs)]
        for n, bs in zip(sizes, raw, strict=True)
    ]
    for arrays in mine:
        arrays[0][:], arrays[1][:] = rng.standard_normal((2, arrays[0].size))
    want = [[array.copy() for array in arrays] for arrays in mine]
    functional.adam(*map(list, zip(*want, strict=True)), step=3, **VARIED["adam"], grad_scale=0.5)
    rule = lib.fastopt_find_rule(b"adam")
    hyper, coefficients = ffi.new("double[24]"), ffi.new("double[24]")
    assert lib.fastopt_defaults(rule, hyper, ffi.NULL) == 0
    for name, value in VARIED["adam"].items():
        assert lib.fastopt_set_hyper(rule, hyper, name.encode(), value) == 0
    assert lib.fastopt_fold(rule, 3, 0.5, hyper, ffi.NULL, coefficients) == 0
    addresses = ffi.new("void *[]", [ffi.cast("void *", a.ctypes.data) for arrays in mine for a in arrays])
    assert lib.fastopt_update(rule, number, 1, len(sizes), sizes, addresses, coefficients, 3) == 0
    for got, arrays in zip(mine, want, strict=True):
        for a, b in zip(got, arrays, strict=True):
            np.testing.assert_array_equal(a, b)


# ---- the ceiling ----


def floats(arrays):
    return ffi.new("float *[]", [ffi.cast("float *", array.ctypes.data) for array in arrays])


@pytest.mark.parametrize("ahead", [0, 512])
@pytest.mark.parametrize("count", range(2, 6))
def test_the_ceiling_has_the_traffic_of_an_update(count, ahead):
    """All but the second array change, in every element, and nothing else."""
    for n in (0, 1, 63, 64, 65, 100_003):
        arrays = [np.arange(n + 16, dtype="f4") + j for j in range(count)]
        want = [array.copy() for array in arrays]
        for array in (want[0], *want[2:]):
            array[:n] += want[1][:n]
        assert lib.fastopt_stream(n, count, floats(arrays), ahead, 3) == lib.FASTOPT_OK
        for got, array in zip(arrays, want, strict=True):
            np.testing.assert_array_equal(got, array)
        assert lib.fastopt_stream_reads(n, count, floats(arrays), ahead, 3) == lib.FASTOPT_OK
        for got, array in zip(arrays, want, strict=True):
            np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("width", [1, 16, 33, 64, 129, 20_000])
@pytest.mark.parametrize("count", range(2, 6))
def test_the_ceiling_of_rows_has_the_traffic_of_their_update(count, width):
    """A row and its states get each of its gradients: the rows that are named, and no others."""
    rng = np.random.default_rng(0)
    for n in (0, 1, 3000 if width < 200 else 4):
        lookups = rng.integers(1, 4, n)
        starts = np.concatenate([[0], np.cumsum(lookups)])
        rows, places = 2 * rng.permutation(n), rng.permutation(int(starts[-1]))
        arrays = [rng.integers(0, 99, (2 * n + 1, width)).astype("f4") for _ in range(count)]
        arrays[1] = rng.integers(0, 99, (len(places) + 1, width)).astype("f4")
        want = [array.copy() for array in arrays]
        for array in (want[0], *want[2:]):
            np.add.at(array, np.repeat(rows, lookups), arrays[1][places])
        tables = [ffi.from_buffer("int64_t[]", np.ascontiguousarray(a, np.int64)) for a in (rows, starts, places)]
        assert lib.fastopt_stream_rows(n, *tables, width, count, floats(arrays), 3) == lib.FASTOPT_OK
        for got, array in zip(arrays, want, strict=True):
            np.testing.assert_array_equal(got, array)


# ---- ctypes and Numba, as the page shows them ----


def test_ctypes_reaches_the_library_that_python_uses():
    library = ctypes.CDLL(fastopt.get_library())
    library.fastopt_get_rule.restype = ctypes.c_void_p
    assert library.fastopt_get_rule(0) == int(ffi.cast("uintptr_t", lib.fastopt_get_rule(0)))  # the same table


def test_the_ctypes_example():
    names = {}
    exec(example_of("csrc", "ctypes.CDLL"), names)
    want, m, v = np.ones(1000, "f4"), np.zeros(1000, "f4"), np.zeros(1000, "f4")
    functional.adamw(want, names["g"], m, v, step=1, lr=0.01)
    for got, b in zip((names["p"], names["m"], names["v"]), (want, m, v), strict=True):
        np.testing.assert_array_equal(got, b)


def test_the_numba_example_in_two_threads():
    names = {}
    exec(example_of("csrc", "def train(p, g, m, v"), names)
    results = {}

    def work(seed):
        p, g = np.random.default_rng(seed).standard_normal((2, 1000)).astype("f4")
        m, v = np.zeros((2, 1000), "f4")
        assert names["train"](p, g, m, v, names["hyper"], 50) == 0
        results[seed] = (p, m, v)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(results) == 2
    for seed, got in results.items():
        p, _ = np.random.default_rng(seed).standard_normal((2, 1000)).astype("f4")
        m, v = np.zeros((2, 1000), "f4")
        for t in range(1, 51):
            functional.adamw(p, 2 * p, m, v, step=t, lr=0.01)
        for a, b in zip(got, (p, m, v), strict=True):
            np.testing.assert_array_equal(a, b)
