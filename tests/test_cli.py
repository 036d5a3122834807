"""The command line, as a user calls it."""

import contextlib
import fcntl
import importlib
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import fastopt
from fastopt import cli
from fastopt.rules import RULES

from .pages import page

MAIN = "import sys; from fastopt.cli import main; sys.exit(main())"


def run(*arguments, code=MAIN, stdout=subprocess.PIPE, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )


def refusal(done, status):
    """The one line that a command ended with."""
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def without(*packages):
    """The command in a process where packages cannot be imported."""
    hidden = "".join(f"sys.modules[{name!r}] = None; " for name in packages)
    return f"import sys; {hidden}from fastopt.cli import main; sys.exit(main())"


def test_info():
    done = run("info", code=without("rich", "click", "sklearn", "torch"))
    assert done.returncode == 0, done.stderr
    for text in (fastopt.__version__, "threads:", "backend native:", "backend numba:", "backend chosen:"):
        assert text in done.stdout


def test_the_rules_page_has_the_table(capsys):
    assert cli.main(["info", "--rules"]) == 0
    assert capsys.readouterr().out.strip() in page("fastopt/rules")


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"fastopt {fastopt.__version__}\n")


SLOW = "import sys, time; print('up', file=sys.stderr, flush=True); time.sleep(60)"


def stand_in(folder, loads="", status=0):
    """The command over a command line whose main leaves something slow for the process's end."""
    (folder / "fastopt").mkdir()
    (folder / "fastopt/__init__.py").touch()
    shutil.copy(Path(fastopt.__file__).with_name("__main__.py"), folder / "fastopt")
    (folder / "fastopt/cli.py").write_text(
        f"{loads}\nimport atexit\ndef main():\n    atexit.register(exec, {SLOW!r}, {{}})\n    return {status}\n"
    )
    command = [sys.executable, "-m", "fastopt"]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("loads", [SLOW, ""], ids=["it is loaded", "the process ends"])
def test_ctrl_c_is_a_line_while(loads, tmp_path):
    with stand_in(tmp_path, loads) as process:
        assert process.stderr.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1] == "fastopt: interrupted\n"
    assert process.returncode == 130


def test_a_command_that_was_interrupted_ends_at_once(tmp_path):
    with stand_in(tmp_path, status=130) as process:
        assert process.communicate(timeout=20)[1] == "" and process.returncode == 130


def test_the_package_is_the_command():
    done = subprocess.run([sys.executable, "-m", "fastopt", "info", "--rules"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == run("info", "--rules").stdout


def test_info_says_where_things_are(tmp_path):
    found = dict(line.split(": ", 1) for line in run("info", NUMBA_CACHE_DIR=str(tmp_path)).stdout.splitlines())
    assert Path(found["C library"].strip()).samefile(fastopt.get_library())
    assert Path(found["C header"].strip()).read_text().startswith("/*")
    assert Path(found["for pkg-config"].strip(), "fastopt.pc").is_file()
    assert Path(found["for CMake"].strip(), "lib/cmake/fastopt/fastopt-config.cmake").is_file()
    assert found["Numba's cache"].strip().startswith(str(tmp_path))


@pytest.mark.parametrize("width", [40, 100, 300])
def test_rules_fit_a_terminal(width):
    terminal, ours = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen([sys.executable, "-c", MAIN, "info", "--rules"], stdout=ours, env=environment) as process:
        os.close(ours)
        text = b""
        try:
            while part := os.read(terminal, 65536):
                text += part
        except OSError:  # the end, on Linux
            pass
    os.close(terminal)
    assert process.returncode == 0
    lines = text.decode().splitlines()
    assert max(map(len, lines)) <= width
    said = " ".join(" ".join(lines).split())
    for rule in RULES.values():
        for part in (f"{rule.optimizer}, {rule.name}", rule.formula, rule.source):
            assert " ".join(part.split()) in said


@pytest.mark.parametrize("arguments", [["info"], ["info", "--rules"], ["info", "--cflags"]])
def test_output_that_nobody_reads_or_that_finds_no_room(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    done = run(*arguments, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        assert "No space left" in refusal(run(*arguments, stdout=full), 1)
    closed = run(*arguments, code=f"import sys; sys.stdout = None; {MAIN}")
    assert (closed.returncode, closed.stderr) == (0, "")


@pytest.mark.parametrize("variable", ["FASTOPT_BACKEND", "FASTOPT_ISA", "FASTOPT_NUM_THREADS"])
@pytest.mark.parametrize("command", ["info", "bench"])
def test_a_wrong_environment_is_a_line(command, variable):
    line = refusal(run(command, **{variable: "foo"}), 2)
    assert line.startswith(f"fastopt {command}: {variable}: found 'foo', expected ")


def test_results_that_cannot_be_written(tmp_path):
    arguments = ["bench", "--rules", "sgd", "--size", "1e4", "--repeats", "1", "--peers", "none", "--no-digits"]
    done = run(*arguments, "--json", "/dev/full", FASTOPT_NUM_THREADS="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "fastopt bench: /dev/full: No space left on device"
    assert "Traceback" not in done.stderr
    assert "sgd" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: command"),
        (["inof"], "invalid choice: 'inof'"),
        (["info", "--rulez"], "--rulez"),
        (["info", "--rules", "--libs"], "found --rules with"),
        (["bench", "--threads", "99999"], "--threads: found '99999', expected a whole number >= 1 and <= 1024"),
        (["bench", "--threads", "0"], "--threads: found '0'"),
        (["bench", "--rules", "adma"], "did you mean 'ad"),
        (["bench", "--backends", ""], "--backends: found ''"),
        (["bench", "--size", "1e400"], "--size: found '1e400'"),
        (["bench", "--size", "nan"], "--size: found 'nan'"),
        (["bench", "--repeats", "-1"], "--repeats"),
        (["bench", "--budget", "inf"], "--budget: found 'inf'"),
        (["bench", "--json", "/"], "--json: "),
        (["bench", "--json", ""], "--json: "),
        (["bench", "--report", "/dev/null"], "--report: "),
        (["bench", "--report", "/proc/none"], "--report: "),
        (["bench", "--report", ""], "--report: found ''"),
        (["bench", "--plot", "/nowhere/x.png"], "--plot: found '/nowhere/x.png'"),
    ],
)
def test_arguments_of_no_use(capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_what_bench_is_asked(monkeypatch):
    command = pytest.importorskip("fastopt.bench.command")
    monkeypatch.setattr(command, "bench", lambda *asked: asked)

    def asked(*arguments):
        options, _, _, said = cli.main(["bench", *arguments])
        assert said == " ".join(["fastopt", "bench", *arguments])
        return options

    usual = asked("--threads", "1024")
    assert (usual.threads, usual.size, list(usual.sizes)) == (1024, 20_000_000, [])
    decades = [f"{leading}e{exponent}" for exponent in range(2, 10) for leading in (1, 3)]
    assert list(asked("--sizes").sizes) == [int(float(size)) for size in decades[:-1]]
    assert list(asked("--sizes", "3e4,10").sizes) == [10, 30_000]
    goals = asked("--goals")
    assert (goals.size, list(goals.sizes)) == (10**8, [10**6, 10**7, 10**8, 10**9])
    assert list(asked("--goals", "--sizes", "1e4").sizes) == [10_000]
    monkeypatch.setattr(cli, "load_backend", lambda name: None)  # a device may be missing here
    assert (asked("--cuda").size, list(asked("--cuda").peers)) == (200_000_000, [])
    monkeypatch.setattr(sys, "argv", ["/somewhere/fastopt", "bench", "--size", "1e4"])
    assert cli.main()[-1] == "fastopt bench --size 1e4"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"configuration": {}, "rules": [1]}',
        '{"configuration": {}, "rules": [{"shares": {"native": [1, 1, 1]}}]}',
        '{"configuration": {}, "rules": [{"name": "adam", "shares": {"native": [1]}}]}',
        '{"configuration": {}, "rules": [{"name": "adam", "shares": {"native": [0, 0, 0]}}]}',
        '{"configuration": {}, "rules": [{"name": "adam", "shares": {"native": [1, NaN, 2]}}]}',
        '{"configuration": {}, "rules": [{"name": "adam", "shares": {"native": ["1", "2", "3"]}}]}',
    ],
)
def test_a_baseline_that_is_none(tmp_path, capsys, content):
    file = tmp_path / "baseline.json"
    file.write_text(content)
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "--baseline", str(file)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("fastopt bench: argument --baseline: ")


# ---- wrong words ----

WORDS = [
    "", " ", "x", "-1", "0", "1.5", "nan", "inf", "-inf", "1e400", "9" * 400, ",", "1,", "adam,,sgd", "x" * 5000, "é",
    "\udcff", "/", "/proc/nothing/x", "/dev/null/x", "a\nb",
]  # fmt: skip
RIGHT = {  # where a word is none that is wrong
    "--budget": ["1.5"],
    "--json": [*WORDS[1:9], *WORDS[9:10], *WORDS[11:14], "é", "\udcff", "a\nb"],
    "--report": [*WORDS[1:9], *WORDS[9:10], *WORDS[11:14], "é", "\udcff", "/", "a\nb"],
}  # fmt: skip


def options():
    parser = cli._parser()
    return [(command, name) for command in ("info", "bench") for name in cli._options(parser, command)]


@pytest.mark.parametrize(("command", "option"), [pair for pair in options() if pair[1] not in ("-h", "--help")])
def test_a_wrong_word_for_an_option_is_a_line(command, option, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in WORDS:
        if word in RIGHT.get(option, ()):
            continue
        with pytest.raises(SystemExit) as ended:
            cli._parser().parse_args([command, f"{option}={word}"])
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert said.startswith(f"fastopt {command}: argument {option}: ")
        assert said.count("\n") == 1
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "fastopt: the following arguments are required: command"),
        (["bnech"], "fastopt: argument command: invalid choice: 'bnech'"),
        (["bench", "--ruels", "adam"], "fastopt: bench: found '--ruels', expected some of "),
        (["bench", "--ruels=adam"], "; did you mean '--rules'?"),
        (["info", "--size", "3"], "fastopt: info: found '--size', expected some of "),
        (["bench", "adam"], "fastopt: bench: found 'adam', expected some of "),
        (["bench", "--size"], "fastopt bench: argument --size: expected one argument"),
    ],
)
def test_wrong_words_are_a_line(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    found = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in found
    assert found.count("\n") == 1


# ---- show ----


def test_show_prints_a_table_and_saves_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "x.svg"
    assert cli.main(["show", "ravine", "--rules", "sgd,adam", "--steps", "20", "--save", str(path)]) == 0
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["| sgd", "| adam"]
    assert path.read_text().startswith("<svg")


def test_show_without_a_display_says_what_to_do():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    hidden = dict.fromkeys(("DISPLAY", "WAYLAND_DISPLAY"), "")
    done = run("show", "nag", MPLBACKEND="agg", **hidden)
    assert "--save picture.gif" in refusal(done, 1) and "| nesterov |" in done.stdout


@pytest.mark.parametrize("save", [(), ("--save", "x.png")])
def test_show_without_matplotlib_prints_its_table_and_what_to_install(save):
    done = run("show", "nag", *save, code=without("matplotlib"))
    line = refusal(done, 1)
    assert (
        "no matplotlib here, which draws pictures; install it: " in line
        and "[show]" in line
        and "| nesterov |" in done.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("show", "beal"), "found 'beal', expected one of beale, saddle, .*; did you mean 'beale'"),
        (("show", "nag", "--rules", "adam"), "rules: found 'adam', expected some of momentum, nesterov"),
        (("show", "beale", "--rules", "adm"), "found 'adm', expected some of .*did you mean 'adam'"),
        (("show", "beale", "--steps", "0"), "found '0', expected a whole number >= 1"),
        (("show", "beale", "--save", "x.jpg"), r"found 'x.jpg', expected a name ending in \.gif, .* or \.svg"),
        (("show", "beale", "--save", "nowhere/x.png"), "in a folder there is"),
        (("show", "claims", "--steps", "3"), "found --steps with claims, expected none"),
        (("show", "beale", "--speed", "3"), "found '--speed', expected some of --help, --rules, --steps, --save"),
    ],
)
def test_show_refuses_by_name(arguments, expected, capsys):
    with contextlib.suppress(SystemExit):
        assert cli.main(list(arguments)) == 2
    assert re.search(expected, capsys.readouterr().err)


def test_the_command_line_knows_the_scenes():
    trajectories = importlib.import_module("fastopt.trajectories")
    assert (*trajectories.SCENES, "claims") == cli._SCENES
    assert trajectories.FORMATS == cli._PICTURES
