"""The pages of documentation: README.md here and in the rooms, and those for contributors."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("fastopt", "csrc", "benchmarks", "tests")
PAGES = [
    ROOT / "README.md",
    *sorted(path for room in ROOMS for path in (ROOT / room).rglob("README.md")),
    *sorted((ROOT / ".github").glob("*.md")),
]


def page(room: str = ".") -> str:
    """The text of a room's README.md."""
    return (ROOT / room / "README.md").read_text()


def examples(text: str) -> list[tuple[str, str]]:
    """The Python blocks of a page, each with what the page says that it prints."""
    return re.findall(r"^```python\n(.*?)^```(?:\n\n^```text\n(.*?)^```)?", text, re.M | re.S)


def example(room: str, mark: str) -> str:
    """The one Python block of a room's page that holds `mark`."""
    (code,) = [code for code, _ in examples(page(room)) if mark in code]
    return code
