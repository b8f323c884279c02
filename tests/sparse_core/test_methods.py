"""A worked example of every method's rules, and a plain masked-dense NumPy version of those with a paper's text."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_core import (
    DROP_RULES,
    GROW_RULES,
    PRESETS,
    REDISTRIBUTIONS,
    Adam,
    Constraint,
    LayerView,
    SparseLinear,
    SparseMLP,
    Sparsifier,
    Topology,
    sparse_layers,
)
from sparse_core.choosing import Choosing
from sparse_core.curvature import flow_shares
from sparse_core.methods.pruning import lamp_scores
from sparse_core.methods.srigl import _largest_of_rows
from sparse_core.signals import Capture


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# In test_rules.py and in this file.
WORKED = {"magnitude", "signed", "random", "gradient", "importance", "in-place"} | {
    "weight-and-gradient", "sampled-gradient", "cosine", "cosine-or-random", "neuron-importance",
    "neuron-importance-or-random", "global-magnitude", "lamp", "sensitivity", "adaptive-threshold", "sign-crossing",
    "gradient-flow", "relative-importance", "ch2-l3n", "ch3-l3p", "constant-fan-in", "similarity", "momentum",
}  # fmt: skip

# Four weights of a 2×4 layer, two to each output:
#          0    1    2    3
#   0    [ 2]   .  [-1]   .
#   1      .  [ 3]   .  [ 4]
TAKEN = torch.tensor([0, 2, 5, 7])
WEIGHTS = torch.tensor([2.0, -1.0, 3.0, 4.0])
INPUTS = torch.tensor([[1.0, 2.0, 0.0, 1.0]])
GIVEN = torch.tensor([[10.0, -1.0]])  # output gradients; the dense gradient is 10 20 0 10 | -1 -2 0 -1


def view(weights: Tensor = WEIGHTS, **more: Any) -> LayerView:
    capture = Capture(1)
    capture.add(INPUTS, GIVEN)
    return LayerView((2, 4), TAKEN, weights, TAKEN, seeded(), capture, **more)


def test_every_rule_has_a_worked_example() -> None:
    assert {*DROP_RULES, *GROW_RULES} == WORKED


def test_mest_weighs_gradients_in() -> None:
    # Own gradients 10, 0, -2, -1. |w| + 0.5·|g|: 7, 1, 4, 4.5.
    assert DROP_RULES["weight-and-gradient:gradient_weight=0.5"].choose(view(), 3).tolist() == [1, 2, 3]
    assert DROP_RULES["weight-and-gradient:gradient_weight=0"].choose(view(), 2).tolist() == [0, 1]


def test_gse_takes_the_best_of_its_candidates() -> None:
    # With as many candidates as vacant places (4), the steepest of 1, 3, 4, 6: 20 and 10.
    assert GROW_RULES["sampled-gradient"].choose(view(), 2).tolist() == [1, 3]
    # With half of them, always some of the sample, and never more than it holds.
    for seed in range(20):
        shown = LayerView((2, 4), TAKEN, WEIGHTS, TAKEN, seeded(seed), view().capture)
        sample = LayerView((2, 4), TAKEN, WEIGHTS, TAKEN, seeded(seed)).sample_vacant(2)
        best = max(sample.tolist(), key=lambda position: abs([10, 20, 0, 10, -1, -2, 0, -1][position]))
        assert GROW_RULES["sampled-gradient:candidates=0.5"].choose(shown, 1).tolist() == [best]


def answering(answers: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda inputs: answers


def test_ctre_joins_neurons_that_answer_alike() -> None:
    # Two samples. Inputs: (1, 1), (1, -1), (0, 1), (3, 3); neurons answer (2, 2) and (0, 5).
    # |cosines|: neuron 0: 1, 0, .71, 1; neuron 1: .71, .71, 1, .71. Vacant: 1, 3 | 4, 6.
    capture = Capture(1)
    capture.add(torch.tensor([[1.0, 1.0, 0.0, 3.0], [1.0, -1.0, 1.0, 3.0]]), torch.ones(2, 2))
    activity = answering(torch.tensor([[2.0, 0.0], [2.0, 5.0]]))
    shown = LayerView((2, 4), TAKEN, WEIGHTS, TAKEN, seeded(), capture, activity=activity)
    assert GROW_RULES["cosine"].choose(shown, 2).tolist() == [3, 6]
    assert GROW_RULES["cosine"].choose(shown, 3).tolist() == [3, 4, 6]
    # Where 3 has just been dropped, CTRE-sim takes a random other for it: of 1 and 4.
    free = torch.tensor([0, 2, 5, 7])
    for seed in range(6):
        again = LayerView(
            (2, 4), TAKEN, WEIGHTS, free, seeded(seed), capture, activity=activity, dropped=torch.tensor([3])
        )
        assert GROW_RULES["cosine-or-random"].choose(again, 2).tolist() in ([1, 6], [4, 6])
    over = LayerView((2, 4), TAKEN, WEIGHTS, TAKEN, seeded(1), capture, activity=activity, progress=0.5)
    random = LayerView((2, 4), TAKEN, WEIGHTS, TAKEN, seeded(1)).sample_vacant(2)
    assert torch.equal(GROW_RULES["cosine:random_after=0.5"].choose(over, 2), random)


@pytest.mark.parametrize("name", ["ctre-seq", "ctre-sim"])
def test_ctre_grows_at_random_after_a_plateau(name: str) -> None:
    def positions(told: bool, seed: int) -> Tensor:
        model = SparseMLP([6, 8, 3], sparsity=0.5, topology=name, generator=seeded(1))
        optimizer = Adam(model.parameters(), lr=0.01)
        sparsifier = Sparsifier.preset(name, model, optimizer, period=2, seed=seed)
        if told:
            sparsifier.reached_plateau()
        inputs = torch.randn(32, 6, generator=seeded(2))
        for _ in range(2):
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()
            sparsifier.step()
        return next(iter(sparse_layers(model).values())).topology.positions

    assert not torch.equal(positions(True, 1), positions(True, 2))
    if name == "ctre-seq":  # nothing is drawn before that
        assert torch.equal(positions(False, 1), positions(False, 2))


def test_wast_judges_neurons() -> None:
    shown = view()
    # Outputs: mean |gradient| 10 and 1, sums of |w| 3 and 7: with λ = ½ importance 6.5 and 4.
    # Inputs: |gradients through their connections| 2·10, 3·1, 1·10, 4·1, sums 2, 3, 1, 4: 11, 3, 5.5, 4.
    # |w|·both: 2·6.5·11 = 143, 1·6.5·5.5 = 35.75 (the only negative), 3·4·3 = 36, 4·4·4 = 64.
    # Of 3 to drop, 2.25 are of the three positive, to the nearest: 2.
    assert DROP_RULES["neuron-importance:sensitivity=0.5"].choose(shown, 3).tolist() == [1, 2, 3]
    assert shown.memory["outputs"].tolist() == [6.5, 4.0]
    assert shown.memory["inputs"].tolist() == [11.0, 3.0, 5.5, 4.0]
    # Vacant: 1: 6.5·3 = 19.5, 3: 6.5·4 = 26, 4: 4·11 = 44, 6: 4·5.5 = 22.
    assert GROW_RULES["neuron-importance"].choose(shown, 2).tolist() == [3, 4]
    DROP_RULES["neuron-importance:sensitivity=0.5"].choose(shown, 1)
    assert shown.memory["outputs"].tolist() == [13.0, 8.0]  # importance is kept, and grows
    just = LayerView((2, 4), TAKEN, WEIGHTS, TAKEN, seeded(), memory=shown.memory, dropped=torch.tensor([4]))
    assert set(GROW_RULES["neuron-importance-or-random"].choose(just, 2).tolist()) in ({3, 1}, {3, 6})
    with pytest.raises(RuntimeError, match="needs the drop rule 'neuron-importance', which gathers it"):
        GROW_RULES["neuron-importance"].choose(view(), 1)


def test_similarity_searches_pairs_of_inputs_and_output_gradients() -> None:
    # Inner products of the vacant places: 1: 20, 3: 10, 4: -1, 6: 0.
    choose = {metric: GROW_RULES[f"similarity:metric={metric}"].choose for metric in ("abs", "ip", "l2")}
    assert choose["abs"](view(), 2).tolist() == [1, 3]
    assert choose["ip"](view(), 3).tolist() == [1, 3, 6]
    # Distances (x_i - δ_j)²: 1: (2-10)² = 64, 3: 81, 4: (1+1)² = 4, 6: 1.
    assert choose["l2"](view(), 2).tolist() == [4, 6]
    with pytest.raises(ValueError, match=r"`metric` must be one of abs, ip, l2 .* got 'cosine'"):
        GROW_RULES["similarity:metric=cosine"].choose(view(), 1)
    with pytest.raises(ValueError, match="`grow_temperature` needs scores of one sign"):
        choose["ip"](view(choosing=Choosing(1.0)), 1)


@pytest.mark.parametrize("metric", ["abs", "ip", "l2"])
def test_faiss_with_all_inputs_asked_for_is_the_exact_search(metric: str) -> None:
    pytest.importorskip("faiss")
    for seed in range(20):
        generator = seeded(seed)
        topology, capture = Topology.random((9, 12), 30, generator), Capture(1)
        capture.add(torch.randn(5, 12, generator=generator), torch.randn(5, 9, generator=generator))
        shown = LayerView((9, 12), topology.positions, torch.ones(30), topology.positions, generator, capture)
        exact = GROW_RULES[f"similarity:metric={metric}"].choose(shown, 10)
        asked = GROW_RULES[f"similarity:metric={metric}:search=faiss:k_similar=1"].choose(shown, 10)
        assert torch.equal(exact, asked)
    # A narrow search still gives as many as are wanted, and hashing, too.
    for options in ("k_similar=0.1", "k_similar=0.3:lsh_bits=16"):
        few = GROW_RULES[f"similarity:metric={metric}:search=faiss:{options}"].choose(shown, 40)
        assert few.unique().numel() == 40


def test_snfs_grows_by_momentum_of_absent_weights() -> None:
    # Two steps with dense gradients G = 10 20 0 10 | -1 -2 0 -1 and 2·G in the last: M = 0.9·G + 2·G.
    memory: dict[str, Tensor] = {}
    for scale in (1.0, 2.0):
        capture = Capture(1)
        capture.add(INPUTS, GIVEN * scale)
        assert GROW_RULES["momentum"].observe is not None
        GROW_RULES["momentum"].observe(memory, capture, (2, 4))
    assert memory["momentum"].tolist() == [
        pytest.approx([29.0, 58.0, 0.0, 29.0]),
        pytest.approx([-2.9, -5.8, 0.0, -2.9]),
    ]
    assert GROW_RULES["momentum"].choose(view(memory=memory), 2).tolist() == [1, 3]
    # Redistribution: mean |momentum| of what is left, here of 0, 2 (29, 0) and 5, 7 (5.8, 2.9).
    assert REDISTRIBUTIONS["momentum"]({"only": view(memory=memory)}) == {
        "only": pytest.approx((29 + 0 + 5.8 + 2.9) / 4)
    }
    with pytest.raises(RuntimeError, match="the momentum of absent weights was never gathered"):
        GROW_RULES["momentum"].choose(view(), 1)


def two_layers(first: list[float], second: list[float]) -> dict[str, LayerView]:
    views = {}
    for name, weights in (("a", first), ("b", second)):
        positions = torch.arange(len(weights))
        views[name] = LayerView((1, 8), positions, torch.tensor(weights), positions, seeded())
    return views


def found(rule: str, views: dict[str, LayerView], count: int) -> dict[str, list[int]]:
    return {name: indices.tolist() for name, indices in DROP_RULES[rule].choose(views, count).items()}


def test_magnitude_over_all_layers() -> None:
    views = two_layers([1.0, -5.0, 2.0], [0.5, 0.1, -0.2])
    assert found("global-magnitude", views, 3) == {"a": [0], "b": [1, 2]}
    # b's strongest (0.5) is weaker than a's 2.0, but the last of its layer.
    assert found("global-magnitude", views, 4) == {"a": [0, 2], "b": [1, 2]}


def test_srigl_gives_no_row_more_than_it_has_room_for() -> None:
    # Row 0 has one free place (3) and three frozen connections, row 1 four movable ones: three stay, one goes to row 0.
    movable, blocked, capture = torch.tensor([4, 5, 6, 7]), torch.tensor([0, 1, 2, 4, 5, 6, 7]), Capture(1)
    capture.add(torch.tensor([[1.0, 1.0, 1.0, 5.0]]), torch.tensor([[1.0, 1.0]]))
    shown = LayerView((2, 4), movable, torch.tensor([9.0, 8.0, 7.0, 1.0]), blocked, seeded(), capture)
    dropped, grown = DROP_RULES["constant-fan-in"].choose(shown, 1)
    assert (dropped.tolist(), grown.tolist()) == ([3], [3])
    # Where nothing may grow everything stays; where row 1 may, what row 0 has does not count.
    free = torch.tensor([0, 1, 4])
    for outputs, change in (([], ([], [])), ([1], ([2], [7]))):
        constraint = Constraint(torch.tensor(outputs, dtype=torch.int64))
        few = LayerView((2, 4), free, torch.tensor([1.0, 2.0, 3.0]), free, seeded(), capture, constraint)
        dropped, grown = DROP_RULES["constant-fan-in"].choose(few, 1)
        assert (dropped.tolist(), grown.tolist()) == change


@pytest.mark.parametrize("choosing", [Choosing(mix=1.0), Choosing(temperature=0.0)])
def test_the_best_of_each_layer_stays_whatever_is_drawn(choosing: Choosing) -> None:
    views = two_layers([1.0, -5.0, 2.0], [0.5, 0.1, -0.2])
    for seed in range(20):
        drawn = {name: replace(each, choosing=choosing, generator=seeded(seed)) for name, each in views.items()}
        gone = found("global-magnitude", drawn, 3)
        assert 1 not in gone["a"]
        assert 0 not in gone["b"]


def test_where_there_is_no_room_the_weakest_go() -> None:
    # Seven of eight places are taken; of the three that should go there is room for one.
    layer = SparseLinear(8, 1, topology=Topology.from_positions((1, 8), torch.arange(7)), bias=False)
    with torch.no_grad():
        layer.values.copy_(torch.tensor([0.3, 0.1, 0.2, 4.0, 5.0, 6.0, 7.0]))
    change = Sparsifier(
        layer, torch.optim.SGD(layer.parameters()), drop="global-magnitude", grow="random", drop_fraction=3 / 7, seed=0
    ).update()[""]
    assert (change.dropped.tolist(), change.grown.tolist()) == ([1], [7])


def test_lamp_compares_within_layers() -> None:
    # Squares 1, 4, 16 | 1, 4: 1/21, 4/20, 1 | 1/5, 1. Tied 1/5s: a's comes first.
    assert lamp_scores(torch.tensor([4.0, -1.0, 2.0])).tolist() == pytest.approx([1, 1 / 21, 4 / 20])
    views = two_layers([4.0, -1.0, 2.0], [-1.0, 2.0])
    assert found("lamp", views, 1) == {"a": [1], "b": []}
    assert found("lamp", views, 2) == {"a": [1, 2], "b": []}
    assert found("lamp", views, 3) == {"a": [1, 2], "b": [0]}


def test_snip_weighs_by_what_a_weight_changes() -> None:
    # |w · g|: 2·10, 1·0, 3·2, 4·1.
    assert found("sensitivity", {"only": view()}, 2) == {"only": [1, 3]}


def test_grasp_keeps_what_the_gradients_norm_lives_on() -> None:
    # L = Σ aᵢ wᵢ² / 2 with a = 1 2 3 4: g = a w = 2 -2 9 16, Hg = a g = 2 -4 27 64, w ⊙ Hg = 4 4 81 256.
    layer = SparseLinear(4, 2, topology=Topology.from_positions((2, 4), TAKEN), bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.values.copy_(WEIGHTS)
    curvature = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found_shares = flow_shares({"": layer}, lambda: (curvature * layer.values.square() / 2).sum().backward())[""]
    assert found_shares.tolist() == pytest.approx([4, 4, 81, 256])
    assert torch.equal(layer.values.detach(), WEIGHTS.double())  # looking changes nothing
    assert found("gradient-flow", {"only": view(flow_shares=found_shares)}, 2) == {"only": [0, 1]}
    assert found("gradient-flow", {"only": view(flow_shares=torch.tensor([1.0, -5.0, 0.0, 2.0]))}, 2) == {
        "only": [1, 2]
    }


@pytest.mark.parametrize("backend", ["gemm", "csr"])
def test_grasps_shares_are_those_of_twice_differentiating(backend: str) -> None:
    """An oracle: torch's own Hessian-vector product through the dense copy."""
    model = SparseMLP([5, 9, 7, 3], sparsity=0.5, dense=(), generator=seeded(1), backend=backend).double()
    inputs = torch.randn(16, 5, dtype=torch.float64, generator=seeded(2))
    labels = torch.randint(3, (16,), generator=seeded(3))
    shares = flow_shares(sparse_layers(model), lambda: F.cross_entropy(model(inputs), labels).backward())
    parts = [part.to_dense() if isinstance(part, SparseLinear) else part for part in model]
    weights = [part.weight for part in parts if isinstance(part, nn.Linear)]
    loss = F.cross_entropy(nn.Sequential(*parts)(inputs), labels)
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    there = [layer.topology.to_mask() for layer in sparse_layers(model).values()]
    along = sum((each * each.detach() * mask).sum() for each, mask in zip(gradients, there, strict=True))
    products = torch.autograd.grad(along, weights)
    assert len(shares) == len(weights)
    for share, weight, product, mask in zip(shares.values(), weights, products, there, strict=True):
        assert torch.allclose(share, (weight * product)[mask], rtol=1e-3, atol=1e-6)
        assert share.abs().max() > 1e-3


def test_grasp_wants_a_closure() -> None:
    model = SparseMLP([4, 8, 2], sparsity=0.5, topology="grasp", generator=seeded())
    sparsifier = Sparsifier.preset("grasp", model, Adam(model.parameters()), total_steps=10, sparsity=0.5)
    with pytest.raises(ValueError, match=r"asks how the gradient changes; give `step` a `closure`"):
        sparsifier.step()
    assert sparsifier.steps == 0
    with pytest.raises(ValueError, match=r"the values of '0' have no gradient; let it work out the loss"):
        sparsifier.update(closure=lambda: None)


def test_dsr_adapts_its_threshold() -> None:
    views = two_layers([0.0005, 5.0, 2.0], [0.0001, 0.1, 0.0002])
    assert found("adaptive-threshold", views, 2) == {"a": [0], "b": [0, 2]}  # 3 > 2.2: too many
    assert views["a"].memory["threshold"].item() == 0.0005
    assert found("adaptive-threshold", views, 2) == {"a": [], "b": [0, 2]}  # 0.0005 is not below itself
    assert views["a"].memory["threshold"].item() == 0.0005
    assert found("adaptive-threshold", views, 4) == {"a": [], "b": [0, 2]}  # 2 < 3.6: too few
    assert views["a"].memory["threshold"].item() == 0.001


def test_relative_importance() -> None:
    # |w| / into its output + |w| / out of its input, here of inputs with one connection each: x + 1.
    assert DROP_RULES["relative-importance"].choose(view(), 2).tolist() == [1, 2]  # 1/3, 3/7, 4/7, 2/3
    # Two outputs read input 0: 1/2 + 1/4 at 0, 1/2 + 1 at 1, 3/3 + 3/4 at 4.
    shared = torch.tensor([0, 1, 4])
    shown = LayerView((2, 4), shared, torch.tensor([1.0, 1.0, 3.0]), shared, seeded())
    assert DROP_RULES["relative-importance"].choose(shown, 1).tolist() == [0]


# Three outputs that read       0 1 . .        Output 0 and input 2 have one path: 0 - input 1 - output 1 - input 2.
# these inputs:                 . 1 2 .        Output 0 and input 3: none (output 2 reads 2 and 3, which 0 does not).
#                               . . 2 3
LADDER = torch.tensor([0, 1, 5, 6, 10, 11])


def ladder() -> LayerView:
    return LayerView((3, 4), LADDER, torch.ones(6), LADDER, seeded())


def test_paths_of_length_three() -> None:
    # CH3-L3p. (0, 2): a = input 1 (read by 0 and 1; 1 reads 2): no other links; b = output 1 (reads 1, 2): none: 1.
    # (1, 0): 1 - input 1 - output 0 - input 0: 1. (1, 3): 1 - input 2 - output 2 - input 3: 1. (2, 1): 1. Others: 0.
    # Ties go to the lowest position.
    assert GROW_RULES["ch3-l3p"].choose(ladder(), 4).tolist() == [2, 4, 7, 9]
    # CH2-L3n gives each of those (1 + 1) / 1 from outputs and as much from inputs.
    assert GROW_RULES["ch2-l3n"].choose(ladder(), 4).tolist() == [2, 4, 7, 9]


def test_srigl_gives_every_neuron_as_many_and_gives_poor_ones_up() -> None:
    # 3 outputs × 4 inputs, 4 connections: output 0 has 2 strong ones, output 1 two, output 2 none.
    #    [9] [8]  .   .
    #    [1] [7]  .   .
    #     .   .   .   .
    positions, width = torch.tensor([0, 1, 4, 5]), 4
    capture = Capture(1)
    # Gradient: rows 1·x, 2·x, 0·x for x = (1, 2, 3, 4).
    capture.add(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 2.0, 0.0]]))
    shown = LayerView((3, width), positions, torch.tensor([9.0, 8.0, 1.0, 7.0]), positions, seeded(), capture)
    # One exchanged: 1 goes; the steepest vacant place is (1, 3) with 8. Output 2 has nothing salient.
    dropped, grown = DROP_RULES["constant-fan-in"].choose(shown, 1)
    assert (dropped.tolist(), grown.tolist()) == ([2], [7])
    # A neuron must have all its fan-in of 2 salient (γ = 1): both have.
    dropped, grown = DROP_RULES["constant-fan-in:ablate_below=1"].choose(shown, 1)
    assert (dropped.tolist(), grown.tolist()) == ([2], [7])
    # Two exchanged: 1 and 7 go; steepest are 8 at (1, 3) and 6 at (1, 2).
    dropped, grown = DROP_RULES["constant-fan-in"].choose(shown, 2)
    assert (dropped.tolist(), grown.tolist()) == ([2, 3], [6, 7])
    # With gradients in output 0 only, output 1 has one salient connection (7) of 2: given up with γ = 1.
    only = Capture(1)
    only.add(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    shown = LayerView((3, width), positions, torch.tensor([9.0, 8.0, 1.0, 7.0]), positions, seeded(), only)
    dropped, grown = DROP_RULES["constant-fan-in:ablate_below=1"].choose(shown, 1)
    assert (dropped.tolist(), grown.tolist()) == ([2, 3], [2, 3])  # output 0 has all four


def test_deepr_walks_and_drops_what_crosses_zero() -> None:
    layer = SparseLinear(8, 1, topology=Topology.from_positions((1, 8), torch.arange(3)), bias=False)
    with torch.no_grad():
        layer.values.copy_(torch.tensor([1.0, -0.1, 0.05]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    sparsifier = Sparsifier.preset("deepr", layer, optimizer, total_steps=10, seed=0)
    layer.values.grad = torch.tensor([1.0, -2.0, 0.4])  # steps of -0.1, 0.2, -0.04: only the second crosses zero
    optimizer.step()
    change = sparsifier.step()[""]
    assert change.dropped.tolist() == [1]
    assert layer.values[change.source < 0].abs().tolist() == [pytest.approx(1e-12)]
    torch.testing.assert_close(layer.values[:2].detach(), torch.tensor([0.9, 0.01]), atol=1e-4, rtol=0)
    assert layer.nnz == 3


# Choices that are soft or mixed


def test_temperatures_and_mixes() -> None:
    scores = torch.tensor([1.0, 2.0, 4.0])
    # Which one stays of three when two go, with odds ∝ score: 1/7, 2/7, 4/7; with T = 2: 1/21, 4/21, 16/21.
    for temperature, odds in ((1.0, [1 / 7, 2 / 7, 4 / 7]), (2.0, [1 / 21, 4 / 21, 16 / 21]), (0.0, [1 / 3] * 3)):
        shared, tally = seeded(1), np.zeros(3)
        shown = LayerView((1, 8), torch.arange(3), scores, torch.arange(3), shared, choosing=Choosing(temperature))
        for _ in range(3000):
            (stays,) = {0, 1, 2} - set(shown.least(scores, 2).tolist())
            tally[stays] += 1
        assert np.abs(tally / 3000 - odds).max() < 0.035  # nearly four standard deviations
    # Of four that grow, one is random: the best three are always there, the fourth one of the other five.
    rows = torch.arange(8.0)[None]
    shown = LayerView(
        (1, 8), torch.empty(0).long(), torch.empty(0), torch.empty(0).long(), seeded(), choosing=Choosing(mix=0.25)
    )
    fourth = set()
    for _ in range(60):
        grown = set(shown.strongest(4, lambda start, stop: rows).tolist())
        assert {5, 6, 7} < grown
        fourth |= grown - {5, 6, 7}
    assert fourth == {0, 1, 2, 3, 4}
    mixed = PRESETS["rigl:grow_mix=0.25:drop_temperature=3"]
    assert (mixed.grow_mix, mixed.drop_temperature, mixed.drop) == (0.25, 3.0, "magnitude")


def test_only_zero_scores_left_is_no_trouble() -> None:
    scores = torch.zeros(5)
    shown = LayerView((1, 8), torch.arange(5), scores, torch.arange(5), seeded(), choosing=Choosing(2.0))
    assert len(set(shown.least(scores, 3).tolist())) == 3
    assert shown.strongest(2, lambda start, stop: torch.zeros(1, 8)).tolist() == [5, 6]


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_srigls_largest_of_each_row_are_those_of_a_stable_sort(width: int, rows: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (rows, width), generator=draws).float()  # many are equal
    wanted = torch.randint(0, width + 1, (rows,), generator=draws)
    wanted[0] = max(1, int(wanted[0]))
    row, column = _largest_of_rows(scores, wanted)
    order = scores.sort(dim=1, descending=True, stable=True).indices
    expected = [{*order[number, :count].tolist()} for number, count in enumerate(wanted.tolist())]
    assert [{*column[row == number].tolist()} for number in range(rows)] == expected
    assert row.numel() == int(wanted.sum())
