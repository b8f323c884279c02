"""The largest entries of an outer product a bᵀ, without a look at all of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparse_core.draws import among

SURPLUS = 0.05  # share of candidates beyond those that are needed at which the search for a threshold ends
HALVINGS = 64  # of the threshold's range; only equal products need as many
ROOM = 1 << 20  # candidates that are looked at however few are needed


def largest_products(a: Tensor, b: Tensor, count: int, blocked: Tensor) -> Tensor | None:
    """Flat positions i · len(b) + j, ascending, of the `count` largest aᵢ bⱼ outside `blocked`, or None.

    Exact, in O(n log n) for n = count + len(blocked) + len(a) + len(b): a threshold is bisected that enough products
    reach, in every row those of the largest b. None where that does not pay or cannot be exact: look at all of them.

    Args:
        a: (rows,) finite numbers ≥ 0; for any others the answer is None.
        b: (columns,) of the same kind.
        count: how many; equal products are taken from the lowest position on.
        blocked: flat positions never taken, ascending and distinct.
    """
    wanted = count + blocked.numel()
    if count == 0 or 2 * wanted > a.numel() * b.numel() or not (_are_magnitudes(a) and _are_magnitudes(b)):
        return None
    ordered, order = b.sort()
    threshold = _threshold(a, ordered, wanted)
    kind = torch.finfo(torch.promote_types(a.dtype, b.dtype))
    if threshold is None or threshold < kind.tiny:
        return None
    # A product and the quotient that stands for it are rounded: whatever reaches `sure` is among these.
    reaching, sure = _reaching(a, ordered, threshold * (1 - 8 * kind.eps)), threshold * (1 - 4 * kind.eps)
    if int(reaching.sum()) > 2 * wanted + ROOM:
        return None
    row = torch.arange(a.numel()).repeat_interleave(reaching)
    rank = torch.arange(row.numel()) - (reaching.cumsum(0) - reaching)[row]
    column = order.flip(0)[rank]
    positions, products = row * b.numel() + column, a[row] * b[column]
    vacant = ~among(positions, blocked)
    positions, products = positions[vacant], products[vacant]
    if products.numel() < count or (least := products.topk(count).values[-1]) < sure:
        return None
    above, level = positions[products > least], positions[products == least].sort().values
    return torch.cat([above, level[: count - above.numel()]]).sort().values


def _are_magnitudes(numbers: Tensor) -> bool:
    return bool((torch.isfinite(numbers) & (numbers >= 0)).all())


def _threshold(a: Tensor, ordered: Tensor, wanted: int) -> float | None:
    """A number > 0 that at least `wanted` products reach, few more if that is possible; None if too few are positive.

    `ordered` is b, ascending.
    """
    left, right = a[a > 0], ordered[ordered > 0]
    if left.numel() * right.numel() < wanted:
        return None
    low = math.log(float(left.min())) + math.log(float(right[0]))
    high = math.log(float(left.max())) + math.log(float(right[-1]))
    low -= 1e-9 * (1 + abs(low))  # every positive product reaches it
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        reach = int(_reaching(a, ordered, math.exp(middle)).sum())
        if reach < wanted:
            high = middle
            continue
        low = middle
        if reach <= (1 + SURPLUS) * wanted:
            break
    return math.exp(low)


def _reaching(a: Tensor, ordered: Tensor, threshold: float) -> Tensor:
    """How many products of every row reach this threshold, but for rounding: (rows,) int64."""
    return ordered.numel() - torch.searchsorted(ordered.double(), threshold / a.double())
