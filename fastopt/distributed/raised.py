"""Internal. Exceptions that processes end by: each tells its own in a file, and their launcher shows them, unmixed."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .carriers import processes
from .world import RankDied

#: The variable that names the directory of such files; without it an exception is written as it comes.
DIRECTORY = "FASTOPT_RAISED"
_PATIENCE = 2.0  # seconds that a process waits for the others to raise theirs, for the launcher then ends them


class Raised(NamedTuple):
    """An exception that a process has ended by.

    Attributes
    ----------
    rank : int
        Of the process.
    text : str
        The traceback.
    by_loss : bool
        True for one that tells of the end of another process.
    """

    rank: int
    text: str
    by_loss: bool


def tell(error: BaseException, text: str) -> None:
    """Tell the launcher by which exception this process ends, where it listens; else write the traceback."""
    directory = os.environ.get(DIRECTORY)
    by_loss = isinstance(error, RankDied)
    rank = next((os.environ[name] for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK") if name in os.environ), "0")
    try:
        if directory is None:
            raise FileNotFoundError
        begun = Path(directory, f".{rank}")
        begun.write_text(json.dumps(Raised(int(rank), text, by_loss)))
        begun.rename(Path(directory, rank))  # there whole, or not at all
    except OSError:
        sys.stderr.write(text)  # at once, so that no line of another process comes between
        return
    end = time.monotonic() + _PATIENCE
    while not by_loss and time.monotonic() < end and len(list(Path(directory).glob("[0-9]*"))) < processes():
        time.sleep(0.01)


def take(directory: str) -> list[Raised]:
    """Take what processes have told, the first one first."""
    paths = sorted(Path(directory).glob("[0-9]*"), key=lambda path: path.stat().st_mtime_ns)
    found = [Raised(*json.loads(path.read_text())) for path in paths]
    for path in Path(directory).iterdir():
        path.unlink()
    return found


def report(found: Sequence[Raised]) -> str:
    """Each traceback once, with the number of ranks that raised it; of losses only where there is nothing else."""
    causes = [one for one in found if not one.by_loss] or found
    ranks: dict[str, list[int]] = {}
    for one in causes:
        ranks.setdefault(one.text, []).append(one.rank)
    return "".join(f"fastopt run: raised by {_named(own)}\n{text}" for text, own in ranks.items())


def _named(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}:"
    return f"{len(ranks)} ranks alike, {', '.join(map(str, sorted(ranks)))}:"
