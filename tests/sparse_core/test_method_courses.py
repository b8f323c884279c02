"""A sparsity that has a course, and an Adam that knows how old a connection is."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sparse_core import PRESETS, Adam, SparseMLP, Sparsifier, sparse_layers
from sparse_core.meters import nnz


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Courses of the sparsity


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.prune])
def test_sparsity_follows_its_course_to_the_exact_end(name: str) -> None:
    model = SparseMLP([20, 30, 30, 4], sparsity=0.9, topology=name, generator=seeded())
    optimizer = Adam(model.parameters(), lr=0.01)
    sparsifier = Sparsifier.preset(name, model, optimizer, total_steps=100, period=5, sparsity=0.9, seed=0)
    counts = [nnz(model)]
    cells = 20 * 30 + 30 * 30 + 30 * 4
    for step in range(100):
        inputs = torch.randn(8, 20, generator=seeded(step))
        optimizer.zero_grad()
        loss = partial(lambda inputs: (model(inputs) - inputs[:, :4]).square().mean().backward(), inputs)
        loss()
        optimizer.step()
        sparsifier.step(closure=loss)
        counts.append(nnz(model))
    assert counts[0] == cells - round(PRESETS[name].starting(0.9) * cells)
    assert counts[-1] == cells - round(0.9 * cells)
    if name == "acdc":
        assert max(counts[20:30]) == cells  # a dense phase between two sparse ones
        assert min(counts[5:20]) == counts[-1]
    else:
        assert counts == sorted(counts, reverse=True)
    # Costs count the weights that each step had: what a change brings multiplies from the next step on.
    unmoved = nnz(model) - sum(layer.nnz for layer in sparse_layers(model).values())
    assert sum(sparsifier.mean_weights.values()) + unmoved == pytest.approx(sum(counts[:-1]) / 100)


# Adam with a warm-up (SMET)


def test_warm_up_by_hand() -> None:
    # Constant gradient: Adam's step is lr whatever the age; warmed over 4 steps it is lr · 1/4, 2/4, 3/4, 1, 1.
    values = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = Adam([values], lr=0.1, eps=0.0, warmup=4)
    steps = []
    for _ in range(5):
        before = values.item()
        values.grad = torch.ones_like(values)
        optimizer.step()
        steps.append(before - values.item())
    assert steps == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


def test_without_ages_adam_is_torchs() -> None:
    """With one age a tensor, moving connections take the steps that torch's Adam gives them; with ages, others."""

    def trained(topology: str, make: Callable[..., torch.optim.Optimizer]) -> Tensor:
        model = SparseMLP([6, 12, 2], sparsity=0.5, topology=topology, generator=seeded(3))
        optimizer = make(model.parameters(), lr=0.05)
        sparsifier = Sparsifier.preset(topology, model, optimizer, total_steps=24, period=4, seed=4)
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
        for _ in range(24):
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()
            sparsifier.step()
        return torch.cat([layer.values.detach() for layer in sparsifier.layers.values()])

    plain = trained("set:ages=false", Adam)
    assert torch.allclose(plain, trained("set", torch.optim.Adam), atol=1e-6)
    assert not torch.allclose(plain, trained("set", Adam), atol=1e-3)


def test_a_warm_up_needs_an_adam_that_knows_ages() -> None:
    model = SparseMLP([4, 8, 2], sparsity=0.5)
    with pytest.raises(TypeError, match=r"a warm-up of new connections needs `sparse_core\.Adam`.*got SGD"):
        Sparsifier.preset("smet", model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=10)
