"""Training around the update: batches, curricula, early stopping, batch normalization, gradient checks, averages."""

from .early_stopping import EarlyStopping
from .minibatches import minibatches

__all__ = ["EarlyStopping", "minibatches"]
