"""States of an optimizer in files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays.dtypes import dtype_name, numpy_dtype
from ..arrays.libraries import numpy_of
from ..arrays.libraries.torch import is_tensor
from ..checks import describe
from ..files.statefiles import ParameterStates, StateArray, StateFiles


def open_files(
    owned: Any, kinds: Sequence[Mapping[str, tuple[np.dtype, tuple[int, ...]]]], directory: Any, memory: int | None
) -> StateFiles:
    """The files of states, begun anew or resumed.

    Parameters
    ----------
    owned : Owned
        Parameters and groups.
    kinds : sequence of mapping
        Of each parameter the dtypes and shapes of states by name.
    directory, memory
        The arguments ``state_dir`` and ``state_memory``.

    Raises
    ------
    TypeError, ValueError, OSError
        As `StateFiles`, or the two do not go together, or parameters are not on the CPU.
    """
    if directory is None:
        raise ValueError(
            f"state_memory: found {describe(memory)}, expected None without state_dir: it bounds states in files"
        )
    measured = next((rule for rule in owned.groups.rules if rule.whole), None)
    if memory is not None and measured is not None:
        raise ValueError(
            f"state_memory: found {describe(memory)}, expected None: {measured.whole} before it updates them, and "
            "would read the files twice"
        )
    if owned.place.kind != "cpu":
        raise ValueError(
            f"state_dir: found {directory!r}, expected None for parameters on {owned.place.device}: states in files "
            "are of arrays on the CPU"
        )
    described = []
    for i, param in enumerate(owned.views):
        states, rule = [], owned.rule_of(i)
        for name, (dtype, shape) in kinds[i].items():
            kind = "8bit" if dtype == np.uint8 else dtype_name(dtype)
            value = owned.initial(i, name, dtype)
            value = numpy_of(value) if is_tensor(value) else value
            order = param.order if shape == param.shape else None
            if rule.vector and name in rule.state_names and dtype != np.uint8:  # copies, each as the parameter lies
                order = (0, *(axis + 1 for axis in param.order))
            states.append(StateArray(name, kind, numpy_dtype(dtype), shape, value, order))
        described.append(ParameterStates(rule.name, param.shape, tuple(states)))
    drawn = owned.groups.storages[0].drawn() if owned.groups.storages else {}
    steps = next((progress.steps for progress in owned.groups.progress), np.zeros(0, np.int64))  # which all share
    of_rules = {id(progress): progress for progress in owned.groups.progress if progress.rule.scalars}
    files = StateFiles(directory, described, [steps, *(own.scalars for own in of_rules.values())], memory, drawn)
    if files.resumed and steps.any():
        warnings.warn(
            f"state_dir: states after step {steps.max()} are resumed from {os.fsdecode(directory)}, where no "
            "parameters are: they must be those after this step too, or load a state dict that goes with them",
            UserWarning,
            stacklevel=5,
        )
    return files
