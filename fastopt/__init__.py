"""Optimizer updates at the speed of memory, on any array, with the same bits on every backend.

Public is what ``dir(fastopt)`` lists, and the modules ``distributed``, ``functional``, ``hogwild``, ``numba``,
``schedules``, ``torch``, ``training`` and ``trajectories``, each with what its ``dir()`` lists. The docstrings of all
other modules begin with "Internal": what is in them may change in any version.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import functional
from ._version import __version__
from .backends.choice import available_backends, use_backend
from .binding.norms import clip_grad_norm_, global_norm
from .binding.sparse import RowSparse
from .checks import did_you_mean
from .errors import BackendUnavailable
from .info import get_include, get_library, show_config
from .jobs.noise import GradientNoise
from .optimizers import EVERY_CLASS as _classes
from .optimizers import Optimizer, Plan
from .rules import RULES, Rule
from .settings import get_num_threads, set_num_threads
from .statedict import flatten_state_dict, torch_state_dict, unflatten_state_dict

if TYPE_CHECKING:
    from . import schedules
    from .schedules import Demon

__all__ = [
    *_classes,
    "RULES",
    "BackendUnavailable",
    "Demon",
    "GradientNoise",
    "Optimizer",
    "Plan",
    "RowSparse",
    "Rule",
    "__version__",
    "available_backends",
    "clip_grad_norm_",
    "flatten_state_dict",
    "functional",
    "get_include",
    "get_library",
    "get_num_threads",
    "global_norm",
    "schedules",
    "set_num_threads",
    "show_config",
    "torch_state_dict",
    "unflatten_state_dict",
    "use_backend",
]


def __getattr__(name: str) -> Any:  # the classes come from the rule table, which type checkers do not run
    if name in _classes:
        return globals().setdefault(name, _classes[name])
    if name in ("schedules", "Demon"):  # whose classes take a while to make, and are for few
        module = import_module("fastopt.schedules")
        return module if name == "schedules" else module.Demon
    raise AttributeError(f"module 'fastopt' has no attribute {name!r}{did_you_mean(name, __all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
