"""Returns over several steps, and a buffer that forgets: with a pencil, against SB3's own, and in training."""

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from hypothesis import given
from hypothesis import strategies as st
from small_agents import EPISODE, Reach, agent, fill, reach, same
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from agents import NStepReplay, SparseSAC, SparseTD3
from agents.fused_update import FusedUpdate
from agents.nstep_replay import ReplayOptions

SPACES = spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))


def buffer(kind: Any = NStepReplay, size: int = 8, **options: Any) -> Any:
    return kind(size, *SPACES, device="cpu", **options)


def add(held: Any, rewards: list[float], ends: str) -> Any:
    """Rows 0, 1, 2, … that show their number; `ends` has `.` for a step, `t` for a terminal one, `c` for a cut."""
    for row, (reward, end) in enumerate(zip(rewards, ends, strict=True)):
        here = np.full((1, 1), row / 100)
        held.add(
            here, here + 0.01, here, np.array([reward]), np.array([end in "tc"]),
            [{"TimeLimit.truncated": end == "c"}],
        )  # fmt: skip
    return held


def returns(held: NStepReplay, n_steps: int, gamma: float = 0.5) -> list[tuple[int, float, float]]:
    """(last row, return, discount) of every place of a ring that has not gone round."""
    held.n_steps, held.gamma = n_steps, gamma
    places = np.arange(held.added)
    return [tuple(map(float, each)) for each in zip(*held.returns(places, np.zeros_like(places)), strict=True)]  # type: ignore[misc]


def test_three_steps_by_pencil() -> None:
    #                 row: 0  1  2  3  4  5, γ = ½; row 2 ends the first episode, row 4 is cut off, row 5 is the newest
    held = add(buffer(), [1, 2, 4, 8, 16, 32], "..t.c.")
    assert returns(held, 1) == [
        (0, 1, 1 / 2), (1, 2, 1 / 2), (2, 4, 1 / 2), (3, 8, 1 / 2), (4, 16, 1 / 2), (5, 32, 1 / 2)
    ]  # fmt: skip
    assert returns(held, 3) == [
        (2, 1 + 2 / 2 + 4 / 4, 1 / 8),
        (2, 2 + 4 / 2, 1 / 4),
        (2, 4, 1 / 2),
        (4, 8 + 16 / 2, 1 / 4),
        (4, 16, 1 / 2),
        (5, 32, 1 / 2),
    ]


def test_a_sum_ends_where_the_environment_was_reset() -> None:
    held = add(buffer(), [1, 2], "..")
    held.cut_off()
    add(held, [4], ".")
    assert returns(held, 3) == [(1, 1 + 2 / 2, 1 / 4), (1, 2, 1 / 2), (2, 4, 1 / 2)]
    assert not (held.dones[:3] * (1 - held.timeouts[:3])).any()  # values go on behind a cut
    empty = buffer()
    empty.cut_off()
    assert empty.size() == 0
    ended = add(buffer(), [1], "t")
    ended.cut_off()
    assert (ended.dones[0], ended.timeouts[0]) == (1, 0)


def test_learning_anew_cuts_the_running_episode_off() -> None:
    model = rlx2()
    model.learn(27)  # episodes of 8: the fourth has begun
    assert not model.replay_buffer.timeouts[26].any()
    model.learn(1, reset_num_timesteps=False)
    assert not model.replay_buffer.timeouts[26].any()
    model.learn(1)
    assert model.replay_buffer.timeouts[27].all()


def test_a_sample_bootstraps_from_where_the_sum_ends() -> None:
    held = add(buffer(), [1, 2, 4, 8, 16, 32], "..t.c.")
    held.n_steps, held.gamma = 3, 0.5
    np.random.seed(0)  # noqa: NPY002
    batch = held.sample(200)
    rows = (batch.observations[:, 0] * 100).round().long()
    assert rows.unique().tolist() == [0, 1, 2, 3, 4, 5]
    # After rows 2, 2, 2, 4, 4, 5; a terminal step ends the value, a cut one does not.
    assert torch.equal((batch.next_observations[:, 0] * 100).round(), torch.tensor([3, 3, 3, 5, 5, 6.0])[rows])
    assert torch.equal(batch.dones[:, 0], torch.tensor([1, 1, 1, 0, 0, 0.0])[rows])
    assert torch.equal(batch.rewards[:, 0], torch.tensor([3, 4, 4, 16, 16, 32.0])[rows])
    assert torch.equal(batch.discounts[:, 0], torch.tensor([1 / 8, 1 / 4, 1 / 2, 1 / 4, 1 / 2, 1 / 2])[rows])
    assert {tensor.dtype for tensor in batch} == {torch.float32}


@given(
    st.integers(1, 12), st.integers(1, 4), st.lists(st.tuples(st.floats(-3, 3), st.sampled_from("...tc")), min_size=1),
)  # fmt: skip
def test_samples_are_sb3s_own(size: int, n_steps: int, rows: list[tuple[float, str]]) -> None:
    ours, theirs = buffer(size=size), buffer(NStepReplayBuffer, size=size, n_steps=n_steps, gamma=0.9)
    ours.n_steps, ours.gamma = n_steps, 0.9
    batches = []
    for held in (ours, theirs):
        add(held, [reward for reward, _ in rows], "".join(end for _, end in rows))
        np.random.seed(3)  # noqa: NPY002
        batches.append(held.sample(32))
    for one, other in zip(*batches, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_shrinking_by_pencil() -> None:
    held = add(buffer(size=40), [0.0] * 30, "." * 30)
    options = ReplayOptions(minimum=26, every=1, distance=0.2)
    # ½ · 0.6² = 0.18 does not exceed 0.2, ½ · 0.7² = 0.245 does.
    assert not held.shrink(options, lambda seen: seen + 0.6)
    assert held.oldest == 0
    assert held.shrink(options, lambda seen: seen + 0.7)
    assert held.oldest == 3  # a tenth of 30
    assert held.shrink(options, lambda seen: seen + 0.7)
    assert held.oldest == 4  # two would go, but 26 stay in any case
    assert not held.shrink(options, lambda seen: seen + 9)
    assert held.draw(1000)[0].min() == 4
    assert sorted(set(held.draw(1000)[0])) == [*range(4, 30)]
    assert held.size() == 30
    np.testing.assert_allclose(held.actions[:30, 0], np.arange(30)[:, np.newaxis] / 100, rtol=1e-6)  # all still there


def test_only_the_oldest_are_looked_at_and_the_ring_goes_round() -> None:
    held = add(buffer(size=10), [0.0] * 14, "." * 14)  # rows 4 … 13 are there, row 10 at place 0
    looked: list[float] = []

    def policy(seen: np.ndarray) -> np.ndarray:
        looked.extend((seen[:, 0] * 100).round().tolist())
        return seen + 1

    assert held.shrink(ReplayOptions(minimum=1, every=1), policy)
    assert looked == [*range(4, 14)]
    assert held.oldest == 5
    held.forget(6)
    assert (held.oldest, set(held.draw(100)[0])) == (11, {1, 2, 3})
    add(held, [0.0] * 9, "." * 9)  # rows 14 … 22: the ring has overwritten what was forgotten
    assert held.oldest == 13
    assert set(held.draw(200)[0]) == {*range(10)}
    held.reset()
    assert (held.oldest, held.added) == (0, 0)


def rlx2(kind: type = SparseTD3, **options: Any) -> Any:
    chosen = dict(
        sparsity=0.6, period=10, backend="gemm", n_steps=3, n_step_onset=5, buffer_min=100, buffer_every=4,
        buffer_distance=0.05, topology="rigl", total_updates=40,
    )  # fmt: skip
    return agent(kind=kind, **{**chosen, **options})


@pytest.mark.parametrize("kind", [SparseTD3, SparseSAC])
def test_returns_become_long_and_old_rows_go(kind: type) -> None:
    model = fill(rlx2(kind))
    lengths, oldest = [], []
    for _ in range(10):
        model.train(1, 16)
        lengths.append(model.replay_buffer.n_steps)
        oldest.append(model.replay_buffer.oldest)
    assert lengths == [1, 1, 1, 1, 1, 3, 3, 3, 3, 3]
    assert oldest == [0, 0, 0, 20, 20, 20, 20, 38, 38, 38]  # random actions are far from any policy
    assert model.n_steps == 3
    if kind is SparseTD3:
        assert isinstance(model._update, FusedUpdate)  # arrays are all it needs


def test_growth_sees_nothing_of_the_look_at_old_rows() -> None:
    # A look, but nothing goes.
    options: dict[str, Any] = dict(n_step_onset=0, period=4, buffer_distance=9.0, replay_buffer_class=NStepReplay)
    looking, plain = (fill(rlx2(buffer_min=least, **options)) for least in (10, None))
    for model in (looking, plain):
        set_random_seed(1)
        model.train(4, 16)
    assert looking.replay_buffer.oldest == 0
    assert looking.changes == plain.changes == 1
    assert same(looking.get_parameters(), plain.get_parameters())


@pytest.mark.parametrize("kind", [SparseTD3, SparseSAC])
def test_training_goes_on_from_a_file_as_from_memory(kind: Any, tmp_path: Any) -> None:
    model = fill(rlx2(kind))
    model.train(9, 16)
    model.save(tmp_path / "agent.zip")
    model.save_replay_buffer(tmp_path / "replay.pkl")
    loaded = kind.load(tmp_path / "agent.zip", env=reach())
    assert loaded.replay_options == model.replay_options
    assert loaded.n_steps == 3
    loaded.load_replay_buffer(tmp_path / "replay.pkl")
    loaded.set_logger(model.logger)
    for each in (model, loaded):
        set_random_seed(11)
        each.train(8, 16)
    assert loaded.replay_buffer.oldest == model.replay_buffer.oldest > 38
    assert same(loaded.get_parameters(), model.get_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(n_step_onset=-1), "`n_step_onset` must be a whole number of at least 0, got -1"),
        (dict(buffer_min=0), "`buffer_min` must be a whole number of at least 1, got 0"),
        (dict(buffer_every=0.5), "`buffer_every` must be a whole number of at least 1, got 0.5"),
        (dict(buffer_distance=-1.0), "`buffer_distance` must not be negative, got -1.0"),
        (dict(buffer_min=5, replay_buffer_class=NStepReplayBuffer), "`n_step_onset` and `buffer_min` are for the"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agent(**options)


def test_plain_long_returns_are_sb3s_own_unless_ours_are_asked_for() -> None:
    theirs, ours = (
        agent(sparsity=0.5, backend="gemm", n_steps=3, replay_buffer_class=kind) for kind in (None, NStepReplay)
    )
    assert type(theirs.replay_buffer) is NStepReplayBuffer
    assert type(ours.replay_buffer) is NStepReplay
    for model in (theirs, ours):
        set_random_seed(7)
        fill(model).train(8, 16)
    for name, weights in theirs.policy.state_dict().items():
        torch.testing.assert_close(ours.policy.state_dict()[name], weights, rtol=0, atol=1e-5)


def test_a_buffer_of_ones_own_stays() -> None:
    model = agent(replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=2))
    assert type(copy.copy(model.replay_buffer)) is NStepReplayBuffer


class Line(gymnasium.Env):
    observation_space, action_space = SPACES


def test_samples_behind_normalisation_are_sb3s_own() -> None:
    env = VecNormalize(DummyVecEnv([Line]))
    env.obs_rms.mean[:], env.obs_rms.var[:], env.ret_rms.var = 0.02, 1e-3, np.array(4.0)
    ours, theirs = buffer(), buffer(NStepReplayBuffer, n_steps=3, gamma=0.9)
    ours.n_steps, ours.gamma = 3, 0.9
    batches = []
    for held in (ours, theirs):
        add(held, [1, 2, 4, 8, 16, 32], "..t.c.")
        np.random.seed(3)  # noqa: NPY002 (SB3's own source)
        batches.append(held.sample(32, env=env))
    for one, other in zip(*batches, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_old_rows_are_shown_to_the_policy_as_it_sees_them() -> None:
    class Single(Reach):
        observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)

    env = VecNormalize(DummyVecEnv([lambda: TimeLimit(Single(), EPISODE)]))
    env.obs_rms.mean[:], env.obs_rms.var[:] = 0.5, 0.01
    model = fill(agent(env, buffer_min=10, backend="gemm"))
    model.train(1, 16)
    seen = np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32)
    wanted = model.predict(env.normalize_obs(seen), deterministic=True)[0] / 2  # actions reach from -2 to 2
    np.testing.assert_allclose(model._answers(seen), wanted, atol=1e-5)
