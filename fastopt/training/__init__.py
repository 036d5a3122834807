"""Training around the update: batches, curricula, early stopping, batch normalization, gradient checks, averages."""

from .batch_norm import BatchNorm
from .early_stopping import EarlyStopping
from .gradient_check import GradientCheck, check_gradient
from .minibatches import minibatches

__all__ = ["BatchNorm", "EarlyStopping", "GradientCheck", "check_gradient", "minibatches"]
