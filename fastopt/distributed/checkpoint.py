"""Internal. Checkpoints that do not know the number of ranks: a file for each shard, and an index of whole parameters.

``step-12/`` is written under another name, brought to the disk, and renamed; then ``latest`` names it. Two are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arrays.dtypes import BFLOAT16, numpy_dtype
from ..statedict import flatten_state_dict, unflatten_state_dict
from .shards import Span
from .world import World

FORMAT = 1
KEPT = 2
#: The name of a parameter's elements among its states.
PARAMETER = "parameter"
#: The entry of an index that has the number of ranks, where each has parameters and an optimizer of its own.
RANKS = "ranks"
_LATEST, _INDEX = "latest", "index.json"


class Part(NamedTuple):
    """Elements of a parameter with their states: each value as rows, of which AggMo has several."""

    span: Span
    values: Mapping[str, np.ndarray]


class Checkpoint(NamedTuple):
    """A checkpoint of whole parameters, made by `read_checkpoint`.

    Attributes
    ----------
    steps : int
        The steps that had been made.
    params : list of numpy.ndarray
        The parameters, in order.
    state_dict : dict
        The states, in torch's layout: for ``load_state_dict`` of the class, and by `fastopt.torch_state_dict` of
        torch's.
    """

    steps: int
    params: list[np.ndarray]
    state_dict: dict[str, Any]


def write(
    directory: Any,
    world: World,
    steps: int,
    parts: Sequence[Part],
    shapes: Mapping[int, Mapping[str, tuple[int, ...]]],
    about: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
) -> None:
    """Write a checkpoint; all ranks call it.

    Parameters
    ----------
    directory : path
        That of all checkpoints, which all ranks reach.
    world : World
        The ranks.
    steps : int
        The steps that were made.
    parts : sequence of Part
        This rank's.
    shapes : mapping
        Of each parameter in this rank's parts the whole shape of each value.
    about : mapping
        More for the index.
    groups : sequence of mapping
        The groups of whole parameters.

    Raises
    ------
    OSError
        Something cannot be written, in any rank: raised in all, and the checkpoints before are there.
    TypeError
        A hyper-parameter is a callable that no file can hold.
    """
    text = flatten_state_dict({"state": {}, "param_groups": groups})["param_groups"].tobytes().decode()
    root = Path(directory)
    begun = root / f".step-{steps}.part"
    agree(world, lambda: None if world.rank else _begin(root, begun))
    agree(world, lambda: _write_shard(begun / f"shard-{world.rank}.npz", parts))
    told = world.gather(([part.span for part in parts], shapes))

    def finish() -> None:
        spans = [[rank, *span] for rank, (own, _) in enumerate(told or ()) for span in own]
        whole = {i: values for _, own in told or () for i, values in own.items()}
        index = {"format": FORMAT, "steps": steps, **about, "parts": spans, "shapes": whole, "param_groups": text}
        _write_text(begun / _INDEX, json.dumps(index))
        _sync(begun)
        made = _free(root, steps)
        begun.rename(made)
        _sync(root)
        _write_text(root / f".{_LATEST}.part", made.name)
        os.replace(root / f".{_LATEST}.part", root / _LATEST)
        _sync(root)
        for old in _older(root, made.name)[KEPT - 1 :]:
            shutil.rmtree(old, ignore_errors=True)

    agree(world, lambda: None if world.rank else finish())


def agree(world: World, work: Callable[[], None]) -> None:
    """Do something in this rank, and tell the others if it failed."""
    failed: OSError | None = None
    try:
        work()
    except OSError as error:
        failed = error
    for rank, told in enumerate(world.all_gather(failed and (failed.errno, failed.strerror, failed.filename))):
        if told is not None:
            raise OSError(told[0], f"{told[1]}, in rank {rank}", told[2])


def _begin(root: Path, begun: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob(".step-*.part"):  # of a process that was killed
        shutil.rmtree(old)
    begun.mkdir()


def _write_shard(path: Path, parts: Sequence[Part]) -> None:
    arrays: dict[str, Any] = {}
    for k, part in enumerate(parts):
        for name, values in part.values.items():
            bfloat16 = values.dtype.name == "bfloat16"
            arrays[f"{k}.{name}" + (":bfloat16" if bfloat16 else "")] = values.view(np.uint16) if bfloat16 else values
    try:
        with open(path, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _write_text(path: Path, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free(root: Path, steps: int) -> Path:
    """A name for a checkpoint that there is not."""
    names = chain([f"step-{steps}"], (f"step-{steps}-{n}" for n in count(2)))
    return next(root / name for name in names if not (root / name).exists())


def _older(root: Path, newest: str) -> list[Path]:
    """The other checkpoints, the last one first."""
    found = [path for path in root.glob("step-*") if path.name != newest and (path / _INDEX).exists()]
    return sorted(found, key=lambda path: -(path / _INDEX).stat().st_mtime_ns)


def latest(directory: Any) -> Path | None:
    """The last checkpoint of a directory; None if there is none."""
    try:
        return Path(directory) / (Path(directory) / _LATEST).read_text()
    except FileNotFoundError:
        return None


class Reader:
    """A checkpoint as it lies there.

    Parameters
    ----------
    path : Path
        Its directory.

    Attributes
    ----------
    index : dict
        Its index.
    groups : list of dict
        The groups of whole parameters.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It is of another format, or no checkpoint.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.index = json.loads((path / _INDEX).read_text())
            found = self.index["format"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"directory: found no index in {path}, expected a checkpoint") from None
        if found != FORMAT:
            raise ValueError(f"directory: found a checkpoint of format {found!r} in {path}, expected {FORMAT}")
        text = np.frombuffer(self.index["param_groups"].encode(), np.uint8)
        self.groups = unflatten_state_dict({"param_groups": text})["param_groups"]
        self._files: dict[int, Any] = {}
        self._path = path
        self._parts: dict[int, list[tuple[int, int]]] = {}
        counts: dict[int, int] = {}
        for rank, i, _, _ in sorted(self.index["parts"], key=lambda part: part[0]):
            k = counts[rank] = counts.get(rank, -1) + 1
            self._parts.setdefault(i, []).append((rank, k))

    def __len__(self) -> int:
        return len(self._parts)

    def parameter(self, i: int) -> np.ndarray:
        """A parameter's elements."""
        return self._value(i, PARAMETER)

    def states(self, i: int) -> dict[str, np.ndarray]:
        """A parameter's states, whole."""
        return {name: self._value(i, name) for name in self.index["shapes"][str(i)] if name != PARAMETER}

    def _value(self, i: int, name: str) -> np.ndarray:
        found = [self._member(rank, f"{k}.{name}") for rank, k in self._parts[i]]
        shape = tuple(self.index["shapes"][str(i)][name])
        if not found[0].ndim:  # a number, which all parts have
            return found[0]
        return (found[0] if len(found) == 1 else np.concatenate(found, axis=1)).reshape(shape)

    def _member(self, rank: int, key: str) -> np.ndarray:
        if rank not in self._files:
            self._files[rank] = np.load(self._path / f"shard-{rank}.npz", allow_pickle=False)
        file = self._files[rank]
        if key in file:
            return file[key]
        return file[f"{key}:bfloat16"].view(numpy_dtype(BFLOAT16))

    def close(self) -> None:
        """Close its files."""
        for file in self._files.values():
            file.close()


def check(reader: Reader, optimizer: str, parameters: Sequence[Sequence[Any]]) -> None:
    """Check that a checkpoint is of such an optimizer.

    Raises
    ------
    ValueError
        It is not.
    """
    found = reader.index["parameters"]
    if reader.index["optimizer"] != optimizer:
        raise ValueError(f"directory: found a checkpoint of {reader.index['optimizer']}, expected one of {optimizer}")
    if len(found) != len(parameters):
        raise ValueError(f"directory: found {len(found)} parameters in the checkpoint, expected {len(parameters)}")
    for own, theirs in zip(parameters, found, strict=True):
        if list(own) != theirs:
            raise ValueError(
                f"{own[0]}: found {theirs[0]}, {theirs[1]} of shape {tuple(theirs[2])} in the checkpoint, expected "
                f"{own[1]} of shape {tuple(own[2])}"
            )
