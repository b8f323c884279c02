"""Images of no class, made from a task's own images alone: what a one-vs-rest head learns to refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from sparse_core.registry import Registry

Recipe = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Two independent draws of images (n, c, h, w), background zero, and a generator -> outliers (n, c, h, w)."""

OUTLIERS: Registry[Recipe] = Registry("kind of outlier")


def pseudo_outliers(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` outliers (count, c, h, w), every kind in turn alike, from images x (n, c, h, w).

    Raises:
        ValueError: for samples that are no images.
    """
    if x.dim() != 4 or min(x.shape[2:]) < 4:
        raise ValueError(f"outliers are made from images (n, c, h, w) of 4×4 or more, got shape {tuple(x.shape)}")
    background = x.min()
    made = [x[:0]]
    shares = [count * (index + 1) // len(OUTLIERS) - count * index // len(OUTLIERS) for index in range(len(OUTLIERS))]
    for recipe, share in zip(OUTLIERS.values(), shares, strict=True):
        if not share:
            continue
        rows = torch.randint(x.shape[0], (2, share), generator=generator)
        first, second = (x.index_select(0, row.to(x.device)) - background for row in rows)
        made.append(recipe(first, second, generator))
    return torch.cat(made) + background


@OUTLIERS.register("half")
def halves(a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    """Two images joined at a straight line of any angle, near the middle."""
    angle = _uniform(len(a), 0, 2 * math.pi, generator)[:, None, None]
    offset = _uniform(len(a), -0.3, 0.3, generator)[:, None, None]
    rows, columns = (torch.linspace(-1 + 1 / side, 1 - 1 / side, side) for side in a.shape[2:])
    first = angle.cos() * columns + angle.sin() * rows[:, None] > offset
    return torch.where(first[:, None].to(a.device), a, b)


@OUTLIERS.register("blobs")
def blobs(a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    """Two images joined along smooth random borders."""
    return torch.where(_flow(a, 1, generator) > 0, a, b)


@OUTLIERS.register("warped blobs")
def warped_blobs(a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    """An image and a warped one, joined along smooth random borders."""
    return torch.where(_flow(a, 1, generator) > 0, a, warped(b, a, generator))


@OUTLIERS.register("warped")
def warped(a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    """An image turned by 23° or more, perhaps mirrored, stretched, sheared and moved."""
    return _warp(a, _affine(len(a), 0.4, generator))


@OUTLIERS.register("elastic")
def elastic(a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    """An image warped by any angle, and elastically."""
    return _warp(a, _affine(len(a), 0.0, generator), 0.2 * _flow(a, 2, generator))


@OUTLIERS.register("overlay")
def overlaid(a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    """An image and a warped one on top of each other."""
    return torch.maximum(a, warped(b, a, generator))


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _affine(count: int, least: float, generator: torch.Generator) -> Tensor:
    """Affine maps (n, 2, 3): a turn of at least `least` radians, mirrored or not, stretched, sheared and moved."""
    angle = _uniform(count, least, 2 * math.pi - least, generator)
    mirror = torch.randint(2, (count,), generator=generator) * 2 - 1
    wide, high = mirror * _uniform(count, 0.8, 1.4, generator), _uniform(count, 0.8, 1.4, generator)
    shear = _uniform(count, -0.4, 0.4, generator)
    right, down = (_uniform(count, -0.15, 0.15, generator) for _ in range(2))
    cos, sin = angle.cos(), angle.sin()
    first = torch.stack([cos * wide, (cos * shear - sin) * high, right], 1)
    second = torch.stack([sin * wide, (sin * shear + cos) * high, down], 1)
    return torch.stack([first, second], 1)


def _warp(a: Tensor, maps: Tensor, flow: Tensor | None = None) -> Tensor:
    grid = affine_grid(maps.to(a), list(a.shape), align_corners=False)
    if flow is not None:
        grid = grid + flow.permute(0, 2, 3, 1)
    return grid_sample(a, grid, align_corners=False)


def _flow(a: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """Smooth noise (n, channels, h, w): normal on a 4×4 grid, bicubic between."""
    coarse = torch.randn(len(a), channels, 4, 4, generator=generator).to(a)
    return interpolate(coarse, size=a.shape[2:], mode="bicubic", align_corners=True)
