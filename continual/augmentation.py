"""Images seen a little differently each time."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


def jittered(
    x: Tensor,
    generator: torch.Generator,
    *,
    degrees: float = 15.0,
    scale: float = 0.1,
    shear: float = 0.2,
    shift: float = 0.1,
) -> Tensor:
    """Each image (n, c, h, w) turned, stretched, sheared and moved at random, sampled bilinearly.

    Args:
        x: images; what comes in from outside has the least value in `x`.
        generator: draws one transformation an image, on the CPU.
        degrees: largest angle, either way.
        scale: largest relative change of height and of width.
        shear: largest shear, as the tangent of its angle.
        shift: largest shift, as a share of half the image's side.
    """

    def around(*size: int) -> Tensor:
        return torch.rand(x.shape[0], *size, generator=generator) * 2 - 1

    angle, stretch = around() * math.radians(degrees), 1 + around(2) * scale
    slant, move = around() * shear, around(2) * shift
    first = torch.stack([angle.cos() * stretch[:, 0], slant - angle.sin(), move[:, 0]], 1)
    second = torch.stack([angle.sin(), angle.cos() * stretch[:, 1], move[:, 1]], 1)
    grid = affine_grid(torch.stack([first, second], 1).to(x), list(x.shape), align_corners=False)
    background = x.min()
    return grid_sample(x - background, grid, align_corners=False) + background
