"""One page with everything: tables, pictures, configuration, the command. It needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader

from .section import Table

NAME = "fastopt-bench.html"


def write(
    folder: Path,
    configuration: Mapping[str, str],
    summary: str,
    parts: Sequence[tuple[Sequence[Table], str]],
    left_out: Mapping[str, str],
) -> Path:
    """Writes the page.

    Parameters
    ----------
    folder : Path
        It is made if there is none.
    configuration : mapping of str to str
        What the machine is, and the command that makes the page anew.
    summary : str
        A sentence of what was found.
    parts : sequence of (sequence of Table, str)
        Tables, and the picture that goes with them, as an SVG element or nothing.
    left_out : mapping of str to str
        Why parts of sections are missing.

    Returns
    -------
    Path
        The page's.
    """
    environment = Environment(loader=PackageLoader(__package__, "."), autoescape=True)
    template = environment.get_template("report.html")
    page = template.render(configuration=configuration, summary=summary, parts=parts, left_out=left_out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    path.write_text(page, encoding="utf-8")
    return path
