"""Internal. Checkpoints in one process: of whole parameters, whoever saved them."""

from __future__ import annotations

from typing import Any

from .checkpoint import RANKS, Checkpoint, Reader, latest
from .shelf import whole


def read_checkpoint(directory: Any) -> Checkpoint:
    """The last checkpoint of a directory, of whole parameters, whatever number of processes saved it.

    Parameters
    ----------
    directory : path
        As of ``opt.save``, or of ``run(..., checkpoint=directory)``.

    Returns
    -------
    Checkpoint
        Its steps, parameters and state dict. Of `run` the steps are the first server's pushes; `EASGD` has no states.

    Raises
    ------
    FileNotFoundError
        There is none.
    ValueError
        It is of another format, or of optimizers of which each process had one: their ``load`` reads it.

    Examples
    --------
    >>> import tempfile, numpy as np, fastopt
    >>> from fastopt import distributed as fd
    >>> opt = fd.Synchronous(fastopt.Adam, np.ones(3), slices=1)
    >>> opt.add(0, np.ones(3))
    >>> opt.step()
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     opt.save(directory)
    ...     found = fd.read_checkpoint(directory)
    >>> alone = fastopt.Adam(found.params[0])
    >>> alone.load_state_dict(found.state_dict)
    >>> found.steps, int(alone.state[0]["step"])
    (1, 1)
    """
    path = latest(directory)
    if path is None:
        found = whole(directory)
        if found is None:
            raise FileNotFoundError(f"directory: found no checkpoint in {directory}, expected one of opt.save or run")
        return found
    reader = Reader(path)
    try:
        if RANKS in reader.index:
            optimizer = reader.index["optimizer"]
            raise ValueError(f"directory: found a checkpoint of {optimizer}, expected one of Synchronous")
        params = [reader.parameter(i) for i in range(len(reader))]
        states = {i: reader.states(i) for i in range(len(reader))}
        return Checkpoint(reader.index["steps"], params, {"state": states, "param_groups": reader.groups})
    finally:
        reader.close()
