"""Averages of squares over rows and columns, and quotients by them, by operations of the arrays' own library."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..array import CPU, Array
from ..dtypes import BFLOAT16, compute_dtype
from . import new_array
from .matrices import library_of

#: The elements that are worked on at once: on the CPU few, so that what is between operations stays in a core's cache.
PIECE, PIECE_ON_DEVICE = 1 << 16, 1 << 22


def pieces(shape: tuple[int, ...], most: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cut an array of three dimensions into pieces of at most so many elements, each of whole rows where these fit."""
    count, rows, columns = shape
    wide = min(columns, most)
    high = min(rows, most // wide)
    deep = most // (high * wide) if high == rows else 1
    for i in range(0, count, deep):
        for j in range(0, rows, high):
            for k in range(0, columns, wide):
                yield slice(i, i + deep), slice(j, j + high), slice(k, k + wide)


class Workplace:
    """Memory for a tensor of at most some size, and for a piece of one.

    Parameters
    ----------
    like : array
        Of the library and the device.
    array : Array
        Its view.
    name : str
        What the caller calls it.
    size : int
        The size.
    dtype : numpy.dtype
        That of computing.

    Raises
    ------
    TypeError
        The library has no such operations.
    """

    def __init__(self, like: Any, array: Array, name: str, size: int, dtype: np.dtype) -> None:
        self.library = library_of(like, array, name)
        self.most = min(size, PIECE if array.place == CPU else PIECE_ON_DEVICE)

        def new(size: int) -> Any:
            return self.library.new(lambda: new_array(like, array, dtype, (size,), 0))

        self._whole, self._spare = new(size), new(self.most)

    def matrix(self, shape: tuple[int, ...]) -> Any:
        """Return the tensor of that shape, C-contiguous."""
        return self._whole[: math.prod(shape)].reshape(shape)

    def clear(self, x: Any) -> None:
        """Have a tensor that is here be of zeros."""
        x[...] = 0

    def spare(self, shape: tuple[int, ...]) -> Any:
        """Return the room for a piece of that shape."""
        return self._spare[: math.prod(shape)].reshape(shape)

    def apply(self, update: Callable[..., float], tensor: Averaged, values: Sequence[float]) -> float:
        """Replace a tensor that is here by what `update` makes of it, which is that of a `FactoredRule`.

        Returns
        -------
        float
            What `update` returns.
        """
        with self.library.computing():
            return update(tensor, *values)


class Averaged(ABC):
    """A tensor between the ends of a step, with its parameter and averages: `fastopt.rules.factored.Averaged`.

    Parameters
    ----------
    place : Workplace
        The memory.
    x : array
        The tensor, which is there. It has an element at least.
    param : Array
        The parameter.
    averages : sequence of Array
        The averages.
    """

    def __init__(self, place: Workplace, x: Any, param: Array, averages: Sequence[Array]) -> None:
        self._place, self._param, self._functions = place, param, place.library.functions
        *before, rows, columns = (1, 1, *param.shape)
        self._x = x.reshape(math.prod(before), rows, columns)
        self._averages = list(map(place.library.array, averages))
        self._eps = 2.0**-7 if param.dtype == BFLOAT16 else float(np.finfo(param.dtype).eps)
        self._least = float(np.finfo(compute_dtype(param.dtype)).tiny)

    @staticmethod
    def of(place: Workplace, x: Any, param: Array, averages: Sequence[Array]) -> Averaged:
        """Return a tensor with the averages that there are."""
        return (ByElement if len(averages) == 1 else ByRowAndColumn)(place, x, param, averages)

    def _parts(self) -> Iterator[tuple[Any, Any, tuple[slice, slice, slice]]]:
        """Each piece of x, room for its like, and where it is."""
        for at in pieces(self._x.shape, self._place.most):
            part = self._x[at]
            yield part, self._place.spare(part.shape), at

    def rms_of_parameter(self) -> float:
        """Return the root of the mean square of the parameter's elements."""
        norm: float = self._place.library.norm(self._param, self._place.spare((self._place.most,)))
        return norm / math.sqrt(self._param.size)

    @abstractmethod
    def average(self, weight: float) -> None:
        """Bring the averages of x*x nearer to what they are now, by a weight in [0, 1]."""

    def divide(self, eps: float) -> float:
        """Divide x by the root of its averages, at least `eps`; return the root of the mean square of the quotients.

        `eps` is NaN for that of the parameter's dtype.
        """
        squares = []
        for part, spare in self._divided(max(self._eps if math.isnan(eps) else eps, self._least)):
            self._functions.multiply(part, part, out=spare)
            squares.append(self._functions.sum(spare))
        return math.sqrt(sum(map(float, squares)) / self._param.size)

    @abstractmethod
    def _divided(self, least: float) -> Iterator[tuple[Any, Any]]:
        """Each piece of x, once it is divided, and room for its like."""


class ByElement(Averaged):
    """One average for each element."""

    def average(self, weight: float) -> None:
        """Bring the average of x*x nearer to what it is now."""
        every = self._averages[0].reshape(self._x.shape)
        for part, square, at in self._parts():
            self._functions.multiply(part, part, out=square)
            square *= weight
            own = every[at]
            own *= 1.0 - weight
            own += square

    def _divided(self, least: float) -> Iterator[tuple[Any, Any]]:
        """Each piece of x, once it is divided, and room for its like."""
        every = self._averages[0].reshape(self._x.shape)
        for part, root, at in self._parts():
            self._functions.sqrt(every[at], out=root)
            self._functions.clip(root, least, None, out=root)
            self._functions.divide(part, root, out=part)
            yield part, root


class ByRowAndColumn(Averaged):
    """An average for each row, and one for each column; their product stands for that of an element."""

    def _shaped(self, rows: Any, columns: Any) -> tuple[Any, Any]:
        """View averages, or copy them, as x has dimensions."""
        count, high, wide = self._x.shape
        return rows.reshape(count, high, 1), columns.reshape(count, 1, wide)

    def average(self, weight: float) -> None:
        """Bring the averages of x*x nearer to what they are now."""
        functions = self._functions
        rows, columns = means = self._shaped(*map(functions.zeros_like, self._averages))
        for part, square, (i, j, k) in self._parts():
            functions.multiply(part, part, out=square)
            rows[i, j] += functions.sum(square, axis=-1, keepdims=True)
            columns[i, :, k] += functions.sum(square, axis=-2, keepdims=True)
        _, high, wide = self._x.shape
        for own, mean, before, size in zip(
            self._averages, means, self._shaped(*self._averages), (wide, high), strict=True
        ):
            mean *= weight / size
            mean += (1.0 - weight) * before
            own[...] = mean.reshape(own.shape)

    def _divided(self, least: float) -> Iterator[tuple[Any, Any]]:
        """Each piece of x, once it is divided, and room for its like."""
        functions = self._functions
        rows, columns = self._shaped(*self._averages)
        mean = functions.clip(functions.mean(rows, axis=-2, keepdims=True), least, None)
        high, wide = 1.0 / functions.sqrt(rows / mean), 1.0 / functions.sqrt(columns)
        for part, factor, (i, j, k) in self._parts():
            functions.multiply(high[i, j], wide[i, :, k], out=factor)
            functions.clip(factor, None, 1.0 / least, out=factor)
            functions.multiply(part, factor, out=part)
            yield part, factor
