"""The loop for one plain environment: SB3's own results to the bit, and SB3's loop wherever it does not fit."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small_agents import agent, reach, same
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EveryNTimesteps
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from torch import Tensor, nn

import agents.td3
from agents import Float32ReplayBuffer, SparseTD3
from agents.collection import PlainActor, copy_info, is_plain
from agents.fused_update import FusedActor
from agents.policies import SparseTD3Policy

STEPS = 45
MAKE_ACTING = SparseTD3._make_acting


pytestmark = pytest.mark.usefixtures("no_mujoco_log")


@pytest.fixture(autouse=True)
def acting_through_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """As SB3 does, whose bits are asked for here: compiled acting rounds its sums in another order."""
    monkeypatch.setattr(SparseTD3, "_make_acting", lambda model: PlainActor(model))


class SB3Buffer(Float32ReplayBuffer):
    """Our buffer, filled by SB3's code."""

    def add(self, *args: Any) -> None:
        ReplayBuffer.add(self, *args)
        self.added += 1


class SB3Loop(SparseTD3):
    """Our agent, collecting by SB3's code."""

    collect_rollouts = TD3.collect_rollouts

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, replay_buffer_class=SB3Buffer, **kwargs)


class Careless(gymnasium.Env):
    """Hands out the same arrays at every step; its episodes end in both ways, and in both at once."""

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def __init__(self) -> None:
        self.action_space = spaces.Box(np.array([-0.3, 0.1]), np.array([0.9, 7.3]), dtype=np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place, self.length = self.np_random.normal(size=4), 0
        self.info = {"trace": [self.place], "again": self.place, "is_success": np.bool_(False)}
        return self.place, {"options": options, "draw": self.np_random.random()}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, Any, Any, dict]:
        self.length += 1
        self.place += 0.1 * self.np_random.normal(size=4)
        self.place[:2] += action
        draw = self.np_random.random()
        self.info["is_success"] = np.bool_(draw < 0.5)
        return self.place, np.float64(draw), draw < 0.1, np.bool_(0.05 < draw < 0.2), self.info


def made(name: str, **options: Any) -> Callable[[], gymnasium.Env]:
    return lambda: gymnasium.make(name, disable_env_checker=True, **options)


ENVS: dict[str, Callable[[], gymnasium.Env]] = {
    "HalfCheetah": made("HalfCheetah-v5", max_episode_steps=9),
    "Pendulum": made("Pendulum-v1", max_episode_steps=7),  # float32 observations, actions beyond ±1
    "InvertedPendulum": made("InvertedPendulum-v5"),  # falls
    "careless": Careless,
}
NOISES: dict[str, Callable[[int], Any]] = {
    "none": lambda size: None,
    "normal": lambda size: NormalActionNoise(np.zeros(size), np.full(size, 0.5)),
    "float64": lambda size: NormalActionNoise(np.zeros(size), np.full(size, 0.5), dtype=np.float64),
    "correlated": lambda size: OrnsteinUhlenbeckActionNoise(np.zeros(size), np.full(size, 0.5)),
    "vectorized": lambda size: VectorizedActionNoise(NormalActionNoise(np.zeros(size), np.full(size, 0.5)), 1),
}


def frozen(value: Any) -> Any:
    """A value with all its bits, types and shapes, that nobody can change later; without clock readings."""
    if isinstance(value, np.ndarray | np.generic):
        return type(value).__name__, value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items() if key not in ("t", "time/fps", "time/time_elapsed")}
    if isinstance(value, list | tuple):
        return [frozen(item) for item in value]
    return value if isinstance(value, bool | int | float | str | type(None) | TrainFreq) else type(value).__name__


def env_state(env: DummyVecEnv) -> Any:
    names = ("actions", "buf_rews", "buf_dones", "buf_infos", "reset_infos", "_seeds", "_options")
    return frozen({name: getattr(env, name, None) for name in names} | {"buf_obs": list(env.buf_obs.items())})


class Witness(BaseCallback):
    """Writes down all a callback can see, in order; may stop, and may do something at every step."""

    def __init__(self, stop: int | None = None, meddle: Callable[[Any], None] | None = None) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.kept: list[tuple[np.ndarray, Any]] = []
        self.stop, self.meddle = stop, meddle

    def _note(self, event: str) -> None:
        model: Any = self.model
        counters = (model.num_timesteps, model._episode_num, model._n_updates, model._current_progress_remaining)
        modes = {name: module.training for name, module in model.policy.named_modules()}
        draws = frozen(np.random.get_state(legacy=False))  # noqa: NPY002
        view = {name: value for name, value in self.locals.items() if name not in ("self", "replay_buffer", "kwargs")}
        self.seen.append((event, counters, modes, draws, frozen(view), env_state(model.env), frozen(model._last_obs)))

    def _on_rollout_start(self) -> None:
        self._note("rollout start")

    def _on_rollout_end(self) -> None:
        self._note("rollout end")

    def _on_step(self) -> bool:
        self._note("step")
        assert self.locals["self"] is self.model
        assert self.locals["env"] is self.training_env
        assert self.locals["replay_buffer"] is self.model.replay_buffer
        self.kept += [(self.locals[name], frozen(self.locals[name])) for name in ("new_obs", "rewards", "infos")]
        if self.meddle:
            self.meddle(self)
            del self.kept[-3:]
        return self.n_calls != self.stop


class Tape(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.dumps: list[Any] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.dumps.append((step, frozen(key_values)))


def watched(kind: type, env: Any, noise: str = "normal", learns: int = 1, witness: Any = None, **options: Any) -> Any:
    """An agent of this kind after `learns` times STEPS steps, and all that could be seen of it on the way."""
    model = agent(env() if callable(env) else env, kind, sparsity=0.6, period=10, **options)
    model.action_noise = NOISES[noise](model.action_space.shape[0])
    witness, tape = witness or Witness(), Tape()
    every = Witness()
    model.set_logger(Logger(None, [tape]))
    model.env.seed(5)
    model.env.set_options({"from": "here"})
    for _ in range(learns):
        callbacks = CallbackList([witness, EveryNTimesteps(11, every)])
        model.learn(STEPS, callback=callbacks, log_interval=2, reset_num_timesteps=False)
    assert all(frozen(array) == content for array, content in witness.kept)
    return model, (witness.seen, every.seen, tape.dumps)


def assert_same_results(env: Any, make_witness: Callable[[], Any] = Witness, **options: Any) -> Any:
    (ours, our_view), (theirs, their_view) = (
        watched(kind, env, witness=make_witness(), **options) for kind in (SparseTD3, SB3Loop)
    )
    for got, expected in zip(our_view, their_view, strict=True):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert one == other
    for name in ("ep_info_buffer", "ep_success_buffer"):
        assert frozen(list(getattr(ours, name))) == frozen(list(getattr(theirs, name)))
    for name in ("_last_obs", "_last_original_obs", "_last_episode_starts", "num_timesteps", "_episode_num"):
        assert frozen(getattr(ours, name)) == frozen(getattr(theirs, name)), name
    rows, expected_rows = vars(ours.replay_buffer), vars(theirs.replay_buffer)
    assert frozen(rows) == frozen(expected_rows)
    monitor, other = vars(ours.env.envs[0]), vars(theirs.env.envs[0])
    for name in ("rewards", "needs_reset", "episode_returns", "episode_lengths", "total_steps"):
        assert frozen(monitor[name]) == frozen(other[name]), name
    assert env_state(ours.env) == env_state(theirs.env)
    assert same(ours.get_parameters(), theirs.get_parameters())
    assert (ours.action_space.sample() == theirs.action_space.sample()).all()
    assert is_plain(ours, ours.env, ours.train_freq, ours.replay_buffer)
    return ours


@pytest.mark.parametrize(
    "train_freq", [(1, "step"), pytest.param((3, "step"), marks=pytest.mark.slow), (1, "episode")], ids=str
)
@pytest.mark.parametrize("noise", [pytest.param("none", marks=pytest.mark.slow), "normal"])
@pytest.mark.parametrize("env", ENVS)
def test_results_are_those_of_sb3s_loop(env: str, noise: str, train_freq: tuple[int, str]) -> None:
    model = assert_same_results(ENVS[env], noise=noise, train_freq=train_freq)
    assert model._episode_num > 1
    assert model._n_updates > 1


@pytest.mark.end_to_end
@pytest.mark.parametrize("env", ["Pendulum", "careless"])
@pytest.mark.parametrize(
    "options",
    [
        dict(replay_buffer_kwargs=dict(handle_timeout_termination=False)),
        pytest.param(dict(learning_starts=0), marks=pytest.mark.slow),
        dict(buffer_size=25),  # goes round
        pytest.param(dict(learns=2), marks=pytest.mark.slow),
        dict(learns=2, train_freq=(2, "episode"), gradient_steps=-1),
        pytest.param(dict(noise="float64"), marks=pytest.mark.slow),
        dict(noise="correlated"),
        dict(noise="vectorized", train_freq=(2, "step")),
        pytest.param(dict(backend="csr"), marks=pytest.mark.slow),
    ],
    ids=lambda options: " ".join(map(str, options.items())),
)
def test_results_with_other_settings_are_those_of_sb3s_loop(env: str, options: dict[str, Any]) -> None:
    assert_same_results(ENVS[env], **options)


@pytest.mark.parametrize("train_freq", [(1, "step"), (4, "step"), (2, "episode")], ids=str)
def test_a_callback_stops_it_where_it_stops_sb3s(train_freq: tuple[int, str]) -> None:
    model = assert_same_results(ENVS["Pendulum"], lambda: Witness(stop=31), train_freq=train_freq)
    assert model.num_timesteps == 31
    assert_same_results(ENVS["Pendulum"], lambda: Witness(stop=31), train_freq=train_freq, learns=2)


def rewrite(witness: Any) -> None:
    """Changes what the loop goes on with, as some callbacks do."""
    witness.locals["rewards"] *= 2
    witness.locals["new_obs"] += 1
    witness.locals["buffer_actions"] *= 0.5
    if witness.n_calls % 5 == 0:
        witness.locals["dones"][0] = True
        witness.locals["infos"][0]["TimeLimit.truncated"] = True


@pytest.mark.parametrize("train_freq", [(1, "step"), (5, "step")], ids=str)
def test_what_a_callback_writes_is_what_is_stored(train_freq: tuple[int, str]) -> None:
    assert_same_results(ENVS["HalfCheetah"], lambda: Witness(meddle=rewrite), train_freq=train_freq)


def test_compiled_acting_only_rounds_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparseTD3, "_make_acting", MAKE_ACTING)
    models = []
    for kind in (SparseTD3, SB3Loop):  # one after the other: their environments share a space, and its generator
        models.append(agent(reach(), kind, sparsity=0.6, period=10))
        models[-1].learn(STEPS)
    assert isinstance(models[0]._acting, FusedActor)
    assert models[0].num_timesteps == models[1].num_timesteps == STEPS
    for name in ("observations", "actions", "rewards", "dones", "timeouts"):
        ours, theirs = (getattr(model.replay_buffer, name)[:STEPS] for model in models)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4, err_msg=name)


class Noisy(FlattenExtractor):
    """Does not only flatten; draws while training, and only then."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space)
        self.dropout = nn.Dropout(0.5)

    def forward(self, observations: Tensor) -> Tensor:
        return 2 * self.dropout(observations)


def test_actions_are_of_evaluation_mode_whatever_callbacks_do() -> None:
    policy = dict(net_arch=[8], features_extractor_class=Noisy)
    assert_same_results(
        ENVS["Pendulum"],
        lambda: Witness(meddle=lambda witness: witness.model.policy.set_training_mode(True)),
        policy_kwargs=policy,
        train_freq=(1, "episode"),
    )


# --- where SB3's loop is needed -------------------------------------------------------------------------


class Sampler(SparseTD3):
    """Explores in its own way."""

    def _sample_action(self, *args: Any, **kwargs: Any) -> Any:
        self.sampled = True
        return super()._sample_action(*args, **kwargs)


class Shy(SparseTD3Policy):
    """Acts in its own way."""

    def _predict(self, observation: Tensor, deterministic: bool = False) -> Tensor:
        return 0.1 * super()._predict(observation, deterministic)


def shy() -> SparseTD3:
    return SparseTD3(Shy, reach(), learning_starts=20, batch_size=16, buffer_size=400, device="cpu")


class Viewer(SparseTD3Policy):
    """Sees observations in its own way."""

    def obs_to_tensor(self, observation: Any) -> Any:
        return super().obs_to_tensor(0.1 * observation)


def viewer() -> SparseTD3:
    return SparseTD3(Viewer, reach(), learning_starts=20, batch_size=16, buffer_size=400, device="cpu")


def vectorized(count: int = 1) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(reach())] * count)


def stepping_by_hand() -> Any:
    env = vectorized()
    step = env.step
    env.step = lambda actions: step(actions)
    return env


class Tall(gymnasium.ObservationWrapper):
    """Observations of two dimensions."""

    observation_space = spaces.Box(-1.0, 1.0, (3, 1), np.float64)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[:, np.newaxis]


OTHERS: dict[str, Callable[[], Any]] = {
    "two environments": lambda: agent(vectorized(2)),
    "VecNormalize": lambda: agent(VecNormalize(vectorized())),
    "VecMonitor": lambda: agent(VecMonitor(DummyVecEnv([reach]))),
    "another buffer": lambda: agent(replay_buffer_class=ReplayBuffer),
    "n-step": lambda: agent(n_steps=3),
    "a subclass's exploration": lambda: agent(kind=Sampler, sparsity=0.5),
    "a policy's actions": shy,
    "a policy's view": viewer,
    "a wrapped step": lambda: agent(stepping_by_hand()),
    "two dimensions": lambda: agent(Tall(reach())),
}


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The agents that our loop was called for."""
    calls: list[Any] = []
    collect = agents.td3.collect
    monkeypatch.setattr(
        agents.td3, "collect", lambda model, *args, **kw: calls.append(model) or collect(model, *args, **kw)
    )
    return calls


@pytest.mark.parametrize("case", OTHERS)
def test_sb3s_loop_takes_the_rest(case: str, collected: list[Any]) -> None:
    model = OTHERS[case]().learn(30)
    assert model.num_timesteps == 30
    assert model._n_updates > 0
    assert not collected
    assert getattr(model, "sampled", case != "a subclass's exploration")


class Counting(SparseTD3):
    """Does something after every step."""

    counted = 0

    def _on_step(self) -> None:
        self.counted += 1


def test_one_plain_environment_goes_our_way_until_it_is_exchanged(collected: list[Any]) -> None:
    model = agent(kind=Counting).learn(30)
    assert len(collected) == model.counted == 30
    model.set_env(VecNormalize(vectorized()))
    model.learn(30)
    assert len(collected) == 30


def test_sb3_says_what_is_wrong_with_episodes_of_two_environments() -> None:
    with pytest.raises(AssertionError, match="You must use only one env when doing episodic training"):
        agent(vectorized(2), train_freq=(1, "episode")).learn(30)


def test_sb3_says_what_is_wrong_with_the_frequency() -> None:
    model = agent().learn(30)
    never = TrainFreq(0, TrainFrequencyUnit.STEP)
    with pytest.raises(AssertionError, match="Should at least collect one step"):
        model.collect_rollouts(model.env, Witness(), never, model.replay_buffer)


# --- parts ----------------------------------------------------------------------------------------------


def test_copied_info_shares_nothing_that_can_change() -> None:
    place = np.zeros(2)
    info: dict[str, Any] = {"place": place, "again": place, "speed": np.float64(3), "deep": {"list": [place]}}
    info["self"] = info
    copied = copy_info(info)
    place[:] = 1
    assert copied["place"].tolist() == [0, 0]
    assert copied["again"] is copied["place"] is copied["deep"]["list"][0]
    assert copied["self"] is copied
    assert copied["speed"] == 3


@pytest.mark.parametrize("env", ["HalfCheetah", "Pendulum", "InvertedPendulum"])
def test_action_is_the_actors_to_the_bit(env: str) -> None:
    model = agent(ENVS[env]())
    observations = np.stack([model.observation_space.sample() for _ in range(20)])
    for row in np.nan_to_num(observations)[:, np.newaxis]:
        with torch.no_grad():
            expected = model.actor(torch.as_tensor(row)).numpy()
        got = model._act(row)
        assert frozen(got) == frozen(expected)
        assert (model.policy.unscale_action(got) == model.predict(row)[0]).all()


@pytest.mark.parametrize(
    "name",
    [
        "_store_transition", "predict", "policy.predict", "policy.scale_action", "policy.unscale_action",
        "env.step_async", "env.step_wait", "env._save_obs", "env._obs_from_buf",
    ],
)  # fmt: skip
def test_whatever_somebody_has_replaced_is_left_to_sb3(name: str) -> None:
    model = agent()
    assert is_plain(model, model.env, model.train_freq, model.replay_buffer)
    path, _, method = name.rpartition(".")
    owner = getattr(model, path) if path else model
    own = getattr(owner, method)
    setattr(owner, method, lambda *given, **more: own(*given, **more))
    assert not is_plain(model, model.env, model.train_freq, model.replay_buffer)
