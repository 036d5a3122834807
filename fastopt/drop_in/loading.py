"""State dicts of `fastopt.torch`: read, checked, and converted to what an optimizer keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ..arrays.libraries import assign, new_array, view
from ..binding.states import new_state
from ..foreign import from_prodigyopt, of_prodigyopt
from ..jobs.storage import DRAWN
from ..statedict import COMPANIONS, converted_state, read_state_dict, torch_groups
from .groups import Groups, check_flags, is_counted, params_of, real_of
from .placements import local_of, local_state, whole_state
from .states import STATE_NAMES, Numbers, adopt_numbers, number_of


def state_dict(self: Any) -> dict[str, Any]:
    """Everything that a training needs to go on bit for bit, in torch's layout.

    Returns
    -------
    dict
        Groups of an optimizer with noise have ``gradient_noise``, the tuple (eta, gamma, seed), and those of one
        with ``rounding="stochastic"`` its seed as ``stochastic_rounding``.
    """

    def tell(_: Any, made: dict[str, Any]) -> None:
        for group in made["param_groups"]:
            group.update(self._storage.drawn())

    hook = self.register_state_dict_post_hook(tell, prepend=True)  # before the user's own
    try:
        return torch.optim.Optimizer.state_dict(self)
    finally:
        hook.remove()


def load(optimizer: Any, state_dict: Mapping[str, Any], by_torch: Callable[[dict[str, Any]], Any]) -> None:
    """Loads a state dict `by_torch`, which is shown groups alone: it would convert states to the parameters' dtypes.

    Raises
    ------
    TypeError, ValueError
        It is none, or none of this optimizer's; nothing has changed.
    """
    for key in ("state", "param_groups"):
        if not isinstance(state_dict, Mapping) or key not in state_dict:
            raise ValueError(f"state_dict: found no {key!r}, expected what state_dict() returned")
    taken: dict[Any, Any] = {}

    def take(_: Any, incoming: Mapping[str, Any]) -> dict[str, Any]:
        groups, states = read(optimizer, incoming, optimizer._stepper.numbers)
        taken.update(states)
        return {**incoming, "state": {}, "param_groups": groups}

    def keep(_: Any) -> None:
        optimizer.state.update(taken)
        adopt_numbers(taken.values(), optimizer._arguments.rules, optimizer._stepper.numbers)

    # After the user's own hooks before loading, which may adapt it, and before those after loading.
    hooks = [
        optimizer.register_load_state_dict_pre_hook(take),
        optimizer.register_load_state_dict_post_hook(keep, prepend=True),
    ]
    try:
        by_torch(dict(state_dict))
    finally:
        for hook in hooks:
            hook.remove()


def read(
    optimizer: Groups, state_dict: Mapping[str, Any], numbers: Numbers
) -> tuple[list[dict[str, Any]], dict[Any, Any]]:
    """A state dict's groups, checked, and the states that the optimizer is to have, with tensors of their own.

    Raises
    ------
    TypeError, ValueError
        Something is not what it must be; the message names it.
    """
    found, groups = state_dict["state"], state_dict["param_groups"]
    users: dict[Any, Any] = {}  # what is under other names than parameters have
    if isinstance(found, Mapping):
        users = {key: x for key, x in found.items() if _is_users(key, x)}
        found = {key: x for key, x in found.items() if key not in users}
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    order, saved_groups, saved = read_state_dict({"state": found, "param_groups": groups}, sizes)
    if of_prodigyopt(saved_groups) and any(rule.name == "prodigy" for rule in optimizer._arguments.rules):
        shapes = [tuple(p.shape) for p in params_of(optimizer.param_groups)]
        saved_groups, saved = from_prodigyopt(order, saved_groups, saved, shapes)
    for g, group in enumerate(saved_groups):
        optimizer._storage.check_drawn(group, f"state_dict['param_groups'][{g}]")
    groups = [
        _completed(optimizer, group, own)
        for group, own in zip(torch_groups(saved_groups), optimizer.param_groups, strict=True)
    ]
    states: dict[Any, Any] = copy.deepcopy(users)
    indices = iter(order)
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        check_flags(group, own["params"])
        rule = optimizer._arguments.rule(group)
        copies = len(optimizer._arguments.row(rule, group, real_of(params_of(optimizer.param_groups))))
        for p in own["params"]:
            index = next(indices)
            state = {key: x for key, x in saved.get(index, {}).items() if x is not None}
            if state:
                where = f"state_dict['state'][{index!r}]"
                loaded = _loaded(optimizer, local_state(p, state), local_of(p), group, copies, numbers, where)
                states[p] = whole_state(p, loaded, {"step", *rule.scalars})
    return groups, states


def _is_users(key: Any, entry: Any) -> bool:
    """True for an entry beside the parameters' states, which is the user's own."""
    if not isinstance(key, str) or key.isdecimal():
        return False
    return not (isinstance(entry, Mapping) and STATE_NAMES & set(entry))


def _completed(optimizer: Groups, group: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group with all of the class's arguments; what its states are stored in is the optimizer's."""
    elsewhere = {"state_dtype", *DRAWN}
    group = {key: value for key, value in {**optimizer.defaults, **group}.items() if key not in elsewhere}
    if "state_dtype" in own:
        group["state_dtype"] = own["state_dtype"]
    return {**group, "decoupled_weight_decay": True} if optimizer._arguments.decoupled else group


def _loaded(
    optimizer: Groups,
    saved: Mapping[str, Any],
    p: torch.Tensor,
    group: Mapping[str, Any],
    copies: int,
    own: Numbers,
    where: str,
) -> dict[str, Any]:
    """A parameter's state from a saved one, checked and converted."""
    rule, param, counted = optimizer._arguments.rule(group), view(p, "params"), is_counted(optimizer)
    kinds = optimizer._storage.of_group(group).states(rule, param, copies)
    numbers = {*(["step"] if counted else []), *rule.scalars}
    expected = {*numbers, *kinds}
    # A count does no harm where there need be none, and companions can begin now.
    others = (set(saved) & STATE_NAMES) - COMPANIONS - ({"step"} - expected)
    if others != expected - COMPANIONS:
        found, needed = sorted(set(saved) & STATE_NAMES), sorted(expected)
        raise ValueError(f"{where}: found {found}, expected {needed} as {rule.name} has")
    loaded: dict[str, Any] = {}
    for name, value in saved.items():
        label = f"{where}[{name!r}]"
        if name in numbers:
            loaded[name] = own.make(number_of(value, label, name))
        elif name in kinds:
            if not isinstance(value, (torch.Tensor, np.ndarray)):
                raise TypeError(f"{label}: found {type(value).__name__}, expected a tensor")
            dtype, shape = kinds[name]
            loaded[name] = new_array(p, param, dtype, shape, 0)
            whole = rule.state_shape(name, param.shape, copies)
            converted = converted_state(value, loaded[name], whole, param, name in rule.positive, label)
            assign(loaded[name], converted)
        elif name not in STATE_NAMES:
            loaded[name] = copy.deepcopy(value)
    for name in kinds.keys() - saved.keys():
        loaded[name] = new_state(p, param, rule, name, *kinds[name], 0.0)
    return loaded
