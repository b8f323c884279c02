"""What holds for every rule, optimizer and preset: one change, its followers, and what is frozen."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_sparsifiers import MOVING, OPTIMIZERS, SEARCHING, again, learn, network, seeded, sparsifier_of
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparse_core import DROP_RULES, GROW_RULES, PRESETS, Constraint, SparseLinear, Sparsifier, Topology, sparse_layers
from sparse_core.meters import topology_distance


def state_by_position(optimizer: Optimizer, layer: SparseLinear) -> dict[str, Tensor]:
    """Values and every per-connection state of a layer on its matrix, NaN where there is no movable connection."""
    found = {"values": layer.values.detach(), **optimizer.state[layer.values]}
    cells = {}
    for name, tensor in found.items():
        if name == "age" or (isinstance(tensor, Tensor) and tensor.dim()):
            cells[name] = torch.full((layer.in_features * layer.out_features,), torch.nan, dtype=torch.float64)
            cells[name][layer.positions] = tensor.double()
    return cells


def change_once(
    drop: str, grow: str | None, optimizer_name: str, shape: tuple[int, int], density: float, fraction: float,
    regrow: str, constrained: bool, seed: int,
) -> SparseLinear:  # fmt: skip
    """Train a random layer, part of it frozen, change it once, and check every law; the layer."""
    in_place = grow is not None and GROW_RULES[grow].in_place
    regrow = "fresh" if in_place else regrow
    generator = seeded(seed)
    rows, columns = shape
    layer = SparseLinear(
        columns,
        rows,
        topology=Topology.random(shape, max(1, round(density * rows * columns)), generator),
        generator=generator,
    )
    optimizer = OPTIMIZERS[optimizer_name](layer.parameters())
    constraint = Constraint(torch.arange(1, rows), torch.arange(columns - 1)) if constrained else Constraint()
    sparsifier = Sparsifier(
        layer, optimizer, drop=drop, grow=grow, drop_fraction=fraction, period=1, regrow=regrow, seed=seed,
        constraints={"": constraint},
    )  # fmt: skip
    learn(layer, optimizer, 0, columns)
    sparsifier.step(allowed=False)
    sparsifier.freeze("", layer.positions[::3], torch.tensor([0]))
    for step in (1, 2):
        learn(layer, optimizer, step, columns)
        assert sparsifier.step(allowed=False) == {}
    learn(layer, optimizer, 3, columns)

    taken, movable = layer.topology.positions, layer.positions.clone()
    frozen = (layer.frozen_positions.clone(), layer.frozen_values.clone(), layer.frozen_bias_values.clone())
    before = state_by_position(optimizer, layer)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[constraint.outputs if constrained else slice(None), :] = True
    if constrained:
        mask[:, -1] = False
    allowed = mask.flatten().nonzero().squeeze(1)
    change = sparsifier.step()[""]
    after = state_by_position(optimizer, layer)

    # The exact count, as many as asked for unless there is no room.
    vacant = allowed[~torch.isin(allowed, taken)]
    asked = int(fraction * movable.numel() + 1e-9)
    if DROP_RULES[drop].own_count or DROP_RULES[drop].plans:  # as many as it finds right
        asked = change.dropped.numel()
    assert layer.nnz == taken.numel()
    assert change.dropped.numel() == change.grown.numel() <= asked  # fewer where `kept` ones came back
    if in_place:
        assert change.grown.tolist() == change.dropped.tolist()
        assert change.grown.numel() == asked
        allowed = movable  # nothing comes that was not there
    elif regrow == "no":
        assert change.grown.numel() == min(asked, vacant.numel())
    elif regrow == "fresh":
        assert min(asked, vacant.numel()) <= change.grown.numel() <= asked
    # Sorted and unique positions within the layer: what there was, less the dropped, and the grown.
    expected = sorted({*movable.tolist()} - {*change.dropped.tolist()} | {*change.grown.tolist()})
    assert layer.positions.tolist() == change.after.tolist() == expected
    assert layer.topology.positions.tolist() == sorted([*expected, *frozen[0].tolist()])
    # Grown where it is vacant and allowed; dropped ones came back only if they may.
    assert torch.isin(change.grown, allowed).all()
    again = torch.isin(change.grown, change.dropped)
    assert not torch.isin(change.grown[~again], taken).any()
    assert regrow == "fresh" or not again.any()
    # Frozen connections and biases: bit for bit.
    now = (layer.frozen_positions, layer.frozen_values, layer.frozen_bias_values)
    assert all(torch.equal(tensor, old) for tensor, old in zip(now, frozen, strict=True))
    # Values and state: kept ones as they were, new ones fresh.
    kept = change.after[change.source >= 0]
    assert before.keys() == after.keys() or change.grown.numel()
    for name, cells in after.items():
        assert torch.equal(cells[kept], before[name][kept]), name
        assert (cells[change.grown] == 0).all(), name
    return layer


# Every rule, every optimizer, and every pair that a preset makes; not every product of them.
PARTNERS = {"neuron-importance": "neuron-importance", "neuron-importance-or-random": "neuron-importance"}
TRIOS = {(drop, "random", "ours") for drop, rule in DROP_RULES.items() if not (rule.plans or rule.needs_closure)}
TRIOS |= {(PARTNERS.get(grow, "magnitude"), grow, "ours decoupled") for grow in GROW_RULES}
TRIOS |= {("signed", "gradient", optimizer) for optimizer in OPTIMIZERS}
TRIOS |= {(drop, None, "ours") for drop, rule in DROP_RULES.items() if rule.plans}
TRIOS |= {(preset.drop, preset.grow, "Adam") for preset in PRESETS.values() if preset.drop and preset.grow}


@pytest.mark.parametrize(("drop", "grow", "optimizer"), sorted(TRIOS, key=str))
@settings(max_examples=5)
@example(shape=(6, 7), density=0.5, fraction=0.5, regrow="kept", constrained=False, seed=0)
@example(shape=(6, 7), density=0.9, fraction=0.9, regrow="fresh", constrained=True, seed=1)  # not room for all
@example(shape=(9, 9), density=0.2, fraction=0.4, regrow="no", constrained=True, seed=2)
@given(
    shape=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    density=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    fraction=st.floats(0, 1),
    regrow=st.sampled_from(["no", "kept", "fresh"]),
    constrained=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_laws_of_one_change(
    drop: str, grow: str | None, optimizer: str, shape: tuple[int, int], density: float, fraction: float, regrow: str,
    constrained: bool, seed: int,
) -> None:  # fmt: skip
    case = (drop, grow, optimizer, shape, density, fraction, regrow, constrained, seed)
    first, second = change_once(*case), change_once(*case)
    assert first.topology == second.topology
    assert torch.equal(first.values, second.values)


@pytest.mark.parametrize(
    "name", [name for name in SEARCHING if PRESETS[name].grow and PRESETS[name].drop not in PARTNERS]
)
def test_another_seed_gives_another_topology(name: str) -> None:
    def trained(seed: int) -> list[Topology]:
        model = network(name)
        optimizer = OPTIMIZERS["ours"](model.parameters())
        sparsifier = sparsifier_of(name, model, optimizer, seed=seed, drop="random")
        for step in range(5):
            learn(model, optimizer, step, 6)
            sparsifier.step()
        return [layer.topology for layer in sparse_layers(model).values()]

    assert trained(1) == trained(1)
    assert trained(1) != trained(2)


# Followers


@pytest.mark.parametrize("name", PRESETS)
def test_a_target_network_follows_every_change(name: str) -> None:
    model = network(name)
    target = copy.deepcopy(model)
    optimizer = OPTIMIZERS["ours"](model.parameters())
    sparsifier = sparsifier_of(name, model, optimizer, followers=[target])
    for step in range(31):
        if step == 12 and sparse_layers(model) and not PRESETS[name].masking:
            sparsifier.freeze("2", sparsifier.layers["2"].positions[:20], torch.tensor([1, 3]))
        learn(model, optimizer, step, 6)
        sparsifier.step(closure=again(model, step))
        for layer_name, layer in sparse_layers(model).items():
            follower = sparse_layers(target)[layer_name]
            assert topology_distance(layer.topology, follower.topology) == 0
            assert torch.equal(follower.frozen, layer.frozen)
            assert torch.equal(follower.frozen_values, layer.frozen_values)
            assert torch.equal(follower.frozen_bias_values, layer.frozen_bias_values)
        with torch.no_grad():  # Polyak averaging of values, entry by entry
            torch._foreach_lerp_(list(target.parameters()), list(model.parameters()), 0.1)
    due = sum(sparsifier.every.due(step) for step in range(1, 32)) if name in MOVING else 0
    assert sparsifier.changes == due or (0 < sparsifier.changes < due and not PRESETS[name].keeps_count)
    for layer in sparse_layers(target).values():
        assert torch.isfinite(layer.values).all()


@pytest.mark.parametrize("backend", ["gemm", "csr", "rows", "auto"])
def test_averaged_weights_are_those_of_the_same_connections(backend: str) -> None:
    model = network("set")
    for layer in sparse_layers(model).values():
        layer.use_backend(backend)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = OPTIMIZERS["ours"](model.parameters())
    sparsifier = sparsifier_of("set", model, optimizer, followers=[averaged.module])
    expected: dict[str, Tensor] = {}
    for step in range(21):
        learn(model, optimizer, step, 6)
        for name, change in sparsifier.step().items():  # what went is forgotten, what comes starts at zero
            carried = torch.zeros_like(expected[name]).flatten()
            carried[change.after] = change.carry(expected[name].flatten()[change.before])
            expected[name] = carried.view_as(expected[name])
        averaged.update_parameters(model)
        for name, layer in sparse_layers(model).items():
            now = layer.to_dense().weight.detach()
            expected[name] = now if step == 0 else torch.lerp(expected[name], now, 0.1)
            found = sparse_layers(averaged.module)[name]
            assert found.topology == layer.topology
            assert torch.allclose(found.to_dense().weight, expected[name], atol=1e-6)
    assert sparsifier.changes == 4


def test_a_follower_keeps_its_own_values() -> None:
    model = network("set")
    target = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.fill_(2.0)
    optimizer = OPTIMIZERS["ours"](model.parameters())
    change = sparsifier_of("set", model, optimizer, regrow="no", followers=[target]).update()["0"]
    assert target[0].values.tolist() == [0.0 if source < 0 else 2.0 for source in change.source]


# Frozen parts


@pytest.mark.parametrize(
    ("name", "optimizer_name"),
    [
        *(("set", optimizer) for optimizer in OPTIMIZERS),
        *((name, "ours") for name in PRESETS if name not in ("set", "dense") and not PRESETS[name].masking),
    ],
)
def test_frozen_parts_are_bit_identical_after_training(name: str, optimizer_name: str) -> None:
    model = network(name)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    sparsifier = sparsifier_of(name, model, optimizer)
    for step in range(7):
        learn(model, optimizer, step, 6)
        sparsifier.step(closure=again(model, step))
    layer = sparsifier.layers["2"]
    positions, outputs = layer.positions[1::2].clone(), torch.tensor([0, 5, 15])
    dense = layer.to_dense()
    total = layer.nnz
    sparsifier.freeze("2", positions, outputs)
    values = layer.values.detach().clone()
    for step in range(7, 40):
        learn(model, optimizer, step, 6)
        sparsifier.step(closure=again(model, step))
    trained = layer.to_dense()
    assert torch.equal(trained.weight.flatten()[positions], dense.weight.flatten()[positions])
    assert torch.equal(trained.bias[outputs], dense.bias[outputs])
    assert layer.nnz == total or not PRESETS[name].keeps_count
    assert layer.values.shape != values.shape or not torch.equal(layer.values, values)  # the rest has learned


def test_a_frozen_layer_stays_out_of_the_changes() -> None:
    model = network("set")
    optimizer = OPTIMIZERS["ours"](model.parameters())
    sparsifier = sparsifier_of("set", model, optimizer)
    before = sparsifier.layers["2"].topology
    sparsifier.freeze("2")
    for step in range(5):
        learn(model, optimizer, step, 6)
        changes = sparsifier.step()
    assert changes["0"].dropped.numel() > 0
    assert changes["2"].after.numel() == 0
    assert sparsifier.layers["2"].topology == before


def test_layers_that_keep_too_much_are_named() -> None:
    model = network("snip")
    sparse_layers(model)["2"].requires_grad_(False)  # 256 of the network's 384 cells
    optimizer = OPTIMIZERS["ours"](model.parameters())
    sparsifier = sparsifier_of("snip", model, optimizer, sparsity=0.9, period=1)
    learn(model, optimizer, 0, 6)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'2' do not learn and so keep 256 connections, but all layers are to have"):
        sparsifier.step()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("name", MOVING)
def test_a_layer_that_does_not_learn_stays(name: str, held: bool) -> None:
    model = network(name)
    first, *others = sparse_layers(model).values()
    first.requires_grad_(False)
    kept, began = copy.deepcopy(first.state_dict()), [layer.active_topology for layer in others]
    optimizer = OPTIMIZERS["ours"]([p for p in model.parameters() if held or p.requires_grad])
    sparsifier = sparsifier_of(name, model, optimizer)
    for step in range(16):
        learn(model, optimizer, step, 6)
        sparsifier.step(closure=again(model, step))
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, kept[key]), key
    assert sparsifier.changes
    assert [layer.active_topology for layer in others] != began or not PRESETS[name].searches
