"""From flags and presets to settings."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from agents.presets import AGENT_PRESETS
from runs.failure import UserError
from runs.options import Train
from runs.settings import Settings
from runs.values import check_device, parse_list
from sparse_core import PRESETS


def resolve(**options: Any) -> Settings:
    return Settings.resolve(Train(options.pop("algo", "td3"), threads=1, device="cpu", **options))


def test_the_defaults_are_td3s() -> None:
    settings = resolve()
    expected = dict(
        env="HalfCheetah-v5", steps=1_000_000, seed=0, sparsity=0.5, topology="set", hidden=[256, 256],
        learning_rate=3e-4, weight_decay=0.0, batch_size=256, buffer_size=1_000_000, learning_starts=25_000,
        action_noise=0.1, gamma=0.99, tau=0.005, policy_delay=2, target_policy_noise=0.2, target_noise_clip=0.5,
        eval_every=5_000, eval_episodes=10, period=1_000, dense=["output"], checkpoint_every=10_000,
    )  # fmt: skip
    assert expected.items() <= asdict(settings).items()


def test_ds_td3_2022() -> None:
    settings = resolve(preset="ds-td3-2022")
    expected = dict(
        learning_rate=1e-3, weight_decay=2e-4, batch_size=100, drop_fraction=0.05, schedule="constant",
        stop=925 / 975, sparsity=0.5, distribution="er:7,64", period=1_000, hidden=[256, 256], policy_delay=2,
        buffer_size=1_000_000, learning_starts=25_000, topology="set",
    )  # fmt: skip
    assert expected.items() <= asdict(settings).items()


def test_options_of_a_topology_beat_the_preset_and_flags_beat_both() -> None:
    name = "rigl:drop_fraction=0.4:stop=0.2:distribution=uniform:period=20:capture_batches=3"
    settings = resolve(preset="ds-td3-2022", topology=name)
    shown = (settings.drop_fraction, settings.stop, settings.distribution, settings.period, settings.capture_batches)
    assert shown == (0.4, 0.2, "uniform", 20, 3)
    settings = resolve(preset="ds-td3-2022", topology=name, drop_fraction=0.1, period=30, distribution="erk")
    assert (settings.drop_fraction, settings.period, settings.distribution) == (0.1, 30, "erk")
    assert (resolve(preset="ds-td3-2022").period, resolve(algo="sac", preset="ds-sac").period) == (1_000, 1_000)
    assert resolve(preset="rlx2", steps=3_000_000).period == 10_000
    assert resolve(preset="rlx2", topology="rigl:period=5").period == 5


@pytest.mark.parametrize(("topology", "period"), [("deepr", 1), ("sr-ste", 1), ("itop-rigl", 4000), ("set", 1000)])
def test_a_method_keeps_the_period_that_makes_it_what_it_is(topology: str, period: int) -> None:
    assert resolve(topology=topology, steps=50_000).period == period
    assert resolve(topology=topology, period=3).period == 3


def test_what_is_too_short_is_noted() -> None:
    assert resolve(steps=100, learning_starts=100).note is not None
    note = resolve(steps=1_000, learning_starts=100).note
    assert note == "900 updates with a change every 1000: no connection moves; lower --period or raise --steps"
    assert resolve(steps=1_000, learning_starts=100, topology="static").note is None
    assert resolve(steps=1_100, learning_starts=100).note is None


@pytest.mark.parametrize(
    ("env", "distribution"),
    [("Ant-v5", "er:40,64"), ("Humanoid-v5", "er:61,64"), ("Hopper-v4", "er:7,64"), ("module:Ant-v5", "er:40,64")],
)
def test_ds_td3_2022_weighs_the_first_layer_by_environment(env: str, distribution: str) -> None:
    assert resolve(preset="ds-td3-2022", env=env).distribution == distribution


def test_flags_beat_the_preset_and_the_preset_beats_the_topology() -> None:
    topology = PRESETS["rigl"]
    plain = resolve(topology="rigl")
    assert (plain.drop_fraction, plain.schedule, plain.stop) == (
        topology.drop_fraction,
        topology.schedule,
        topology.stop,
    )
    assert (plain.distribution, plain.init) == (topology.distribution, topology.init)
    preset = resolve(topology="rigl", preset="ds-td3-2022")
    assert (preset.drop_fraction, preset.schedule, preset.distribution) == (0.05, "cosine", "er:7,64")
    flags = resolve(
        topology="rigl", preset="ds-td3-2022", drop_fraction=0.5, schedule="linear", distribution="uniform",
        stop=0.0, learning_rate=0.0, learning_starts=0, weight_decay=0.0, sparsity=0.0,
    )  # fmt: skip
    # Zero is a choice, not an absence.
    assert (flags.drop_fraction, flags.schedule, flags.distribution, flags.stop) == (0.5, "linear", "uniform", 0.0)
    assert (flags.learning_rate, flags.learning_starts, flags.weight_decay, flags.sparsity) == (0.0, 0, 0.0, 0.0)
    assert flags.batch_size == AGENT_PRESETS["ds-td3-2022"].batch_size


def test_a_distribution_that_fixes_the_number_says_the_sparsity() -> None:
    # Hopper: 11 observations, 3 actions. Outputs are dense: 256 · 3 and 256 weights.
    for preset in ("td3", "ds-td3-2022"):
        found = resolve(env="Hopper-v5", distribution="epsilon:7,64", preset=preset)
        assert found.actor_sparsity == 1 - (7 * 267 + 64 * 512 + 256 * 3) / (256 * (11 + 256 + 3))
        assert found.critic_sparsity == 1 - (7 * 270 + 64 * 512 + 256) / (256 * (14 + 256 + 1))
        assert found.sparsity == max(found.actor_sparsity, found.critic_sparsity)
    # SAC's actor has two last layers, both dense.
    stochastic = resolve(env="Hopper-v5", distribution="epsilon:7,64", algo="sac", preset="ds-sac")
    assert stochastic.actor_sparsity == 1 - (7 * 267 + 64 * 512 + 256 * 6) / (256 * (11 + 256 + 6))
    assert resolve(env="Hopper-v5", topology="dense", distribution="epsilon").sparsity == 0.0
    with pytest.raises(ValueError, match=r"'epsilon' fixes the number of connections, .* but `sparsity` 0\.5 was"):
        resolve(env="Hopper-v5", distribution="epsilon", sparsity=0.5)
    again = resolve(env="Hopper-v5", distribution="epsilon:7,64", actor_sparsity=found.actor_sparsity)
    assert again.actor_sparsity == found.actor_sparsity


def test_the_initial_topology_is_the_flags_else_the_topologys() -> None:
    assert resolve().initial_topology == "random"
    assert resolve(topology="chts:initial_topology=brf").initial_topology == "brf"
    assert resolve(initial_topology="brf:r=0.1").initial_topology == "brf:r=0.1"
    settings = resolve()
    earlier = {name: value for name, value in settings.as_dict().items() if name != "initial_topology"}
    config = {"format": "sparse-agents-run", "version": 1, "settings": earlier}
    assert Settings.from_config(config, "config.json") == settings
    with pytest.raises(ValueError, match="initial topology 'correlated' reads inputs, which are not known here"):
        resolve(initial_topology="correlated")


def test_sparsity_by_network() -> None:
    both = resolve(sparsity=0.8, actor_sparsity=0.5)
    assert (both.actor_sparsity, both.critic_sparsity, both.sparsity) == (0.5, 0.8, 0.8)
    dense = resolve(topology="dense")
    assert (dense.actor_sparsity, dense.critic_sparsity, dense.sparsity) == (0.0, 0.0, 0.0)
    assert resolve(topology="dense", sparsity=0.0).sparsity == 0.0
    # The preset's sparsity is for topologies that can be sparse.
    assert resolve(topology="dense", preset="ds-td3-2022").sparsity == 0.0


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (None, ("output",)),
        ("256,256", (256, 256)),
        (" input , 2 ", ("input", 2)),
        ("none", ()),
        ("None", ()),
        ("", ()),
        ("-1", (-1,)),
        ("1e3", ("1e3",)),
    ],
)
def test_lists(text: str | None, items: tuple[str | int, ...]) -> None:
    assert parse_list(text, "dense", "output") == items


@pytest.mark.parametrize("text", ["1,,2", ",", "1,"])
def test_lists_with_gaps(text: str) -> None:
    with pytest.raises(ValueError, match="`hidden` must be a comma list without gaps, got"):
        parse_list(text, "hidden", "256,256")


def test_no_layer_kept_dense() -> None:
    assert resolve(dense="none").dense == []
    assert resolve(dense="input,2").dense == ["input", 2]


def config(**changes: Any) -> dict[str, Any]:
    settings = resolve(dense="input,2").as_dict() | changes
    return {"format": "sparse-agents-run", "version": 1, "settings": settings}


def test_comes_back_from_its_config() -> None:
    settings = resolve(dense="input,2", sparsity=0.9, preset="ds-td3-2022")
    written = json.loads(json.dumps({**config(), "settings": settings.as_dict()}))
    assert Settings.from_config(written, "config.json") == settings


def test_whole_numbers_pass_for_real_ones() -> None:
    assert Settings.from_config(config(learning_rate=1), "config.json").learning_rate == 1


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({}, "is not the config of a sparse-agents run"),
        ({"format": "sparse-agents-run", "version": 1}, "is not the config of a sparse-agents run"),
        ({**config(), "version": 2}, "has version 2, this program reads 1"),
        (config(unheard_of=1), r"missing or unknown settings \(unheard_of\)"),
        (config(steps="many"), r"settings of the wrong kind \(steps = 'many'\)"),
        (config(steps=1.5), r"wrong kind \(steps = 1.5\)"),
        (config(steps=True), r"wrong kind \(steps = True\)"),
        (config(gamma=None), r"wrong kind \(gamma = None\)"),
        (config(hidden="16"), r"wrong kind \(hidden = '16'\)"),
        (config(hidden=["a"]), r"wrong kind \(hidden = \['a'\]\)"),
        (config(dense=[1.5]), r"wrong kind \(dense = \[1.5\]\)"),
    ],
)
def test_a_foreign_config(written: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings.from_config(written, "config.json")


def test_a_setting_that_is_missing() -> None:
    written = config()
    del written["settings"]["tau"]
    with pytest.raises(UserError, match=r"missing or unknown settings \(tau\)"):
        Settings.from_config(written, "config.json")


def test_a_config_with_a_number_out_of_range() -> None:
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        Settings.from_config(config(steps=0), "config.json")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check_device("auto") == "cpu"
    with pytest.raises(ValueError, match="'cuda' wants a CUDA GPU, and torch sees none here; take --device cpu"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert check_device("auto") == "cuda"
    assert check_device("cuda:0") == "cuda:0"
    with pytest.raises(ValueError, match="'cuda:1' is not there: torch sees 1 here"):
        check_device("cuda:1")


def test_settings_are_frozen_values() -> None:
    assert replace(resolve(), seed=1) == resolve(seed=1)
