"""Trajectories: the paths of optimizers on objectives of two parameters, as arrays, tables and pictures.

``fastopt show`` is this on the command line. Data are computed by fastopt's kernels; matplotlib draws them, and is
imported when something is drawn.

Examples
--------
>>> import fastopt.trajectories as trajectories
>>> scene = trajectories.ravine(("sgd", "momentum"), steps=150)
>>> scene.tracks[1].points.shape
(151, 2)
>>> print(scene.table())
| optimizer | lr | steps to within 1e-3 of the minimum | loss after 150 steps |
|---|---|---|---|
| sgd | 0.0395 | did not | 0.013 |
| momentum | 0.0395 | 149 | 5.8e-06 |
>>> trajectories.save(scene, "ravine.gif")  # doctest: +SKIP
"""

from .claims import CLAIMS, Claim, claims_table, swats
from .descent import ELEMENTWISE, LRS, Track, descend, tracks, tuned
from .drawing import FORMATS, page, save, show
from .objectives import BEALE, RAVINE, SADDLE, Objective
from .scenes import SCENES, Arrow, Scene, beale, fluctuation, loss, nag, ravine, saddle

__all__ = [
    "BEALE",
    "CLAIMS",
    "ELEMENTWISE",
    "FORMATS",
    "LRS",
    "RAVINE",
    "SADDLE",
    "SCENES",
    "Arrow",
    "Claim",
    "Objective",
    "Scene",
    "Track",
    "beale",
    "claims_table",
    "descend",
    "fluctuation",
    "loss",
    "nag",
    "page",
    "ravine",
    "saddle",
    "save",
    "show",
    "swats",
    "tracks",
    "tuned",
]


def __dir__() -> list[str]:
    return sorted(__all__)
