"""Training around the update: batches, curricula, early stopping, batch normalization, gradient checks, averages."""

from .minibatches import minibatches

__all__ = ["minibatches"]
