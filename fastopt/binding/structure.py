"""The structure of parameters and gradients: a list, a mapping, a single array, or groups of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays.array import Array
from ..checks import differing
from .sparse import RowSparse, as_row_sparse, is_mapping


def _is_group_list(params: Any) -> bool:
    return (
        isinstance(params, (list, tuple))
        and len(params) > 0
        and all(isinstance(group, Mapping) and "params" in group for group in params)
    )


def read_params(params: Any) -> tuple[Any, list[tuple[list[str], list[Any], dict[str, Any]]]]:
    """The structure of params, and each group's names, arrays and own hyper-parameters."""
    if _is_group_list(params):
        structures, groups = [], []
        for g, group in enumerate(params):
            structure, names, arrays = _read_arrays(group["params"], f"params[{g}]['params']")
            structures.append(structure)
            groups.append((names, arrays, {key: value for key, value in group.items() if key != "params"}))
        return structures, groups
    structure, names, arrays = _read_arrays(params, "params")
    return structure, [(names, arrays, {})]


def _read_arrays(params: Any, name: str) -> tuple[Any, list[str], list[Any]]:
    """A structure is the keys of a mapping, the length of a sequence, or None for a single array."""
    if isinstance(params, Mapping):
        return tuple(params), [f"{name}[{key!r}]" for key in params], list(params.values())
    if isinstance(params, Iterator):
        params = list(params)
    if isinstance(params, (list, tuple)):
        return len(params), [f"{name}[{i}]" for i in range(len(params))], list(params)
    return None, [name], [params]


def match(grads: Any, structure: Any, name: str) -> list[Any]:
    """Gradients in the order of the parameters, or an error that says where the structures differ."""
    if isinstance(structure, list):  # groups
        if not isinstance(grads, (list, tuple)):
            raise TypeError(f"{name}: found {type(grads).__name__}, expected a list as params is")
        total = sum(len(s) if isinstance(s, tuple) else 1 if s is None else s for s in structure)
        if len(grads) == total and not any(isinstance(g, (list, tuple)) or is_mapping(g) for g in grads):
            return list(grads)
        if len(grads) != len(structure):
            raise ValueError(
                f"{name}: found {len(grads)} entries, expected one for each of {len(structure)} groups or "
                f"each of {total} parameters"
            )
        found = []
        for g, (own, shape) in enumerate(zip(grads, structure, strict=True)):
            if is_mapping(own) and "params" in own:
                own = own["params"]
            found += match(own, shape, f"{name}[{g}]")
        return found
    if structure is None:
        if isinstance(grads, (list, tuple)) and len(grads) == 1:
            return list(grads)
        if isinstance(grads, (list, tuple)) or is_mapping(grads):
            raise TypeError(f"{name}: found {type(grads).__name__}, expected one array as params is")
        return [grads]
    if isinstance(structure, tuple):
        if not is_mapping(grads):
            raise TypeError(f"{name}: found {type(grads).__name__}, expected a mapping as params is")
        if grads.keys() != set(structure):
            raise ValueError(
                f"{name}: found other keys than params has, expected the same{differing(grads.keys(), set(structure))}"
            )
        return [grads[key] for key in structure]
    if isinstance(grads, Iterator):
        grads = list(grads)
    if not isinstance(grads, (list, tuple)):
        raise TypeError(f"{name}: found {type(grads).__name__}, expected a sequence of {structure} arrays")
    if len(grads) != structure:
        raise ValueError(f"{name}: found {len(grads)} gradients, expected {structure}, one for each parameter")
    return list(grads)


def split_rows(
    grads: tuple[Any, ...], params: Sequence[Array], names: Sequence[str]
) -> tuple[tuple[Any, ...], list[tuple[int, RowSparse]]]:
    """Dense gradients, with None in the others' places; and those of some rows, with their places."""
    if _PLAIN.issuperset(map(type, grads)):
        return grads, []
    rows = [
        (i, as_row_sparse(grad, gradient_of(name) if len(grads) > 1 else "grads", param.shape))
        for i, (grad, param, name) in enumerate(zip(grads, params, names, strict=True))
    ]
    dense = tuple(grad if found is None else None for grad, (_, found) in zip(grads, rows, strict=True))
    return dense, [(i, found) for i, found in rows if found is not None]


def gradient_of(name: str) -> str:
    """Return the name of the gradient of a parameter."""
    return f"grads{name.removeprefix('params')}"


_PLAIN = frozenset([np.ndarray, type(None)])
