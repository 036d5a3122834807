"""Early stopping: the end of a training that no longer gets better, and its best parameters."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays.dtypes import BFLOAT16
from ..checks import as_float, check_flag, check_integer, check_name, check_number, differing, wrong_type, wrong_value
from .nested import Leaf, check_fit, check_written, copy_of, leaves, read_copies, write

_KEYS = ("mode", "best", "best_step", "steps", "waited", "params")


class EarlyStopping:
    """The end of a training whose validation loss no longer falls, with the best parameters kept.

    Prechelt 1998, "Early stopping - but when?"; Goodfellow, Bengio and Courville 2016, "Deep Learning", algorithm 7.1::

        better = value < best - min_delta        (mode "min")
                 value > best + min_delta        (mode "max")
        better:  best = value; keep params; waited = 0
        else:    waited += 1; stop where waited >= patience

    Parameters
    ----------
    patience : int
        The evaluations in a row without a better one after which to stop; at least 1, default 10.
    min_delta : float
        The change that counts as better, at least 0; default 0.
    mode : str
        "min" (default) for losses, "max" for accuracies.
    restore_best : bool
        True (default) writes the best parameters back at the stop.
    file : path, optional
        The ``.npz`` file in which the best parameters are kept, in place of memory. It is replaced as a whole: a crash
        leaves the earlier one.

    Attributes
    ----------
    best : float or None
        The best value so far.
    best_step : int or None
        The evaluation that gave it, from 1.
    steps, waited : int
        All evaluations, and those since the best one.
    stopped : bool
        True once it is time to stop.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; the message names it.

    Notes
    -----
    The copies are float32 of bfloat16 and float16 parameters, which loses no bit, and have the dtype of any others. A
    value of NaN is never better. Whoever keeps further arrays beside the parameters, as the running statistics of batch
    normalization, gives them too: ``step(loss, [params, statistics])``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.training import EarlyStopping
    >>> p = np.zeros(2)
    >>> stopping = EarlyStopping(patience=2)
    >>> for loss in (3.0, 2.0, 2.5, float("nan"), 1.0):
    ...     p += 1  # a step
    ...     if stopping.step(loss, p):
    ...         break
    >>> stopping.best, stopping.best_step, stopping.steps, p.tolist()
    (2.0, 2, 4, [2.0, 2.0])
    """

    def __init__(
        self,
        patience: int = 10,
        min_delta: float = 0.0,
        mode: str = "min",
        restore_best: bool = True,
        *,
        file: str | os.PathLike[str] | None = None,
    ) -> None:
        self.patience = check_integer("patience", patience, 1)
        self.min_delta = check_number("min_delta", min_delta, 0)
        self.mode = check_name("mode", mode, ("min", "max"))
        self.restore_best = check_flag("restore_best", restore_best)
        self.file = None if file is None else _checked_file(file)
        self.best: float | None = None
        self.best_step: int | None = None
        self.steps = self.waited = 0
        self._kept = False
        self._copies: dict[str, np.ndarray] = {}  # empty where they are in the file

    @property
    def stopped(self) -> bool:
        """True once it is time to stop."""
        return self.waited >= self.patience

    def step(self, value: float, params: Any = None) -> bool:
        """Take the value of an evaluation, and say whether to stop.

        Parameters
        ----------
        value : float
            The loss, or whatever else is watched, on data that the training does not see.
        params : array, or nested mappings and sequences of arrays, optional
            The parameters that gave it; needed with `restore_best`.

        Returns
        -------
        bool
            True to stop; with `restore_best` the parameters are the best ones then.

        Raises
        ------
        TypeError, ValueError
            `value` is no number, or the parameters are none, or others than those that were kept; nothing has changed.
        OSError
            The file cannot be written.
        """
        number = as_float(value)
        if number is None:
            raise wrong_type("value", value, "a number")
        if params is None and self.restore_best:
            raise wrong_type("params", params, "the parameters, with restore_best")
        found = [] if params is None else leaves(params)
        for leaf in found:
            if leaf.array.dtype.kind not in "fiub" and leaf.array.dtype != BFLOAT16:
                raise TypeError(f"{leaf.name}: found dtype {leaf.array.dtype}, expected numbers")
        if self.restore_best:
            check_written(found, "restored")
        if self._better(number):
            copies = {leaf.key: copy_of(leaf.array) for leaf in found}
            self._keep(copies)
            self.best, self.best_step, waited = number, self.steps + 1, 0
        else:
            waited = self.waited + 1
            if waited >= self.patience and self.restore_best and self._kept:
                self._restore(found)
        self.steps += 1
        self.waited = waited
        return self.stopped

    def _better(self, value: float) -> bool:
        sign = 1.0 if self.mode == "min" else -1.0
        best = float("inf") if self.best is None else sign * self.best
        return sign * value < best - self.min_delta

    def _keep(self, copies: dict[str, np.ndarray]) -> None:
        """Hold copies, in the file where there is one."""
        if self.file is not None and copies:
            _save(self.file, copies)
        self._kept = bool(copies)
        self._copies = {} if self.file is not None else copies

    def best_params(self) -> dict[str, np.ndarray]:
        """The best parameters, by their paths, as "layers.0.weight"; a single array is "params".

        Raises
        ------
        ValueError
            None were kept.
        OSError
            The file cannot be read.
        """
        if not self._kept:
            raise ValueError("best_params: found no parameters that were kept, expected step(value, params) before")
        if self.file is None:
            return dict(self._copies)
        with np.load(self.file) as file:
            return dict(file)

    def restore(self, params: Any) -> None:
        """Write the best parameters back, as `step` does at the stop.

        Parameters
        ----------
        params : array, or nested mappings and sequences of arrays
            As for `step`.

        Raises
        ------
        TypeError, ValueError
            None were kept, or they were of other parameters; nothing has changed.
        OSError
            The file cannot be read.
        """
        self._restore(leaves(params))

    def _restore(self, found: Sequence[Leaf]) -> None:
        copies = self.best_params()
        check_fit(found, copies, "best_params")
        check_written(found, "restored")
        for leaf in found:
            write(leaf.array, copies[leaf.key])

    def state_dict(self) -> dict[str, Any]:
        """Counts, the best value, and the best parameters as ``params``: numbers, and arrays by their paths."""
        return {
            "mode": self.mode,
            "best": self.best,
            "best_step": self.best_step,
            "steps": self.steps,
            "waited": self.waited,
            "params": self.best_params() if self._kept else None,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Parameters
        ----------
        state_dict : mapping
            From `state_dict`. Its parameters are written to the file, where there is one.

        Raises
        ------
        TypeError, ValueError
            It is no such state, or of another mode; nothing has changed.
        OSError
            The file cannot be written.
        """
        if not isinstance(state_dict, Mapping):
            raise wrong_type("state_dict", state_dict, "what state_dict() returned")
        if set(state_dict) != set(_KEYS):
            raise ValueError(f"state_dict: found {sorted(map(str, state_dict))}{differing(state_dict, _KEYS)}")
        if state_dict["mode"] != self.mode:
            raise wrong_value("state_dict['mode']", state_dict["mode"], f"{self.mode!r}, as here")
        steps = check_integer("state_dict['steps']", state_dict["steps"], 0)
        waited = check_integer("state_dict['waited']", state_dict["waited"], 0, steps)
        best, best_step = state_dict["best"], state_dict["best_step"]
        if (best is None) != (best_step is None):
            raise wrong_value("state_dict['best_step']", best_step, "a number where there is a best value, else None")
        if best is not None:
            if (number := as_float(best)) is None or number != number:
                raise wrong_type("state_dict['best']", best, "a number or None")
            best, best_step = number, check_integer("state_dict['best_step']", best_step, 1, steps)
        saved = state_dict["params"]
        self._keep({} if saved is None else read_copies(saved, "state_dict['params']"))
        self.best, self.best_step, self.steps, self.waited = best, best_step, steps, waited


def _checked_file(file: Any) -> Path:
    """The path of an ``.npz`` file in a folder that there is."""
    if not isinstance(file, (str, os.PathLike)):
        raise wrong_type("file", file, "a path or None")
    path = Path(os.fsdecode(file)).absolute()
    if path.suffix != ".npz" or not path.parent.is_dir():
        raise wrong_value("file", str(file), "a name ending in .npz in a folder that is there")
    return path


def _save(path: Path, copies: Mapping[str, np.ndarray]) -> None:
    """Replace a file by one with these arrays; what is there stays until the new one is on the disk."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            with zipfile.ZipFile(file, "w", allowZip64=True) as archive:  # np.savez cannot name an array "file"
                for key, copy in copies.items():
                    with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, copy, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
