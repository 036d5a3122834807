"""Batches of examples: the whole set, one example, or mini-batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..checks import check_flag, check_integer, describe, differing, wrong_type, wrong_value

#: An order of examples, or a run of them.
Rows = np.ndarray | slice
_KEYS = ("seed", "epoch", "batch", "examples", "batch_size", "shuffle", "drop_last")


class minibatches:
    """Batches of a data set, epoch by epoch.

    The three variants of gradient descent differ in the examples that a gradient is of (Ruder 2016, arXiv:1609.04747,
    section 2)::

        batch         p -= lr*grad(p; x[1:n], y[1:n])      batch_size=None
        stochastic    p -= lr*grad(p; x[i], y[i])          batch_size=1
        mini-batch    p -= lr*grad(p; x[i:i+b], y[i:i+b])  batch_size=b

    A ``for`` loop takes the batches of one epoch, or those that are left of it after a resume or a ``break``. The class
    is named as `range` and `zip` are.

    Parameters
    ----------
    *data : array, sparse matrix, or tuple
        Examples along the first axis, as many in each: arrays of NumPy (memory maps too), torch, or another library
        with DLPack; SciPy's CSR matrices; or a CSR matrix's arrays as a tuple ``(indptr, indices, data)``. None is
        copied: a batch is a view where its examples lie together, and a copy of its own examples elsewhere.
    batch_size : int or None
        The examples of a batch; the last one of an epoch may have fewer. None is the whole set, in its own order.
    shuffle : bool
        True (default) draws a new order in each epoch.
    seed : int
        The seed of the orders, which depend on it and the number of the epoch alone; default 0.
    drop_last : bool
        True leaves out the last batch of an epoch if it is smaller; default False.
    rank, ranks : int
        The number of this process, from 0, and the number of processes that share each batch; default 0 of 1. Each rank
        gets a part of each batch, and the parts of all ranks together are the batch that one rank alone would get. The
        sizes of the parts differ by one at most: weigh gradients by them. (A last batch of fewer examples than ranks
        leaves some ranks none; `drop_last` avoids that.)

    Attributes
    ----------
    epoch : int
        The epochs that are done.
    batch : int
        The batches of the present epoch that were taken.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.training import minibatches
    >>> x = np.arange(12.0)
    >>> y = 3 * x + 1
    >>> p = np.zeros(2)
    >>> opt = fastopt.Adam(p, lr=0.1)
    >>> batches = minibatches(x, y, batch_size=5, seed=1)
    >>> len(batches), [len(xb) for xb, yb in batches]
    (3, [5, 5, 2])
    >>> for epoch in range(300):
    ...     for xb, yb in batches:
    ...         error = p[0] * xb + p[1] - yb
    ...         opt.step(np.array([(error * xb).mean(), error.mean()]))
    >>> p.round(3).tolist()
    [3.0, 1.0]

    A training is resumed in the middle of an epoch from plain data, which JSON can hold:

    >>> taken = next(iter(batches))
    >>> resumed = minibatches(x, y, batch_size=5)
    >>> resumed.load_state_dict(batches.state_dict())
    >>> resumed.epoch, resumed.batch, len(list(resumed))
    (301, 1, 2)
    """

    def __init__(
        self,
        *data: Any,
        batch_size: int | None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if not data:
            raise TypeError("data: found nothing, expected arrays of examples")
        names = ["data"] if len(data) == 1 else [f"data[{k}]" for k in range(len(data))]
        sources = [_source(array, name) for array, name in zip(data, names, strict=True)]
        self._examples = sources[0][0]
        for (examples, _), name in zip(sources, names, strict=True):
            if examples != self._examples:
                raise ValueError(f"{name}: found {examples} examples, expected {self._examples} as {names[0]} has")
        if not self._examples:
            raise ValueError(f"{names[0]}: found 0 examples, expected at least 1")
        self._readers = [reader for _, reader in sources]
        self._shuffle = check_flag("shuffle", shuffle)
        self._seed = check_integer("seed", seed, 0)
        self._drop_last = check_flag("drop_last", drop_last)
        self._ranks = check_integer("ranks", ranks, 1, 2**31 - 1)
        self._rank = check_integer("rank", rank, 0, self._ranks - 1)
        self._batch_size = None if batch_size is None else check_integer("batch_size", batch_size, 1)
        size = self._size
        if size < self._ranks:
            raise ValueError(
                f"{'data' if batch_size is None else 'batch_size'}: found {size} examples, expected at least one for "
                f"each of {self._ranks} ranks"
            )
        if self._drop_last and size > self._examples:
            raise wrong_value("batch_size", batch_size, f"at most the {self._examples} examples, with drop_last")
        self._epoch = self._batch = 0
        self._order: tuple[tuple[int, ...], np.ndarray] = (), np.empty(0, np.uint32)

    @property
    def epoch(self) -> int:
        """The epochs that are done."""
        return self._epoch

    @property
    def batch(self) -> int:
        """The batches of the present epoch that were taken."""
        return self._batch

    @property
    def _size(self) -> int:
        """The examples of a batch of all ranks."""
        return self._examples if self._batch_size is None else self._batch_size

    def __len__(self) -> int:
        """The batches of an epoch."""
        whole, left = divmod(self._examples, self._size)
        return whole + (left > 0 and not self._drop_last)

    def __iter__(self) -> Iterator[Any]:
        epoch = self._epoch
        while self._epoch == epoch and self._batch < len(self):
            rows = self._rows(self._batch)
            found = tuple(read(rows) for read in self._readers)
            self._batch += 1
            yield found if len(found) > 1 else found[0]
        if self._epoch == epoch:
            self._epoch, self._batch = epoch + 1, 0

    def _rows(self, batch: int) -> Rows:
        """The examples of this rank's part of a batch."""
        begin = batch * self._size
        size = min(self._size, self._examples - begin)
        part = slice(begin + size * self._rank // self._ranks, begin + size * (self._rank + 1) // self._ranks)
        # The order within a batch changes nothing: a batch of all examples is the data set itself.
        if not self._shuffle or size == self._examples:
            return part
        key = (self._seed, self._epoch)
        if self._order[0] != key:
            order = np.arange(self._examples, dtype=np.uint32 if self._examples <= 2**32 else np.int64)
            np.random.default_rng(key).shuffle(order)
            self._order = key, order
        return self._order[1][part].astype(np.int64)

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, as plain data: numbers, truth values and None.

        Batches that were taken count as done: take the state after the step that used the batch.
        """
        return {
            "seed": self._seed,
            "epoch": self._epoch,
            "batch": self._batch,
            "examples": self._examples,
            "batch_size": self._batch_size,
            "shuffle": self._shuffle,
            "drop_last": self._drop_last,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the place that `state_dict` told, with any number of ranks.

        Parameters
        ----------
        state_dict : mapping
            From `state_dict`.

        Raises
        ------
        TypeError, ValueError
            It is of another data set or other batches, or no such state; nothing has changed.
        """
        if not isinstance(state_dict, Mapping):
            raise wrong_type("state_dict", state_dict, "what state_dict() returned")
        if set(state_dict) != set(_KEYS):
            raise ValueError(f"state_dict: found {sorted(map(str, state_dict))}{differing(state_dict, _KEYS)}")
        for key, own in self.state_dict().items():
            if key not in ("seed", "epoch", "batch") and state_dict[key] != own:
                raise wrong_value(f"state_dict['{key}']", state_dict[key], f"{own!r}, as here")
        seed = check_integer("state_dict['seed']", state_dict["seed"], 0)
        epoch = check_integer("state_dict['epoch']", state_dict["epoch"], 0)
        batch = check_integer("state_dict['batch']", state_dict["batch"], 0, len(self))
        self._seed, self._epoch, self._batch = seed, epoch, batch

    def __repr__(self) -> str:
        return (
            f"minibatches({self._examples} examples, batch_size={self._batch_size}; "
            f"epoch {self._epoch}, batch {self._batch} of {len(self)})"
        )


def _source(data: Any, name: str) -> tuple[int, Callable[[Rows], Any]]:
    """The number of examples in a data set's array, and what reads some of them."""
    if isinstance(data, tuple):
        return _csr_source(data, name)
    if hasattr(data, "tocsr"):
        if getattr(data, "format", "") != "csr":
            raise TypeError(f"{name}: found a {type(data).__name__}, expected CSR: its tocsr() makes one")
        examples = int(data.shape[0])
        whole = slice(0, examples)
        return examples, lambda rows: data if isinstance(rows, slice) and rows == whole else data[rows]
    if not isinstance(data, np.ndarray) and not hasattr(data, "__dlpack__"):
        advice = "; its to_numpy() is one" if hasattr(data, "to_numpy") else "; np.asarray makes one"
        raise TypeError(f"{name}: found {describe(data)} of type {type(data).__name__}, expected an array{advice}")
    if not len(data.shape):
        raise ValueError(f"{name}: found an array without dimensions, expected examples along the first")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(data, torch.Tensor):
        return len(data), lambda rows: data[rows if isinstance(rows, slice) else torch.from_numpy(rows)]
    return int(data.shape[0]), data.__getitem__


def _csr_source(data: tuple[Any, ...], name: str) -> tuple[int, Callable[[Rows], Any]]:
    """The rows of a CSR matrix given by its arrays; parts of it are such arrays again."""
    if len(data) != 3 or not all(isinstance(array, np.ndarray) and array.ndim == 1 for array in data):
        raise wrong_type(name, data, "a CSR matrix's one-dimensional arrays (indptr, indices, data)")
    indptr, indices, values = data
    if indptr.dtype.kind not in "iu" or indices.dtype.kind not in "iu":
        raise TypeError(f"{name}: found indptr of {indptr.dtype} and indices of {indices.dtype}, expected integers")
    if not len(indptr) or indptr[0] != 0 or (indptr[1:] < indptr[:-1]).any():
        raise ValueError(f"{name}: found indptr {describe(indptr)}, expected numbers that begin at 0 and never fall")
    if not len(indices) == len(values) == indptr[-1]:
        raise ValueError(
            f"{name}: found {len(indices)} indices and {len(values)} values, expected {indptr[-1]} of each, the last "
            "of indptr"
        )

    def read(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if isinstance(rows, slice):
            begins = indptr[rows.start : rows.stop + 1]
            entries = slice(int(begins[0]), int(begins[-1]))
            return begins - begins[0], indices[entries], values[entries]
        begins, ends = indptr[rows], indptr[rows + 1]
        counts = ends - begins
        starts = np.zeros(len(rows) + 1, indptr.dtype)
        np.cumsum(counts, out=starts[1:])
        places = np.repeat(begins - starts[:-1], counts) + np.arange(starts[-1], dtype=indptr.dtype)
        return starts, indices[places], values[places]

    return len(indptr) - 1, read
