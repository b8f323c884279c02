"""Toys with a known optimum are learnt in seconds."""

import numpy as np
import pytest
from small_agents import EPISODE, METHODS, agent, reach
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise

from agents import SparseSAC, SparseTD3
from sparse_core import PRESETS
from sparse_core.meters import sparsity

pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize(
    "topology",
    [name if name in ("dense", "static", "rigl") else pytest.param(name, marks=pytest.mark.slow) for name in METHODS],
)
def test_identity(topology: str) -> None:
    """SB3's own toy: the action must be the observation, within a half; the optimum is 100."""
    dense = PRESETS[topology].dense
    model = agent(
        IdentityEnvBox(eps=0.5), topology=topology, sparsity=0 if dense else 0.6, buffer_size=5_000,
        action_noise=NormalActionNoise(np.zeros(1), np.full(1, 0.1)), policy_kwargs=dict(net_arch=[32, 32]),
        learning_starts=100, batch_size=64, learning_rate=3e-3,
    )  # fmt: skip
    model.learn(450)
    assert sparsity(model.actor) == pytest.approx(0 if dense else 0.6, abs=1e-3)
    assert evaluate_policy(model, Monitor(IdentityEnvBox(eps=0.5)), n_eval_episodes=5)[0] >= 95


@pytest.mark.parametrize("topology", METHODS)
def test_reach(topology: str) -> None:
    """The action must be twice the point that is shown; doing nothing pays -8/3 a step, the optimum 0."""
    dense = PRESETS[topology].dense
    model = agent(
        topology=topology, sparsity=0 if dense else 0.6, gamma=0.0, learning_rate=3e-3, batch_size=64,
        buffer_size=5_000, learning_starts=200, policy_kwargs=dict(net_arch=[32, 32]),
        action_noise=NormalActionNoise(np.zeros(2), np.full(2, 0.3)),
    )  # fmt: skip
    model.learn(700)
    reward = evaluate_policy(model, Monitor(reach()), n_eval_episodes=20)[0] / EPISODE
    assert reward > -0.3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SparseSAC, SparseTD3])
def test_reach_as_sac_and_over_several_steps(kind: type) -> None:
    """The same toy, by SAC, and with delayed returns over three steps and a buffer that forgets."""
    several = dict(n_steps=3, n_step_onset=200, buffer_min=300, buffer_every=50, action_noise=None)
    model = agent(
        kind=kind, sparsity=0.6, topology="rigl", period=50, gamma=0.0, learning_rate=3e-3, batch_size=64,
        buffer_size=5_000, learning_starts=200, policy_kwargs=dict(net_arch=[32, 32]), backend="gemm", **several,
    )  # fmt: skip
    model.learn(900)
    assert model.replay_buffer.oldest > 0
    assert evaluate_policy(model, Monitor(reach()), n_eval_episodes=20)[0] / EPISODE > -0.3
