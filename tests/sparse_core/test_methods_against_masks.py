"""Whole methods on random layers, against a plain masked-dense NumPy version of those with a paper's text."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparse_core import GROW_RULES, PRESETS, LayerView, SparseLinear, Sparsifier, Topology, generators, sparse_layers
from sparse_core.draws import sample_distinct
from sparse_core.redistribution import apportion


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cases(count: int = 200) -> Iterator[int]:
    yield from range(count)


class Dense:
    """A layer as NumPy sees it, before a change: weight, mask, inputs, output gradients and what follows from them."""

    def __init__(self, layer: SparseLinear, inputs: Tensor, given: Tensor) -> None:
        self.weight = layer.to_dense().weight.detach().numpy().copy()
        self.mask = layer.topology.to_mask().numpy().copy()
        self.kept = self.mask.copy()  # what was there and has never gone
        self.inputs, self.given = inputs.numpy(), given.numpy()
        self.gradient = self.given.T @ self.inputs
        self.answers = np.maximum(self.inputs @ self.weight.T + layer.bias.detach().numpy(), 0)

    def weakest(self, scores: np.ndarray, count: int) -> None:
        """Take the lowest scores among what is present out of the mask."""
        present = np.flatnonzero(self.mask)
        self.mask.flat[present[np.argsort(scores.flat[present], kind="stable")[:count]]] = False
        self.kept &= self.mask

    def grow(self, scores: np.ndarray, count: int, open_: np.ndarray | None = None) -> None:
        """Put the highest scores among what is absent into the mask."""
        free = np.flatnonzero(~self.mask if open_ is None else open_ & ~self.mask)
        self.mask.flat[free[np.argsort(-scores.flat[free], kind="stable")[:count]]] = True


def one_change(name: str, seed: int, layers: int = 1, **options: Any) -> tuple[nn.Module, list[Dense], Sparsifier]:
    """A random network of `layers` sparse layers with ReLU before and after one change of a preset, and what it saw."""
    generator = seeded(seed)
    sizes = torch.randint(3, 14, (layers + 1,), generator=generator).tolist()
    modules: list[nn.Module] = []
    start = PRESETS[name].starting(0.7)
    for fan_in, fan_out in pairwise(sizes):
        cells = fan_in * fan_out
        count = max(round((1 - start) * cells), 1)
        topology = Topology.random((fan_out, fan_in), count, generator)
        modules += [
            SparseLinear(fan_in, fan_out, topology=topology, dtype=torch.float64, generator=generator),
            nn.ReLU(),
        ]
    model = nn.Sequential(*modules)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    chosen = {"period": 1, "total_steps": 10, "sparsity": 0.7, "seed": seed, **options}
    sparsifier = Sparsifier.preset(name, model, optimizer, **chosen)
    inputs = torch.randn(6, sizes[0], dtype=torch.float64, generator=generator)
    seen = []
    signal = inputs
    for layer, relu in zip(modules[::2], modules[1::2], strict=True):
        seen.append(signal)
        signal = relu(layer(signal))
        signal.retain_grad()
    upstream = torch.randn(signal.shape, dtype=torch.float64, generator=generator)
    befores = []
    signal.backward(upstream)
    given = upstream
    for layer, x in reversed(list(zip(modules[::2], seen, strict=True))):
        delta = given * (layer(x).detach() > 0)
        befores.append(Dense(layer, x.detach(), delta.detach()))
        given = (delta @ layer.to_dense().weight).detach()
    optimizer.step()
    sparsifier.step()
    return model, befores[::-1], sparsifier


def agrees(model: nn.Module, expected: list[Dense]) -> None:
    for layer, dense in zip(sparse_layers(model).values(), expected, strict=True):
        assert np.array_equal(layer.topology.to_mask().numpy(), dense.mask)
        own = layer.to_dense().weight.detach().numpy()
        kept = dense.kept & dense.mask
        assert np.array_equal(own[kept], dense.weight[kept])
        # New ones start at zero, or Deep R's at next to it; those that went and came back may be as they were.
        new = dense.mask & ~kept
        assert ((np.abs(own) <= 1e-12) | (own == dense.weight))[new].all()


def cosine_share(start: float, step: int, over: int) -> float:
    return start / 2 * (1 + math.cos(math.pi * step / over))


def numpy_mest(dense: Dense, seed: int) -> None:
    count = int(0.2 * dense.mask.sum() + 1e-9)  # at the start: a fifth
    dense.weakest(np.abs(dense.weight) + 0.01 * np.abs(dense.gradient), count)
    free = np.flatnonzero(~dense.mask)
    dense.mask.flat[free[sample_distinct(free.size, count, generators(seed, "0")["0"]).numpy()]] = True


def numpy_gse(dense: Dense, seed: int) -> None:
    count = int(cosine_share(0.3, 1, 7) * dense.mask.sum() + 1e-9)
    total = int(dense.mask.sum())
    dense.weakest(np.abs(dense.weight), count)
    free = np.flatnonzero(~dense.mask)
    size = min(max(total, count), free.size)
    sample = free[sample_distinct(free.size, size, generators(seed, "0")["0"]).numpy()]
    open_ = np.zeros_like(dense.mask)
    open_.flat[sample] = True
    dense.grow(np.abs(dense.gradient), count, open_)


@pytest.mark.parametrize(("name", "numpy"), [("mest", numpy_mest), ("gse", numpy_gse)])
def test_agrees_with_a_dense_mask(name: str, numpy: Callable[[Dense, int], None]) -> None:
    for seed in cases():
        model, (dense,), _ = one_change(name, seed)
        numpy(dense, seed)
        agrees(model, [dense])


def test_ctre_agrees_with_a_dense_mask() -> None:
    for seed in cases():
        model, (dense,), _ = one_change("ctre-seq", seed)
        before = dense.mask.copy()
        count = int(0.2 * dense.mask.sum() + 1e-9)
        dense.weakest(np.abs(dense.weight), count)
        lengths = [np.maximum(np.linalg.norm(x, axis=0), 1e-12) for x in (dense.answers, dense.inputs)]
        cosines = np.abs((dense.answers / lengths[0]).T @ (dense.inputs / lengths[1]))
        after = next(iter(sparse_layers(model).values())).topology.to_mask().numpy()
        assert (after | ~dense.mask)[dense.mask].all()  # what was to stay is there
        assert after.sum() == before.sum()
        # By score: neurons that answer to one sample alone have equal cosines, but for rounding.
        best = np.sort(cosines[~dense.mask])[::-1][:count]
        np.testing.assert_allclose(np.sort(cosines[after & ~dense.mask])[::-1], best, atol=1e-9)


def numpy_lamp(layers: list[Dense], left: int) -> None:
    scores = []
    for index, dense in enumerate(layers):
        for position in np.flatnonzero(dense.mask):
            squared = dense.weight.flat[position] ** 2
            at_least = sum(w**2 for w in dense.weight[dense.mask] if w**2 >= squared)
            scores.append((squared / at_least, index, position))
    for _, index, position in sorted(scores)[: len(scores) - left]:
        layers[index].mask.flat[position] = False


def test_lamp_agrees_with_a_dense_mask() -> None:
    for seed in cases(100):
        model, layers, sparsifier = one_change("lamp", seed, layers=2, period=1, stop=0.1)
        cells = sum(dense.mask.size for dense in layers)
        left = cells - round(0.7 * cells)
        numpy_lamp(layers, left)
        agrees(model, layers)
        assert sum(layer.nnz for layer in sparse_layers(model).values()) == left
        assert sparsifier.way == 1


def numpy_granet(layers: list[Dense], left: int, share: float) -> None:
    flat = [(abs(d.weight.flat[p]), i, p) for i, d in enumerate(layers) for p in np.flatnonzero(d.mask)]
    best = {max((value, -p) for value, j, p in flat if j == i) for i in range(len(layers))}
    strongest = {(i, max((value, -p) for value, j, p in flat if j == i)[1]) for i in range(len(layers))}
    assert best
    candidates = sorted((value, i, p) for value, i, p in flat if (i, -p) not in strongest)
    for _, index, position in candidates[: len(flat) - left]:
        layers[index].mask.flat[position] = False
    for dense in layers:
        count = int(share * dense.mask.sum() + 1e-9)
        dense.weakest(np.abs(dense.weight), count)
        dense.grow(np.abs(dense.gradient), count)


def test_granet_agrees_with_a_dense_mask() -> None:
    for seed in cases(100):
        model, layers, _ = one_change("granet", seed, layers=2)
        cells = sum(dense.mask.size for dense in layers)
        present = sum(dense.mask.sum() for dense in layers)
        start = 1 - present / cells
        wanted = 0.7 + (start - 0.7) * (1 - 1 / 7) ** 3
        left = cells - round(wanted * cells)
        numpy_granet(layers, left, cosine_share(0.5, 1, 7))
        agrees(model, layers)


def numpy_snfs(layers: list[Dense], share: float) -> None:
    lost = []
    for dense in layers:
        lost.append(int(share * dense.mask.sum() + 1e-9))
        dense.weakest(np.abs(dense.weight), lost[-1])
    room = [int((~dense.mask).sum()) for dense in layers]
    means = [np.abs(dense.gradient[dense.mask]).mean() if dense.mask.any() else 0.0 for dense in layers]
    for dense, count in zip(layers, apportion(means, room, sum(lost)), strict=True):
        dense.grow(np.abs(dense.gradient), count)


def test_snfs_agrees_with_a_dense_mask() -> None:
    for seed in cases():
        model, layers, _ = one_change("snfs", seed, layers=2)
        total = sum(dense.mask.sum() for dense in layers)
        numpy_snfs(layers, cosine_share(0.5, 1, 10))  # after one step the momentum is the gradient
        agrees(model, layers)
        assert sum(layer.nnz for layer in sparse_layers(model).values()) == total


def test_deepr_agrees_with_a_dense_mask() -> None:
    for seed in cases():
        generator = seeded(seed)
        rows, columns = (int(torch.randint(2, 9, (), generator=generator)) for _ in range(2))
        layer = SparseLinear(columns, rows, sparsity=0.6, dtype=torch.float64, generator=generator, bias=False)
        weight, mask = layer.to_dense().weight.detach().numpy().copy(), layer.topology.to_mask().numpy().copy()
        signs = np.where(weight < 0, -1.0, 1.0)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        sparsifier = Sparsifier.preset("deepr", layer, optimizer, total_steps=10, seed=seed)
        draws = generators(seed, "")[""]
        for _ in range(3):
            gradient = torch.randn(rows, columns, dtype=torch.float64, generator=generator) / 4
            layer.values.grad = gradient.flatten()[layer.positions]
            optimizer.step()
            sparsifier.step()
            # θ = sign · weight: a gradient step, noise and shrinkage; dormant where θ ≤ 0, then others come.
            here = np.flatnonzero(mask)
            noise = torch.empty(here.size, dtype=torch.float64).normal_(0, 1e-5, generator=draws).numpy()
            theta = signs.flat[here] * weight.flat[here] - 0.5 * signs.flat[here] * gradient.numpy().flat[here]
            theta += 0.5 * (noise - 1e-5)
            weight.flat[here] = signs.flat[here] * theta
            gone = here[theta <= 0]
            free = np.flatnonzero(~mask)  # what has just become dormant may not come back at once
            mask.flat[gone] = False
            grown = free[sample_distinct(free.size, min(gone.size, free.size), draws).numpy()]
            signs.flat[grown] = (torch.randint(2, (grown.size,), generator=draws) * 2 - 1).numpy()
            weight.flat[gone], weight.flat[grown] = 0.0, 1e-12 * signs.flat[grown]
            mask.flat[grown] = True
            if gone.size <= free.size:
                assert np.array_equal(layer.topology.to_mask().numpy(), mask)
                np.testing.assert_allclose(layer.to_dense().weight.detach().numpy(), weight, atol=1e-15)


def numpy_srigl(dense: Dense, count: int, gamma: float) -> None:
    """Constant fan-in and neuron ablation from the text, neuron by neuron."""
    rows, columns = dense.mask.shape
    total = int(dense.mask.sum())
    kept = dense.mask.copy()
    present = np.flatnonzero(kept)
    kept.flat[present[np.argsort(np.abs(dense.weight.flat[present]), kind="stable")[:count]]] = False
    steep = np.zeros_like(kept)
    free = np.flatnonzero(~kept)
    steep.flat[free[np.argsort(-np.abs(dense.gradient.flat[free]), kind="stable")[:count]]] = True
    salient = kept.sum(1) + steep.sum(1)
    active = [row for row in range(rows) if dense.mask[row].any() or salient[row]]
    good = [row for row in range(rows) if salient[row] >= max(gamma * total / len(active), 1)]
    by_salience = sorted(range(rows), key=lambda row: (-salient[row], row))
    good = good or by_salience[:1]
    while len(good) * columns < total:
        good = sorted([*good, next(row for row in by_salience if row not in good)])
    each, odd = divmod(total, len(good))
    favoured = sorted(good, key=lambda row: (-salient[row], row))[:odd]
    dense.mask[:] = False
    for row in good:
        share = each + (row in favoured)
        own = sorted(np.flatnonzero(kept[row]), key=lambda column: (-abs(dense.weight[row, column]), column))[:share]
        dense.mask[row, own] = True
        others = sorted(
            np.flatnonzero(~dense.mask[row]), key=lambda column: (-abs(dense.gradient[row, column]), column)
        )
        dense.mask[row, others[: share - len(own)]] = True


def test_srigl_agrees_with_a_dense_mask() -> None:
    for seed in cases():
        gamma = (0.3, 0.95, 1.5)[seed % 3]
        model, (dense,), _ = one_change("srigl", seed, options={"ablate_below": gamma})
        numpy_srigl(dense, int(cosine_share(0.3, 1, 7) * dense.mask.sum() + 1e-9), gamma)
        agrees(model, [dense])
        fan_in = dense.mask.sum(1)
        assert np.ptp(fan_in[fan_in > 0]) <= 1


def numpy_ch2(mask: np.ndarray) -> np.ndarray:
    """CH2-L3n scores, pair by pair, from the definition."""
    rows, columns = mask.shape
    scores = np.zeros(mask.shape)
    for u in range(rows):
        for v in range(columns):
            for b in range(rows):
                shared = int((mask[u] & mask[b]).sum())
                if mask[b, v] and shared and b != u:
                    scores[u, v] += (shared + 1) / max(mask[b].sum() - shared, 1)
            for a in range(columns):
                shared = int((mask[:, v] & mask[:, a]).sum())
                if mask[u, a] and shared and a != v:
                    scores[u, v] += (shared + 1) / max(mask[:, a].sum() - shared, 1)
    return scores


def numpy_ch3(mask: np.ndarray) -> np.ndarray:
    """CH3-L3p scores, path by path."""
    rows, columns = mask.shape
    scores = np.zeros(mask.shape)
    for u in range(rows):
        for v in range(columns):
            paths = [(a, b) for a in range(columns) for b in range(rows) if mask[u, a] and mask[b, a] and mask[b, v]]
            paths = [(a, b) for a, b in paths if a != v and b != u]
            between_in, between_out = {a for a, _ in paths}, {b for _, b in paths}
            for a, b in paths:
                outside_a = sum(mask[o, a] for o in range(rows) if o != u and o not in between_out)
                outside_b = sum(mask[b, i] for i in range(columns) if i != v and i not in between_in)
                scores[u, v] += 1 / math.sqrt((1 + outside_a) * (1 + outside_b))
    return scores


@pytest.mark.parametrize(("name", "numpy"), [("ch2-l3n", numpy_ch2), ("ch3-l3p", numpy_ch3)])
def test_link_prediction_agrees_with_its_definition(name: str, numpy: Callable[[np.ndarray], np.ndarray]) -> None:
    for seed in cases():
        generator = seeded(seed)
        rows, columns = (int(torch.randint(2, 9, (), generator=generator)) for _ in range(2))
        count = int(torch.randint(1, rows * columns, (), generator=generator))
        topology = Topology.random((rows, columns), count, generator)
        shown = LayerView((rows, columns), topology.positions, torch.ones(count), topology.positions, seeded())
        scores, free = numpy(topology.to_mask().numpy()).round(9), np.flatnonzero(~topology.to_mask().numpy())
        grown = GROW_RULES[name].choose(shown, max(free.size // 2, 1))
        # By score, since sums in another order may break a tie otherwise.
        best = np.sort(scores.flat[free])[::-1][: grown.numel()]
        np.testing.assert_allclose(np.sort(scores.flat[grown.numpy()])[::-1], best, atol=1e-8)


def test_chain_removal_takes_what_hangs_loose() -> None:
    # Layer 0: outputs 0 and 1 read one input each; layer 2 reads both. Dropping output 0's only connection (0.1)
    # leaves layer 2's connection from it without input: it goes, too, though it is strong.
    first = SparseLinear(4, 2, topology=Topology.from_positions((2, 4), torch.tensor([0, 5])), bias=False)
    second = SparseLinear(2, 3, topology=Topology.from_positions((3, 2), torch.tensor([0, 1, 3])), bias=False)
    model = nn.Sequential(first, nn.ReLU(), second)
    with torch.no_grad():
        first.values.copy_(torch.tensor([0.1, 5.0]))
        second.values.copy_(torch.tensor([9.0, 5.0, 6.0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(
        model, optimizer, drop="magnitude", grow="random", drop_fraction=0.5, chains=True, regrow="no", seed=0
    )
    changes = sparsifier.update()
    assert changes["0"].dropped.tolist() == [0]
    assert changes["2"].dropped.tolist() == [0, 1]  # its own weakest (5.0), and the one from the dead neuron
    assert (first.nnz, second.nnz) == (2, 3)
