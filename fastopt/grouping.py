"""Internal. Groups and states of the classes for arrays, as users see, change and add them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from .binding.groups import ParamGroup, State
from .binding.owned import Owned
from .checks import check_integer, check_name


class Grouped:
    """The part of the classes for arrays that shows groups and states, and has groups join."""

    _held: Owned

    @property
    def _owned(self) -> Owned:
        """What the optimizer owns, once it is known whether the last step counts."""
        owned = self._held
        if owned._last_skipped is not False:
            owned._settle()
        return owned

    @property
    def param_groups(self) -> Sequence[ParamGroup]:
        """Parameters with their hyper-parameters."""
        return self._owned.groups.mappings

    @param_groups.setter
    def param_groups(self, _: Any) -> NoReturn:
        self._owned.groups.mappings.refuse()

    @property
    def state(self) -> Sequence[State]:
        """For each parameter its state arrays under torch's names, with ``step``, a view of its step count."""
        return self._owned.states

    @state.setter
    def state(self, _: Any) -> NoReturn:
        self._owned.states.refuse()

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Adds a group, behind those that there are, as torch's method of that name: parameters that join later.

        Gradients are then given as a list of all groups' (or of all parameters'). States of the new parameters begin
        anew, and their steps are counted from 1. Plans that were bound before go on with the parameters that they have.

        Parameters
        ----------
        param_group : mapping
            As a group at construction: ``"params"``, hyper-parameters of its own, and entries under names of your own.
            What it lacks is as it was given to the class.

        Raises
        ------
        TypeError, ValueError
            It is no such group, its arrays are on another device or share memory with other parameters, or states are
            in files; nothing has changed.

        Examples
        --------
        >>> import numpy as np, fastopt
        >>> head, body = np.zeros(2), {"layers": [{"weight": np.zeros((2, 2))}]}
        >>> opt = fastopt.SGD(head, lr=0.1)
        >>> opt.step(np.ones(2))
        >>> opt.add_param_group({"params": body, "lr": 0.01, "name": "body"})
        >>> opt.step([np.ones(2), {"layers": [{"weight": np.ones((2, 2))}]}])
        >>> head.tolist(), body["layers"][0]["weight"][0].tolist()
        ([-0.2, -0.2], [-0.01, -0.01])
        >>> opt.param_groups[1]["param_names"], opt.param_groups[1]["name"]
        (['layers.0.weight'], 'body')
        """
        self._owned.add_group(param_group)

    def hyper(self, group: int = 0) -> dict[str, Any]:
        """The hyper-parameters that a group's next step will use: schedules as the numbers that they give for it.

        Parameters
        ----------
        group : int
            The group's number; default 0.

        Returns
        -------
        dict
            Each argument of the class with its value. Where parameters of the group have made different numbers of
            steps it is that of the foremost.

        Raises
        ------
        TypeError, ValueError
            There is no group of that number.
        """
        return self._owned.groups.at_next_step(check_integer("group", group, 0, len(self.param_groups) - 1))

    @property
    def lr(self) -> float:
        """The learning rate that the first group has for its last step, as the group is now; `hyper` tells the next.

        Before the first step it is that step's.
        """
        return self._owned.groups.at_last_step(0)["lr"]

    def state_values(self, i: int, name: str) -> np.ndarray:
        """A state's values in float32 (float64 where it is in that), whatever it is stored in.

        Parameters
        ----------
        i : int
            The parameter's number.
        name : str
            The state's name.

        Returns
        -------
        numpy.ndarray
            A copy, of the parameter's shape (AggMo's velocities: one behind the other).

        Raises
        ------
        TypeError, ValueError
            There is no such parameter, or it has no state of that name.
        """
        i = check_integer("i", i, 0, len(self.state) - 1)
        return self._owned.values_of(i, check_name("name", name, self.state[i]))
