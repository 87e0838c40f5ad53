"""Value rescaling, an alternative to reward clipping that keeps the optimal policy."""

from __future__ import annotations

import torch
from torch import Tensor

RESCALE_EPSILON = 1e-3


def rescale(values: Tensor, epsilon: float = RESCALE_EPSILON) -> Tensor:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + epsilon x (Pohlen et al., 2018, section 3.2).

    Args:
        values: x, of any shape.
        epsilon: above 0, so that h is invertible.
    """
    magnitude = values.abs()
    # sqrt(|x| + 1) - 1 = |x| / (sqrt(|x| + 1) + 1), which keeps the precision of small values
    return values / ((magnitude + 1.0).sqrt() + 1.0) + epsilon * values


def unrescale(values: Tensor, epsilon: float = RESCALE_EPSILON) -> Tensor:
    """The inverse of `rescale` (Pohlen et al., 2018, proposition A.2).

    h^-1(x) = sign(x) (((sqrt(1 + 4 epsilon (|x| + 1 + epsilon)) - 1) / (2 epsilon))^2 - 1)

    The formula subtracts nearly equal numbers. These differences are computed by multiplying with
    the conjugate, so that small values keep their precision in float32.
    """
    magnitude = values.abs()
    root = torch.sqrt(1.0 + 4.0 * epsilon * (magnitude + 1.0 + epsilon))
    # (root - 1) / (2 epsilon) - 1 = 2 (|x| + 1 + epsilon) / (root + 1) - 1. At x = 0, root is
    # 1 + 2 epsilon and the difference is 0, so it can be written as terms proportional to |x|.
    rise = 4.0 * epsilon * magnitude / (root + 1.0 + 2.0 * epsilon)
    excess = (2.0 * magnitude - rise) / (root + 1.0)
    return values.sign() * excess * (excess + 2.0)
