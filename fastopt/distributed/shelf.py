"""Internal. Checkpoints of a server's shard, of which each server that ever had it has a directory of its own."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import wrong_value
from . import checkpoint
from .asynchronous import Algorithm
from .carriers import Alone
from .core import ServerCore
from .shards import Span
from .states import host_values
from .world import RankDied

_RANK = "rank"


class Shelf:
    """Where a shard is kept: ``shard-0/epoch-2`` has the checkpoints of the second server that had it.

    Whoever makes such a directory has the shard, and whoever had it before finds out before its next checkpoint. So no
    two lines of states become one, even where two servers run that know nothing of each other.

    Parameters
    ----------
    directory : path
        That of all shards.
    shard : int
        The shard's number.
    workers : int
        The number of workers.
    about : mapping
        What an index tells of the run: of another one nothing is loaded.
    """

    def __init__(self, directory: Any, shard: int, workers: int, about: Mapping[str, Any]) -> None:
        self._root = Path(directory) / f"shard-{shard}"
        self._workers, self._about = workers, dict(about)
        self._epoch = 0
        self._writer: threading.Thread | None = None
        self._failed: BaseException | None = None

    def epoch(self) -> int:
        """The number of servers that have had the shard."""
        return max((int(path.name[6:]) for path in self._root.glob("epoch-*")), default=0)

    def claim(self, epoch: int, rank: int) -> int:
        """Have the shard from now on, as the server of a number; return the rank that is that: this one, or another."""
        made, begun = self._root / f"epoch-{epoch}", self._root / f".epoch-{epoch}-{rank}"
        begun.mkdir(parents=True, exist_ok=True)
        (begun / _RANK).write_text(str(rank))
        try:
            begun.rename(made)  # onto one that has a rank it cannot be
        except OSError:
            if not made.exists():
                raise
            shutil.rmtree(begun)
            return int((made / _RANK).read_text())
        self._epoch = epoch
        return rank

    def take(self, core: ServerCore, rank: int) -> int:
        """Have the shard as its next server, and take over the last checkpoint; return the server's number.

        Raises
        ------
        OSError
            It cannot be read.
        ValueError
            It is of another run; or another server has come between.
        """
        epoch = self.epoch() + 1
        if self.claim(epoch, rank) != rank:
            raise wrong_value("checkpoint", str(self._root.parent), "a directory that no other run has")
        self.load(core)
        return epoch

    def load(self, core: ServerCore) -> None:
        """Take over the last checkpoint, if there is one.

        Raises
        ------
        OSError
            It cannot be read.
        ValueError
            It is of another run.
        """
        found = (checkpoint.latest(self._root / f"epoch-{epoch}") for epoch in range(self._epoch, 0, -1))
        path = next(filter(None, found), None)
        if path is None:
            return
        reader = checkpoint.Reader(path)
        try:
            for name, own in self._about.items():
                theirs = reader.index.get(name)
                if theirs != own:
                    raise ValueError(f"checkpoint: found {name} {theirs!r} in {path}, expected {own!r}")
            count = len(reader)
            states = {i: reader.states(i) for i in range(count)}
            params = [reader.parameter(i) for i in range(count)]
            core.shard.restore(params, {"state": states, "param_groups": reader.groups}, self._workers)
            core.restore(reader.index["core"])
        finally:
            reader.close()

    def check(self) -> None:
        """Check that this server still has the shard.

        Raises
        ------
        RankDied
            Another one has it.
        """
        if self.epoch() > self._epoch:
            raise RankDied(
                f"found another server of {self._root}, expected none: this one was taken for ended, and does not go on"
            )

    def save(self, core: ServerCore) -> None:
        """Copy all that there is, and begin to write it.

        Raises
        ------
        OSError
            The one before could not be written.
        RankDied
            Another server has the shard.
        """
        self.finish()
        self.check()
        saved = core.shard.saved()
        parts, shapes = [], {}
        for i, array in enumerate(core.shard.values()):
            values = {checkpoint.PARAMETER: array.reshape(1, -1).copy()}
            shapes[i] = {checkpoint.PARAMETER: array.shape}
            for name, value in saved["state"].get(i, {}).items():
                own = np.array(host_values(value, name))
                shapes[i][name] = own.shape
                values[name] = own.reshape(1, -1) if own.ndim else own
            parts.append(checkpoint.Part(Span(i, 0, array.size), values))
        about = {**self._about, "core": core.saved()}
        arguments = core.version, parts, shapes, about, saved["param_groups"]
        self._writer = threading.Thread(target=self._write, args=arguments)
        self._writer.start()

    def _write(self, version: int, parts: Sequence[Any], shapes: Any, about: Any, groups: Any) -> None:
        try:
            own = self._root / f"epoch-{self._epoch}"
            checkpoint.write(own, Alone(), version, parts, shapes, about, groups)
            if len([*own.glob("step-*")]) >= checkpoint.KEPT:
                for epoch in range(1, self._epoch):
                    shutil.rmtree(self._root / f"epoch-{epoch}", ignore_errors=True)
        except BaseException as error:
            self._failed = error

    @property
    def writes(self) -> bool:
        """True while a checkpoint is being written."""
        return self._writer is not None and self._writer.is_alive()

    def finish(self) -> None:
        """Wait for what is being written.

        Raises
        ------
        OSError
            It could not be.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failed is not None:
            raise self._failed


def shelf_of(algorithm: Algorithm, cuts: Sequence[int], shard: int, workers: int, directory: Any) -> Shelf:
    """Where a shard of a run is kept."""
    described, pieces = algorithm._held.described(), algorithm._pieces[cuts[shard] : cuts[shard + 1]]
    about = {
        "optimizer": f"{type(algorithm).__name__} of {algorithm._class.__name__}",
        "workers": workers,
        "servers": len(cuts) - 1,
        "first": cuts[shard],
        "parameters": [[*described[i], begin, end] for i, begin, end in pieces],
    }
    return Shelf(directory, shard, workers, about)
