"""What multiplies in an agent: settled when its networks are made, kept from then on, the same learning on each."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_agents import agent, fill, reach, same, topologies
from stable_baselines3.common import policies
from stable_baselines3.common.preprocessing import preprocess_obs

from agents import SparseTD3
from sparse_core import BACKENDS, SparseLinear, Topology, crossover, sparse_layers

LAYERS = ["actor.mu.0", "actor.mu.2", "critic.qf0.0", "critic.qf0.2", "critic.qf1.0", "critic.qf1.2"]
MIXED = dict(zip(LAYERS, ["csr", "gemm", "gemm", "csr", "rows", "csr"], strict=True))


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """What is measured from here on, by a stopwatch that has `gemm` win in square layers and `csr` in others."""
    cases: list[tuple[int, ...]] = []

    def stopwatch(layer: SparseLinear, batch_size: int, names: Sequence[str]) -> dict[str, float]:
        cases.append((*layer.shape, batch_size))
        return {"gemm": 0.5 if layer.in_features == layer.out_features else 2.0, "csr": 1.0}

    monkeypatch.setattr(crossover, "measure", stopwatch)
    monkeypatch.setenv("SPARSE_AGENTS_CACHE", str(tmp_path / "cache"))
    return cases


def never(*_: Any) -> Any:
    raise AssertionError("measured")


def target_backends(model: SparseTD3) -> dict[str, str]:
    return {
        f"{owner}.{name}": layer.backend
        for owner in ("actor", "critic")
        for name, layer in sparse_layers(getattr(model, f"{owner}_target")).items()
    }


def test_auto_is_the_default_and_settles_for_the_training_batch(asked: list[tuple[int, ...]]) -> None:
    model = agent()
    assert sorted(asked) == [(16, 3, 16), (16, 5, 16), (16, 16, 16), (16, 16, 16)]  # both critics' layers are alike
    assert model.backends == dict(zip(LAYERS, ["csr", "gemm"] * 3, strict=True))
    assert target_backends(model) == model.backends


def test_a_fixed_backend_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossover, "measure", never)
    for name in ("gemm", "csr", "rows"):
        model = agent(backend=name)
        assert set(model.backends.values()) == set(target_backends(model).values()) == {name}
    assert agent(topology="dense").backends == {}


def test_backends_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossover, "measure", never)
    model = agent(backend=MIXED)
    assert model.backends == target_backends(model) == MIXED
    fill(model).train(4, 16)
    model.predict(model.observation_space.sample())


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("gem", "no backend called 'gem'; did you mean 'gemm'?"),
        (MIXED | {"actor.mu.0": "gem"}, "no backend called 'gem'; did you mean 'gemm'?"),
        (MIXED | {"actor.mu.1": "csr"}, "every sparse layer of the agent and nothing else (unknown: actor.mu.1)"),
        ({name: "csr" for name in LAYERS[1:]}, "and nothing else (missing: actor.mu.0); give one backend for all"),
        ({"mu": "csr"}, "(missing: actor.mu.0, actor.mu.2, critic.qf0.0, "),
    ],
)
def test_backends_that_cannot_be(backend: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        agent(backend=backend)


def test_a_saved_agent_is_not_measured_again(
    asked: list[tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fill(agent())
    model.train(12, 16)
    model.save(tmp_path / "agent.zip")
    monkeypatch.setattr(crossover, "measure", never)
    monkeypatch.setenv("SPARSE_AGENTS_CACHE", str(tmp_path / "nothing here"))
    loaded = SparseTD3.load(tmp_path / "agent.zip", env=reach())
    assert loaded.backends == target_backends(loaded) == model.backends
    fill(loaded).train(4, 16)
    loaded.save(tmp_path / "again.zip")
    assert SparseTD3.load(tmp_path / "again.zip").backends == model.backends


@pytest.mark.parametrize("backend", ["csr", MIXED])
def test_a_saved_agent_keeps_a_backend_that_was_given(backend: Any, tmp_path: Path) -> None:
    agent(backend=backend).save(tmp_path / "agent.zip")
    loaded = SparseTD3.load(tmp_path / "agent.zip")
    assert loaded.backends == (backend if isinstance(backend, Mapping) else dict.fromkeys(LAYERS, backend))


def test_what_was_settled_on_another_device_is_settled_anew(
    asked: list[tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = agent()
    model._settled = ("cuda", dict.fromkeys(LAYERS, "rows"))
    model.save(tmp_path / "agent.zip")
    asked.clear()
    assert SparseTD3.load(tmp_path / "agent.zip").backends == model.backends
    assert asked == []  # the cache still knows


def test_a_policy_of_its_own_keeps_its_backends(asked: list[tuple[int, ...]], tmp_path: Path) -> None:
    policy = agent(backend=MIXED).policy
    policy.save(tmp_path / "policy.pth")
    assert type(policy).load(tmp_path / "policy.pth").backends == MIXED


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_seed_is_the_same_agent_whatever_is_measured(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cold cache and with a warm one."""
    states = []
    for cache in ("cold", "cold", "another"):
        monkeypatch.setenv("SPARSE_AGENTS_CACHE", str(tmp_path / cache))
        model = agent(backend=backend)
        states.append({"policy": model.policy.parameters_to_vector(), "torch": torch.get_rng_state()})
    assert same(states[0]["torch"], states[1]["torch"])
    assert same(states[0]["torch"], states[2]["torch"])
    assert all((states[0]["policy"] == state["policy"]).all() for state in states)


def double(observation: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    return preprocess_obs(observation, *args, **kwargs).double()


def trajectory(topology: str, backend: Any, updates: int = 200) -> tuple[list[dict[str, Topology]], SparseTD3]:
    """Every topology on the way, and the agent at its end, in float64."""
    model = fill(agent(topology=topology, backend=backend, total_updates=updates))
    model.policy.double()
    found = []
    for _ in range(updates // 10):
        model.train(10, 16)
        found.append(topologies(model))
    return found, model


@pytest.mark.end_to_end
@pytest.mark.parametrize("topology", [pytest.param("set", marks=pytest.mark.slow), "rigl"])
@pytest.mark.parametrize(
    "backend",
    [  # the mixed one has each of them
        pytest.param("csr", id="csr", marks=pytest.mark.slow),
        pytest.param("rows", id="rows", marks=pytest.mark.slow),
        pytest.param(MIXED, id="mixed"),
    ],
)
def test_one_trajectory_on_every_backend(topology: str, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "preprocess_obs", double)
    expected, model = trajectory(topology, "gemm")
    actual, other = trajectory(topology, backend)
    assert {parameter.dtype for parameter in other.policy.parameters()} == {torch.float64}
    assert model.changes == other.changes >= 10
    assert actual == expected
    assert expected[0] != expected[-1]
    for ours, theirs in zip(other.policy.parameters(), model.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
