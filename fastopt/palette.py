"""Internal. Colours, dashes and markers of every picture, told apart on light and dark pages and by the colour-blind.

Each colour has a contrast of at least 2.9 with white and with a dark page. Each two stay apart in the simulations of
protanopia, deuteranopia and tritanopia by Machado, Oliveira and Fernandes (2009); a test measures both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple
from zlib import crc32

from .errors import BackendUnavailable, install_command

#: Neutral grey: text, axes, ceilings.
GREY = "#7d858f"

#: Colours of lines and bars, those that are easiest to tell apart first.
COLOURS = ("#2a85d8", "#e0731d", "#b81868", "#7048c0", "#286888", "#9c9474", "#905000", "#a86848")

#: Dashes of lines: the next for each round through the colours.
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 3)),
    (0, (1.5, 2)),
    (0, (6, 2, 1.5, 2)),
    (0, (10, 2)),
    (0, (8, 2, 1.5, 2, 1.5, 2)),
)
_MARKERS = "os^vDPX*<>ph"
_HATCHES = ("", "////", "....", "xxxx", "----", "++++")

_TINTED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
#: Settings of matplotlib for a picture on a transparent ground.
STYLE: Any = dict.fromkeys(_TINTED, GREY) | {
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "fastopt",
    "savefig.transparent": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


class Look(NamedTuple):
    """The look of one line or bar.

    Attributes
    ----------
    colour : str
        Hexadecimal, as ``#2a85d8``.
    dashes : str or tuple
        matplotlib's line style.
    marker : str
        matplotlib's marker.
    hatch : str
        matplotlib's hatch of bars.
    """

    colour: str
    dashes: Any
    marker: str
    hatch: str


def look(k: int) -> Look:
    """The k-th look: colours first, then dashes."""
    turn = k // len(COLOURS)
    return Look(
        COLOURS[k % len(COLOURS)],
        DASHES[turn % len(DASHES)],
        _MARKERS[k % len(_MARKERS)],
        _HATCHES[turn % len(_HATCHES)],
    )


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name, in order."""
    return {name: look(k) for k, name in enumerate(names)}


# Each column is one colour: kin below each other. A rule keeps its place whatever is added.
_RULES = looks(
    (
        *("sgd", "adam", "momentum", "rmsprop", "adagrad", "nesterov", "adadelta", "amsgrad"),
        *("aggmo", "adamw", "qhm", "rmsprop_momentum", "ftrl", "nadam", "adabound", "adamw_amsgrad"),
        *("adamax", "qhadam", "rmsprop_centered", "rmsprop_centered_momentum"),
        *("rowwise_adagrad", "lion", "amsbound", "radam"),
        *("asgd", "adabelief", "signsgd", "rprop", "adan", "ademamix"),
        *("schedule_free_sgd", "schedule_free_adamw", "lars", "lamb", "muon", "novograd"),
        *("swats", "adaptive_revision", "adafactor", "swats_over_all", "prodigy"),
        *("dc_asgd", "dc_asgd_adaptive"),
    )
)


def rule_look(name: str) -> Look:
    """The look of a rule, the same in every picture.

    Parameters
    ----------
    name : str
        The rule's name. One that has no place here gets one that follows from its name.

    Examples
    --------
    >>> rule_look("adam").colour
    '#e0731d'
    """
    return _RULES.get(name) or look(crc32(name.encode()) % (len(COLOURS) * len(DASHES)))


def load_matplotlib() -> None:
    """Imports matplotlib, or says how to install it.

    Raises
    ------
    BackendUnavailable
        It is not here.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        needed = f"no matplotlib here, which draws pictures; install it: {install_command('show')}"
        raise BackendUnavailable(needed) from None
