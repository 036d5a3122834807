"""Sizes of blocks of 256 8-bit floats with a float32 scale each."""

from __future__ import annotations

SIGNED, POSITIVE = 4, 5  # blocks of 8-bit floats: of states that may be negative, and of those that never are
QUANT_BLOCK = 256  # elements that share a scale
BLOCK_BYTES = QUANT_BLOCK + 4


def block_bytes(size: int) -> int:
    """Return the size in bytes of n elements in blocks."""
    return -(-size // QUANT_BLOCK) * BLOCK_BYTES
