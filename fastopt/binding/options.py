"""Arguments of the classes, in torch's terms, and the rule and the hyper-parameters that they choose."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import chain, combinations
from types import MappingProxyType
from typing import Any

import numpy as np

from .. import settings
from ..checks import check_number, describe, did_you_mean, wrong_type
from ..jobs.storage import StorageOptions
from ..rules import EVERY_RULE, MATRIX_RULES, RULES, Hyper, Rule, flag
from ..rules.hyper import count_copies, hyper_row

# Where a group has a rule's hyper-parameters, as an argument's name and a place in a tuple; and what it calls them.
_Places = tuple[list[tuple[str, str, int | None]], dict[str, str]]


@dataclass(frozen=True)
class Arguments:
    """The arguments of a class, and the hyper-parameters of its rules that they are.

    A *group* is a mapping of arguments to their values, as the classes' ``param_groups`` hold them.

    Attributes
    ----------
    name : str
        The class's name.
    rules : tuple of Rule
        The rules that it stands for.
    defaults : mapping
        The arguments with their defaults, ``lr`` first.
    choose : callable
        The name of the rule for a group.
    switches : mapping of str to Hyper
        The arguments that choose it.
    """

    name: str
    rules: tuple[Rule, ...]
    defaults: Mapping[str, Any]
    choose: Callable[[Mapping[str, Any]], str]
    switches: Mapping[str, Hyper]

    @property
    def decoupled(self) -> bool:
        """True where weight_decay is decoupled, and there is no other."""
        return all(rule.decoupled is not None for rule in self.rules)

    @property
    def evaluated(self) -> bool:
        """True where parameters are evaluated elsewhere than gradients are taken."""
        return any(rule.ahead is not None for rule in self.rules)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arrays that a step reads beside the gradient."""
        return self.rules[0].inputs

    def check_no_inputs(self, name: str) -> None:
        """Check that a step reads nothing beside the gradient.

        Raises
        ------
        ValueError
            It does; the message begins with `name`.
        """
        if self.inputs:
            found = f"{self.name}, which reads {', '.join(self.inputs)} beside the gradient"
            raise ValueError(f"{name}: found {found}, expected another: the step of fastopt.{self.name} takes them")

    @property
    def counted(self) -> bool:
        """True where torch's class of that name keeps a count of steps."""
        return all(rule.counted for rule in self.rules)

    def rule(self, group: Mapping[str, Any]) -> Rule:
        """The rule for a group.

        Raises
        ------
        TypeError, ValueError
            An argument that chooses it is not what it must be; the message names it.
        """
        for name, hyper in self.switches.items():
            value = group[name]
            if hyper.flag or not callable(value):
                hyper.check(name, value)
        return EVERY_RULE[self.choose(group)]

    def names(self, group: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """Hyper-parameters that a group calls otherwise than the rules, with its names: "" for one that it lacks."""
        return ()

    def values(self, rule: Rule, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        """The rule's hyper-parameters at step t, from a group's."""
        values = {}
        for name, key, place in self._places(rule, group)[0]:
            if key not in group:
                values[name] = rule.hyper[name].default
                continue
            value = group[key]
            value = value(t) if callable(value) else value
            if place is not None:
                size = rule.sizes[key]
                if not isinstance(value, (tuple, list)) or len(value) != size:
                    raise wrong_type(key, value, "a pair of numbers" if size == 2 else f"a tuple of {size} numbers")
                value = value[place]
                value = value(t) if callable(value) else value
            elif name == rule.vector and isinstance(value, (tuple, list)):
                value = tuple(beta(t) if callable(beta) else beta for beta in value)
            values[name] = value
        return values

    def complete(self, group: MutableMapping[str, Any]) -> None:
        """Sets the arguments that by default are what another is.

        Raises
        ------
        TypeError, ValueError
            The other is nothing that they can be; the message names it, for it alone was given.
        """
        if group.get("base_lr", 0) is None:
            lr, expected = group["lr"], "a finite number > 0, or a base_lr beside it"
            group["base_lr"] = check_number("lr", lr(1) if callable(lr) else lr, 0.0, above=True, expected=expected)

    def begins(self, rule: Rule, group: Mapping[str, Any]) -> dict[str, float]:
        """The numbers that states begin at, of those that do not begin at 0."""
        values = self.values(rule, group, 1) if rule.begins else {}
        return {name: float(values[key]) for name, key in rule.begins.items()}

    def copies(self, rule: Rule, group: Mapping[str, Any]) -> int:
        """Return the number of copies of its states that the rule has for a group."""
        return 1 if rule.vector is None else count_copies(rule, self.values(rule, group, 1))

    def row(self, rule: Rule, group: Mapping[str, Any], dtype: np.dtype, t: int = 1) -> np.ndarray:
        """The rule's hyper-parameters at step t, checked, as backends take them that compute in `dtype`.

        The class's arguments that this rule does not use are checked too.

        Raises
        ------
        TypeError, ValueError
            A value is no number, or outside its domain, or `dtype` cannot hold it; the message names the argument.
        """
        _, labels = self._places(rule, group)
        for key, hyper in self._idle[rule.name].items():
            value = group.get(key, hyper.default)
            hyper.check(key, value(t) if callable(value) else value)
        return hyper_row(rule, self.values(rule, group, t), labels, dtype, t)

    @cached_property
    def _idle(self) -> dict[str, dict[str, Hyper]]:
        """By each rule's name, the arguments that only other rules of the class use."""
        used = {name: hyper for rule in self.rules for name, hyper in rule.hyper.items() if name in self.defaults}
        return {
            rule.name: {name: used[name] for name in used.keys() - rule.hyper.keys() - self.switches.keys()}
            for rule in self.rules
        }

    def at_step(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        """A group's arguments as the numbers that they are at step t."""

        def number(value: Any) -> Any:
            value = value(t) if callable(value) else value
            if isinstance(value, (tuple, list)):
                return tuple(map(number, value))
            return value.item() if hasattr(value, "item") else value

        return {key: number(group[key]) for key in self.defaults}

    @cached_property
    def choices(self) -> dict[str, dict[str, Any]]:
        """The switches that choose each rule, the default first: none, or as ``{"momentum": 0.9}``."""
        values = {
            name: True if hyper.flag else hyper.names[-1] if hyper.names else 0.9
            for name, hyper in self.switches.items()
        }
        found: dict[str, dict[str, Any]] = {}
        for count in range(len(values) + 1):
            for names in combinations(values, count):
                chosen = {name: values[name] for name in names}
                try:
                    rule = self.choose({**self.defaults, **chosen})
                except ValueError:  # values that do not go together
                    continue
                found.setdefault(rule, chosen)
        return found

    def check_key(self, key: Any, where: str) -> None:
        """Check the name of a group's entry: an argument of the class, or a name of the user's own.

        Raises
        ------
        ValueError
            It is an argument of another class, or seems to be meant for one of this class.
        """
        if key in self.defaults or key == "state_dtype":
            return
        parts = set(str(key).lower().split("_"))
        within = [name for name in self.defaults if set(name.split("_")) < parts]  # as lr_scale has lr
        meant = did_you_mean(key, [name for name in self.defaults if name not in within], 0.8)
        if key in _everywhere() or meant:
            raise ValueError(f"{where}: found {key!r}, expected one of {', '.join(self.defaults)}{meant}")

    def _places(self, rule: Rule, group: Mapping[str, Any]) -> _Places:
        """Return the places in a group of the rule's hyper-parameters, and their labels."""
        renamed = self.names(group)
        found = self._known_places.get((rule.name, renamed))
        if found is None:
            own = dict(renamed)
            places = [(name, *rule.parts.get(name, (own.get(name, name), None))) for name in rule.hyper]
            labels = {name: key if place is None else f"{key}[{place}]" for name, key, place in places}
            found = self._known_places[rule.name, renamed] = places, labels
        return found

    @cached_property
    def _known_places(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], _Places]:
        """Places by the rule's name and the group's names."""
        return {}

    def signature(self, more: Mapping[str, Any] = MappingProxyType({})) -> inspect.Signature:
        """The class's signature, with `more` arguments and their defaults.

        After lr by keyword only, for a number must not land in another argument's place.
        """
        parameter = inspect.Parameter
        return inspect.Signature(
            [parameter("params", parameter.POSITIONAL_OR_KEYWORD)]
            + [parameter("lr", parameter.POSITIONAL_OR_KEYWORD, default=self.defaults["lr"])]
            + [parameter(k, parameter.KEYWORD_ONLY, default=v) for k, v in self.defaults.items() if k != "lr"]
            + [parameter(k, parameter.KEYWORD_ONLY, default=v) for k, v in more.items()]
        )

    def hypers(self) -> dict[str, list[Hyper]]:
        """Return for each argument its hyper-parameter, or those of a tuple."""
        own = {name: hyper for rule in self.rules for name, hyper in rule.hyper.items()} | dict(self.switches)
        return {
            key: [own[key]] if key in own else [x for x in own.values() if x.part_of == key] for key in self.defaults
        }


@dataclass(frozen=True)
class TorchArguments(Arguments):
    """The arguments of a class for torch, where ``decoupled_weight_decay`` is a flag: the kind of ``weight_decay``."""

    @classmethod
    def of(cls, arguments: Arguments) -> TorchArguments:
        """Make them from the arguments of the class for arrays."""
        meaning = "the decay is of the parameter itself, times lr, as AdamW's, instead of an L2 penalty"
        decoupled = {"decoupled_weight_decay": flag(arguments.decoupled, meaning)}
        return cls(
            arguments.name,
            arguments.rules,
            {**arguments.defaults, **{name: hyper.default for name, hyper in decoupled.items()}},
            arguments.choose,
            {**arguments.switches, **decoupled},
        )

    def names(self, group: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """``weight_decay`` is the one decay or the other."""
        if self.decoupled:
            return ()
        if group["decoupled_weight_decay"]:
            return ("weight_decay", ""), ("decoupled_weight_decay", "weight_decay")
        return (("decoupled_weight_decay", ""),)

    def row(self, rule: Rule, group: Mapping[str, Any], dtype: np.dtype, t: int = 1) -> np.ndarray:
        """The rule's hyper-parameters, checked, without schedules: torch has its own."""
        for key in self.defaults:
            value = group.get(key)
            for part in value if isinstance(value, (tuple, list)) else (value,):
                if callable(part):
                    raise wrong_type(key, part, "a number, which a torch.optim.lr_scheduler may change")
        return super().row(rule, group, dtype, t)


#: Arguments of every class beside hyper-parameters, with default and type. `fastopt.Optimizer` documents them.
EXECUTION: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "state_dtype": (None, "StateDtype | None"),
        "rounding": ("nearest", 'Literal["nearest", "stochastic", "kahan", "master"]'),
        "seed": (0, "SupportsIndex"),
        "first_element": (0, "SupportsIndex"),
        "ema_decay": (None, "Number | None"),
        "gradient_noise": (None, "GradientNoise | None"),
        "backend": (None, "str | None"),
        "threads": (None, "SupportsIndex | None"),
    }
)


#: Arguments about states in files, of the classes for arrays.
FILES: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {"state_dir": (None, "str | PathLike[str] | None"), "state_memory": (None, "SupportsIndex | None")}
)


@dataclass(frozen=True)
class Call:
    """A call of a class: hyper-parameters with their defaults, and the other arguments, checked.

    Attributes
    ----------
    params : any
        The parameters.
    options : dict
        Hyper-parameters.
    execution : dict
        The other arguments, as given.
    storage : StorageOptions
        Those about storage.
    backend : str or None
        The backend asked for.
    threads : int
        The threads asked for; 0: by default.
    files : dict
        Those about states in files.
    """

    params: Any
    options: dict[str, Any]
    execution: dict[str, Any]
    storage: StorageOptions
    backend: str | None
    threads: int
    files: dict[str, Any]


def check_group(cls: type, group: Mapping[str, Any], name: str) -> None:
    """Check that a group has no argument that holds for the whole optimizer, as all of storage but ``state_dtype``.

    Raises
    ------
    TypeError
        It has an argument that holds for the whole optimizer.
    """
    for key in (*EXECUTION, *FILES):
        if key in group and key != "state_dtype":
            raise TypeError(f"{name}: found {key!r} in a group, expected it as an argument of {cls.__name__}")


def read_call(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """Read and check the arguments that a class was called with.

    Raises
    ------
    TypeError, ValueError
        An argument that the class does not have, or one beside hyper-parameters that is not what it must be.
    """
    positional, required, defaults = _parameters_of(cls)
    given = dict(zip(positional, args, strict=False))
    options = {**defaults, **given, **kwargs}
    known = len(args) <= len(positional) and len(options) == len(defaults) and given.keys().isdisjoint(kwargs)
    if not known or [name for name in required if options[name] is inspect.Parameter.empty]:
        _refuse_call(cls, args, kwargs)
    params = options.pop("params")
    execution = {key: options.pop(key) for key in EXECUTION}
    files = {"directory": options.pop("state_dir", None), "memory": options.pop("state_memory", None)}
    backend, threads = execution["backend"], execution["threads"]
    return Call(
        params,
        options,
        execution,
        StorageOptions() if kwargs.keys().isdisjoint(EXECUTION) else StorageOptions.of(execution),
        None if backend is None else settings.check_backend("backend", backend),
        0 if threads is None else settings.check_threads("threads", threads),
        files,
    )


def check_training(group: Mapping[str, Any], name: str) -> None:
    """Check that a group's parameters are where gradients are taken.

    Raises
    ------
    ValueError
        They are where they are to be evaluated.
    """
    if group.get("train_mode") is False:
        raise ValueError(f"{name}: found parameters in eval mode, expected train() before a step")


@cache
def _parameters_of(cls: type) -> tuple[list[str], list[str], dict[str, Any]]:
    """The parameters of a class that can be given by position; those that must be; and all, with their defaults."""
    parameters = inspect.signature(cls).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    required = [p.name for p in parameters if p.default is p.empty]
    return positional, required, {p.name: p.default for p in parameters}


def _refuse_call(cls: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise the TypeError that says what is wrong with a call."""
    signature = inspect.signature(cls)
    for key in kwargs:
        if key not in signature.parameters:
            for rule in cls._arguments.rules:
                if key in rule.lacks:
                    found = f"{key}={describe(kwargs[key])}"
                    raise TypeError(f"{cls.__name__}: found {found}, expected none: {rule.lacks[key]}; leave it out")
            known = list(signature.parameters)
            raise TypeError(f"{cls.__name__}: found {key!r}, expected {', '.join(known)}{did_you_mean(key, known)}")
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{cls.__name__}: {error}") from None


# ---- the classes' arguments, from the rule table ----


def _choose_sgd(group: Mapping[str, Any]) -> str:
    if group["nesterov"] and not group["momentum"]:
        raise ValueError(f"nesterov: found True with momentum {group['momentum']!r}, expected a momentum > 0")
    return "nesterov" if group["nesterov"] else "momentum" if group["momentum"] else "sgd"


def _choose_rmsprop(group: Mapping[str, Any]) -> str:
    return "rmsprop" + ("_centered" if group["centered"] else "") + ("_momentum" if group["momentum"] else "")


# Classes that stand for several rules, as torch's do: the options that choose among them, and how.
_MOMENTUM = replace(RULES["momentum"].hyper["momentum"], default=0.0)
_CHOICE = flag(False, "chooses the rule, as above")
_TRAIN_MODE = flag(True, "the parameters are where gradients are taken: what ``train`` and ``eval`` change")
_SWITCHES: dict[str, tuple[tuple[str, ...], dict[str, Hyper], Callable[[Mapping[str, Any]], str]]] = {
    "SGD": (("momentum", "nesterov", "sgd"), {"momentum": _MOMENTUM, "nesterov": _CHOICE}, _choose_sgd),
    "RMSprop": (
        ("rmsprop_momentum", "rmsprop_centered_momentum", "rmsprop_centered", "rmsprop"),
        {"momentum": _MOMENTUM, "centered": _CHOICE},
        _choose_rmsprop,
    ),
    "Adam": (("adam", "amsgrad"), {"amsgrad": _CHOICE}, lambda group: "amsgrad" if group["amsgrad"] else "adam"),
    "AdamW": (
        ("adamw", "adamw_amsgrad"),
        {"amsgrad": _CHOICE},
        lambda group: "adamw_amsgrad" if group["amsgrad"] else "adamw",
    ),
    "DCASGD": (
        ("dc_asgd", "dc_asgd_adaptive"),
        {"adaptive": _CHOICE},
        lambda group: "dc_asgd_adaptive" if group["adaptive"] else "dc_asgd",
    ),
    "SWATS": (
        ("swats", "swats_over_all"),
        {"over": Hyper("tensor", "what changes over by itself: each tensor, or all together", names=("tensor", "all"))},
        lambda group: "swats_over_all" if group["over"] == "all" else "swats",
    ),
}


def _defaults(rules: Sequence[Rule], switches: Mapping[str, Hyper]) -> dict[str, Any]:
    """A class's arguments: its rules' hyper-parameters, those that torch pairs as pairs, and switches."""
    defaults: dict[str, Any] = {}
    for rule in rules:
        for name, hyper in rule.own.items():
            if hyper.part_of is None:
                defaults.setdefault(name, hyper.default)
            else:
                defaults.setdefault(
                    hyper.part_of, tuple(x.default for x in rule.own.values() if x.part_of == hyper.part_of)
                )
    return defaults | {name: hyper.default for name, hyper in {**rules[-1].common, **switches}.items()}


def _arguments(name: str) -> Arguments:
    if name in _SWITCHES:
        names, switches, choose = _SWITCHES[name]
    else:
        (only,) = (rule.name for rule in EVERY_RULE.values() if rule.optimizer == name)
        switches = {} if EVERY_RULE[only].ahead is None else {"train_mode": _TRAIN_MODE}
        names, choose = (only,), lambda group: only
    rules = tuple(EVERY_RULE[rule] for rule in names)
    if len({rule.inputs for rule in rules}) > 1:
        raise ValueError(f"{name}: found rules with different inputs, expected the same: a step is given those of all")
    return Arguments(name, rules, _defaults(rules, switches), choose, switches)


#: The arguments of every class of the table by its name.
ARGUMENTS: Mapping[str, Arguments] = MappingProxyType(
    {name: _arguments(name) for name in dict.fromkeys(rule.optimizer for rule in RULES.values())}
)
#: The arguments of every class of whole matrices by its name.
MATRIX_ARGUMENTS: Mapping[str, Arguments] = MappingProxyType(
    {rule.optimizer: _arguments(rule.optimizer) for rule in MATRIX_RULES.values()}
)


@cache
def _everywhere() -> frozenset[str]:
    """The names of all arguments of all classes."""
    classes = (*ARGUMENTS.values(), *MATRIX_ARGUMENTS.values())
    return frozenset(chain(EXECUTION, FILES, *(arguments.defaults for arguments in classes)))


__all__ = [
    "ARGUMENTS",
    "EXECUTION",
    "FILES",
    "MATRIX_ARGUMENTS",
    "Arguments",
    "Call",
    "TorchArguments",
    "check_group",
    "check_training",
    "read_call",
]
