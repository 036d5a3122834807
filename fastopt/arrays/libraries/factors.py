"""Averages of squares over rows and columns, and quotients by them, by operations of a library of arrays."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..array import CPU, Array
from ..dtypes import BFLOAT16, compute_dtype
from . import new_array
from .matrices import OfNumPy, library_of

#: The elements that are worked on at once: on the CPU few, so that what is between operations stays in a core's cache.
PIECE, PIECE_ON_DEVICE = 1 << 16, 1 << 22


def library_for(like: Any, array: Array, name: str) -> Any:
    """The operations of a parameter's library; NumPy's for all on the CPU, where threads of torch would wait for each
    other at each of the many operations on small pieces.

    Raises
    ------
    TypeError
        The library has no such operations.
    """
    return OfNumPy(np) if array.place == CPU else library_of(like, array, name)


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
        on_cpu = array.place == CPU
        self.library = library_for(like, array, name)
        self.most = min(size, PIECE if on_cpu else PIECE_ON_DEVICE)

        def new(size: int) -> Any:
            if isinstance(self.library, OfNumPy) and on_cpu:
                return np.zeros(size, dtype)
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


class Averaged(ABC):
    """A tensor between the ends of a step, with its parameter and averages: `fastopt.rules.factored.Averaged`.

    Parameters
    ----------
    place : Workplace
        The memory.
    matrix : array
        The tensor, which is there, as it lies in memory. It has an element at least.
    turned : bool
        Whether it is that matrix transposed.
    param : Array
        The parameter.
    averages : sequence of Array
        The averages.
    """

    def __init__(self, place: Workplace, matrix: Any, turned: bool, param: Array, averages: Sequence[Array]) -> None:
        self._place, self._turned, self._param = place, turned, param
        self._functions = place.library.functions
        *before, rows, columns = (1, 1, *param.shape)
        self._lies, self._shape = tuple(matrix.shape), (math.prod(before), rows, columns)
        self._x = self._seen(matrix)
        self._averages = list(map(place.library.array, averages))
        self._dtype = compute_dtype(param.dtype)
        self._eps = 2.0**-7 if param.dtype == BFLOAT16 else float(np.finfo(param.dtype).eps)
        self._least = float(np.finfo(self._dtype).tiny)
        self._source, self._scale = self._x, 1.0

    @staticmethod
    def of(place: Workplace, matrix: Any, turned: bool, param: Array, averages: Sequence[Array]) -> Averaged:
        """Return a tensor with the averages that there are."""
        return (ByElement if len(averages) == 1 else ByRowAndColumn)(place, matrix, turned, param, averages)

    def _seen(self, memory: Any) -> Any:
        """View what lies in memory as the tensor, in three dimensions."""
        return (memory.T if self._turned else memory).reshape(self._shape)

    def read_at(self, address: int, scale: float) -> None:
        """Have x be, in this step, what lies at an address on the CPU as the matrix does, times a number."""
        memory = Array(None, address, self._dtype, self._lies, None).numpy()
        self._source, self._scale = self._seen(memory), scale

    def apply(self, update: Callable[..., float], values: Sequence[float]) -> float:
        """Put into the tensor's place what `update`, which is that of a `FactoredRule`, makes of it.

        Returns
        -------
        float
            The factor of what is there now.
        """
        try:
            with self._place.library.computing():
                return update(self, *values) * self._scale
        finally:
            self._source, self._scale = self._x, 1.0

    def _parts(self) -> Iterator[tuple[Any, Any, tuple[slice, slice, slice]]]:
        """Each piece of what is read, room for its like, and where it is."""
        for at in pieces(self._x.shape, self._place.most):
            part = self._source[at]
            yield part, self._place.spare(part.shape), at

    def rms_of_parameter(self) -> float:
        """Return the root of the mean square of the parameter's elements."""
        norm: float = self._place.library.norm(self._param, self._dtype, self._place.most)
        return norm / math.sqrt(self._param.size)

    @abstractmethod
    def average(self, weight: float) -> None:
        """Bring the averages of x*x nearer to what they are now, by a weight in [0, 1]."""

    def divide(self, eps: float) -> float:
        """Divide x by the root of its averages, at least `eps`; return the root of the mean square of the quotients.

        `eps` is NaN for that of the parameter's dtype. In the tensor's place come the quotients without the number that
        x is times.
        """
        least, squares = max(self._eps if math.isnan(eps) else eps, self._least), []
        for part in self._divided(least):
            elements = part.reshape(-1)
            squares.append(self._functions.dot(elements, elements))
        return abs(self._scale) * math.sqrt(sum(map(float, squares)) / self._param.size)

    @abstractmethod
    def _divided(self, least: float) -> Iterator[Any]:
        """Each piece of x, once it is divided."""


class ByElement(Averaged):
    """One average for each element."""

    def average(self, weight: float) -> None:
        """Bring the average of x*x nearer to what it is now."""
        every = self._averages[0].reshape(self._x.shape)
        for part, square, at in self._parts():
            self._functions.multiply(part, part, out=square)
            square *= weight * self._scale**2
            own = every[at]
            own *= 1.0 - weight
            own += square

    def _divided(self, least: float) -> Iterator[Any]:
        """Each piece of x, once it is divided."""
        every = self._averages[0].reshape(self._x.shape)
        for part, root, at in self._parts():
            made = self._x[at]
            self._functions.sqrt(every[at], out=root)
            self._functions.clip(root, least, None, out=root)
            self._functions.divide(part, root, out=made)
            yield made


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
            mean *= weight * self._scale**2 / size
            mean += (1.0 - weight) * before
            own[...] = mean.reshape(own.shape)

    def _divided(self, least: float) -> Iterator[Any]:
        """Each piece of x, once it is divided."""
        functions = self._functions
        rows, columns = self._shaped(*self._averages)
        mean = functions.clip(functions.mean(rows, axis=-2, keepdims=True), least, None)
        high, wide = 1.0 / functions.sqrt(rows / mean), 1.0 / functions.sqrt(columns)
        below = float(high.max()) * float(wide.max()) <= 1.0 / least  # and so are all products
        for part, factor, at in self._parts():
            i, j, k = at
            made = self._x[at]
            functions.multiply(high[i, j], wide[i, :, k], out=factor)
            if not below:
                functions.clip(factor, None, 1.0 / least, out=factor)
            functions.multiply(part, factor, out=made)
            yield made
