"""Internal. What torch's schedulers know of ranks that step a class of fastopt.torch together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch


class Ranks(Protocol):
    """A `Synchronous`."""

    def _step(self, max_norm: float | None, clip_norm: float | None, clip_value: float | None) -> None:
        """Update the parameters in all ranks."""

    def state_dict(self) -> dict[str, Any] | None:
        """The states of all ranks."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over states."""


class Stepped(torch.optim.Optimizer):
    """An optimizer of torch over whole parameters, whose step is that of all ranks.

    Parameters
    ----------
    ranks : Synchronous
        What has the states, and steps.
    groups : sequence of dict
        The groups of whole parameters.
    defaults : mapping
        The class's hyper-parameters.
    """

    def __init__(self, ranks: Ranks, groups: Sequence[dict[str, Any]], defaults: Mapping[str, Any]) -> None:
        self._ranks = ranks
        super().__init__(groups, dict(defaults))
        self._told = [_values(group) for group in self.param_groups]

    def step(  # type: ignore[override]  # torch's has a closure, which would compute other gradients than were added
        self, max_norm: float | None = None, clip_norm: float | None = None, clip_value: float | None = None
    ) -> None:
        """See `Synchronous.step`."""
        self._ranks._step(max_norm, clip_norm, clip_value)

    def state_dict(self) -> dict[str, Any] | None:  # type: ignore[override]
        """See `Synchronous.state_dict`."""
        return self._ranks.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """See `Synchronous.load_state_dict`."""
        self._ranks.load_state_dict(state_dict)

    def tell(self, groups: Sequence[Any]) -> None:
        """Write to groups what has been changed in these since the last time, as by a scheduler."""
        for own, group, told in zip(self.param_groups, groups, self._told, strict=True):
            for name, value in _values(own).items():
                if name not in told or told[name] != value:
                    group[name] = told[name] = value

    def follow(self, groups: Sequence[Any]) -> None:
        """Take over what groups have, as after loading."""
        for own, group, told in zip(self.param_groups, groups, self._told, strict=True):
            for name, value in _values(group).items():
                if isinstance(own.get(name), torch.Tensor):
                    own[name].fill_(value)
                else:
                    own[name] = value
            told.update(_values(own))


def _values(group: Any) -> dict[str, Any]:
    """The entries of a group beside its parameters; of a tensor of one element, as a rate may be, its number."""
    return {
        name: value.item() if isinstance(value, torch.Tensor) else value
        for name, value in group.items()
        if name != "params"
    }
