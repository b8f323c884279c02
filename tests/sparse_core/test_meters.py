import pytest
import torch
from torch import Tensor, nn

from sparse_core import Adam, SparseLinear, SparseMLP, Sparsifier, Topology, sparsify
from sparse_core.meters import (
    LayerCount,
    degrees,
    density,
    forward_flops,
    growth_flops,
    layer_counts,
    memory,
    nnz,
    sparsity,
    topology_distance,
    training_flops,
)


def network() -> nn.Sequential:
    """6→8 with 12 of 48 connections, then 8→3 dense: 36 of 72."""
    sparse = SparseLinear(6, 8, topology=Topology.random((8, 6), 12, torch.Generator().manual_seed(0)))
    return nn.Sequential(sparse, nn.ReLU(), nn.Linear(8, 3))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> None:
    model(inputs).square().sum().backward()
    optimizer.step()


def test_counts_by_hand() -> None:
    model = network()
    assert layer_counts(model) == {"0": LayerCount(12, 48), "2": LayerCount(24, 24)}
    assert nnz(model) == 36
    assert sparsity(model) == density(model) == 0.5


def test_frozen_connections_count() -> None:
    model = network()
    model[0].freeze(model[0].positions[:5], torch.tensor([1]))
    assert nnz(model) == 36


def test_every_kind_of_weight_counts_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.norm = nn.LayerNorm(4)  # vectors are no weight matrices
            self.attention = nn.MultiheadAttention(4, 1)
            self.out = nn.Linear(4, 10)
            self.out.weight = self.embed.weight

    assert {name: count.cells for name, count in layer_counts(Tied()).items()} == {
        "embed": 40,
        "attention.in_proj_weight": 48,
        "attention.out_proj": 16,
    }
    assert (nnz(nn.ReLU()), sparsity(nn.ReLU()), forward_flops(nn.ReLU()), training_flops(nn.ReLU())) == (0, 0, 0, 0)


def test_bytes_by_hand() -> None:
    layer = network()[0]
    optimizer = Adam(layer.parameters())
    # 12 values and 8 biases of 4 bytes. Indices: 9 row pointers and 12 positions of 8, 12 columns of 4 bytes.
    # Scratch: the dense weight, then its dense gradient, 48 cells of 4 bytes each.
    expected = {"parameters": 80, "indices": 216, "scratch": 384}
    before = memory(layer, optimizers=(optimizer,))
    assert vars(before) == {**expected, "gradients": 0, "optimizer": 0}
    assert before.total == 680

    step(layer, optimizer, torch.ones(2, 6))
    # Two moments of 80 bytes, and one age of 4 for each of the two parameters.
    assert vars(memory(layer, optimizers=(optimizer,))) == {**expected, "gradients": 80, "optimizer": 168}

    sparsifier = Sparsifier.preset("set", layer, optimizer, seed=0)
    sparsifier.update()
    # From the first change on each of the 12 connections has an age.
    assert memory(layer, optimizers=(optimizer,)).optimizer == 160 + 12 * 4 + 4

    sparsifier.freeze("", layer.positions[:5])
    # Frozen values are parameters still, without gradient and moments; 5 indices of 4 bytes join.
    after = memory(layer, optimizers=(optimizer,))
    assert (after.parameters, after.gradients) == (80, 60)
    assert after.indices == 216 + 5 * 4
    assert after.optimizer == 2 * 60 + 7 * 4 + 4


def test_bytes_of_several_models() -> None:
    model, dense = network(), nn.Linear(6, 8)
    one, both = memory(model), memory(model, dense)
    assert both.parameters == one.parameters + (48 + 8) * 4
    assert both.scratch == one.scratch  # a dense layer has no scratch
    twice = memory(network(), network())
    # Both layers' dense weights live at once, one dense gradient at a time.
    assert twice.scratch == 3 * 48 * 4
    assert memory(network().double()).parameters == 2 * one.parameters


def test_scratch_is_what_a_pass_really_holds() -> None:
    # Between forward and backward, autograd keeps one dense weight per sparse layer.
    mlp = SparseMLP([30, 50, 40, 2], sparsity=0.8)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.dim() == 2 and tensor.shape in [(50, 30), (40, 50)]:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = mlp(torch.randn(3, 30))
    assert output.requires_grad
    assert sum(kept.values()) + max(kept.values()) == memory(mlp).scratch == (1500 + 2000 + 2000) * 4


def test_flops_by_hand() -> None:
    model = network()
    # 2 per connection forward; backward twice that, less the input gradient of the first layer's 12.
    assert forward_flops(model) == 72
    assert training_flops(model) == 3 * 72 - 24
    # A dense gradient of the sparse layer for a batch of 10, which static training never needs.
    assert growth_flops(model, 10) == 2 * 10 * 48
    assert growth_flops(model, 10, dense=False) == 2 * 10 * 12


def test_flops_follow_the_sparsity() -> None:
    dense, sparse = SparseMLP([17, 64, 64, 6], sparsity=0), SparseMLP([17, 64, 64, 6], sparsity=0.5)
    assert forward_flops(sparse) == 2 * round(0.5 * (17 * 64 + 64 * 64 + 64 * 6))
    assert forward_flops(dense) == 2 * forward_flops(sparse)
    assert growth_flops(dense, 10) == 0


def test_topology_distance_by_hand() -> None:
    def of(*positions: int, shape: tuple[int, int] = (3, 3)) -> Topology:
        return Topology.from_positions(shape, torch.tensor(positions, dtype=torch.int64))

    assert topology_distance(of(0, 1, 2), of(0, 1, 2)) == 0
    assert topology_distance(of(0, 1, 2), of(3, 4)) == 1
    assert topology_distance(of(0, 1, 2), of(1, 2, 3)) == 0.5  # two in common, two of four not
    assert topology_distance(of(0, 1, 2, 3), of(0)) == 0.75
    assert topology_distance(of(), of()) == 0
    with pytest.raises(ValueError, match=r"topologies of one shape are compared, got \(3, 3\) and \(1, 9\)"):
        topology_distance(of(0), of(0, shape=(1, 9)))


def test_degrees() -> None:
    layer = SparseLinear(3, 2, topology=Topology.from_mask(torch.tensor([[1, 1, 0], [0, 1, 0]])))
    layer.freeze(layer.positions[:1])
    assert degrees(layer)["fan_in"].tolist() == [2, 1]
    assert degrees(layer)["fan_out"].tolist() == [1, 2, 0]


def test_a_sparsified_model_measures_as_asked() -> None:
    model = sparsify(nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40)), 0.37, dense=())
    assert nnz(model) == 3200 - round(0.37 * 3200)
