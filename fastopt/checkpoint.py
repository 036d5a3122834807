"""State dicts as flat mappings of arrays, for files that hold nothing else (``.npz``, safetensors)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

_GROUPS = "param_groups"


def flatten_state_dict(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A state dict as a flat mapping of name to array, that loses no bit.

    Parameters
    ----------
    state_dict : mapping
        From ``opt.state_dict()``.

    Returns
    -------
    dict of str to numpy.ndarray
        ``state.<index>.<name>`` for each state array; ``param_groups`` holds the hyper-parameters as JSON, in bytes.
        `numpy.savez` and ``safetensors.numpy.save_file`` take it as it is.

    Raises
    ------
    TypeError
        A hyper-parameter is a callable, which no file of arrays can hold.
    """
    flat = {
        f"state.{index}.{name}": np.array(value)
        for index, state in state_dict["state"].items()
        for name, value in state.items()
    }

    def refuse(value: Any) -> Any:
        raise TypeError(
            f"param_groups: found {value!r}, expected numbers: a file of arrays cannot hold a callable; "
            "pickle the state dict instead, or set a number"
        )

    text = json.dumps(state_dict[_GROUPS], default=refuse)  # floats as their shortest exact form
    flat[_GROUPS] = np.frombuffer(text.encode(), np.uint8)
    return flat


def unflatten_state_dict(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict that `flatten_state_dict` made flat, for ``opt.load_state_dict``.

    Parameters
    ----------
    flat : mapping of str to array
        As from ``numpy.load`` or ``safetensors.numpy.load_file``.

    Raises
    ------
    ValueError
        The mapping has no ``param_groups``, or holds another name than `flatten_state_dict` gives.
    """
    if _GROUPS not in flat:
        raise ValueError(f"flat: found {sorted(flat)}, expected 'param_groups' among them")
    state: dict[int, dict[str, Any]] = {}
    for key in flat:
        if key == _GROUPS:
            continue
        kind, _, rest = key.partition(".")
        number, _, name = rest.partition(".")
        if kind != "state" or not number.isdigit() or not name:
            raise ValueError(f"flat: found {key!r}, expected state.<index>.<name>")
        state.setdefault(int(number), {})[name] = np.asarray(flat[key])
    return {"state": state, _GROUPS: json.loads(np.asarray(flat[_GROUPS]).tobytes())}
