"""State dicts as flat mappings of arrays, for files that hold nothing else (``.npz``, safetensors)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from .arrays import BFLOAT16, view
from .storage import numpy_dtype

_GROUPS = "param_groups"
_BFLOAT16 = ":bfloat16"
# What saved groups have beside hyper-parameters: how torch computes, names, its schedulers' notes, and in what states
# were stored, which is for whoever loads them to choose.
_TORCHS_OWN = {
    "state_dtype",
    *("foreach", "fused", "capturable", "differentiable", "param_names"),
    *("initial_lr", "swa_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"),
}


def flatten_state_dict(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A state dict as a flat mapping of name to array, that loses no bit.

    Parameters
    ----------
    state_dict : mapping
        From ``opt.state_dict()``.

    Returns
    -------
    dict of str to numpy.ndarray
        ``state.<index>.<name>`` for each state array, those of bfloat16 as ``state.<index>.<name>:bfloat16`` by their
        bits, in uint16; ``param_groups`` holds the hyper-parameters as JSON, in bytes.
        `numpy.savez` and ``safetensors.numpy.save_file`` take it as it is.

    Raises
    ------
    TypeError
        A hyper-parameter is a callable, which no file of arrays can hold.
    """
    flat = {}
    for index, state in state_dict["state"].items():
        for name, value in state.items():
            array = view(value, name) if hasattr(value, "dtype") else None
            bfloat16 = array is not None and array.dtype == BFLOAT16  # which files of arrays do not know
            values = np.array(value) if array is None else np.array(array.host())
            flat[f"state.{index}.{name}" + (_BFLOAT16 if bfloat16 else "")] = (
                values.view(np.uint16) if bfloat16 else values
            )

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
        array = np.asarray(flat[key])
        if name.endswith(_BFLOAT16):
            name, array = name.removesuffix(_BFLOAT16), array.view(numpy_dtype(BFLOAT16))
        state.setdefault(int(number), {})[name] = array
    return {"state": state, _GROUPS: json.loads(np.asarray(flat[_GROUPS]).tobytes())}


def torch_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A NumPy class's state dict as torch's class of the same name takes it, over the same memory.

    Parameters
    ----------
    state_dict : mapping
        From ``opt.state_dict()`` of a class of fastopt, or in torch's form already.

    Returns
    -------
    dict
        Step counts are float32 tensors, states are tensors, and ``decoupled_weight_decay`` is torch's flag:
        ``torch.save`` and ``torch.optim``'s ``load_state_dict`` take it.

    Raises
    ------
    TypeError
        A hyper-parameter is a callable.
    ValueError
        A group has both weight decays, which torch cannot have.
    """
    import torch

    def tensor(name: str, value: Any) -> Any:
        if name == "step":
            return torch.tensor(float(value))
        return tensor_of(value) if isinstance(value, np.ndarray) else value

    states = {i: {key: tensor(key, x) for key, x in state.items()} for i, state in state_dict["state"].items()}
    groups = []
    for g, group in enumerate(state_dict[_GROUPS]):
        group = dict(group)
        for key, value in group.items():
            if callable(value):
                raise TypeError(f"param_groups[{g}]: found {key} {value!r}, expected a number: torch has schedulers")
        decoupled = group.get("decoupled_weight_decay", False)
        if not isinstance(decoupled, bool):
            if decoupled and group["weight_decay"]:
                raise ValueError(
                    f"param_groups[{g}]: found weight_decay {group['weight_decay']!r} and decoupled_weight_decay "
                    f"{decoupled!r}, expected at most one of them: torch's classes have the one or the other"
                )
            group |= {"weight_decay": group["weight_decay"] or decoupled, "decoupled_weight_decay": bool(decoupled)}
        groups.append(group)
    return {"state": states, _GROUPS: groups}


def tensor_of(array: np.ndarray) -> Any:
    """The same memory as a tensor, of bfloat16 too."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def numpy_of(tensor: Any) -> np.ndarray:
    """The same memory as a NumPy array, of bfloat16 too."""
    array = view(tensor.detach(), "tensor")
    values = array.host()
    return values.view(numpy_dtype(BFLOAT16)) if array.dtype == BFLOAT16 else values


def group_from_torch(group: Mapping[str, Any], decoupled: bool) -> dict[str, Any]:
    """A group of torch's as the NumPy classes have it; `decoupled` where the class's weight_decay is that anyway."""
    group = {key: value for key, value in group.items() if key not in _TORCHS_OWN}
    flag = group.get("decoupled_weight_decay")
    if decoupled:
        group.pop("decoupled_weight_decay", None)
    elif isinstance(flag, bool):
        decay = group["weight_decay"]
        group |= {"weight_decay": 0.0 if flag else decay, "decoupled_weight_decay": decay if flag else 0.0}
    return {key: _plain(value) for key, value in group.items()}


def state_from_torch(state: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state of torch's as the NumPy classes have it: SGD's tells only whether it has begun."""
    state = {key: value for key, value in state.items() if value is not None}
    return {"step": 1, **state} if state else state


def _plain(value: Any) -> Any:
    """A tensor of one element as a number, a list as a tuple."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    return value.item() if hasattr(value, "item") else value
