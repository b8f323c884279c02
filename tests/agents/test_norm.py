"""Layer normalisation in the networks: where it is, that it learns as autograd has it, and that it stays."""

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_agents import agent, autograd, dense_state, fill, same, target_distance, topologies
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.common.utils import set_random_seed
from torch import nn

from agents import SparseTD3, SparseTD3Policy
from agents.autograd_update import AutogradUpdate
from agents.costs import training_cost, training_memory
from agents.fused_update import FusedActor, FusedUpdate
from sparse_core import kernels


def normed(**options: Any) -> Any:
    return agent(**dict(norm="layer") | options)


def test_networks_are_those_of_sb3s_create_mlp() -> None:
    model = normed(topology="dense", policy_kwargs=dict(net_arch=dict(pi=[8, 9], qf=[10])))
    wanted = {
        "actor.mu": create_mlp(3, 2, [8, 9], nn.ReLU, squash_output=True, post_linear_modules=[nn.LayerNorm]),
        "critic.qf0": create_mlp(5, 1, [10], nn.ReLU, post_linear_modules=[nn.LayerNorm]),
    }
    for name, modules in wanted.items():
        for owner in (name, name.replace(".", "_target.")):
            assert repr(model.policy.get_submodule(owner)) == repr(nn.Sequential(*modules))
    assert not any(isinstance(module, nn.LayerNorm) for module in agent().policy.modules())


def test_nothing_is_drawn_for_it() -> None:
    models, states = [], []
    for norm in ("none", "layer"):
        models.append(agent(norm=norm, init="fan-in"))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    plain, model = models
    own = norm_parameters(model)
    assert same([*plain.policy.parameters()], [value for value in model.policy.parameters() if value not in own])
    assert [*topologies(plain).values()] == [*topologies(model).values()]


def norm_parameters(model: SparseTD3) -> set[nn.Parameter]:
    norms = [module for module in model.policy.modules() if isinstance(module, nn.LayerNorm)]
    return {parameter for norm in norms for parameter in norm.parameters()}


def pair(**options: Any) -> list[SparseTD3]:
    """An agent, and one that autograd updates, with scales and shifts that are not 1 and 0."""
    models = [normed(**options), autograd(normed(**options))]
    for model in models:
        draws = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.policy.parameters():
                if parameter in norm_parameters(model):
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=draws))
    return models


CASES: dict[str, dict[str, Any]] = {
    "csr": dict(backend="csr"),
    "gemm": dict(backend="gemm"),
    "dense": dict(topology="dense", sparsity=0),
    "rigl": dict(topology="rigl", backend="csr", total_updates=100),
    "weight decay": dict(
        policy_kwargs=dict(net_arch=[24, 16], optimizer_kwargs=dict(eps=0.01, weight_decay=0.1)), backend="csr"
    ),
}


@pytest.mark.parametrize("batch", [pytest.param(16, marks=pytest.mark.slow), 33])
@pytest.mark.parametrize("case", CASES)
def test_updates_are_autograds(case: str, batch: int) -> None:
    # With its usual eps Adam makes a step of full length out of a gradient that is nothing but rounding.
    options = dict(policy_kwargs=dict(net_arch=[24, 16], optimizer_kwargs=dict(eps=0.01))) | CASES[case]
    models = pair(**options)
    for model in models:
        set_random_seed(3)
        fill(model).train(23, batch)
    assert [type(model._update) for model in models] == [FusedUpdate, AutogradUpdate]
    assert topologies(models[0]) == topologies(models[1])
    assert models[0].changes == (0 if case == "dense" else 2)
    assert target_distance(models[0]) == 0
    got = dense_state(models[0])
    for name, expected in dense_state(models[1]).items():
        torch.testing.assert_close(got[name], expected, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    # Scales and shifts learn, and targets follow them.
    first = dense_state(pair(**options)[0])
    moved = {name for name in got if not torch.equal(got[name], first[name])}
    assert {name for name in got if re.search(r"\.[14]\.", name)} <= moved


@pytest.mark.parametrize(
    "batch", [48, pytest.param(130, marks=pytest.mark.slow), pytest.param(256, marks=pytest.mark.slow)]
)
def test_training_does_not_depend_on_the_threads(
    batch: int, set_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "SHARE", 1)  # share out whatever there is
    states = []
    for threads in (1, 2):
        set_threads(threads)
        model = normed(backend="csr", policy_kwargs=dict(net_arch=[40, 30]))
        set_random_seed(3)
        fill(model).train(13, batch)
        states.append(dense_state(model))
    assert same(*states)


def test_acting_is_the_actors() -> None:
    model = pair(backend="csr")[0]
    for observation in np.random.default_rng(0).normal(size=(5, 1, 3)):
        with torch.no_grad():
            expected = model.actor(torch.from_numpy(observation).float())
        np.testing.assert_allclose(model._act(observation), expected.numpy(), rtol=0, atol=1e-6)
    assert isinstance(model._acting, FusedActor)


def test_an_epsilon_of_ones_own_goes_through_autograd() -> None:
    model = fill(normed())
    model.train(2, 16)
    assert isinstance(model._update, FusedUpdate)
    model.critic.qf0[1].eps = 1e-3
    model.train(2, 16)
    assert isinstance(model._update, AutogradUpdate)


def test_saved_agent_comes_back_whole() -> None:
    model = normed()
    model.learn(70)
    file = io.BytesIO()
    model.save(file)
    loaded = SparseTD3.load(file, device="cpu")
    assert loaded.sparse_options.norm == "layer"
    assert same(loaded.get_parameters(), model.get_parameters())
    points = np.random.default_rng(0).uniform(-1, 1, (20, 3))
    assert np.array_equal(loaded.predict(points)[0], model.predict(points)[0])
    alone = io.BytesIO()
    model.policy.save(alone)
    alone.seek(0)
    assert np.array_equal(SparseTD3Policy.load(alone, device="cpu").predict(points)[0], model.predict(points)[0])


def test_an_agent_saved_before_there_was_a_choice() -> None:
    model = agent()
    object.__delattr__(model.sparse_options, "norm")  # as it comes out of an older file
    assert model.sparse_options.norm == "none"
    model.policy.sparse.pop("norm")
    model.policy.make_critic()


@pytest.mark.parametrize("norm", ["batch", None, "Layer"])
def test_another_norm_is_refused(norm: Any) -> None:
    message = f"`norm` must be one of 'none', 'layer', got {norm!r}; take 'layer' for layer normalisation before"
    with pytest.raises(ValueError, match=re.escape(message)):
        agent(norm=norm)


def test_costs() -> None:
    plain, model = (fill(agent(norm=norm, backend="csr")) for norm in ("none", "layer"))
    for one in (plain, model):
        one.train(2, 16)
    assert training_cost(model, 10, 30) == training_cost(plain, 10, 30)
    # 3 networks of 2 hidden layers with 16 scales and shifts; again in targets; two moments and an age per tensor
    more, before = training_memory(model), training_memory(plain)
    assert more.parameters - before.parameters == 2 * 3 * 2 * 2 * 16 * 4
    assert more.optimizer - before.optimizer == 3 * 2 * 2 * (2 * 16 * 4 + 4)
    assert more.indices == before.indices
