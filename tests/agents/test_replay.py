"""The float32 buffer: SB3's samples, and rows that come back as they were."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from small_agents import agent
from stable_baselines3.common.buffers import ReplayBuffer

from agents import Float32ReplayBuffer

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (3,), np.float64)
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
FIELDS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def buffer(kind: type = Float32ReplayBuffer, size: int = 10, n_envs: int = 1, space: Any = OBSERVATIONS) -> Any:
    return kind(size, space, ACTIONS, device="cpu", n_envs=n_envs)


def add(to: Any, rows: int, seed: int = 0) -> Any:
    draws, envs = np.random.default_rng(seed), to.n_envs
    for _ in range(rows):
        here, there = draws.normal(size=(2, envs, 3)) * 100
        done = draws.random(envs) < 0.5
        infos = [{"TimeLimit.truncated": bool(draws.random() < 0.5) and bool(each)} for each in done]
        to.add(here, there, draws.uniform(-1, 1, (envs, 2)), draws.normal(size=envs), done, infos)
    return to


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("rows", [20, 50])
def test_samples_are_sb3s_in_float32(rows: int, n_envs: int) -> None:
    ours, theirs = (add(buffer(kind, 30, n_envs), rows) for kind in (Float32ReplayBuffer, ReplayBuffer))
    batches = []
    for each in (ours, theirs):
        np.random.seed(3)  # noqa: NPY002 - SB3 draws from it
        batches.append(each.sample(200))
    for name, got, expected in zip(batches[0]._fields, *batches, strict=True):
        if expected is None:
            assert got is None
            continue
        assert got.dtype == torch.float32, name
        assert torch.equal(got, expected.float()), name
    assert set(batches[0].dones.flatten().tolist()) == {0.0, 1.0}
    assert (ours.dones[: ours.size()] > 0).sum() > (ours.dones * (1 - ours.timeouts) > 0).sum() > 0  # some truncated
    assert ours.observations.nbytes * 2 == theirs.observations.nbytes


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_other_observations_stay_as_they_are(dtype: Any) -> None:
    held = buffer(space=spaces.Box(0, 200, (3,), dtype))
    assert held.observations.dtype == held.next_observations.dtype == dtype


def test_bounds_stay_those_of_the_space() -> None:
    space = spaces.Box(np.array([-1.0, -np.inf]), np.array([2.0, np.inf]), dtype=np.float64)
    held = buffer(space=space).observation_space
    assert held.dtype == np.float32
    assert held.low.tolist() == [-1, -np.inf]
    assert held.high.tolist() == [2, np.inf]
    assert space.dtype == np.float64


@given(
    capacity=st.integers(1, 12), n_envs=st.integers(1, 3), rows=st.integers(0, 40), cuts=st.lists(st.integers(0, 40))
)
def test_rows_put_back_in_ranges_are_the_same_buffer(capacity: int, n_envs: int, rows: int, cuts: list[int]) -> None:
    source = add(buffer(size=capacity * n_envs, n_envs=n_envs), rows)
    assert (source.capacity, source.added, source.size()) == (capacity, rows, min(rows, capacity))
    first = rows - source.size()
    edges = sorted({first, rows, *(cut for cut in cuts if first < cut < rows)})
    copied = buffer(size=capacity * n_envs, n_envs=n_envs)
    for start, stop in pairwise(edges):
        part = source.rows(start, stop)
        assert all(len(part[name]) == stop - start for name in FIELDS)
        copied.restore(start, part)
    copied.finish_restore(rows)
    assert (copied.pos, copied.full, copied.added) == (source.pos, source.full, rows)
    for name in FIELDS:
        assert getattr(copied, name).tobytes() == getattr(source, name).tobytes()
    # And both go on alike.
    for each in (source, copied):
        add(each, 5, seed=1)
    assert copied.observations.tobytes() == source.observations.tobytes()
    assert (copied.pos, copied.added) == (source.pos, source.added)


def test_rows_are_copies_in_the_order_they_came() -> None:
    held = buffer(size=4)
    for row in range(10):
        one = np.full((1, 3), float(row))
        held.add(one, one + 0.5, np.zeros((1, 2)), np.array([row]), np.array([False]), [{}])
    part = held.rows(6, 10)
    assert part["rewards"].flatten().tolist() == [6, 7, 8, 9]
    assert part["next_observations"][:, 0, 0].tolist() == [6.5, 7.5, 8.5, 9.5]
    part["rewards"][:] = -1
    assert held.rows(6, 10)["rewards"].flatten().tolist() == [6, 7, 8, 9]


def test_reset_forgets_the_rows() -> None:
    held = add(buffer(), 7)
    held.reset()
    assert (held.added, held.size()) == (0, 0)


def test_agent_keeps_float64_observations_in_float32() -> None:
    model = agent()
    assert isinstance(model.replay_buffer, Float32ReplayBuffer)
    assert model.observation_space.dtype == np.float64
    model.learn(30)
    assert model.replay_buffer.added == 30
    assert model.replay_buffer.observations.dtype == np.float32


class Mine(ReplayBuffer):
    """A user's own buffer."""


def test_buffer_of_ones_own() -> None:
    model = agent(replay_buffer_class=Mine).learn(40)
    assert type(model.replay_buffer) is Mine
    assert model.changes == 2


def test_memory_efficient_buffer_is_sb3s() -> None:
    lean = dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False))
    model = agent(**lean).learn(40)
    assert type(model.replay_buffer) is ReplayBuffer
