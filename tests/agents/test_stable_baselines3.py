"""What people do with `stable_baselines3.TD3`, done with a sparse agent."""

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from small_agents import (
    EPISODE,
    METHODS,
    MOVING,
    SEARCHING,
    Reach,
    agent,
    dense_state,
    fill,
    reach,
    same,
    target_distance,
    topologies,
)
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from agents import SparseSAC, SparseTD3
from sparse_core import PRESETS, sparse_layers
from sparse_core.meters import sparsity

POINTS = np.random.default_rng(0).uniform(-1, 1, (20, 3))


def actions(model: Any) -> np.ndarray:
    return model.predict(POINTS, deterministic=True)[0]


def reloaded(model: SparseTD3, env: Any = None, **options: Any) -> SparseTD3:
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return SparseTD3.load(file, env=env, device="cpu", **options)


# --- save and load -------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", METHODS)
def test_saved_agent_comes_back_whole(topology: str) -> None:
    model = agent(topology=topology, sparsity=None)
    first = topologies(model)
    model.learn(70)
    assert bool(model.changes) == (topology in MOVING)
    if topology in SEARCHING:
        assert all(topologies(model)[name] != first[name] for name in first)
    loaded = reloaded(model)
    assert topologies(loaded) == topologies(model)
    assert target_distance(loaded) == 0
    assert same(loaded.get_parameters(), model.get_parameters())  # optimizer state with its ages, too
    assert same(loaded.adaptation_state(), model.adaptation_state())
    assert loaded.sparse_options == model.sparse_options
    assert (loaded.num_timesteps, loaded._n_updates) == (70, model._n_updates)
    assert np.array_equal(actions(loaded), actions(model))


def test_saved_ages_are_those_of_the_connections() -> None:
    model = agent(period=10).learn(50)  # 30 updates, the last change at the last of them
    loaded = reloaded(model)
    for name, layer in sparse_layers(loaded.critic).items():
        age = loaded.critic.optimizer.state[layer.values]["age"]
        grown = torch.isin(layer.positions, model.last_rewirings[f"critic.{name}"].grown)
        assert age.dtype == torch.int32
        assert grown.any()
        assert not age[grown].any()
        assert age[~grown].max() == 30


@pytest.mark.end_to_end
@pytest.mark.parametrize("topology", METHODS)
@pytest.mark.parametrize("steps", [pytest.param(50, marks=pytest.mark.slow), 57])
def test_training_goes_on_from_a_file_as_from_memory(topology: str, steps: int) -> None:
    model = agent(topology=topology, sparsity=None, capture_batches=4, action_noise=noise()).learn(steps)
    loaded = reloaded(model, env=reach())
    loaded.replay_buffer = copy.deepcopy(model.replay_buffer)
    model.set_env(reach())  # both begin an episode
    for each in (model, loaded):
        set_random_seed(11)
        each.get_env().seed(11)
        each.learn(45, reset_num_timesteps=False)
        assert each.num_timesteps == steps + 45
    assert same(loaded.get_parameters(), model.get_parameters())
    assert same(loaded.adaptation_state(), model.adaptation_state())
    assert loaded.changes == model.changes
    if PRESETS[topology].schedule == "constant":
        assert model.changes == ((steps + 45 - 20) // 10 if topology in MOVING else 0)


def test_update_by_hand_goes_on_from_a_file() -> None:
    model = agent(total_updates=100).learn(47)
    loaded = reloaded(model, env=reach())
    assert loaded.changes == model.changes == 2
    for each in (model, loaded):
        each.replay_buffer.reset()
        set_random_seed(11)
        fill(each).train(15, 16)
    assert same(loaded.get_parameters(), model.get_parameters())
    assert loaded.changes == model.changes == 4


def test_training_anew_from_a_file_counts_from_zero() -> None:
    loaded = reloaded(agent().learn(60), env=reach())
    loaded.replay_buffer = agent().learn(30).replay_buffer
    assert loaded.learn(45).changes == 2


def test_saving_changes_nothing() -> None:
    plain = agent(topology="rigl").learn(70)
    saving = agent(topology="rigl")
    saving.learn(70, callback=lambda _locals, _globals: saving.save(io.BytesIO()) is None)
    assert same(saving.get_parameters(), plain.get_parameters())
    assert same(saving.adaptation_state(), plain.adaptation_state())


def test_file_made_without_training() -> None:
    model = agent()
    loaded = reloaded(model, env=reach())
    assert np.array_equal(actions(loaded), actions(model))
    assert loaded.learn(50, reset_num_timesteps=False).changes == 3


def test_loading_without_an_environment() -> None:
    loaded = reloaded(agent().learn(40))
    assert actions(loaded).shape == (20, 2)
    with pytest.raises(AssertionError, match="You must set the environment"):
        loaded.learn(10)
    loaded.set_env(reach())
    assert loaded.learn(40).num_timesteps == 40


def test_loading_with_other_settings() -> None:
    policy = dict(net_arch=[8, 8])
    model = agent(policy_kwargs=policy).learn(30)
    assert policy == dict(net_arch=[8, 8])
    loaded = reloaded(model, env=reach(), learning_rate=1e-5, gamma=0.5, policy_kwargs=dict(net_arch=[8, 8]))
    assert (loaded.gamma, loaded.learn(30).actor.optimizer.param_groups[0]["lr"]) == (0.5, 1e-5)
    with pytest.raises(ValueError, match="policy kwargs do not equal"):
        reloaded(model, policy_kwargs=dict(net_arch=[9]))


@pytest.mark.parametrize("name", ["sparsity", "topology", "period", "drop_fraction", "dense"])
def test_loading_cannot_change_what_makes_it_sparse(name: str) -> None:
    with pytest.raises(ValueError, match=f"`load` cannot change `{name}`"):
        reloaded(agent(), **{name: 0.5})


def test_loading_checks_other_settings_too() -> None:
    with pytest.raises(ValueError, match="`batch_size` must not exceed `buffer_size`, got 16 > 8"):
        reloaded(agent(), buffer_size=8)


def test_loading_into_more_environments() -> None:
    loaded = reloaded(agent().learn(40), env=DummyVecEnv([reach, reach]))
    assert loaded.learn(40).n_envs == 2


def test_file_of_sb3s_td3_is_named() -> None:
    file = io.BytesIO()
    agent(kind=TD3).save(file)
    file.seek(0)
    with pytest.raises(ValueError, match="`policy` must be 'MlpPolicy' or a subclass of SparseTD3Policy"):
        SparseTD3.load(file)


@pytest.mark.end_to_end
@pytest.mark.parametrize("made", [agent, lambda: SparseSAC("MlpPolicy", reach(), sparsity=0.5, learning_starts=10)])
def test_a_deep_copy_learns_on_by_itself(made: Any) -> None:
    model = made().learn(60)
    twin = copy.deepcopy(model)
    assert np.array_equal(actions(twin), actions(model))
    before = copy.deepcopy(model.get_parameters())
    twin.learn(30, reset_num_timesteps=False)
    assert same(model.get_parameters(), before)
    assert not same(twin.get_parameters(), before)
    model.learn(30, reset_num_timesteps=False)
    assert not same(model.get_parameters(), before)


def test_a_file_of_other_layers_is_one_clear_line(tmp_path: Path) -> None:
    agent(topology="dense", sparsity=None).save(tmp_path / "dense.zip")
    with pytest.raises(ValueError, match="these layers are sparse in one agent and dense in the other: actor"):
        agent(sparsity=0.5).set_parameters(tmp_path / "dense.zip")


# --- parameters ----------------------------------------------------------------------------------------


def uneven() -> tuple[SparseTD3, SparseTD3]:
    """Two trained agents, sparse in the same layers, with different numbers of connections."""
    first, second = (agent(sparsity=share, distribution="uniform", seed=seed) for seed, share in ((0, 0.4), (5, 0.8)))
    return first.learn(60), second.learn(45)


@pytest.mark.parametrize("by_file", [True, False])
def test_parameters_with_another_number_of_connections(by_file: bool, tmp_path: Path) -> None:
    source, target = uneven()
    assert sparsity(source.actor) < sparsity(target.actor)
    before = {id(layer.values) for layer in sparse_layers(target.actor).values()}
    source.save(tmp_path / "source.zip")
    target.set_parameters(str(tmp_path / "source.zip") if by_file else source.get_parameters())
    assert {id(layer.values) for layer in sparse_layers(target.actor).values()} == before
    assert topologies(target) == topologies(source)
    assert same(target.get_parameters(), source.get_parameters())
    assert np.array_equal(actions(target), actions(source))
    target.learn(45, reset_num_timesteps=False)
    assert target.changes >= 4
    assert target_distance(target) == 0
    assert sparsity(target.actor) == sparsity(source.actor)


def test_parameters_without_optimizer_state() -> None:
    source, target = uneven()
    policy = {"policy": source.get_parameters()["policy"]}
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        target.set_parameters(policy)
    target.set_parameters(policy, exact_match=False)
    assert np.array_equal(actions(target), actions(source))
    target.learn(45, reset_num_timesteps=False)
    for network in (target.actor, target.critic):
        for layer in sparse_layers(network).values():
            state = network.optimizer.state[layer.values]
            assert state["exp_avg"].shape == layer.values.shape
            assert int(state["age"].max()) <= 45


def test_parameters_of_other_layers_are_an_error() -> None:
    sparse, dense = agent(), agent(topology="dense")
    for one, other in ((sparse, dense), (dense, sparse)):
        before = actions(one)
        with pytest.raises(
            ValueError, match=r"these layers are sparse in one agent and dense in the other: actor\.mu\.0"
        ):
            one.set_parameters(other.get_parameters())
        assert np.array_equal(actions(one), before)


def test_parameters_of_an_agent_that_sees_less_are_an_error(tmp_path: Path) -> None:
    class Wide(Reach):
        observation_space = spaces.Box(-1.0, 1.0, (5,), np.float64)

    narrow, wide = (agent(env, distribution="uniform") for env in (reach(), TimeLimit(Wide(), EPISODE)))
    narrow.save(tmp_path / "narrow.zip")
    before = wide.get_parameters()
    for parameters in (narrow.get_parameters(), tmp_path / "narrow.zip"):
        with pytest.raises(ValueError, match=r"mu\.0 has 5 inputs, but what is loaded was made for 3"):
            wide.set_parameters(parameters)
    assert same(wide.get_parameters(), before)


def test_moments_do_not_stay_when_other_connections_of_that_number_come() -> None:
    first, second = agent(seed=0).learn(45), agent(seed=1).learn(45)
    assert first.actor.mu[0].values.shape == second.actor.mu[0].values.shape  # type: ignore[union-attr]
    first.set_parameters({"policy": second.get_parameters()["policy"]}, exact_match=False)
    assert not first.actor.optimizer.state.get(first.actor.mu[0].values)  # type: ignore[union-attr]
    first.learn(10, reset_num_timesteps=False)


def test_what_a_method_remembers_does_not_stay_with_other_connections() -> None:
    """Deep R keeps the sign of every connection; those of connections that are gone would drop what came."""
    first, second = (agent(seed=seed, topology="deepr").learn(45) for seed in (0, 1))
    assert first.actor_sparsifier._marks["mu.0"]
    first.set_parameters(second.get_parameters())
    assert not first.actor_sparsifier._marks["mu.0"]
    first.learn(10, reset_num_timesteps=False)
    marks = first.actor_sparsifier._marks["mu.0"]
    (signs,) = marks.values()
    values = first.actor.mu[0].values
    assert signs.shape == values.shape


def test_importance_of_a_loaded_agents_connections_goes_with_them(tmp_path: Path) -> None:
    first, second = (agent(seed=seed, topology="set:drop=importance").learn(45) for seed in (0, 1))
    first.save(tmp_path / "agent.zip")
    loaded = SparseTD3.load(tmp_path / "agent.zip", env=reach())  # its sparsifiers come with the first update
    assert loaded.adaptation_state()["actor"]["importance"]["totals"]["mu.0"].any()
    loaded.set_parameters(second.get_parameters())
    assert "mu.0" not in loaded.adaptation_state()["actor"]["importance"]["totals"]
    loaded.learn(10, reset_num_timesteps=False)


@pytest.mark.parametrize("trained", [False, True])
def test_targets_that_did_not_come_become_copies(trained: bool) -> None:
    first, second = (agent(seed=seed, topology="static") for seed in (0, 1))
    if trained:
        first.learn(45)
    came = {name: value for name, value in second.policy.state_dict().items() if "target" not in name}
    first.set_parameters({"policy": {**first.policy.state_dict(), **came}}, exact_match=False)
    assert target_distance(first) == 0
    assert topologies(first) == topologies(second)
    first.learn(30, reset_num_timesteps=not trained)
    assert target_distance(first) == 0


@pytest.mark.parametrize("name", ["n_step_onset", "buffer_min", "buffer_every", "buffer_distance"])
def test_what_load_cannot_change_of_the_replay(name: str, tmp_path: Path) -> None:
    agent().save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match=f"`load` cannot change `{name}`"):
        SparseTD3.load(tmp_path / "agent.zip", **{name: 7})


def test_state_of_sb3s_own_adam_is_taken_over() -> None:
    dense = agent(topology="dense")
    own = TD3("MlpPolicy", dense.get_env(), policy_kwargs=dict(net_arch=dense.policy.net_arch), learning_starts=10)  # type: ignore[arg-type]
    own.learn(40)
    dense.set_parameters(own.get_parameters())
    state = dense.critic.optimizer.state[next(dense.critic.parameters())]
    assert int(state["age"]) == own._n_updates
    dense.learn(20)


# --- callbacks, environments and ways of training ------------------------------------------------------


def noise() -> NormalActionNoise:
    return NormalActionNoise(np.zeros(2), np.full(2, 0.1))


def test_callbacks(tmp_path: Path) -> None:
    model = agent()
    evaluate = EvalCallback(
        Monitor(reach()), n_eval_episodes=2, eval_freq=25, best_model_save_path=str(tmp_path),
        log_path=str(tmp_path), verbose=0,
    )  # fmt: skip
    checkpoint = CheckpointCallback(25, str(tmp_path), save_replay_buffer=True)
    model.learn(75, callback=CallbackList([evaluate, checkpoint]))
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [25, 50, 75]
    assert actions(SparseTD3.load(tmp_path / "best_model", device="cpu")).shape == (20, 2)
    halfway = SparseTD3.load(tmp_path / "rl_model_50_steps", env=reach(), device="cpu")
    halfway.load_replay_buffer(tmp_path / "rl_model_replay_buffer_50_steps.pkl")
    # A callback comes before the updates of its step, so 29 of them lie in the file.
    assert (halfway.replay_buffer.added, halfway._n_updates, halfway.changes) == (49, 29, 2)
    halfway.learn(25, reset_num_timesteps=False)
    assert (halfway.num_timesteps, halfway.changes) == (75, 5)


def test_callback_stops_training() -> None:
    model = agent().learn(100, callback=lambda _locals, _globals: _locals["self"].num_timesteps < 40)
    assert model.num_timesteps == 40


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    model = agent().learn(60, progress_bar=True)
    assert (model.num_timesteps, model.changes) == (60, 4)
    shown = capsys.readouterr()
    assert "60/60" in shown.out + shown.err


def test_log_shows_losses_and_changes(capsys: pytest.CaptureFixture[str]) -> None:
    agent(verbose=1).learn(96, log_interval=2)
    shown = capsys.readouterr().out
    for name in ("critic_loss", "actor_loss", "n_updates", "learning_rate", "topology_changes", "ep_rew_mean"):
        assert name in shown


def test_tensorboard(tmp_path: Path) -> None:
    agent(tensorboard_log=str(tmp_path)).learn(60, log_interval=1)
    assert list(tmp_path.glob("TD3_1/events*"))


def test_several_environments() -> None:
    model = agent(DummyVecEnv([reach, reach]), action_noise=noise()).learn(80)
    assert (model.num_timesteps, model._n_updates, model.changes) == (80, 30, 3)
    assert model.replay_buffer.added == 40
    assert model._planned_updates() == 30


def test_evaluate_policy() -> None:
    model = agent().learn(40)
    mean, deviation = evaluate_policy(model, Monitor(reach()), n_eval_episodes=3)
    assert mean < 0 <= deviation
    _, lengths = evaluate_policy(model, Monitor(reach()), n_eval_episodes=3, return_episode_rewards=True)
    assert lengths == [EPISODE] * 3


def test_normalised_environment(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([reach]))
    model = agent(env).learn(60)
    assert (model.get_vec_normalize_env(), model.changes) == (env, 4)
    held = model.replay_buffer.observations[:60]
    assert np.abs(held).max() <= 1  # raw ones are kept
    drawn = model.replay_buffer.sample(300, env=env).observations
    assert drawn.dtype == torch.float32
    assert drawn.abs().max() > 1
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "normal.pkl"))
    again = VecNormalize.load(str(tmp_path / "normal.pkl"), DummyVecEnv([reach]))
    assert SparseTD3.load(tmp_path / "model", env=again, device="cpu").learn(40).num_timesteps == 40


def test_normalised_observations_keep_what_float32_would_lose() -> None:
    class Far(Reach):
        observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)

        def reset(self, **options: Any) -> tuple[np.ndarray, dict]:
            return super().reset(**options)[0] + 1e8, {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            point, *rest = super().step(action)
            return point + 1e8, *rest

    model = agent(VecNormalize(DummyVecEnv([lambda: TimeLimit(Far(), EPISODE)]))).learn(100)
    drawn = model.replay_buffer.sample(100, env=model.get_vec_normalize_env()).observations
    assert len(drawn[:, 0].unique()) > 30  # of 100 rows; as float32 all of them are one number
    with pytest.raises(ValueError, match="`VecNormalize` has yet to scale"):
        agent(VecNormalize(DummyVecEnv([reach])), n_steps=3, n_step_onset=10)


@pytest.mark.parametrize("topology", MOVING)
def test_training_by_episodes(topology: str) -> None:
    model = agent(
        topology=topology, train_freq=(1, "episode"), gradient_steps=-1, learning_starts=16, period=4, stop=0.5
    )
    model.learn(64)
    assert model._n_updates == 48
    assert model.changes == (5 if topology == "rigl" else 6)  # the cosine is zero at its end: nothing moves


def test_returns_over_several_steps() -> None:
    model = agent(n_steps=3).learn(60)
    assert isinstance(model.replay_buffer, NStepReplayBuffer)
    assert model.changes == 4


def test_a_misspelt_argument_is_named() -> None:
    with pytest.raises(TypeError, match=r"SparseTD3 has no argument 'sparsty'; did you mean 'sparsity'\?"):
        SparseTD3("MlpPolicy", reach(), sparsty=0.5)
    with pytest.raises(TypeError, match=r"SparseTD3 has no argument 'polcy_delay'; did you mean 'policy_delay'\?"):
        SparseTD3("MlpPolicy", reach(), polcy_delay=3)


def test_learning_twice() -> None:
    model = agent().learn(60)
    assert model.learn(30).changes == 1  # anew: ten updates
    assert model.num_timesteps == 30
    model.learn(30, reset_num_timesteps=False)
    assert (model.num_timesteps, model.changes) == (60, 4)


def test_learning_on_is_learning_through() -> None:
    once = agent(action_noise=noise(), total_updates=60).learn(80)
    twice = agent(action_noise=noise(), total_updates=60).learn(33).learn(47, reset_num_timesteps=False)
    assert same(once.get_parameters(), twice.get_parameters())
    assert once.changes == twice.changes == 6


# --- the same run again --------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", METHODS)
def test_seed_decides_the_run(topology: str) -> None:
    def run(seed: int) -> SparseTD3:
        return agent(topology=topology, sparsity=None, action_noise=noise(), seed=seed).learn(60)

    first, again, other = run(3), run(3), run(4)
    assert same(first.get_parameters(), again.get_parameters())
    assert same(first.adaptation_state(), again.adaptation_state())
    assert first.replay_buffer.observations.tobytes() == again.replay_buffer.observations.tobytes()
    differing = dense_state(other)
    assert all(not torch.equal(weights, differing[name]) for name, weights in dense_state(first).items())
    ours, theirs = topologies(first), topologies(other)
    assert all(ours[name] != theirs[name] for name in ours)


def test_a_normalised_environment_later_is_taken_or_told(tmp_path: Path) -> None:
    agent().save(tmp_path / "plain.zip")
    normalised = VecNormalize(DummyVecEnv([reach]))
    loaded = SparseTD3.load(tmp_path / "plain.zip", env=normalised, device="cpu")
    assert loaded.replay_buffer.observations.dtype == np.float64
    with pytest.warns(UserWarning, match="the replay buffer keeps float32 of observations that `VecNormalize` has yet"):
        agent().set_env(normalised)
    unscaled = agent(VecNormalize(DummyVecEnv([reach]), norm_obs=False))  # rewards only
    assert unscaled.replay_buffer.observations.dtype == np.float32


@pytest.mark.parametrize("kind", [SparseTD3, SparseSAC])
def test_every_optimizer_follows_the_learning_rate(kind: type) -> None:
    options = dict(sparsity=0.6, period=10, backend="gemm", learning_rate=lambda left: 1e-3 * left)
    model = agent(kind=kind, **options).learn(40)
    optimizers = [model.actor.optimizer, model.critic.optimizer]
    optimizers += [model.ent_coef_optimizer] if kind is SparseSAC else []
    assert {group["lr"] for optimizer in optimizers for group in optimizer.param_groups} == {0.0}  # at the end
