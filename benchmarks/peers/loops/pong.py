"""Transition and network settings that all libraries in the comparison share."""

from __future__ import annotations

CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Output channels, kernel size and stride of each convolution."""
STREAM_WIDTH = 512
"""Units of the hidden layer, in each dueling stream."""
STACK, N_STEP, DISCOUNT = 4, 3, 0.99
