"""The command line, as a user calls it."""

import subprocess
import sys
from pathlib import Path

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


def test_readme_has_the_table_of_rules(capsys):
    assert cli.main(["info", "--rules"]) == 0
    assert capsys.readouterr().out.strip() in (Path(__file__).parents[1] / "README.md").read_text()
