"""Groups of torch's parameters: which tensors these are, what they are called, and their hyper-parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter, methodcaller
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from ..arrays.array import CPU, Place
from ..arrays.checks import check_overlap, check_tensor
from ..arrays.libraries import view
from ..arrays.libraries.torch import place_of as place_of_tensor
from ..backends.choice import choose_backend
from ..binding.norms import Telling
from ..binding.options import TorchArguments, check_training
from ..checks import wrong_type
from ..jobs.storage import StorageOptions
from ..rules import LibraryRule, Rule
from ..rules.hyper import frozen

#: The dtypes that parameters can have.
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

#: Flags of torch's classes that are refused, always or on the CPU, with the reason.
REFUSED = {
    "differentiable": "the update is done in place and autograd does not see it",
    "capturable": "CUDA graphs record no update on the CPU",
}

_capturable = methodcaller("get", "capturable")


class Groups(Protocol):
    """An optimizer's parameters and what it was told of them."""

    param_groups: list[dict[str, Any]]
    defaults: dict[str, Any]
    state: Any
    _backend_name: str | None
    _threads: int
    _storage: StorageOptions

    @property
    def _arguments(self) -> TorchArguments:
        """The class's."""


class Stepping(Groups, Telling, Protocol):
    """An optimizer that is told of its steps."""


def read_params(params: Any, name: str, leaves: bool = True) -> list[Any]:
    """Parameters as they may be given: tensors, pairs of a name and a tensor, or group dicts.

    Raises
    ------
    TypeError, ValueError
        One is none of these, or, where they are to be `leaves`, a tensor that is computed from others.
    """
    if isinstance(params, torch.Tensor) and name.startswith("param_groups"):
        return [params]
    expected = "an iterable of tensors, of pairs (name, tensor), or of group dicts"
    if isinstance(params, (torch.Tensor, str, bytes, set, frozenset, Mapping)):  # sets have no order
        raise wrong_type(name, params, expected)
    try:
        given = list(params)
    except TypeError:
        raise wrong_type(name, params, expected) from None
    for i, member in enumerate(given):
        tensor = member[1] if isinstance(member, tuple) and len(member) == 2 else member
        if isinstance(tensor, dict):
            continue
        if not isinstance(tensor, torch.Tensor):
            raise wrong_type(f"{name}[{i}]", tensor, "a tensor")
        if leaves and not (tensor.is_leaf or tensor.retains_grad):
            raise ValueError(f"{name}[{i}]: found a non-leaf tensor, expected a leaf")
    return given


@contextmanager
def all_or_none(groups: list[dict[str, Any]], added: dict[str, Any]) -> Iterator[None]:
    """Undoes all changes to groups, and to one that is being added, if an error ends the block."""
    count, given = len(groups), dict(added)
    try:
        yield
    except BaseException:
        del groups[count:]
        added.clear()
        added.update(given)
        raise


def params_of(groups: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
    """The parameters of all groups."""
    if len(groups) == 1:
        return groups[0]["params"]
    return [p for group in groups for p in group["params"]]


def first_places(params: Sequence[torch.Tensor]) -> tuple[list[int], list[int]]:
    """The place of each parameter's first occurrence, and how often it occurs."""
    places: dict[int, list[int]] = {}
    for i, p in enumerate(params):
        places.setdefault(id(p), []).append(i)
    return [where[0] for where in places.values()], list(map(len, places.values()))


def labels_of(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the parameters for error messages: by their own names, where they have some."""
    labels: list[str] = []
    for g, group in enumerate(groups):
        names = group.get("param_names")
        if names is None:
            names = [f"param_groups[{g}]['params'][{i}]" for i in range(len(group["params"]))]
        labels += map(repr, names)
    return labels


def can_be_checked(p: torch.Tensor) -> bool:
    """True for a parameter that can be trained as it is.

    One that cannot, as a frozen one of integers, one on the meta device or a lazy module's, is checked once it has a
    gradient.
    """
    if is_lazy(p) or p.is_meta:
        return False
    return p.requires_grad or p.dtype in FLOATS


def place_of(params: Sequence[torch.Tensor]) -> Place:
    """The place of the parameters."""
    first = next(filter(can_be_checked, params), None)
    return CPU if first is None else place_of_tensor(first)


def real_of(params: Sequence[torch.Tensor]) -> np.dtype:
    """The dtype in which the first parameter's update is computed."""
    return np.dtype(np.float64 if not params or params[0].dtype == torch.float64 else np.float32)


def is_capturable(groups: Sequence[Mapping[str, Any]]) -> bool:
    """True if CUDA graphs may record steps, for which their number is kept on the device."""
    if len(groups) == 1:
        return bool(groups[0].get("capturable"))
    return any(map(_capturable, groups))


def is_counted(optimizer: Groups) -> bool:
    """True if states have a step count; torch's SGD has none, for all it needs to know is whether it has begun."""
    groups = optimizer.param_groups
    return optimizer._arguments.counted or any(optimizer._storage.of_group(group).counted for group in groups)


def check_flags(group: Mapping[str, Any], params: Sequence[torch.Tensor]) -> None:
    """Checks that a group asks for nothing that cannot be had.

    Raises
    ------
    ValueError
        It does; the message says why not.
    """
    on_cuda = all(p.is_cuda for p in params)
    for flag, reason in REFUSED.items():
        if group.get(flag) and not (flag == "capturable" and on_cuda):
            raise ValueError(f"{flag}: found {group[flag]!r}, expected False: {reason}")


def check_params(optimizer: Groups) -> None:
    """Checks the parameters; those that cannot be trained as they are, once they have a gradient.

    Raises
    ------
    TypeError, ValueError
        One is not what it must be, or parameters do not fit together; the message names them.
    BackendUnavailable
        They are on a device for which there is no backend.
    """
    groups = [group for group in optimizer.param_groups for _ in group["params"]]
    params, labels = params_of(optimizer.param_groups), labels_of(optimizer.param_groups)
    found = [(params[i], labels[i], groups[i]) for i in first_places(params)[0] if can_be_checked(params[i])]
    labels = [label for _, label, _ in found]
    for p, label, group in found:
        rule = optimizer._arguments.rule(group)
        rule.check_shape(tuple(p.shape), label)
        optimizer._storage.of_group(group).check_rule(rule)
        if isinstance(rule, LibraryRule) and group.get("capturable"):
            raise ValueError(
                f"capturable: found True, expected False: {rule.whole}, by operations that are not recorded"
            )
        if p.device != found[0][0].device:
            raise ValueError(
                f"{label}: found device {p.device}, expected {found[0][0].device} as {labels[0]} has: one "
                "optimizer works on one device"
            )
    views = [view(p, label) for p, label, _ in found]
    for array, (_, label, group) in zip(views, found, strict=True):
        check_tensor([array], [label])
        optimizer._storage.of_group(group).check(array, label)
    check_overlap(views, labels, [True] * len(views))
    if len({bool(group.get("capturable")) for group in optimizer.param_groups}) > 1:
        raise ValueError("capturable: found True and False, expected the same in all groups")
    if views:
        choose_backend(optimizer._backend_name, views[0].place)


class HyperRows:
    """Each group's rule and row of hyper-parameters, read anew when values have changed."""

    varying = ()  # none is read at each step: torch's schedulers set them

    def __init__(self, arguments: TorchArguments) -> None:
        self._arguments = arguments
        self._get = itemgetter(*arguments.defaults)
        self._known: list[tuple[Any, Rule, np.ndarray]] = []  # of each group its values, and what was read of them

    def __getitem__(self, g: int) -> tuple[Rule, np.ndarray]:
        return self._known[g][1:]

    def update(self, groups: Sequence[Mapping[str, Any]]) -> list[int]:
        """Reads the groups whose values have changed: all of them, or none where one is wrong.

        Returns
        -------
        list of int
            Their numbers.

        Raises
        ------
        TypeError, ValueError
            A value is not what it must be; the message names it.
        """
        known = self._known
        found: dict[int, tuple[Any, Rule, np.ndarray]] = {}
        for g, group in enumerate(groups):
            values: tuple[Any, ...] = self._get(group)
            if group.get("capturable"):  # what is read on the device is known by its address
                values = tuple(x.data_ptr() if isinstance(x, torch.Tensor) and x.is_cuda else x for x in values)
            try:
                if g < len(known) and values == known[g][0]:
                    continue
            except (ValueError, RuntimeError):  # an array or a tensor of several elements
                pass
            check_training(group, f"param_groups[{g}]")
            found[g] = (frozen(values), *self._read(group, groups))
        for g, one in found.items():
            known[g : g + 1] = [one]
        del known[len(groups) :]
        return list(found)

    def read_varying(self, members: Sequence[int]) -> None:
        """Read nothing."""

    def _read(self, group: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> tuple[Rule, np.ndarray]:
        if group.get("capturable") and isinstance(group["lr"], torch.Tensor) and group["lr"].is_cuda:
            group = {**group, "lr": 0.0}  # it is read on the device
        rule = self._arguments.rule(group)
        return rule, self._arguments.row(rule, group, real_of(params_of(groups)))
