"""Internal. Parameters that are in memory once for all ranks on a machine."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from ..arrays.array import Array
from ..arrays.dtypes import numpy_dtype
from .agreement import check_alike
from .carriers import current
from .held import Held
from .world import machine_of

_blocks: dict[int, int] = {}  # where such memory begins and ends


def shared(params: Any) -> Any:
    """Copies parameters into memory that all ranks on the machine have in common, where they are once.

    `Synchronous` then updates them there: nothing is copied from rank to rank. Each rank sees what any of them writes,
    so that nothing but `Synchronous` is to write them. Ranks on several machines have copies of their own, as ever. All
    ranks call it.

    Parameters
    ----------
    params : array, nested sequences and mappings of arrays
        The same in all ranks, contiguous and on the CPU.

    Returns
    -------
    object
        The same structure, of arrays of NumPy; ``torch.from_numpy`` makes tensors of them.

    Raises
    ------
    TypeError, ValueError
        They are not what they must be, or not the same in all ranks; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt import distributed as fd
    >>> params = fd.shared({"w": np.zeros(2)})
    >>> opt = fd.Synchronous(fastopt.SGD, params, lr=1.0, slices=1)
    >>> opt.grads["w"][...] = [1.0, 2.0]
    >>> opt.add(0, opt.grads)
    >>> opt.step()
    >>> params["w"].tolist()
    [-1.0, -2.0]
    """
    held, world = Held(params), current()
    if isinstance(held.structure, list):
        raise TypeError("params: found groups, expected arrays alone, of which groups can be made then")
    for own, array, name in zip(held.given, held.arrays, held.names, strict=True):
        if own is not array:
            raise ValueError(f"{name}: found an array on a device, expected one on the CPU")
    check_alike(held.said(), world)
    sizes = [-(-memory.size // 64) * 64 for memory in held.memory]
    first = machine_of(world)[0] == world.rank
    block = world.share(sum(sizes) if first else 0)[0]
    begin = block.__array_interface__["data"][0]
    _blocks[begin] = begin + block.size
    weakref.finalize(block, _blocks.pop, begin, None)
    made, at = [], 0
    for own, array, size in zip(held.memory, held.views, sizes, strict=True):
        part = block[at : at + own.size]
        if first:
            part[:] = own
        made.append(part.view(numpy_dtype(array.dtype)).reshape(array.shape))
        at += size
    world.meet()  # all values are there
    return held.build(made)


def are_common(views: Sequence[Array]) -> bool:
    """Tell whether all arrays are in such memory."""
    if not _blocks or not views:
        return False
    return all(
        any(begin <= array.address and array.extent()[1] <= end for begin, end in _blocks.items()) for array in views
    )
