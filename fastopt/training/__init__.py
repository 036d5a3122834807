"""Training around the update: batches, curricula, early stopping, batch normalization, gradient checks, averages."""

from .averages import SWA, Lookahead, use_average
from .batch_norm import BatchNorm
from .curriculum import Curriculum
from .early_stopping import EarlyStopping
from .gradient_check import GradientCheck, check_gradient
from .minibatches import minibatches

__all__ = [
    "SWA",
    "BatchNorm",
    "Curriculum",
    "EarlyStopping",
    "GradientCheck",
    "Lookahead",
    "check_gradient",
    "minibatches",
    "use_average",
]


def __dir__() -> list[str]:
    return sorted(__all__)
