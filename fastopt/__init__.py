"""Optimizer updates at the speed of memory, on any array, with the same bits on every backend.

Public is what ``dir(fastopt)`` lists, and the modules ``distributed``, ``functional``, ``hogwild``, ``numba``,
``schedules``, ``torch``, ``training`` and ``trajectories``, each with what its ``dir()`` lists. The docstrings of all
other modules begin with "Internal": what is in them may change in any version.
"""

from __future__ import annotations

from importlib import import_module
from importlib.machinery import PathFinder

from ._version import __version__ as __version__

TYPE_CHECKING = False  # as `typing` has it, which NumPy loads, but this need not
if TYPE_CHECKING:
    from typing import Any

#: Where names are from that are not classes of the rule table, which are from `optimizers`.
_HOMES = {
    "": ["functional", "schedules"],
    "backends.choice": ["available_backends", "use_backend"],
    "binding.norms": ["clip_grad_norm_", "global_norm"],
    "binding.sparse": ["RowSparse"],
    "errors": ["BackendUnavailable"],
    "info": ["get_include", "get_library", "show_config"],
    "jobs.noise": ["GradientNoise"],
    "optimizers": ["Optimizer", "Plan"],
    "rules": ["RULES", "Rule"],
    "schedules": ["Demon"],
    "settings": ["get_num_threads", "set_num_threads"],
    "statedict": ["flatten_state_dict", "torch_state_dict", "unflatten_state_dict"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load what is asked for: all of it takes longer to load than NumPy, and no script uses all."""
    home = _HOME_OF.get(name)
    if home:
        return globals().setdefault(name, getattr(import_module(f"fastopt.{home}"), name))
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module 'fastopt' has no attribute {name!r}")
    if PathFinder.find_spec(f"fastopt.{name}", __path__):
        return import_module(f"fastopt.{name}")
    from .optimizers import EVERY_CLASS  # from the rule table, which type checkers do not run

    if name in EVERY_CLASS:
        return globals().setdefault(name, EVERY_CLASS[name])
    if name == "__all__":
        return globals().setdefault(name, _public())
    from .checks import did_you_mean

    raise AttributeError(f"module 'fastopt' has no attribute {name!r}{did_you_mean(name, _public())}")


def _public() -> list[str]:
    from .optimizers import EVERY_CLASS

    return sorted([*EVERY_CLASS, *_HOME_OF, "__version__"])


def __dir__() -> list[str]:
    return _public()
