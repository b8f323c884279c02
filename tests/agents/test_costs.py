"""What training costs, worked out by hand."""

from typing import Any

import pytest
from small_agents import agent, fill

from agents.costs import training_cost, training_memory
from sparse_core.meters import nnz

# Three observations, two actions, four hidden units: the actor has 12 + 8 weights, a critic 20 + 4.
TINY: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[4]), batch_size=8)


def test_sparse_worked_example() -> None:
    model = agent(actor_sparsity=0.25, critic_sparsity=0.5, topology="static", **TINY)
    assert nnz(model.actor) == 7 + 8
    assert nnz(model.critic.qf0) == 8 + 4
    actor, critic = 2 * 15, 2 * 12
    targets = actor + 2 * critic
    critics = 2 * (3 * critic - 2 * 8)  # the first layer passes no gradient on
    policy = 3 * actor - 2 * 7 + critic + critic
    rollout = actor * (30 - 20)
    assert training_cost(model, updates=10, steps=30) == 8 * (10 * (targets + critics) + 5 * policy) + rollout == 20_460


def test_dense_by_the_same_formula() -> None:
    model = agent(topology="dense", **TINY)
    actor, critic = 2 * 20, 2 * 24
    update = actor + 2 * critic + 2 * (3 * critic - 2 * 20)
    policy = 3 * actor - 2 * 12 + 2 * critic
    assert training_cost(model, 10, 30) == 8 * (10 * update + 5 * policy) + 10 * actor
    zero = agent(topology="rigl", sparsity=0, **TINY)
    assert training_cost(zero, 10, 30) == training_cost(model, 10, 30)


def test_gradient_growth_costs_a_dense_gradient_each_time() -> None:
    options: dict[str, Any] = dict(
        actor_sparsity=0.25, critic_sparsity=0.5, capture_batches=2, total_updates=100, **TINY
    )
    model = fill(agent(topology="rigl", period=4, **options))
    before = training_cost(model, 10, 30)
    model.train(10, 8)
    assert model.changes == 2
    # Changes keep every layer's count, so all else costs what it did.
    assert training_cost(model, 10, 30) - before == 2 * (2 * 16 * 12 + 2 * (2 * 16 * 20))
    random = fill(agent(topology="set", period=4, **options))
    before = training_cost(random, 10, 30)
    random.train(10, 8)
    assert random.changes == 2
    assert training_cost(random, 10, 30) == before


def test_growth_by_some_gradients_costs_as_many_as_there_are_connections() -> None:
    model = fill(agent(topology="gse", period=4, actor_sparsity=0.25, critic_sparsity=0.5, total_updates=100, **TINY))
    before = training_cost(model, 10, 30)
    model.train(10, 8)
    assert model.changes == 2
    assert training_cost(model, 10, 30) - before == 2 * (2 * 8 * 7 + 2 * (2 * 8 * 8))


def test_a_change_of_nothing_is_not_looked_for() -> None:
    # ζ falls to zero at the last of three changes: 0.45, 0.15 and 0 of eight movable connections.
    options: dict[str, Any] = dict(actor_sparsity=0.25, critic_sparsity=0.5, period=4, total_updates=12, **TINY)
    model = fill(agent(topology="rigl:stop=1:drop_fraction=0.6", **options))
    model.train(12, 8)
    assert model.critic_sparsifier.fraction(12) == pytest.approx(0)
    assert model.critic_sparsifier.looks == 2


def test_growth_by_gradient_keeps_its_batches() -> None:
    rigl, plain = (
        fill(
            agent(
                topology=name, backend="gemm", actor_sparsity=0.25, critic_sparsity=0.5, capture_batches=2, period=4,
                total_updates=100, **TINY,
            )
        )
        for name in ("rigl", "set")
    )  # fmt: skip
    for each in (rigl, plain):
        each.train(2, 8)
    # Two batches of 8: inputs and output gradients of the layer 3→4 and of both 5→4, 4 bytes each.
    assert training_memory(rigl).scratch - training_memory(plain).scratch == 16 * (7 + 9 + 9) * 4


def test_who_watches_training_is_charged_for_what_it_saw_and_keeps() -> None:
    options: dict[str, Any] = dict(
        actor_sparsity=0.25, critic_sparsity=0.5, capture_batches=2, period=4, total_updates=100, **TINY
    )
    model, without = (fill(agent(topology=name, **options)) for name in ("snfs", "rigl"))
    before = training_cost(model, 10, 30)
    for each in (model, without):
        each.train(10, 8)
    # The critics see every batch, the actor every second one; first layers have 5·4 and 3·4 places, others are dense.
    assert (model.critic_sparsifier.looks, model.actor_sparsifier.looks) == (10, 5)
    assert training_cost(model, 10, 30) - before == 10 * 2 * (2 * 8 * 20) + 5 * (2 * 8 * 12)
    momentum = 4 * (2 * 20 + 12)
    assert training_memory(model).scratch == training_memory(without).scratch + momentum


@pytest.mark.parametrize(("updates", "policy_updates"), [(0, 0), (1, 0), (2, 0), (3, 1), (7, 2)])
def test_policy_updates_come_every_few(updates: int, policy_updates: int) -> None:
    model = agent(topology="dense", policy_delay=3, **TINY)
    critics = 40 + 96 + 2 * (144 - 40)
    policy = 120 - 24 + 96
    assert training_cost(model, updates, 5) == 8 * (critics * updates + policy * policy_updates)


@pytest.mark.parametrize(("actor", "critic"), [(0.25, 0.0), (0.0, 0.5)])
def test_counts_that_fall_are_charged_as_they_were(actor: float, critic: float) -> None:
    options: dict[str, Any] = dict(actor_sparsity=actor, critic_sparsity=critic, period=4, total_updates=20, **TINY)
    falling, static = (fill(agent(topology=name, **options)) for name in ("gmp", "static"))
    for model in (falling, static):
        model.train(20, 8)
    assert nnz(falling.actor) == nnz(static.actor)
    assert nnz(falling.critic) == nnz(static.critic)
    assert training_cost(falling, 20, 30) > training_cost(static, 20, 30)
