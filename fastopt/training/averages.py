"""Averages of weights over a training: SWA, Lookahead, and the use of any average in the parameters' place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..arrays.libraries import floats_of
from ..checks import check_integer, check_number, differing, wrong_type
from .nested import Leaf, check_fit, check_floats, check_written, copy_of, leaves, read_copies, write

_PIECE = 65536  # elements, so that what is in between stays in the cache


class _Average:
    """Weights between parameters, in float32 (float64 of float64), in the memory where the parameters are."""

    _state: tuple[str, str]  # the names of the count and of the arrays in a state dict

    def __init__(self, params: Any) -> None:
        self._params = list(params) if isinstance(params, Iterator) else params
        self._shapes: list[tuple[int, ...]] | None = None
        self._shapes = [leaf.array.shape for leaf in self._leaves()]
        self.count = 0
        self._arrays: list[Any] = []

    def _leaves(self) -> list[Leaf]:
        """The parameters where they are now."""
        found = leaves(self._params)
        check_floats(found)
        shapes = [leaf.array.shape for leaf in found]
        if self._shapes is not None and shapes != self._shapes:
            raise ValueError(f"params: found arrays of shapes {shapes}, expected {self._shapes}, as at construction")
        check_written(found, "written to")
        return found

    def _by_path(self) -> dict[str, Any]:
        return {leaf.key: array for leaf, array in zip(leaves(self._params), self._arrays, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """The count, and the arrays by their paths, as "layers.0.weight" (a single array is "params"); no copies."""
        count, arrays = self._state
        return {count: self.count, arrays: self._by_path() if self._arrays else None}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Parameters
        ----------
        state_dict : mapping
            From `state_dict`. Its arrays are copied.

        Raises
        ------
        TypeError, ValueError
            It is no such state, or one of other parameters; nothing has changed.
        """
        count, arrays = self._state
        if not isinstance(state_dict, Mapping):
            raise wrong_type("state_dict", state_dict, "what state_dict() returned")
        if set(state_dict) != set(self._state):
            raise ValueError(f"state_dict: found {sorted(map(str, state_dict))}{differing(state_dict, self._state)}")
        number = check_integer(f"state_dict['{count}']", state_dict[count], 0)
        saved, found = state_dict[arrays], leaves(self._params)
        own: list[Any] = []
        if saved is not None:
            copies = read_copies(saved, f"state_dict['{arrays}']")
            check_fit(found, copies, f"state_dict['{arrays}']")
            own = [_placed(copies[leaf.key], leaf) for leaf in found]
        self.count, self._arrays = number, own


class SWA(_Average):
    """Stochastic weight averaging: the mean of the weights that a training passes through.

    Izmailov et al. 2018, arXiv:1803.05407. At each `update`::

        average += (p - average)/(n + 1),  n += 1

    It is called at the end of each epoch, or cycle, of the last part of a training with a high constant, or cyclical,
    learning rate.

    Parameters
    ----------
    params : array, or nested mappings and sequences of arrays
        The parameters, which are held and not changed.

    Attributes
    ----------
    count : int
        n, the weights that were averaged.
    average : dict of array
        By path, as "layers.0.weight"; a single array is "params". In float32, or float64 of float64 parameters.

    Raises
    ------
    TypeError, ValueError
        A parameter is no array of floats, or read-only; the message names it.

    Notes
    -----
    Running statistics, as those of batch normalization, are of the weights of the training: before the average is used
    they are to be measured anew with it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.training import SWA, use_average
    >>> p, random = np.zeros(2), np.random.default_rng(0)
    >>> opt, swa = fastopt.SGD(p, lr=0.5), SWA(p)
    >>> for step in range(1000):
    ...     opt.step(p - 1 + 0.3 * random.standard_normal(2))  # a noisy gradient: p stays in motion
    ...     swa.update()
    >>> with use_average(p, swa.average):
    ...     print(p.round(1))
    [1. 1.]
    """

    _state = ("count", "average")

    @property
    def average(self) -> dict[str, Any]:
        """The averages by path; empty before the first update."""
        return self._by_path() if self._arrays else {}

    def update(self) -> None:
        """Take the parameters as they are now into the average.

        Raises
        ------
        TypeError, ValueError
            As at construction; nothing has changed.
        """
        found = self._leaves()
        if not self._arrays:
            self._arrays = [_placed(copy_of(leaf.array), leaf) for leaf in found]
        else:
            for leaf, average in zip(found, self._arrays, strict=True):
                _approach(average, leaf, 1 / (self.count + 1))
        self.count += 1


class Lookahead(_Average):
    """Lookahead: slow weights that follow those of any optimizer.

    Zhang, Lucas, Hinton and Ba 2019, arXiv:1907.08610. After every k steps of the optimizer::

        slow += alpha*(p - slow),  p = slow

    Parameters
    ----------
    params : array, or nested mappings and sequences of arrays
        The parameters, which are held; the slow weights begin at them.
    k : int
        The steps between; at least 1, default 5.
    alpha : float
        The slow weights' step, in (0, 1]; default 0.5.

    Attributes
    ----------
    count : int
        The steps so far.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; the message names it.

    Notes
    -----
    The optimizer's own state goes on as it is, as in the paper's experiments. The slow weights are of float32, or
    float64 of float64 parameters; of 16-bit parameters p is the slow weight rounded. (Not with ``rounding="master"``,
    whose float32 copy is what counts: give that, ``opt.state[i]["master"]``, as `params`.)

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.training import Lookahead
    >>> p = np.array([4.0])
    >>> opt, lookahead = fastopt.SGD(p, lr=0.5), Lookahead(p, k=2, alpha=0.5)
    >>> for step in range(2):
    ...     opt.step(p.copy())
    ...     lookahead.update()
    >>> p.tolist()  # two steps took it from 4 to 1, and half of the way back
    [2.5]
    """

    _state = ("count", "slow")

    def __init__(self, params: Any, k: int = 5, alpha: float = 0.5) -> None:
        self.k = check_integer("k", k, 1)
        self.alpha = check_number("alpha", alpha, 0, 1, above=True)
        super().__init__(params)
        self._arrays = [_placed(copy_of(leaf.array), leaf) for leaf in self._leaves()]

    def update(self) -> None:
        """Count a step of the optimizer; after k of them move the slow weights, and the parameters to them.

        Raises
        ------
        TypeError, ValueError
            A parameter is not what it was at construction; nothing has changed.
        """
        if (self.count + 1) % self.k == 0:
            found = self._leaves()
            for leaf, slow in zip(found, self._arrays, strict=True):
                _approach(slow, leaf, self.alpha)
                write(leaf.array, slow)
        self.count += 1


@contextmanager
def use_average(params: Any, average: Any) -> Iterator[None]:
    """Put averages into the parameters' place, for a ``with`` block.

    Polyak and Juditsky 1992 average iterates and leave the iteration itself alone: at the end of the block the
    parameters are what they were, to the bit.

    Parameters
    ----------
    params : array, or nested mappings and sequences of arrays
        The parameters.
    average : array, or nested mappings and sequences of arrays
        As many arrays of the same shapes in the same order: ``swa.average``, or the averages that an optimizer keeps
        within its pass with ``ema_decay``: ``[state["ema"] for state in opt.state]``, and in `fastopt.torch`
        ``[opt.state[p]["ema"] for p in model.parameters()]``.

    Raises
    ------
    TypeError, ValueError
        They are no arrays, or do not fit; nothing has changed.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.training import use_average
    >>> p = np.zeros(1)
    >>> opt = fastopt.SGD(p, lr=1.0, ema_decay=0.5)
    >>> opt.step(np.array([-8.0]))
    >>> with use_average(p, [state["ema"] for state in opt.state]):
    ...     print(p)
    [4.]
    >>> p
    array([8.])
    """
    params = list(params) if isinstance(params, Iterator) else params
    found, given = leaves(params), leaves(average, "average")
    if len(given) != len(found):
        raise ValueError(f"average: found {len(given)} arrays, expected {len(found)}, one for each parameter")
    for leaf, other in zip(found, given, strict=True):
        if other.array.shape != leaf.array.shape:
            raise ValueError(
                f"{other.name}: found shape {other.array.shape}, expected {leaf.array.shape} as {leaf.name}"
            )
    check_floats([*found, *given])
    check_written(found, "given the average")
    before = [copy_of(leaf.array) for leaf in found]
    averages = [floats_of(other.array) for other in given]
    try:
        _write_all(found, averages)
        yield
    finally:
        _write_all(found, before)


def _write_all(found: Sequence[Leaf], values: Sequence[np.ndarray]) -> None:
    for leaf, own in zip(found, values, strict=True):
        write(leaf.array, own)


def _on_device(leaf: Leaf) -> bool:
    """True for tensors of torch that are not in the CPU's memory, which are averaged where they are."""
    return leaf.array.place.kind != "cpu" and hasattr(leaf.array.owner, "detach")


def _placed(values: np.ndarray, leaf: Leaf) -> Any:
    """An average's array, in the memory where its parameter is."""
    if not _on_device(leaf):
        return values
    import torch

    return torch.from_numpy(values).to(leaf.array.owner.device)


def _approach(average: Any, leaf: Leaf, weight: float) -> None:
    """Move an average towards a parameter by a part of the way."""
    if _on_device(leaf):
        average += (leaf.array.owner.detach().to(average.dtype) - average) * weight
        return
    values = floats_of(leaf.array).reshape(-1)
    flat = average.reshape(-1)
    for begin in range(0, flat.size, _PIECE):
        piece = flat[begin : begin + _PIECE]
        piece += (values[begin : begin + _PIECE] - piece) * piece.dtype.type(weight)
