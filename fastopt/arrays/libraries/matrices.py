"""Operations of the arrays' own library: products of matrices, with room for them, and functions of elements."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from ..array import Array
from ..dtypes import BFLOAT16, widened
from . import new_array
from .torch import Operations as OfTorch
from .torch import is_tensor


class OfNumPy:
    """The operations of NumPy's arrays, or of a library with its functions.

    Attributes
    ----------
    functions : module
        Functions of elements and of axes, under NumPy's names.
    """

    def __init__(self, library: Any) -> None:
        self.functions = self._library = library

    def computing(self) -> AbstractContextManager:
        """Return a context to compute in, without warnings of what is not finite."""
        return np.errstate(all="ignore")

    def array(self, own: Array) -> Any:
        """Return an array of the library over the same memory."""
        return own.numpy() if self._library is np else self._library.asarray(own.owner)

    def norm(self, own: Array, dtype: np.dtype, most: int) -> float:
        """Return the root of the sum of the squares of an array's elements, by so many of them, in a dtype."""
        elements, squares = self.array(own).ravel(order="K"), []
        for k in range(0, own.size, most):
            part = elements[k : k + most]
            part = widened(part, own.dtype) if self._library is np else part.astype(dtype, copy=False)
            squares.append(self.functions.dot(part, part))
        return math.sqrt(sum(map(float, squares)))

    def new(self, make: Callable[[], Any]) -> Any:
        """Make an array."""
        return make()

    def normalize(self, x: Any, eps: float) -> None:
        """Divide a matrix by its Frobenius norm, or by `eps` where that is more."""
        with np.errstate(all="ignore"):
            squares = self._library.square(x, dtype=np.float64)  # which float32 cannot hold of numbers above 1e19
            x /= self._library.maximum(self._library.sqrt(squares.sum()), eps)

    def product(self, a: Any, b: Any, out: Any) -> None:
        """Write a @ b."""
        with np.errstate(all="ignore"):
            self._library.matmul(a, b, out=out)

    def add_product(self, c: Any, a: Any, b: Any, beta: float, alpha: float, out: Any) -> None:
        """Write beta*c + alpha*(a @ b); `c` is lost."""
        with np.errstate(all="ignore"):
            self._library.matmul(a, b, out=out)
            out *= alpha
            c *= beta
            out += c


def library_of(like: Any, array: Array, name: str) -> Any:
    """The operations of a parameter's library.

    Raises
    ------
    TypeError
        It has none.
    """
    if is_tensor(like):
        return OfTorch()
    if array.place.kind != "cpu" and not array.place.library:
        raise TypeError(
            f"{name}: found a {type(like).__name__} on {array.place.device}, expected a tensor of torch or an array of "
            "CuPy, whose operations are there"
        )
    return OfNumPy(sys.modules[array.place.library or "numpy"])


class Room:
    """Memory for a matrix of one of some shapes, for its like, and for two squares of its smaller side.

    Parameters
    ----------
    like : array
        Of the library and the device.
    array : Array
        Its view.
    name : str
        What the caller calls it.
    shapes : sequence of pairs
        The shapes.
    dtype : numpy.dtype
        That of computing beside the products.

    Raises
    ------
    TypeError
        The library has no products.
    """

    def __init__(self, like: Any, array: Array, name: str, shapes: Sequence[tuple[int, ...]], dtype: np.dtype) -> None:
        self._library = library_of(like, array, name)
        inner = BFLOAT16 if is_tensor(like) else dtype

        def new(dtype: np.dtype, size: int) -> Any:
            return self._library.new(lambda: new_array(like, array, dtype, (size,), 0))

        size, side = max(map(math.prod, shapes)), max(map(min, shapes))
        self._pair = [new(inner, size), new(inner, size)]
        self._squares = [new(inner, side * side), new(inner, side * side)]
        # Beside products of float64 there may be no other dtype.
        self._outer = new(dtype, size) if dtype == np.float64 != inner else self._pair[0]

    def matrix(self, shape: tuple[int, ...]) -> Any:
        """The matrix of that shape, C-contiguous."""
        return self._outer[: math.prod(shape)].reshape(shape)

    def clear(self, matrix: Any) -> None:
        """Have a matrix that is here be of zeros."""
        matrix[...] = 0

    def apply(self, update: Callable[..., Any], matrix: Any, values: Sequence[float]) -> None:
        """Replace a matrix that is here by what `update` makes of it, which is that of a `MatrixRule`."""
        shape = tuple(matrix.shape)
        size, side = math.prod(shape), min(shape)
        x, spare = (own[:size].reshape(shape) for own in self._pair)
        squares = (own[: side * side].reshape(side, side) for own in self._squares)
        if self._outer is not self._pair[0]:
            x[...] = matrix
        made = update(self._library, x, spare, *squares, *values)
        if made is spare or self._outer is not self._pair[0]:
            matrix[...] = made
