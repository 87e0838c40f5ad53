"""Pong's transitions and network, as all who learn it here have them."""

from __future__ import annotations

CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Output channels, kernel and stride of each."""
STREAM_WIDTH = 512
"""Of the layer after them, in each dueling stream."""
STACK, N_STEP, DISCOUNT = 4, 3, 0.99
