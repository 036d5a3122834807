"""Internal. Saving and loading of the classes for arrays: their state dicts, and single states."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from .arrays.libraries import assign, numpy_of, view
from .arrays.libraries.torch import is_tensor
from .binding.options import Arguments
from .binding.owned import Owned
from .binding.structure import PARAM_NAMES
from .checks import check_number, did_you_mean, differing
from .foreign import from_prodigyopt, of_prodigyopt
from .grouping import Grouped
from .statedict import (
    COMPANIONS,
    converted_state,
    group_from_torch,
    read_state_dict,
    restored,
    saved_value,
    schedules_in,
    state_from_torch,
    step_count,
    taken_value,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class Saved(Grouped):
    """The part of the classes for arrays that saves: state dicts, states in files, copies and pickles."""

    _arguments: ClassVar[Arguments]
    _execution: dict[str, Any]  # what else the class was called with

    def state_dict(self) -> dict[str, Any]:
        """Everything that a training needs to go on bit for bit, in torch's layout.

        Returns
        -------
        dict
            ``state``: for each parameter's index its state; ``param_groups``: hyper-parameters, with the indices of
            the parameters as ``params``. Arrays are the optimizer's own, not copies. Those of `fastopt.schedules` are
            plain data; of another schedule that pickle does not find by name, as a lambda, a pickle holds the name.
            Groups of an optimizer with noise have ``gradient_noise``, the tuple (eta, gamma, seed), and those of one
            with ``rounding="stochastic"`` its seed as ``stochastic_rounding``.

        Raises
        ------
        ValueError
            Gradients are accumulated for a step that is to come: it has no place for them.
        """
        if self._owned.sums.pending:
            raise ValueError("grads: found some accumulated, expected none in a state dict or a copy: step() before it")
        own = self._arguments.defaults
        groups = [
            {
                **{key: saved_value(value) if key in own else value for key, value in group.items() if key != "params"},
                **storage.drawn(),
                "params": list(span),
            }
            for (_, _, group, span), storage in zip(self._owned.groups.each(), self._owned.groups.storages, strict=True)
        ]
        return {"state": {i: dict(state) for i, state in enumerate(self._owned.states)}, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned, here or in another process, or that of torch's class of that name.

        States of another precision are converted to this optimizer's: float64, float32, bfloat16, float16 and 8-bit
        blocks, each value to the nearest. What ``rounding`` keeps beside a parameter (``master``, ``compensation``)
        begins anew where the state dict lacks it, from the parameter as it is now, and is left out where this optimizer
        has no use for it. Gradients that were accumulated are forgotten.

        Noise and stochastic rounding are this optimizer's, as it was constructed. Groups that tell of other ones are
        refused, for the run would be another; those without these entries, as torch's, tell of none. Rounding to a
        ``master`` or with a ``compensation`` may take the place of stochastic rounding.

        Parameters
        ----------
        state_dict : mapping
            In torch's layout. A parameter without state is as before its first step. Numbers of parameters may be
            strings, as JSON has them; torch's SGD counts no steps, and has made one here.

        Raises
        ------
        TypeError, ValueError
            Groups, parameters, state names, shapes, dtypes, noise or stochastic rounding are not this optimizer's, or a
            number is none that it can be; nothing has changed.
        """
        _load(self._owned, state_dict)

    def sync(self) -> None:
        """Waits until states in files are on the disk, so that even a power failure leaves them whole.

        A process that is killed needs no such wait. Without ``state_dir`` it does nothing.

        Raises
        ------
        OSError
            The disk cannot be written.
        """
        if self._owned.files is not None:
            self._owned.files.sync()

    def close(self) -> None:
        """Syncs states in files, and leaves their directory to whoever takes it up next; this optimizer is done then.

        It happens at the end of a ``with`` block, when the optimizer is garbage, and when the process ends. Without
        ``state_dir`` it does nothing.

        Raises
        ------
        OSError
            The disk cannot be written.
        """
        if self._owned.files is not None:
            self._owned.files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        for group in self._owned.groups.mappings:
            for key in self._arguments.defaults:
                if unpickled := schedules_in(saved_value(group[key])):
                    raise TypeError(
                        f"{key}: found {unpickled[0]!r}, expected what pickle finds by name, a function of a module or "
                        "an object such as fastopt.Demon, to pickle an optimizer; its state_dict() can be pickled"
                    )
        return _rebuilt, self._parts()

    def __copy__(self) -> Any:
        return _rebuilt(*self._parts())

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self)] = copied = _rebuilt(*copy.deepcopy(self._parts(), memo))
        return copied

    def _parts(self) -> tuple[Any, ...]:
        """Return what copies and pickles are built from, over copied arrays, for no address is that of a copy."""
        structure, mappings = self._owned.structure, self._owned.groups.mappings
        structures = structure if isinstance(structure, list) else [structure]
        groups = []
        for group, own in zip(mappings, structures, strict=True):
            arrays = iter(group["params"])
            groups.append({**group, "params": next(arrays) if own is None else own.build(arrays)})
        params = groups if isinstance(structure, list) else groups[0]["params"]
        options = {  # for further groups: what pickle cannot hold is as the first group has it
            key: groups[0][key] if groups and schedules_in(saved_value(value)) else value
            for key, value in self._owned.groups.options.items()
        }
        return type(self), params, options, self._execution, self.state_dict()


def _rebuilt(cls: Any, params: Any, options: dict, execution: dict, state_dict: dict) -> Any:
    optimizer = cls(params, **options, **execution)
    optimizer.load_state_dict(state_dict)
    return optimizer


def _load(owned: Owned, state_dict: Mapping[str, Any]) -> None:
    """Takes over a state dict: all of it, once it is checked, or nothing.

    Raises
    ------
    TypeError, ValueError
        Something is not what it must be; the message names it.
    """
    groups, arguments = owned.groups, owned.groups.arguments
    order, saved_groups, states = read_state_dict(state_dict, [len(span) for span in groups.spans])
    if groups.of and owned.rule_of(0).name == "prodigy" and of_prodigyopt(saved_groups):
        shapes = [param.shape for param in owned.views]
        saved_groups, states = from_prodigyopt(order, saved_groups, states, shapes)
    taken = []
    for g, (saved, own) in enumerate(zip(saved_groups, groups.mappings, strict=True)):
        where = f"state_dict['param_groups'][{g}]"
        groups.storages[g].check_drawn(saved, where)
        values = group_from_torch(saved, where, arguments, own)
        for key in values:
            arguments.check_key(key, where)
            if key in arguments.defaults:
                values[key] = restored(values[key], own[key], f"{where}[{key!r}]")
        _check_paths(values, own, where)
        values = {**own, **values}
        taken.append((values, groups.row(g, values)))
    writes = []
    for i, index in enumerate(order):
        where = f"state_dict['state'][{index!r}]"
        state = state_from_torch(states.get(index, {}), arguments.counted)
        writes.append(_read_state(owned, i, state, where) if state else _fresh_state(owned, i, owned.states[i]))
    _leave_to_others(owned, writes, [not states.get(index) for index in order])
    _write_states(owned, writes)
    owned.sums.clear()
    for g, (values, row) in enumerate(taken):
        own = groups.mappings[g]
        groups.replace(g, {key: taken_value(value, own.get(key)) for key, value in values.items()}, row)


def _leave_to_others(owned: Owned, writes: Sequence[dict[str, Any]], fresh: Sequence[bool]) -> None:
    """Have parameters without a saved state write no state that all tensors share, if others have it."""
    begun = {owned.rule_of(i).name for i, new in enumerate(fresh) if not new}
    for i, new in enumerate(fresh):
        rule = owned.rule_of(i)
        if new and rule.over_all and rule.name in begun:
            for name in rule.singles:
                del writes[i][name]


def _check_paths(saved: Mapping[str, Any], own: Mapping[str, Any], where: str) -> None:
    """Check that nested parameters of a saved group have the paths of this one's.

    Raises
    ------
    ValueError
        They have others.
    """
    found, expected = (list(group.get(PARAM_NAMES) or ()) for group in (saved, own))
    if found and expected and found != expected:
        differences = differing(set(found), set(expected)) or ", but in another order"
        raise ValueError(f"{where}[{PARAM_NAMES!r}]: found other paths than params has{differences}")


def write_state(owned: Owned, i: int, changes: Mapping[str, Any]) -> None:
    """Writes values into some of a parameter's states: all of them, once they are checked, or none.

    Raises
    ------
    TypeError, ValueError
        One is not what it must be; the message names it.
    """
    for name in changes:
        if name not in owned.states[i]:
            known = list(owned.states[i])
            raise ValueError(f"state[{i}]: found {name!r}, expected one of {known}{did_you_mean(name, known)}")
    writes: list[dict[str, Any]] = [{} for _ in owned.states]
    writes[i] = _converted(owned, i, changes, f"state[{i}]")
    _write_states(owned, writes)


def _read_state(owned: Owned, i: int, saved: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A parameter's whole state as it is to be written, from a saved one."""
    own = owned.states[i]
    fresh = _fresh_state(owned, i, own.keys() & COMPANIONS)
    found, expected = saved.keys() - COMPANIONS, own.keys() - COMPANIONS
    if found != expected:
        raise ValueError(f"{where}: found {sorted(saved)}, expected {sorted(expected)}{differing(found, expected)}")
    kept = {name: value for name, value in saved.items() if name in own}
    return {**fresh, **_converted(owned, i, kept, where)}


def _fresh_state(owned: Owned, i: int, names: Iterable[str]) -> dict[str, Any]:
    """Some of a parameter's states as before its first step."""
    dtypes = {name: view(owned.states[i][name], name).dtype for name in names}
    return {name: 0 if name == "step" else owned.initial(i, name, dtype) for name, dtype in dtypes.items()}


def _converted(owned: Owned, i: int, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values for some of a parameter's states as they are to be written, checked."""
    rule, param = owned.rule_of(i), owned.views[i]
    converted: dict[str, Any] = {}
    for name, value in values.items():
        own, called = owned.states[i][name], f"{where}[{name!r}]"
        if name == "step":
            converted[name] = step_count(value, called)
        elif name in rule.scalars:
            converted[name] = check_number(called, value)
        else:
            shape = rule.state_shape(name, param.shape, owned.copies_of(i))
            converted[name] = converted_state(value, own, shape, param, name in rule.positive, called)
    return converted


def _write_states(owned: Owned, writes: Sequence[Mapping[str, Any]]) -> None:
    """Sets states, wherever they are, to values that have been checked."""
    files = owned.files

    def write() -> None:
        for i, values in enumerate(writes):
            for name, value in values.items():
                own = owned.states[i][name]
                if files is None or not own.ndim:
                    assign(own, value)
                else:
                    files.write(i, name, numpy_of(value) if is_tensor(value) else value)

    write() if files is None else files.update(write)
