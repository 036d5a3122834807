"""Internal. The two points of Schedule-Free optimizers: where gradients are taken, and what is to be evaluated."""

from __future__ import annotations


class Evaluated:
    """The part of those classes whose parameters are not to be evaluated where gradients are taken."""

    def _move(self, train: bool) -> None:
        """Move all parameters to where gradients are taken, or to where they are to be evaluated."""
        raise NotImplementedError

    def eval(self) -> None:
        """Moves the parameters, in place, to where they are to be evaluated, or saved for use: the average x.

        States stay as they are, and ``param_groups`` and state dicts tell it, as ``train_mode``. A step is refused
        until `train` is called; both do nothing where parameters are there already.

        Raises
        ------
        ValueError
            A parameter cannot be written; nothing has been.
        """
        self._move(False)

    def train(self) -> None:
        """Moves the parameters, in place, to where gradients are taken, up to rounding where they were before `eval`.

        Raises
        ------
        ValueError
            A parameter cannot be written; nothing has been.
        """
        self._move(True)
