"""The structure of parameters and gradients: an array, nested mappings and sequences of arrays, or groups of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..arrays.array import Array
from ..checks import differing, wrong_type
from .sparse import RowSparse, as_row_sparse, is_mapping

#: The entry of a group of nested parameters that has their paths, as torch calls that of named ones.
PARAM_NAMES = "param_names"


class Leaf(NamedTuple):
    """An array in nested mappings and sequences."""

    key: str  # the path with dots, as "layers.0.weight": the name in files and states; "params" of a single array
    name: str  # as messages have it: "params['layers'][0]['weight']"
    array: Any


class Tree:
    """A mapping or sequence, of which each part is an array, or a tree again.

    Parameters
    ----------
    keys : tuple or None
        The keys of a mapping; None of a sequence.
    parts : tuple of Tree or None
        Its values: None is an array.

    Attributes
    ----------
    size : int
        The number of arrays.
    flat : bool
        True where all parts are arrays.
    """

    __slots__ = ("_known", "flat", "keys", "parts", "size")

    def __init__(self, keys: tuple[Any, ...] | None, parts: tuple[Tree | None, ...]) -> None:
        self.keys, self.parts, self._known = keys, parts, frozenset(keys or ())
        self.flat = not any(parts)
        self.size = sum(map(_size, parts))

    def match(self, grads: Any, name: str) -> list[Any]:
        """Gradients in the order of the parameters; None for a tree is None for each of its arrays.

        Raises
        ------
        TypeError, ValueError
            They have another structure; the message says where.
        """
        values: list[Any]
        if self.keys is not None:
            if not is_mapping(grads):
                raise TypeError(f"{name}: found {type(grads).__name__}, expected a mapping as params is")
            if grads.keys() != self._known:
                differences = differing(grads.keys(), self._known)
                raise ValueError(f"{name}: found other keys than params has, expected the same{differences}")
            values = [grads[key] for key in self.keys]
        else:
            if not isinstance(grads, (list, tuple, Iterator)):
                raise TypeError(
                    f"{name}: found {type(grads).__name__}, expected a sequence of {len(self.parts)} arrays"
                )
            values = list(grads)
            if len(values) != len(self.parts):
                kind = "one for each parameter" if self.flat else "as params has"
                raise ValueError(f"{name}: found {len(values)} arrays, expected {len(self.parts)}, {kind}")
        if self.flat:
            return values
        found: list[Any] = []
        for key, value, part in zip(self.keys or range(len(values)), values, self.parts, strict=True):
            if part is None:
                found.append(value)
            else:
                found += [None] * part.size if value is None else part.match(value, f"{name}[{key!r}]")
        return found

    def build(self, arrays: Iterator[Any]) -> Any:
        """Return this structure of other arrays, which are taken in order."""
        values = [next(arrays) if part is None else part.build(arrays) for part in self.parts]
        return values if self.keys is None else dict(zip(self.keys, values, strict=True))


#: The structure of one array, or of nested ones.
Structure: TypeAlias = "Tree | None"


def _size(structure: Structure) -> int:
    return 1 if structure is None else structure.size


def read_tree(params: Any, name: str, key: str = "") -> tuple[Structure, list[Leaf]]:
    """The structure of nested mappings and sequences, and their arrays in order."""
    items: list[tuple[Any, Any]]
    if isinstance(params, Mapping):
        keys: tuple[Any, ...] | None = tuple(params)
        items = list(params.items())
    elif isinstance(params, (list, tuple, Iterator)):
        keys, items = None, list(enumerate(params))
    else:
        return None, [Leaf(key or "params", name, params)]
    parts, leaves = [], []
    for k, value in items:
        part, found = read_tree(value, f"{name}[{k!r}]", f"{key}.{k}" if key else str(k))
        parts.append(part)
        leaves += found
    return Tree(keys, tuple(parts)), leaves


class Given(NamedTuple):
    """A group of parameters as it is given."""

    names: list[str]
    arrays: list[Any]
    own: dict[str, Any]  # hyper-parameters, and other entries


def is_group(group: Any) -> bool:
    """Return whether it is a group of parameters."""
    return isinstance(group, Mapping) and "params" in group


def read_group(group: Mapping[str, Any], name: str) -> tuple[Structure, Given]:
    """The structure of a group's parameters, and what is given of it; nested ones have the entry ``param_names``."""
    structure, leaves = read_tree(group["params"], f"{name}['params']")
    return structure, _given(structure, leaves, {key: value for key, value in group.items() if key != "params"})


def _given(structure: Structure, leaves: Sequence[Leaf], own: dict[str, Any]) -> Given:
    if structure is not None and not structure.flat:
        own = {PARAM_NAMES: [leaf.key for leaf in leaves], **own}
    return Given([leaf.name for leaf in leaves], [leaf.array for leaf in leaves], own)


def read_params(params: Any) -> tuple[Structure | list[Structure], list[Given]]:
    """The structure of params, a list of groups', and each group as it is given.

    Raises
    ------
    TypeError
        Some entries are groups, and others are not.
    """
    if isinstance(params, (list, tuple)) and any(map(is_group, params)):
        for g, group in enumerate(params):
            if not is_group(group):
                raise wrong_type(f"params[{g}]", group, "a mapping with 'params', as other entries are")
        read = [read_group(group, f"params[{g}]") for g, group in enumerate(params)]
        return [structure for structure, _ in read], [given for _, given in read]
    structure, leaves = read_tree(params, "params")
    return structure, [_given(structure, leaves, {})]


def match(grads: Any, structure: Structure | list[Structure], name: str) -> list[Any]:
    """Gradients in the order of the parameters, or an error that says where the structures differ."""
    if isinstance(structure, list):  # groups
        if not isinstance(grads, (list, tuple)):
            raise TypeError(f"{name}: found {type(grads).__name__}, expected a list as params is")
        total = sum(map(_size, structure))
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
    if structure is not None:
        return structure.match(grads, name)
    if isinstance(grads, (list, tuple)) and len(grads) == 1:
        return list(grads)
    if isinstance(grads, (list, tuple)) or is_mapping(grads):
        raise TypeError(f"{name}: found {type(grads).__name__}, expected one array as params is")
    return [grads]


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
