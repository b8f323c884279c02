"""A wrapper that makes the state of any deterministic environment storable.

It looks at no internals: the state is where the random generator stood when the episode
began, and every action since. MuJoCo's own `mj_setState` would be shorter, but after it
the first rewards of Ant and Humanoid, which read contact forces, are off.
"""

import copy
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.noise import noisy_features

Array = NDArray[Any]
ROWS_AT_FIRST = 1024  # a MuJoCo episode has at most 1000 steps


class ReplayMismatch(Exception):
    """Replaying an episode did not lead to the observation that was stored."""


class Replayable(gymnasium.Wrapper[Array, Array, Array, Array]):
    """An environment whose `state` can be stored, and restored into a new one like it.

    The first reset that names no seed uses `seed`. Actions are converted to the action
    space's type before the environment sees them, so that a replay sees the same ones.

    What an environment keeps from one episode to the next, other than its generator, is
    out of reach. An episode that never ends is kept whole.
    """

    def __init__(self, env: gymnasium.Env[Array, Array], seed: int | None = None) -> None:
        super().__init__(env)
        # Its own: environments of one class may share theirs, and draws from one would move those of another.
        self.action_space = copy.deepcopy(env.action_space)
        if not isinstance(env.action_space, gymnasium.spaces.Box):
            raise ValueError(f"the actions must be a Box, got {env.action_space}; wrap another environment")
        self._dtype = env.action_space.dtype
        self._shape = env.action_space.shape
        self._actions: Array = np.empty((ROWS_AT_FIRST, *self._shape), self._dtype)
        self._length = 0
        self._seed = None if seed is None else int(seed)
        self._options: dict[str, Any] | None = None
        self._generator: dict[str, Any] | None = None
        self._observation: Array | None = None  # None until the first reset
        self._done = False
        self._noisy = noisy_features(env)
        self._steps_before = 0  # of the noise's own count, when the episode began

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode, and note how it began."""
        if seed is None and self._observation is None:
            seed = self._seed
        generator = _position(self.unwrapped.np_random) if seed is None else None
        if self._noisy is not None:
            self._steps_before = self._noisy.steps
        # The environment may write into its options.
        kept = copy.deepcopy(options)
        observation, info = self.env.reset(seed=seed, options=options)
        self._seed = None if seed is None else int(seed)
        self._generator, self._options = generator, kept
        self._length, self._done = 0, False
        self._observation = np.array(observation)
        return observation, info

    def step(self, action: Array) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        """Take `action`, and note it."""
        action = np.asarray(action, self._dtype)
        if action.shape != self._shape:
            raise ValueError(
                f"`action` must have the shape {self._shape}, got {action.shape}; pass one action at a time"
            )
        if self._length == len(self._actions):
            self._actions = np.concatenate([self._actions, np.empty_like(self._actions)])
        self._actions[self._length] = action  # before the step, which may write into it
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._length += 1
        self._done = bool(terminated or truncated)
        self._observation = np.array(observation)
        return observation, reward, terminated, truncated, info

    def state(self) -> dict[str, Any]:
        """All that `restore` needs: arrays in `actions` and `observation`, the rest fit for JSON.

        `observation` is None before the first reset. The options of a reset are passed
        through as they came; they fit for JSON if the caller's did.
        """
        return {
            "seed": self._seed,
            "generator": self._generator,
            "options": copy.deepcopy(self._options),
            "actions": self._actions[: self._length].copy(),
            "observation": None if self._observation is None else self._observation.copy(),
            "done": self._done,
            "generator_now": _position(self.unwrapped.np_random),
            "action_space": _position(self.action_space.np_random),
            "steps_before": self._steps_before,
        }

    def restore(self, state: dict[str, Any]) -> Array | None:
        """Continue where `state` was taken; the last observation, or None before the first reset.

        Replays the running episode, so it costs as many steps as that has. Raises
        `ReplayMismatch` where the replay leads elsewhere; the environment is then in
        the middle of nowhere and must be closed or reset.
        """
        if self._noisy is not None:
            self._noisy.steps = state["steps_before"]
        if state["observation"] is None:
            self._forget(state["seed"])
        else:
            self._replay(state)
        # Also after a replay: somebody may have drawn between two steps.
        _put(self.unwrapped.np_random, state["generator_now"])
        _put(self.action_space.np_random, state["action_space"])
        return None if self._observation is None else self._observation.copy()

    def _forget(self, seed: int | None) -> None:
        self._seed, self._generator, self._options = seed, None, None
        self._length, self._done, self._observation = 0, False, None

    def _replay(self, state: dict[str, Any]) -> None:
        actions = np.asarray(state["actions"], self._dtype)
        if len(actions) and actions.shape[1:] != self._shape:
            raise ReplayMismatch(
                f"the stored actions have the shape {actions.shape[1:]}, those of {self} have {self._shape}; "
                "restore into the environment that was stored"
            )
        self._forget(None)
        if state["generator"] is not None:
            _put(self.unwrapped.np_random, state["generator"])
        self.reset(seed=state["seed"], options=state["options"])
        for step, action in enumerate(actions):
            if self._done:
                raise self._mismatch(f"the episode ended after {step} of {len(actions)} steps")
            self.step(action)
        difference = _difference(state["observation"], self._observation)
        if difference:
            raise self._mismatch(f"the observation after {len(actions)} steps {difference}")
        if self._done != state["done"]:
            raise self._mismatch(
                f"after {len(actions)} steps the episode {'ended' if self._done else 'went on'}, "
                f"when it was stored it {'had ended' if state['done'] else 'went on'}"
            )

    def _mismatch(self, what: str) -> ReplayMismatch:
        return ReplayMismatch(
            f"replaying the episode of {self} led elsewhere: {what}; the environment is not deterministic, "
            "or its version is not the one that was stored: install that version, or start a new run"
        )


def _position(generator: np.random.Generator) -> dict[str, Any]:
    """Where `generator` stands, in plain numbers."""
    plain: dict[str, Any] = _plain(generator.bit_generator.state)
    return plain


def _plain(value: Any) -> Any:
    # PCG64, Gymnasium's own, is plain already; others keep arrays and numpy's integers.
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _put(generator: np.random.Generator, position: dict[str, Any]) -> None:
    """Put `generator` where it stood."""
    kind = generator.bit_generator.state["bit_generator"]
    if kind != position["bit_generator"]:
        raise ReplayMismatch(
            f"the stored generator is a {position['bit_generator']}, the environment has a {kind}; "
            "install the version of the environment that was stored"
        )
    generator.bit_generator.state = position


def _difference(wanted: Any, got: Any) -> str:
    """How two observations differ in their bits; empty if they do not."""
    wanted, got = np.asarray(wanted), np.asarray(got)
    if (wanted.dtype, wanted.shape) != (got.dtype, got.shape):
        return f"is {got.dtype}{got.shape}, stored was {wanted.dtype}{wanted.shape}"
    if wanted.tobytes() == got.tobytes():
        return ""
    differing = int(np.any(_bytes(wanted) != _bytes(got), axis=1).sum())
    return f"differs from the stored one in {differing} of {got.size} numbers"


def _bytes(array: Array) -> NDArray[np.uint8]:
    return np.frombuffer(array.tobytes(), np.uint8).reshape(array.size, array.itemsize)
