"""Neurons that are pruned by their importance: by hand, for every method, and what must not go."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparse_core import PRESETS, Adam, Constraint, SparseLinear, Sparsifier, Topology, sparse_layers, sparsify
from sparse_core.activity import chain_of, readers
from sparse_core.topology_measures import topologies

FAST = ("static", "set", "deepr", "srigl")  # nothing, layer by layer, at every step, drop and growth in one
METHODS = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name, preset in PRESETS.items()
    if not (preset.begins_wider or preset.dense or preset.given)
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(sparsity: float = 0.5, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))
    return sparsify(model, sparsity, generator=seeded(), **{"dense": (), **options})


def learn(model: nn.Module, optimizer: Any, step: int, shape: tuple[int, ...] = (8,)) -> None:
    optimizer.zero_grad()
    model(torch.randn(16, *shape, generator=seeded(step))).square().mean().backward()
    optimizer.step()


def dense_gone(model: nn.Module, share: float) -> dict[str, list[int]]:
    """Which neurons should go, worked out with dense matrices: the oracle."""
    layers = sparse_layers(model)
    found = {}
    for name in list(layers)[:-1]:
        importance = np.abs(layers[name].to_dense().weight.detach().numpy()).sum(1)
        found[name] = sorted(np.argsort(importance, kind="stable")[: int(share * len(importance) + 1e-9)].tolist())
    return found


def by_hand() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    # Three inputs, four hidden neurons of importance 3, 1, 5 and 2, two outputs.
    upper = SparseLinear(3, 4, topology=Topology.from_mask(torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]])))
    lower = SparseLinear(4, 2, topology=Topology.from_mask(torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0]])))
    with torch.no_grad():
        upper.values.copy_(torch.tensor([1.0, -2, 1, 4, -1, -2]))
        lower.values.copy_(torch.tensor([10.0, 20, 30, 40, 50]))
    model = nn.Sequential(upper, nn.ReLU(), lower)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def test_the_weakest_neurons_lose_what_goes_in_and_out() -> None:
    model, optimizer = by_hand()
    target = copy.deepcopy(model)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()  # momentum is there
    with torch.no_grad():
        model[0].values.copy_(torch.tensor([1.0, -2, 1, 4, -1, -2]))
        model[2].values.copy_(torch.tensor([10.0, 20, 30, 40, 50]))
    momentum = optimizer.state[model[2].values]["momentum_buffer"].clone()
    sparsifier = Sparsifier.preset("set", model, optimizer, followers=[target])
    # Half of four: neurons 1 (importance 1) and 3 (importance 2).
    changes = sparsifier.prune_neurons(0.5)
    assert sparsifier.neurons.gone["0"].tolist() == [1, 3]
    assert model[0].topology.to_mask().tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]]
    assert model[2].topology.to_mask().tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    assert model[0].values.tolist() == [1.0, -2, 4, -1]
    assert model[2].values.tolist() == [10.0, 50.0]
    assert optimizer.state[model[2].values]["momentum_buffer"].tolist() == momentum[[0, 4]].tolist()
    assert changes["2"].dropped.tolist() == [1, 3, 5]
    assert not changes["0"].grown.numel()
    for own, other in zip(sparse_layers(model).values(), sparse_layers(target).values(), strict=True):
        assert own.topology == other.topology
    # A quarter, or the same again, is there already; three quarters want one more, the weaker of two: 3 against 5.
    for share in (0.25, 0.5):
        assert all(not change.dropped.numel() for change in sparsifier.prune_neurons(share).values())
    sparsifier.prune_neurons(0.75)
    assert sparsifier.neurons.gone["0"].tolist() == [0, 1, 3]


def test_a_dense_reader_keeps_its_weights_and_an_output_layer_its_neurons() -> None:
    model = network(0.3, dense="output")
    dense = model[4].weight.clone()
    sparsifier = Sparsifier.preset("static", model, Adam(model.parameters()))
    sparsifier.prune_neurons(0.5)
    assert {name: len(neurons) for name, neurons in sparsifier.neurons.gone.items()} == {"0": 6, "2": 5}
    assert torch.equal(model[4].weight, dense)
    everything = network()
    assert readers(everything) == {"0": ("2", 1), "2": ("4", 1)}
    assert readers(model) == {"0": ("2", 1), "2": None}


def test_heads_side_by_side_are_no_chain() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.policy, self.value = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.body(x).relu()
            return self.policy(x) + self.value(x)

    model = sparsify(Heads(), 0.3, dense=(), generator=seeded())
    assert readers(model) == {"body": ("policy", 1)}
    assert chain_of(sparse_layers(model)) == chain_of(topologies(model), linear=True) == {"policy": "body"}
    sparsifier = Sparsifier.preset("static", model, Adam(model.parameters()))
    sparsifier.prune_neurons(0.5)
    assert {*sparsifier.neurons.gone} == {"body"}


@pytest.mark.parametrize("name", METHODS)
def test_no_method_connects_a_pruned_neuron_again(name: str) -> None:
    model = network()
    target = copy.deepcopy(model)
    optimizer = Adam(model.parameters(), lr=0.01)
    own = f"{name}:pruned_neurons=0.3:neurons_from=0.5"
    sparsifier = Sparsifier.preset(
        own, model, optimizer, total_steps=12, period=2, stop=1.0, seed=0, followers=[target]
    )
    gone: dict[str, list[int]] = {}
    for step in range(12):
        learn(model, optimizer, step)
        expected = dense_gone(model, 0.3)
        sparsifier.step()
        if sparsifier.neurons.gone and not gone:
            gone = {layer: neurons.tolist() for layer, neurons in sparsifier.neurons.gone.items()}
            assert step == 5  # halfway
            assert gone == expected
        for layer, neurons in gone.items():
            reader = sparse_layers(model)[{"0": "2", "2": "4"}[layer]]
            assert not sparse_layers(model)[layer].topology.to_mask()[neurons].any()
            assert not reader.topology.to_mask()[:, neurons].any()
        for layer, followed in zip(sparse_layers(model).values(), sparse_layers(target).values(), strict=True):
            assert layer.topology == followed.topology
    assert {layer: len(neurons) for layer, neurons in gone.items()} == {"0": 3, "2": 3}
    assert all(layer.nnz for layer in sparse_layers(model).values())
    if PRESETS[name].changes:
        assert sparsifier.changes > 1


def test_a_resumed_run_keeps_its_pruned_neurons() -> None:
    def begun() -> tuple[nn.Module, Adam, Sparsifier]:
        model = network()
        optimizer = Adam(model.parameters(), lr=0.01)
        own = "rigl:pruned_neurons=0.25:neurons_from=0.2"
        return model, optimizer, Sparsifier.preset(own, model, optimizer, total_steps=30, period=3, seed=0)

    model, optimizer, sparsifier = begun()
    for step in range(14):
        learn(model, optimizer, step)
        sparsifier.step()
    assert sparsifier.neurons.gone
    stored = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    other, other_optimizer, resumed = begun()
    other.load_state_dict(stored[0])
    other_optimizer.load_state_dict(stored[1])
    resumed.load_state_dict(stored[2])
    for step in range(14, 25):
        for each, own, moving in ((model, optimizer, sparsifier), (other, other_optimizer, resumed)):
            learn(each, own, step)
            moving.step()
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_neurons_of_somebody_else_stay() -> None:
    model = network()
    optimizer = Adam(model.parameters())
    allowed = torch.tensor([0, 1, 2, 3, 8, 9])
    sparsifier = Sparsifier.preset("set", model, optimizer, constraints={"2": Constraint(outputs=allowed)})
    first = sparse_layers(model)["0"]
    held = first.topology.fan_in.argmax()
    sparsifier.freeze("0", first.positions[first.positions // 8 == held][:1], torch.tensor([0]))
    read = sparse_layers(model)["2"].positions[:1]
    sparsifier.freeze("2", read)
    sparsifier.prune_neurons(0.9)
    gone = sparsifier.neurons.gone
    stay = {int(held), 0, int(read % 12)}
    assert stay.isdisjoint(gone["0"].tolist())
    assert len(gone["0"]) == min(10, 12 - len(stay))
    # Of layer 2 only what it may grow to, less the neuron whose connection is frozen.
    assert set(gone["2"].tolist()) == set(allowed.tolist()) - {int(read // 12)}


def test_channels_of_convolutions_go_with_their_kernels() -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 3)
    )
    for unit in ("weight", "kernel"):
        made = sparsify(copy.deepcopy(model), 0.4, dense=(), distribution="uniform", conv_unit=unit, generator=seeded())
        optimizer = Adam(made.parameters())
        learn(made, optimizer, 0, (2, 6, 6))
        sparsifier = Sparsifier.preset("static", made, optimizer)
        sparsifier.prune_neurons(0.5)
        gone = sparsifier.neurons.gone
        assert {name: len(channels) for name, channels in gone.items()} == {"0": 3, "2": 4}
        dense = [made[index].to_dense().weight for index in (0, 2, 5)]
        assert not dense[0][gone["0"]].any()
        assert not dense[1][:, gone["0"]].any()
        assert not dense[1][gone["2"]].any()
        assert not dense[2].view(3, 8, 4)[:, gone["2"]].any()
        learn(made, optimizer, 1, (2, 6, 6))


def test_a_layer_that_would_be_cut_stays(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = by_hand()
    with torch.no_grad():
        model[0].values[3:5] = 0.01  # neuron 2 is the weakest now, and 1 next
    sparsifier = Sparsifier.preset("static", model, optimizer)
    sparsifier.prune_neurons(0.5)  # 1 and 2: the second output has no other, but the first does
    assert sparsifier.neurons.gone["0"].tolist() == [1, 2]
    only = SparseLinear(4, 2, topology=Topology.from_positions((2, 4), torch.tensor([1])))
    model, optimizer = by_hand()
    model[2] = only
    sparsifier = Sparsifier.preset("static", model, torch.optim.SGD(model.parameters(), lr=0.1))
    before = model[0].topology
    assert all(not change.dropped.numel() for change in sparsifier.prune_neurons(0.5).values())
    assert "no neurons are pruned: 2 would be left without a connection" in caplog.text
    assert model[0].topology == before


@pytest.mark.parametrize(
    ("topology", "total_steps", "message"),
    [
        ("set:pruned_neurons=1", 10, r"`pruned_neurons` must be a share in \[0, 1\), got 1"),
        ("set:pruned_neurons=0.1:neurons_from=2", 10, r"`neurons_from` must be a share of the way in \[0, 1\], got 2"),
        ("set:pruned_neurons=0.1", None, "`pruned_neurons` needs `total_steps`, the length of training, or"),
        ("gmp:pruned_neurons=0.1", 10, "`pruned_neurons` is for methods that begin with as many connections as they"),
    ],
)
def test_what_cannot_be(topology: str, total_steps: int | None, message: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=message):
        Sparsifier.preset(topology, model, Adam(model.parameters()), total_steps=total_steps, sparsity=0.5)


def test_a_share_out_of_range_changes_nothing() -> None:
    model = network()
    sparsifier = Sparsifier.preset("set", model, Adam(model.parameters()))
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 1\).*got 1"):
        sparsifier.prune_neurons(1)
    assert not sparsifier.neurons.gone


def test_neurons_whose_connections_do_not_learn_stay() -> None:
    model = network()
    model[2].values.requires_grad_(False)  # reads the first layer's neurons and makes the second's
    sparsifier = Sparsifier.preset("static", model, Adam(model.parameters()))
    sparsifier.prune_neurons(0.5)
    assert not sparsifier.neurons.gone
