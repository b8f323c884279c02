import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparse_core import (
    DROP_RULES,
    GROW_RULES,
    Constraint,
    LayerView,
    SparseLinear,
    SparseMLP,
    Sparsifier,
    Topology,
    generators,
)
from sparse_core.draws import sample_distinct
from sparse_core.importance import PathImportance, Signals
from sparse_core.signals import Capture

# Eight weights of a 4×4 layer:     0     1    2    3     4    5     6    7
WEIGHTS = torch.tensor([0.5, -0.1, 0.9, 0.0, -0.4, 0.2, -0.8, 0.1])
TAKEN = torch.tensor([0, 1, 5, 6, 8, 11, 13, 14])  # their flat positions
VACANT = [2, 3, 4, 7, 9, 10, 12, 15]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def view(seed: int = 0, capture: Capture | None = None, constraint: Constraint | None = None) -> LayerView:
    return LayerView((4, 4), TAKEN, WEIGHTS, TAKEN, seeded(seed), capture, constraint or Constraint())


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


@pytest.mark.parametrize(
    ("count", "dropped"),
    [
        (0, []),
        (1, [3]),  # 0.0
        (2, [1, 3]),  # -0.1 and 0.1 are equally weak: the lower index goes
        (3, [1, 3, 7]),
        (5, [1, 3, 4, 5, 7]),  # 0.2, -0.4
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_magnitude_drops_the_weakest(count: int, dropped: list[int]) -> None:
    assert DROP_RULES["magnitude"].choose(view(), count).tolist() == dropped


@pytest.mark.parametrize(
    ("count", "dropped"),
    [
        (0, []),
        (1, [3]),  # 5 of 8 are positive (0.0 among them): 0.6 of one connection, so one positive
        (2, [1, 3]),  # 1.25 and 0.75: one of each sign
        (3, [1, 3, 7]),  # 1.9 and 1.1: positives 0.0 and 0.1, negative -0.1
        (4, [1, 3, 5, 7]),  # 2.5 and 1.5: the half goes to the positives, 0.0, 0.1 and 0.2
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_signed_drops_the_weakest_of_each_sign(count: int, dropped: list[int]) -> None:
    assert DROP_RULES["signed"].choose(view(), count).tolist() == dropped


def test_signed_leaves_the_only_negative_when_few_are_dropped() -> None:
    values = torch.tensor([0.5, 0.6, 0.7, -0.9, 0.8, 0.4, 0.3, 0.2])
    alone = LayerView((4, 4), TAKEN, values, TAKEN, seeded())
    assert DROP_RULES["signed"].choose(alone, 2).tolist() == [6, 7]


def test_random_drops_every_pair_alike() -> None:
    shared = view(3)
    tally = dict.fromkeys(combinations(range(8), 2), 0)
    for _ in range(2800):
        tally[tuple(DROP_RULES["random"].choose(shared, 2).tolist())] += 1
    assert chi_square(list(tally.values())) < 60  # 27 degrees of freedom: the 0.0003 tail


def test_random_grows_every_vacant_position_alike() -> None:
    shared = view(4)
    tally = dict.fromkeys(VACANT, 0)
    for _ in range(1600):
        tally[int(GROW_RULES["random"].choose(shared, 1))] += 1
    assert chi_square(list(tally.values())) < 27  # 7 degrees of freedom: the 0.0003 tail
    assert GROW_RULES["random"].choose(shared, 8).tolist() == VACANT


def test_gradient_grows_where_the_dense_gradient_is_largest() -> None:
    capture = Capture(1)
    capture.add(torch.tensor([[1.0, 2.0, 0.0, -1.0]]), torch.tensor([[1.0, -3.0, 0.0, 2.0]]))
    # Its dense gradient, taken positions in brackets:
    #   [1]  [2]   0   -1        0 …  3
    #   -3  [-6]  [0]   3        4 …  7
    #   [0]   0    0   [0]       8 … 11
    #    2   [4]  [0]  -2       12 … 15
    choose = GROW_RULES["gradient"].choose
    assert choose(view(capture=capture), 2).tolist() == [4, 7]
    assert choose(view(capture=capture), 3).tolist() == [4, 7, 12]  # 2 and -2 tie: the lower position
    # Only outputs 0 and 3 may grow, only from inputs 2 and 3: -1 at 3, -2 at 15, 0 at 2.
    corner = Constraint(outputs=torch.tensor([3, 0]), inputs=torch.tensor([2, 3]))
    assert choose(view(capture=capture, constraint=corner), 2).tolist() == [3, 15]
    assert choose(view(capture=capture, constraint=corner), 3).tolist() == [2, 3, 15]


def random_view(rows: int, columns: int, share: float, seed: int, constrained: bool) -> LayerView:
    generator = seeded(seed)
    topology = Topology.random((rows, columns), round(share * rows * columns), generator)
    movable = topology.positions[torch.rand(topology.nnz, generator=generator) < 0.7]  # the rest is frozen
    capture = Capture(1)
    capture.add(torch.randn(3, columns, generator=generator), torch.randn(3, rows, generator=generator))
    constraint = Constraint()
    if constrained:
        constraint = Constraint(
            sample_distinct(rows, rows // 2, generator), sample_distinct(columns, columns // 2, generator)
        )
    values = torch.randint(-3, 4, (movable.numel(),), generator=generator) / 4  # with ties and zeros
    whole = [torch.randint(4, (size,), generator=generator) / 4 for size in (movable.numel(), *topology.shape)]
    memory = {"outputs": whole[1].double(), "inputs": whole[2].double()}
    memory["momentum"] = torch.outer(whole[1], whole[2])
    weight = torch.zeros(rows * columns).index_copy_(0, movable, values).view(rows, columns)
    return LayerView(
        topology.shape, movable, values, topology.positions, generator, capture, constraint, Signals(*whole),
        memory=memory, activity=lambda inputs: inputs @ weight.T,
    )  # fmt: skip


def test_importance_drops_the_least_important_and_grows_between_important_neurons() -> None:
    # Outputs × inputs: 3·(1, 2, 0, 5), 0·…, 2·(1, 2, 0, 5), 1·(1, 2, 0, 5); vacant are 2, 3, 4, 7, 9, 10, 12, 15.
    signals = Signals(
        torch.tensor([5.0, 0.5, 3.0, 0.0, 4.0, 0.5, 6.0, 7.0]),
        torch.tensor([3.0, 0.0, 2.0, 1.0]),
        torch.tensor([1.0, 2.0, 0.0, 5.0]),
    )
    shown = LayerView((4, 4), TAKEN, WEIGHTS, TAKEN, seeded(), signals=signals)
    assert DROP_RULES["importance"].choose(shown, 2).tolist() == [1, 3]  # 0.0, then the first of the two 0.5
    assert GROW_RULES["importance"].choose(shown, 1).tolist() == [3]  # 3·5
    assert GROW_RULES["importance"].choose(shown, 4).tolist() == [3, 9, 12, 15]  # 2·2, 1·1, 1·5
    with pytest.raises(RuntimeError, match=r"needs the importance of connections.*`needs_importance=True`"):
        DROP_RULES["importance"].choose(view(), 1)


def test_path_importance_sums_what_each_connection_gained_and_neurons_sum_both_ways() -> None:
    first = SparseLinear(2, 2, bias=False, topology=Topology.from_positions((2, 2), torch.tensor([0, 3])))
    second = SparseLinear(2, 1, bias=False, topology=Topology.from_positions((1, 2), torch.tensor([0, 1])))
    with torch.no_grad():
        first.values.copy_(torch.tensor([1.0, 2.0]))
        second.values.copy_(torch.tensor([1.0, -1.0]))
    optimizer = torch.optim.SGD([first.values, second.values], lr=0.5)
    importance = PathImportance({"first": first, "second": second}, {"second": "first"})
    for _ in range(2):
        optimizer.zero_grad()
        (first.values @ torch.tensor([2.0, 4.0]) + second.values @ torch.tensor([1.0, 0.0])).backward()
        importance.before_step()
        optimizer.step()
        importance.after_step()
    # lr · g² for each step of plain SGD: twice 0.5·4, 0.5·16; twice 0.5·1, 0.
    shown = importance.signals("first"), importance.signals("second")
    assert [signals.connections.tolist() for signals in shown] == [[4.0, 16.0], [1.0, 0.0]]
    assert shown[0].inputs.tolist() == [4.0, 16.0]
    assert shown[0].outputs.tolist() == shown[1].inputs.tolist() == [4.0 + 1.0, 16.0 + 0.0]
    assert shown[1].outputs.tolist() == [1.0]


def test_importance_begins_anew_at_each_change_and_is_gathered_by_the_optimizers_steps() -> None:
    model = SparseMLP([6, 8, 2], sparsity=0.5, generator=seeded())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, optimizer, drop="importance", grow="importance", period=3, seed=0)
    inputs = torch.randn(16, 6, generator=seeded(1))
    expected = torch.zeros(0)
    for step in range(1, 6):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        (layer,) = sparsifier.layers.values()
        gradient = layer.values.grad.clone()
        optimizer.step()
        expected = 0.1 * gradient**2 + (expected if step not in (1, 4) else 0)
        assert sparsifier.importance is not None
        torch.testing.assert_close(sparsifier.importance.signals("0").connections, expected)
        rewirings = sparsifier.step()
        assert bool(rewirings) == (step == 3)
    state = sparsifier.state_dict()
    twin = Sparsifier(model, optimizer, drop="importance", grow="importance", period=3, seed=0)
    twin.load_state_dict(state)
    assert twin.importance is not None
    torch.testing.assert_close(twin.importance.signals("0").connections, expected)
    sparsifier.detach()
    twin.detach()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_importance_of_connections_that_are_gone_is_forgotten() -> None:
    layer, other = (SparseLinear(6, 5, sparsity=sparsity, generator=seeded()) for sparsity in (0.5, 0.8))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    sparsifier = Sparsifier(layer, optimizer, drop="importance", grow="importance", seed=0)
    assert sparsifier.importance is not None
    for load in (False, True):
        if load:
            assert sparsifier.importance.signals("").connections.any()
            layer.load_state_dict(other.state_dict())
            sparsifier.forget("")
            assert not sparsifier.importance.signals("").connections.any()
        optimizer.zero_grad()
        layer(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
    assert sparsifier.importance.signals("").connections.numel() == layer.nnz


views = st.tuples(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**32), st.booleans())


BY_LAYER = [n for n, rule in DROP_RULES.items() if not (rule.network or rule.own_count or rule.plans)]


@pytest.mark.parametrize("name", BY_LAYER)
@given(case=views, part=st.floats(0, 1))
def test_drop_rules_choose_exactly_and_repeatably(
    name: str, case: tuple[int, int, float, int, bool], part: float
) -> None:
    layer, twin = random_view(*case), random_view(*case)
    count = round(part * layer.count)
    dropped = DROP_RULES[name].choose(layer, count)
    assert dropped.tolist() == sorted(set(dropped.tolist()))
    assert dropped.numel() == count
    assert all(0 <= index < layer.count for index in dropped.tolist())
    assert torch.equal(dropped, DROP_RULES[name].choose(twin, count))


@pytest.mark.parametrize("name", [name for name, rule in GROW_RULES.items() if not rule.in_place])
@given(case=views, part=st.floats(0, 1))
def test_grow_rules_choose_vacant_allowed_positions_exactly_and_repeatably(
    name: str, case: tuple[int, int, float, int, bool], part: float
) -> None:
    layer, twin = random_view(*case), random_view(*case)
    count = round(part * layer.vacant_count)
    grown = GROW_RULES[name].choose(layer, count)
    assert grown.tolist() == sorted(set(grown.tolist()))
    assert grown.numel() == count
    assert not torch.isin(grown, layer.blocked).any()
    for chosen, allowed in ((grown // case[1], layer.constraint.outputs), (grown % case[1], layer.constraint.inputs)):
        assert allowed is None or torch.isin(chosen, allowed).all()
    assert ((grown >= 0) & (grown < case[0] * case[1])).all()
    assert torch.equal(grown, GROW_RULES[name].choose(twin, count))


def test_growth_in_place_takes_what_was_dropped() -> None:
    layer = replace(view(), dropped=torch.tensor([2, 9]))
    assert GROW_RULES["in-place"].choose(layer, 2).tolist() == [2, 9]
    with pytest.raises(RuntimeError, match="needs what this change has dropped; let a `Sparsifier` run the rule"):
        GROW_RULES["in-place"].choose(view(), 2)


# A second implementation, on a dense mask in NumPy, of the two methods as released: a dropped connection may
# grow again in the same change and then keeps its value.


def numpy_set(weight: np.ndarray, mask: np.ndarray, count: int, generator: torch.Generator) -> None:
    present = np.flatnonzero(mask)
    values = weight.flat[present]
    of_positive = math.floor(count * (values >= 0).sum() / present.size + 0.5)
    positive = present[values >= 0][np.argsort(values[values >= 0], kind="stable")]
    negative = present[values < 0][np.argsort(-values[values < 0], kind="stable")]
    dropped = np.concatenate([positive[:of_positive], negative[: count - of_positive]])
    mask.flat[dropped] = False
    free = np.flatnonzero(~mask)
    mask.flat[free[sample_distinct(free.size, count, generator).numpy()]] = True
    weight[~mask] = 0


def numpy_rigl(weight: np.ndarray, mask: np.ndarray, count: int, gradient: np.ndarray) -> None:
    present = np.flatnonzero(mask)
    dropped = present[np.argsort(np.abs(weight.flat[present]), kind="stable")[:count]]
    mask.flat[dropped] = False
    free = np.flatnonzero(~mask)
    mask.flat[free[np.argsort(-np.abs(gradient.flat[free]), kind="stable")[:count]]] = True
    weight[~mask] = 0


def changed(name: str, seed: int) -> tuple[SparseLinear, np.ndarray, np.ndarray, Tensor, Tensor]:
    """A random layer after one change by a preset, and before it: weight, mask, the batch and its gradient."""
    generator = seeded(seed)
    rows, columns = (int(torch.randint(2, 14, (), generator=generator)) for _ in range(2))
    layer = SparseLinear(columns, rows, sparsity=0.4, dtype=torch.float64, generator=generator)
    weight, mask = layer.to_dense().weight.detach().numpy().copy(), layer.topology.to_mask().numpy().copy()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    sparsifier = Sparsifier.preset(name, layer, optimizer, period=1, total_steps=100, seed=seed)
    inputs = torch.randn(5, columns, dtype=torch.float64, generator=generator)
    upstream = torch.randn(5, rows, dtype=torch.float64, generator=generator)
    layer(inputs).backward(upstream)
    assert list(sparsifier.step()) == [""]
    return layer, weight, mask, inputs, upstream


def test_set_agrees_with_a_dense_mask() -> None:
    for seed in range(200):
        layer, weight, mask, _, _ = changed("set", seed)
        numpy_set(weight, mask, int(0.3 * mask.sum()), generators(seed, "")[""])
        assert np.array_equal(layer.topology.to_mask().numpy(), mask), seed
        assert np.array_equal(layer.to_dense().weight.detach().numpy(), weight), seed


def test_rigl_agrees_with_a_dense_mask() -> None:
    fraction = 0.3 / 2 * (1 + math.cos(math.pi * 1 / 75))  # step 1 of 75: the topology stops at 3/4 of 100
    for seed in range(200):
        layer, weight, mask, inputs, upstream = changed("rigl", seed)
        numpy_rigl(weight, mask, int(fraction * mask.sum()), (upstream.T @ inputs).numpy())
        assert np.array_equal(layer.topology.to_mask().numpy(), mask), seed
        assert np.array_equal(layer.to_dense().weight.detach().numpy(), weight), seed


SCORED = [name for name in GROW_RULES if name not in ("random", "in-place", "sampled-gradient")]


@pytest.mark.parametrize("name", [*SCORED, "similarity:metric=ip", "similarity:metric=l2"])
def test_where_some_outputs_may_grow_their_best_do(name: str) -> None:
    """In a rule's own order, which it tells by growing one, two, three and so on."""
    choose = GROW_RULES[name].choose

    def view(outputs: list[int] | None = None) -> LayerView:
        constraint = Constraint(outputs=None if outputs is None else torch.tensor(outputs))
        return replace(random_view(9, 8, 0.3, 5, False), constraint=constraint)

    ranking: list[int] = []
    for count in range(1, view().vacant_count + 1):
        ranking += sorted({*choose(view(), count).tolist()} - {*ranking})
    best = [position for position in ranking if position // 8 in (1, 4, 7)]
    for count in (1, 4, view([1, 4, 7]).vacant_count - 1):
        assert choose(view([1, 4, 7]), count).tolist() == sorted(best[:count])
