"""Internal. Checkpoints of a server's shard, of which each server that ever had it has a directory of its own."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

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
        """Have the shard as its next server, and take over what checkpoints have; return the server's number.

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
        if not self.load(core) and self.gather(core):
            self.save(core)  # before anything else: until all have, others look for their pieces in what was before
            self.finish()
        return epoch

    def load(self, core: ServerCore) -> bool:
        """Take over the last checkpoint of this shard; tell whether there was one, cut as this is.

        Raises
        ------
        OSError
            It cannot be read.
        ValueError
            It is of another optimizer.
        """
        path = next(_last(self._root), None)
        if path is None:
            return False
        with closing(checkpoint.Reader(path)) as reader:
            self._check_run(reader)
            if not self._has_workers_and_servers_of(reader):
                return False
            if reader.index["parameters"] != self._about["parameters"]:
                found, own = ([piece[1:] for piece in of["parameters"]] for of in (reader.index, self._about))
                raise ValueError(f"checkpoint: found parameters {found} in {path}, expected {own}")
            count = len(reader)
            states = {i: reader.states(i) for i in range(count)}
            params = [reader.parameter(i) for i in range(count)]
            core.shard.restore(params, {"state": states, "param_groups": reader.groups}, self._workers)
            core.restore(reader.index["core"])
        return True

    def gather(self, core: ServerCore) -> bool:
        """Take over what checkpoints of another number of servers or workers have; tell whether there are some.

        Of what servers had not saved alike, the later is what workers have done: what others lack is lost.

        Raises
        ------
        OSError
            They cannot be read.
        ValueError
            They are of another optimizer, or other parameters.
        """
        with ExitStack() as stack:
            readers = _readers(self._root.parent, stack)
            if all(self._has_workers_and_servers_of(reader) for reader in readers):
                return False
            for reader in readers:
                self._check_run(reader)
            places = _places(readers)
            owners, params, states = list[_Place](), list[np.ndarray](), dict[int, dict[str, Any]]()
            for k, (i, name, _, _, begin, end) in enumerate(self._about["parameters"]):
                if (i, begin, end) not in places:
                    raise ValueError(
                        f"checkpoint: found none of rows {begin} to {end} of {name} in {self._root.parent}, expected "
                        "one with as many shards of tables"
                    )
                owners.append(places[i, begin, end])
                params.append(owners[k].reader.parameter(owners[k].number))
                states[k] = owners[k].reader.states(owners[k].number)
            groups = [
                {**owners[group["params"][0]].group(), "params": group["params"]}
                for group in core.shard.saved()["param_groups"]
            ]
            core.shard.restore(params, {"state": states, "param_groups": groups}, self._workers)
            used = {id(place.reader): place.reader.index["core"] for place in places.values()}
            core.restore(_merged([*used.values()], self._workers, counts=self._about["first"] == 0))
        return True

    def tidy(self) -> None:
        """Remove what is of more servers than there are now."""
        for path in self._root.parent.glob("shard-*"):
            if int(path.name[6:]) >= self._about["servers"]:
                shutil.rmtree(path, ignore_errors=True)

    def _has_workers_and_servers_of(self, reader: checkpoint.Reader) -> bool:
        return all(reader.index.get(name) == self._about[name] for name in ("workers", "servers"))

    def _check_run(self, reader: checkpoint.Reader) -> None:
        """Check that a checkpoint is of such an optimizer and parameters.

        Raises
        ------
        ValueError
            It is not.
        """
        for name in ("optimizer", "groups"):
            found, own = reader.index.get(name), self._about[name]
            if found != own:
                raise ValueError(f"checkpoint: found {name} {found!r} in {self._root.parent}, expected {own!r}")
        of_own = {piece[0]: piece[:4] for piece in self._about["parameters"]}
        for piece in reader.index["parameters"]:
            own = of_own.get(piece[0], piece[:4])
            if own != piece[:4]:
                raise ValueError(f"checkpoint: found {piece[1:4]} in {self._root.parent}, expected {own[1:]}")

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
        "groups": algorithm._sizes,
        "parameters": [[i, *described[i], begin, end] for i, begin, end in pieces],
    }
    return Shelf(directory, shard, workers, about)


class _Place(NamedTuple):
    """Where a piece of a parameter is: a number in a checkpoint."""

    reader: checkpoint.Reader
    number: int

    def group(self) -> Mapping[str, Any]:
        """The options of its group."""
        return next(group for group in self.reader.groups if self.number in group["params"])


def _last(root: Path) -> Iterator[Path]:
    """The last checkpoint of each server that had a shard, of the last one first."""
    epochs = sorted(root.glob("epoch-*"), key=lambda path: -int(path.name[6:]))
    return filter(None, map(checkpoint.latest, epochs))


def _readers(root: Path, stack: ExitStack) -> list[checkpoint.Reader]:
    """The checkpoints of all shards: first the last ones of as many shards as there were.

    Others have been left by a run that ended as it began with another number of servers, and before all had saved what
    they began with: then they have the pieces that are missing, as they were.
    """

    def opened(path: Path) -> checkpoint.Reader:
        return stack.enter_context(closing(checkpoint.Reader(path)))

    shards = sorted(root.glob("shard-*"), key=lambda path: int(path.name[6:]))
    found = [[opened(path) for path in _last(shard)] for shard in shards]
    count = next((own[0].index["servers"] for own in found if own), 0)
    return [own[0] for own in found[:count] if own] + [other for own in found for other in own]


def _places(readers: Sequence[checkpoint.Reader]) -> dict[tuple[int, int, int], _Place]:
    """Where each piece is, by its parameter and rows: in the first checkpoint that has it."""
    places: dict[tuple[int, int, int], _Place] = {}
    for reader in readers:
        for number, (i, _, _, _, begin, end) in enumerate(reader.index["parameters"]):
            places.setdefault((i, begin, end), _Place(reader, number))
    return places


def _merged(cores: Sequence[Mapping[str, Any]], workers: int, counts: bool) -> dict[str, Any]:
    """What a server of other workers knows of those before, of what all servers had saved; one of all counts losses."""
    runs = [[*core["before"], core["steps"]] if any(core["steps"]) else core["before"] for core in cores]
    before = [[max(steps) for steps in zip(*of_all, strict=True)] for of_all in _filled(runs)]
    missing = sum(map(sum, before)) * len(cores) - sum(sum(map(sum, own)) for own in runs)
    none = [0] * workers
    return {
        "version": cores[0]["version"],
        "delays": cores[0]["delays"],
        "warm": min(core["warm"] for core in cores),
        "lost": counts * (missing + sum(core["lost"] for core in cores)),
        "before": before,
        **{name: list(none) for name in ("last", "done", "steps", "pushed")},
    }


def _filled(runs: Sequence[Sequence[list[int]]]) -> list[list[list[int]]]:
    """Of each run what all servers had; nothing where one had saved nothing of it."""
    longest = max(runs, key=len)
    return [[own[n] if n < len(own) else [0] * len(longest[n]) for own in runs] for n in range(len(longest))]


def whole(directory: Any) -> checkpoint.Checkpoint | None:
    """The last checkpoint of servers, of whole parameters; None if there is none.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        Servers have not saved all parameters, or states cannot be put together.
    """
    with ExitStack() as stack:
        readers = _readers(Path(directory), stack)
        if not readers:
            return None
        places = _places(readers)
        params, states, firsts = list[np.ndarray](), dict[int, dict[str, Any]](), list[_Place]()
        sizes = readers[0].index["groups"]
        for i in range(sum(sizes)):
            own = sorted(key for key in places if key[0] == i)
            shape = places[own[0]].reader.index["parameters"][places[own[0]].number][3] if own else ()
            ends = [0, *(end for _, _, end in own)]
            if ends[:-1] != [begin for _, begin, _ in own] or ends[-1] != (shape or [1])[0]:
                raise ValueError(f"directory: found not all of parameter {i} in {directory}, expected whole ones")
            firsts.append(places[own[0]])
            parts = [places[key].reader.parameter(places[key].number) for key in own]
            found = [places[key].reader.states(places[key].number) for key in own]
            params.append(_joined(parts, parts, i))
            states[i] = {name: _joined([one[name] for one in found], parts, i) for name in found[0]}
        groups = []
        for size, end in zip(sizes, np.cumsum(sizes).tolist(), strict=True):
            options = dict(firsts[end - size].group())
            if "read" in options:  # which is for a server to say
                options["read"] = True
            groups.append({**options, "params": list(range(end - size, end))})
        return checkpoint.Checkpoint(readers[0].index["steps"], params, {"state": states, "param_groups": groups})


def _joined(values: Sequence[np.ndarray], parts: Sequence[np.ndarray], i: int) -> np.ndarray:
    """A value of a whole parameter, from those of neighbouring rows."""
    if len(values) == 1 or not values[0].ndim:
        return values[0]
    if values[0].dtype == np.uint8:
        raise ValueError(f"directory: found states in blocks of shards of table {i}, expected others: run() reads them")
    return np.concatenate(values, axis=max(values[0].ndim - parts[0].ndim, 0))
