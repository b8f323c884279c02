"""Environments by name: the five of the benchmark, and any other with Box spaces."""

import difflib
import importlib
import logging
import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Space

from envs.noise import Noise, NoisyFeatures
from envs.replayable import Replayable

log = logging.getLogger(__name__)

BENCHMARK = ("Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "Walker2d-v5")


def names() -> list[str]:
    """The environments of the benchmark, in alphabetical order."""
    return list(BENCHMARK)


def make(
    id: str, seed: int | None = None, *, render_mode: str | None = None, noise: Noise | None = None, **kwargs: Any
) -> Replayable:
    """The environment called `id`, of continuous actions, with a state that can be stored.

    `seed` seeds the action space and the first reset that names no seed of its own;
    without it both begin at a place of the operating system's choice. `noise` appends features
    that say nothing. Further keywords
    go to `gymnasium.make`. An `id` may name the module that registers it: "module:Name-v0".
    """
    spec = _spec(id)
    if str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        _mujoco_warns_the_log()
    if render_mode is not None:  # an environment that draws nothing need not know the word
        kwargs["render_mode"] = render_mode
    try:
        env = gymnasium.make(spec, disable_env_checker=True, **kwargs)
    except TypeError as error:
        if render_mode is None or "render_mode" not in str(error):
            raise
        raise ValueError(f"environment {id!r} cannot draw itself: it knows no `render_mode` ({error})") from error
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(
            f"environment {id!r} cannot be made here: {error}; "
            f"install what it needs or take another one, such as {', '.join(_others(spec))}"
        ) from error
    try:
        _check_spaces(id, env.observation_space, env.action_space)
        if noise is not None:
            env = NoisyFeatures(env, noise)
        made = Replayable(env, seed)
        made.action_space.seed(seed)
        return made
    except BaseException:
        env.close()
        raise


def _others(spec: EnvSpec) -> list[str]:
    """Environments that may be there where this one is not."""
    return ["Pendulum-v1"] if str(spec.entry_point).startswith("gymnasium.envs.mujoco") else names()


def _spec(id: str) -> EnvSpec:
    """The registered environment called exactly `id`, or a `ValueError` that helps."""
    module, _, name = id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a module does when it is imported
            raise ValueError(
                f"environment {id!r} asks for the module {module!r}, which cannot be imported: {error}; "
                "install it or correct its name"
            ) from error
    # Without its version a name may mean another environment tomorrow, so Gymnasium's
    # own lookup, which then takes the newest, is not asked.
    if name in gymnasium.registry:
        return gymnasium.registry[name]
    # In small letters, because case is what people get wrong first.
    known = {key.lower(): key for key in [*gymnasium.registry, *names()]}
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {known[near[0]]!r}? " if near else ""
    raise ValueError(
        f"no environment called {name!r}; {hint}"
        f"known: {', '.join(names())} and every Gymnasium environment with Box spaces"
    )


def _check_spaces(id: str, observations: Space[Any], actions: Space[Any]) -> None:
    """Raise a `ValueError` unless both are boxes and the actions real and bounded."""
    instead = f"take another environment, such as {', '.join(names())}"
    if not isinstance(observations, Box):
        raise ValueError(
            f"the observations of {id!r} must be one Box, got {type(observations).__name__}; "
            f"flatten them with `gymnasium.wrappers.FlattenObservation` or {instead}"
        )
    is_image = len(observations.shape) == 3 and observations.dtype == np.uint8
    if not observations.shape or is_image:
        what = "a single number" if not observations.shape else "images"
        raise ValueError(f"the observations of {id!r} must be one row or array of numbers, got {what}; {instead}")
    if not isinstance(actions, Box) or not np.issubdtype(actions.dtype, np.floating):
        raise ValueError(f"the actions of {id!r} must be a Box of real numbers, got {actions}; {instead}")
    if not actions.is_bounded():
        raise ValueError(
            f"the actions of {id!r} must have finite bounds, got {actions}; "
            f"bound them with `gymnasium.wrappers.RescaleAction` or {instead}"
        )


def _mujoco_warns_the_log() -> None:
    """Send MuJoCo's warnings to the log.

    By itself it prints them and leaves a MUJOCO_LOG.TXT in the working directory. Who
    has set a handler already keeps it.
    """
    try:
        import mujoco
    except ImportError:
        return  # `gymnasium.make` says so better
    except Exception as error:
        # With MUJOCO_GL it loads OpenGL at once, whose bindings fail in their own ways.
        raise ValueError(
            f"MuJoCo cannot be imported with MUJOCO_GL={os.environ.get('MUJOCO_GL')} "
            f"({type(error).__name__}: {error}); install that "
            "library (Debian: libegl1 or libosmesa6), or set MUJOCO_GL to another or to none"
        ) from error
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_log_warning)


def _log_warning(message: str) -> None:
    # Gymnasium's own model files use what MuJoCo is going to drop; nobody here can help it.
    level = logging.DEBUG if "deprecated" in message else logging.WARNING
    log.log(level, "MuJoCo: %s", message)
