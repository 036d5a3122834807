"""Internal. State dicts: schedules in them, torch's form, flat mappings for files of arrays (``.npz``, safetensors)."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays.array import Array
from .arrays.blocks import block_bytes
from .arrays.dtypes import BFLOAT16, CODES, dtype_name, numpy_dtype
from .arrays.libraries import cast, floats_of, same_library, to_host, view
from .backends.choice import ieee_arithmetic
from .binding.blocks import from_blocks, to_blocks
from .checks import as_float, as_int, describe, differing, wrong_type, wrong_value
from .foreign import of_prodigyopt, to_prodigyopt
from .jobs.storage import DRAWN

if TYPE_CHECKING:
    from .binding.options import Arguments
from .arrays.libraries.torch import detached, is_tensor, tensor_of

_GROUPS = "param_groups"
_SCHEDULES = "fastopt.schedules"
_BFLOAT16 = ":bfloat16"
_PRODIGYS = frozenset(("d0", "d_coef", "growth_rate"))  # what its groups alone have
# Entries of saved groups beside hyper-parameters: ways of computing of torch's, ...
_HOW = frozenset(("foreach", "fused", "capturable", "differentiable"))
# ... and in what states were stored, which is for whoever loads them to choose.
_STORED = "state_dtype"


class Unpickled:
    """A stand-in, in state dicts, for a schedule that pickle cannot hold: it can be called until it is pickled."""

    def __init__(self, schedule: Callable[[int], Any] | None, name: str) -> None:
        self.schedule = schedule
        self.name = name

    def __call__(self, t: int) -> Any:
        """The value at the 1-based step `t`."""
        if self.schedule is None:
            raise TypeError(f"found {self!r}, expected a schedule: no pickle holds this one")
        return self.schedule(t)

    def __reduce__(self) -> tuple[Any, ...]:
        return Unpickled, (None, self.name)

    def __deepcopy__(self, memo: Any) -> Unpickled:
        return self

    def __repr__(self) -> str:
        return f"<schedule {self.name}>"


def saved_value(value: Any) -> Any:
    """A hyper-parameter as state dicts hold it: fastopt's schedules as plain data, what pickle cannot hold wrapped."""
    if isinstance(value, tuple):
        return tuple(map(saved_value, value))
    if not callable(value):
        return value
    schedules = sys.modules.get(_SCHEDULES)  # without it there is none of fastopt's
    if schedules is not None and schedules.is_plain(value):
        return value.state_dict()
    try:
        pickle.dumps(value)
    except Exception:  # any that the schedule's own code may raise
        return Unpickled(value, getattr(value, "__qualname__", repr(value)))
    return value


def schedules_in(value: Any) -> list[Unpickled]:
    """The schedules in a hyper-parameter that `saved_value` has wrapped."""
    return [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, Unpickled)]


def restored(value: Any, own: Any, where: str) -> Any:
    """A saved hyper-parameter with the schedule that it holds, or with the optimizer's own where it holds only a name.

    Raises
    ------
    TypeError, ValueError
        The schedule was not saved, and the optimizer has none there; or it is none that there is.
    """
    if isinstance(value, tuple):
        owns = own if isinstance(own, tuple) and len(own) == len(value) else (None,) * len(value)
        return tuple(restored(*pair, where) for pair in zip(value, owns, strict=True))
    if isinstance(value, Mapping) and "schedule" in value:
        from .schedules import from_state_dict  # loaded where one is used

        try:
            return from_state_dict(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from None
    if not isinstance(value, Unpickled):
        return value
    if value.schedule is None and not callable(own):
        raise ValueError(
            f"{where}: found {value!r}, which no pickle holds, expected the optimizer to have a schedule there: "
            "construct it with one"
        )
    return own if value.schedule is None else value.schedule


def taken_value(value: Any, own: Any) -> Any:
    """A restored hyper-parameter as a group takes it: a schedule with a state, which its user feeds, stays and changes.

    Where `own` is of the same class as `value` and has a method ``take``, it takes over what `value` is.
    """
    if isinstance(value, tuple) and isinstance(own, tuple) and len(own) == len(value):
        return tuple(map(taken_value, value, own))
    if type(value) is type(own) and hasattr(own, "take") and callable(own):
        own.take(value)
        return own
    return value


def flatten_state_dict(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A state dict as a flat mapping of name to array, that loses no bit.

    Parameters
    ----------
    state_dict : mapping
        From ``opt.state_dict()``.

    Returns
    -------
    dict of str to numpy.ndarray
        ``state.<index>.<name>`` for each state array, those of bfloat16 as ``state.<index>.<name>:bfloat16`` by their
        bits, in uint16; ``param_groups`` holds the hyper-parameters as JSON, in bytes.
        `numpy.savez` and ``safetensors.numpy.save_file`` take it as it is.

    Raises
    ------
    TypeError
        A hyper-parameter is a callable, or an entry of the user's own is no text and no number, which no file of arrays
        can hold; or a part is no mapping or array.
    ValueError
        A part is missing.
    """
    flat = {}
    groups, states = _parts(state_dict)
    for index, state in states.items():
        for name, value in state.items():
            if not hasattr(value, "dtype") and as_float(value) is None:
                raise wrong_type(
                    f"state_dict['state'][{describe(index)}][{describe(name)}]", value, "an array or a number"
                )
            array = view(value, name) if hasattr(value, "dtype") else None
            bfloat16 = array is not None and array.dtype == BFLOAT16  # which files of arrays do not know
            values = np.array(value) if array is None else np.array(to_host(array))
            flat[f"state.{index}.{name}" + (_BFLOAT16 if bfloat16 else "")] = (
                values.view(np.uint16) if bfloat16 else values
            )

    def number(value: Any) -> Any:
        plain = _plain(value)
        if plain is not value:
            return plain
        what = "callable" if callable(value) else type(value).__name__
        raise TypeError(
            f"param_groups: found {describe(value)}, expected numbers: a file of arrays cannot hold a {what}; "
            "pickle the state dict instead, or set a number or one of fastopt.schedules"
        )

    text = json.dumps(groups, default=number)  # floats as their shortest exact form
    flat[_GROUPS] = np.frombuffer(text.encode(), np.uint8)
    return flat


def unflatten_state_dict(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict that `flatten_state_dict` made flat, for ``opt.load_state_dict``.

    Parameters
    ----------
    flat : mapping of str to array
        As from ``numpy.load`` or ``safetensors.numpy.load_file``.

    Raises
    ------
    TypeError, ValueError
        It is no mapping, has no ``param_groups``, or holds something else than `flatten_state_dict` gives.
    """
    if not isinstance(flat, Mapping):
        raise wrong_type("flat", flat, "a mapping of names to arrays")
    if _GROUPS not in flat:
        raise ValueError(f"flat: found {describe(list(flat))}, expected 'param_groups' among them")
    state: dict[int, dict[str, Any]] = {}
    for key in flat:
        if key == _GROUPS:
            continue
        kind, _, rest = str(key).partition(".")
        number, _, name = rest.partition(".")
        if kind != "state" or not number.isdigit() or not name:
            raise ValueError(f"flat: found {key!r}, expected state.<index>.<name>")
        array = np.asarray(flat[key])
        if array.dtype == object:
            raise wrong_type(f"flat[{key!r}]", flat[key], "an array of numbers")
        if name.endswith(_BFLOAT16):
            if array.dtype != np.uint16:
                raise TypeError(f"flat[{key!r}]: found dtype {array.dtype}, expected uint16, the bits of bfloat16")
            name, array = name.removesuffix(_BFLOAT16), array.view(numpy_dtype(BFLOAT16))
        state.setdefault(int(number), {})[name] = array
    try:
        groups = json.loads(np.asarray(flat[_GROUPS]).tobytes())
    except (ValueError, RecursionError):
        groups = None
    if not isinstance(groups, list):
        raise ValueError(f"flat['{_GROUPS}']: found {describe(flat[_GROUPS])}, expected the bytes of a list in JSON")
    return {"state": state, _GROUPS: groups}


def torch_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A NumPy class's state dict as torch's class of the same name takes it, over the same memory.

    Parameters
    ----------
    state_dict : mapping
        From ``opt.state_dict()`` of a class of fastopt, or in torch's form already.

    Returns
    -------
    dict
        Step counts are float64 tensors, states are tensors, and ``decoupled_weight_decay`` is torch's flag:
        ``torch.save`` and ``torch.optim``'s ``load_state_dict`` take it. That of Prodigy is as the package prodigyopt
        has it, which takes it: numbers of all tensors are in the groups, and ``s`` and ``p0`` are flat.

    Raises
    ------
    TypeError
        A hyper-parameter is a callable.
    ValueError
        A group has both weight decays, which torch cannot have.
    """

    def tensor(name: str, value: Any) -> Any:
        if name == "step" and not isinstance(
            value, int
        ):  # torch's are of float32, which has whole numbers up to 2**24 only
            return tensor_of(np.array(float(value)))
        return tensor_of(value) if isinstance(value, np.ndarray) else value

    groups, states = _parts(state_dict)
    if groups and groups[0].keys() >= _PRODIGYS and not of_prodigyopt(groups):
        groups, states = to_prodigyopt(groups, states)
    states = {i: {key: tensor(key, x) for key, x in state.items()} for i, state in states.items()}
    return {"state": states, _GROUPS: torch_groups(groups)}


def torch_groups(saved: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups of a NumPy class's state dict, or of torch's, as torch's classes have them.

    Raises
    ------
    TypeError, ValueError
        As `torch_state_dict`.
    """
    groups = []
    for g, group in enumerate(saved):
        group = dict(group)
        for key, value in group.items():
            if callable(value) or isinstance(value, Mapping):
                raise TypeError(f"param_groups[{g}]: found {key} {value!r}, expected a number: torch has schedulers")
        decoupled = group.get("decoupled_weight_decay", False)
        if not isinstance(decoupled, bool):
            if decoupled and group["weight_decay"]:
                raise ValueError(
                    f"param_groups[{g}]: found weight_decay {group['weight_decay']!r} and decoupled_weight_decay "
                    f"{decoupled!r}, expected at most one of them: torch's classes have the one or the other"
                )
            group |= {"weight_decay": group["weight_decay"] or decoupled, "decoupled_weight_decay": bool(decoupled)}
        groups.append(group)
    return groups


#: States that storage adds to what a rule has, which can be begun anew from the parameter.
COMPANIONS = frozenset(("master", "compensation"))


def _parts(state_dict: Any) -> tuple[Sequence[Mapping[str, Any]], Mapping[Any, Mapping[str, Any]]]:
    """A state dict's groups, and its states by number.

    Raises
    ------
    TypeError, ValueError
        A part is missing or of the wrong kind.
    """
    for key in ("state", _GROUPS):
        if not isinstance(state_dict, Mapping) or key not in state_dict:
            raise ValueError(f"state_dict: found no {key!r}, expected what state_dict() returned")
    groups, states = state_dict[_GROUPS], state_dict["state"]
    if not isinstance(states, Mapping):
        raise TypeError(f"state_dict['state']: found {type(states).__name__}, expected a mapping")
    if not isinstance(groups, (list, tuple)):
        raise TypeError(f"state_dict['{_GROUPS}']: found {type(groups).__name__}, expected a list of groups")
    for g, group in enumerate(groups):
        if not isinstance(group, Mapping):
            raise TypeError(f"state_dict['{_GROUPS}'][{g}]: found {type(group).__name__}, expected a mapping")
    for key, state in states.items():
        if not isinstance(state, Mapping):
            where = f"state_dict['state'][{describe(key)}]"
            raise TypeError(f"{where}: found {type(state).__name__}, expected a mapping")
    return groups, states


def read_state_dict(
    state_dict: Any, sizes: Sequence[int]
) -> tuple[list[Any], list[Mapping[str, Any]], dict[Any, Mapping[str, Any]]]:
    """A state dict's parts, if they belong together: numbers of parameters in order, groups, and states by number.

    Parameters
    ----------
    state_dict : mapping
        In torch's layout.
    sizes : sequence of int
        How many parameters each group must have.

    Raises
    ------
    TypeError, ValueError
        A part is missing or of the wrong kind, groups are of other sizes, a number is there twice, or a state is of a
        parameter that no group has.
    """
    groups, states = _parts(state_dict)
    order: list[Any] = []
    for g, group in enumerate(groups):
        where = f"state_dict['{_GROUPS}'][{g}]"
        if "params" not in group:
            raise TypeError(f"{where}: found {type(group).__name__}, expected a mapping with 'params'")
        if not isinstance(group["params"], (list, tuple, range)):
            raise wrong_type(f"{where}['params']", group["params"], "a list of numbers of parameters")
        order += map(_number, group["params"])
    found = [len(group["params"]) for group in groups]
    if found != list(sizes):
        raise ValueError(f"state_dict: found groups of {found} parameters, expected {list(sizes)}")
    if len(set(order)) != len(order):
        raise ValueError(f"state_dict['{_GROUPS}']: found params {order}, expected each of them once")
    by_number: dict[Any, Mapping[str, Any]] = {}
    for key, state in states.items():
        if _number(key) not in order or _number(key) in by_number:
            raise ValueError(
                f"state_dict['state']: found {key!r}, expected numbers of parameters, each once, as in "
                f"'{_GROUPS}': {order}"
            )
        by_number[_number(key)] = state
    return order, list(groups), by_number


def _number(key: Any) -> Any:
    """A parameter's number: JSON makes strings of them."""
    return int(key) if isinstance(key, str) and key.isdecimal() else key


def group_from_torch(
    group: Mapping[str, Any], where: str, arguments: Arguments, own: Mapping[str, Any]
) -> dict[str, Any]:
    """A saved group, of torch's too, as the NumPy classes have it, without its parameters.

    Raises
    ------
    ValueError
        A hyper-parameter is missing. (torch's groups lack those that torch does not know: they stay as in `own`.)
    """
    of_torch = not _HOW.isdisjoint(group) or "maximize" not in group  # which only torch's Muon lacks
    group = {key: value for key, value in group.items() if key not in {"params", _STORED, *DRAWN, *_HOW}}
    missing = {"lr"} if of_torch else set(arguments.defaults)
    if not missing <= group.keys():
        raise ValueError(
            f"{where}: found {sorted(group)}, expected all hyper-parameters{differing(group, {*missing, *group})}"
        )
    flag = group.get("decoupled_weight_decay")
    if arguments.decoupled:
        group.pop("decoupled_weight_decay", None)
    elif isinstance(flag, bool):
        decay = group.get("weight_decay", 0.0)
        group |= {"weight_decay": 0.0 if flag else decay, "decoupled_weight_decay": decay if flag else 0.0}
    return {key: _plain(value) if key in arguments.defaults else value for key, value in group.items()}


def state_from_torch(state: Mapping[str, Any], counted: bool) -> dict[str, Any]:
    """A parameter's state of torch's class as the NumPy class has it; one that is not `counted` tells only whether it
    has begun.
    """
    state = {key: value for key, value in state.items() if value is not None}
    return {"step": 1, **state} if state and not counted else state


def _plain(value: Any) -> Any:
    """A tensor of one element as a number, a list as a tuple."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    try:
        return value.item() if hasattr(value, "item") else value
    except (TypeError, ValueError, RuntimeError):  # of several elements
        return value


def step_count(value: Any, where: str, bits: int = 62) -> int:
    """A saved step count of so many `bits`, checked: torch's are floats.

    Raises
    ------
    TypeError, ValueError
        It is no whole number, or one that no count can be.
    """
    expected = f"a number >= 0, whole and below 2**{bits}"
    count, number = as_int(value), as_float(value)
    if count is None and number is None:
        raise wrong_type(where, value, expected)
    if count is None and number is not None and number.is_integer():
        count = int(number)
    if count is None or not 0 <= count < 2**bits:
        raise wrong_value(where, value, expected)
    return count


def converted_state(
    value: Any, own: Any, shape: tuple[int, ...], param: Array, positive: bool, where: str
) -> np.ndarray | Any:
    """A saved state as it is to be written into an array: its values, stored as that array stores them.

    Parameters
    ----------
    value : array, or nested list of numbers
        In floats of any kind, or in 8-bit blocks.
    own : array
        The one to be written.
    shape : tuple of int
        The state's shape where it is not in blocks.
    param : Array
        The parameter.
    positive : bool
        True for states that are never negative.
    where : str
        What the state is called in messages.

    Raises
    ------
    TypeError, ValueError
        The value is of another shape, or in no floats, or beyond what the array can hold.
    """
    if is_tensor(value) and is_tensor(own) and (value.dtype, value.shape) == (own.dtype, own.shape):
        return detached(value)  # on its device
    array, found = view(own, where), _array_of(value, where)
    dtype, in_blocks = view(found, where).dtype, array.dtype == np.uint8
    blocks = (*shape[: max(0, len(shape) - len(param.shape))], block_bytes(param.size))
    from_bytes = dtype == np.uint8 and found.shape == blocks
    if not from_bytes:
        if found.shape != shape:
            expected = blocks if dtype == np.uint8 else shape
            raise ValueError(f"{where}: found shape {found.shape}, expected {expected}")
        integers = dtype.kind in "iu" and not hasattr(value, "dtype")  # as JSON may have them
        if dtype not in CODES and dtype.kind != "f" and not integers:
            raise TypeError(f"{where}: found dtype {found.dtype}, expected floats, or bytes of shape {blocks}")
    if from_bytes == in_blocks and (in_blocks or dtype == array.dtype):
        return same_library(np.asarray(found, order="C"), own)
    values = from_blocks(found, positive, param) if from_bytes else found
    with ieee_arithmetic(), np.errstate(over="ignore", invalid="ignore"):
        if in_blocks:
            values = values.astype(np.float32)
            if not np.isfinite(values).all():
                raise ValueError(f"{where}: found infinity or NaN, expected numbers that 8-bit blocks can hold")
            return same_library(to_blocks(values, positive, param), own)
        converted = cast(np.asarray(values, order="C"), own, array.dtype)
        if (np.isfinite(values) & ~np.isfinite(floats_of(view(converted, where)))).any():
            raise ValueError(f"{where}: found numbers beyond what this optimizer's {dtype_name(array.dtype)} can hold")
    return converted


def _array_of(value: Any, where: str) -> np.ndarray:
    """A saved value's elements on the CPU."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    if hasattr(value, "dtype"):
        array = view(detached(value), where)
        return floats_of(array) if array.dtype == BFLOAT16 else to_host(array)
    try:
        return np.asarray(value)
    except ValueError:  # rows of different lengths
        raise TypeError(f"{where}: found {type(value).__name__}, expected an array") from None
