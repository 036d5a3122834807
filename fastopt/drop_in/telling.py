"""What a step found out, as attributes of an optimizer; and states that know whether the last step counts."""

from __future__ import annotations

from typing import Any

from ..binding.norms import Told
from .stepper import Stepper


class Telling(Told):
    """The part of an optimizer that is told of its steps."""

    _stepper: Stepper

    def _settle(self) -> None:
        """Finds out whether the last step counts, which only the device may know, and tells states."""
        if not isinstance(self._last_skipped, bool):
            super()._settle()
            if self._last_skipped is True:
                self._stepper.take_back()

    @property
    def state(self) -> Any:
        """For each parameter its state tensors, under torch's names."""
        self._settle()
        return self.__dict__["state"]

    @state.setter
    def state(self, value: Any) -> None:
        self.__dict__["state"] = value
