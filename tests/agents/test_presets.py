import pytest

from agents import AGENT_PRESETS
from sparse_core import PRESETS, SCHEDULES
from sparse_core.distributions import allocate


def test_td3_is_as_its_authors_ran_it() -> None:
    preset = AGENT_PRESETS["td3"]
    assert (preset.hidden, preset.learning_rate, preset.batch_size, preset.weight_decay) == ((256, 256), 3e-4, 256, 0)
    assert (preset.learning_starts, preset.action_noise, preset.gamma, preset.tau) == (25_000, 0.1, 0.99, 0.005)
    assert (preset.policy_delay, preset.target_policy_noise, preset.target_noise_clip) == (2, 0.2, 0.5)
    assert (preset.eval_every, preset.eval_episodes, preset.buffer_size) == (5_000, 10, 1_000_000)
    assert preset.distribution_for("HalfCheetah-v5") is None


def test_ds_td3_is_as_its_authors_ran_it() -> None:
    preset = AGENT_PRESETS["ds-td3-2022"]
    assert (preset.hidden, preset.learning_rate, preset.batch_size) == ((256, 256), 1e-3, 100)
    assert (preset.weight_decay, preset.drop_fraction, preset.period_share) == (2e-4, 0.05, None)
    assert (preset.schedule, preset.sparsity, preset.learning_starts) == (None, 0.5, 25_000)
    updates = 1_000_000 - preset.learning_starts
    assert int(preset.stop * updates) == 925_000


def test_anf_is_as_its_authors_ran_it() -> None:
    preset = AGENT_PRESETS["anf"]
    assert (preset.learning_rate, preset.weight_decay, preset.batch_size) == (1e-3, 2e-4, 100)
    assert (preset.drop_fraction, preset.input_sparsity) == (0.05, 0.8)


@pytest.mark.parametrize(
    ("env", "distribution"),
    [
        ("HalfCheetah-v5", "er:7,64"),
        ("Hopper-v5", "er:7,64"),
        ("Walker2d-v5", "er:7,64"),
        ("Ant-v5", "er:40,64"),
        ("Humanoid-v5", "er:61,64"),
        ("HumanoidStandup-v5", "er:7,64"),
        ("my.envs:Ant-v5", "er:40,64"),
        ("SomethingElse", "er:7,64"),
    ],
)
def test_ds_td3_factor_is_the_environments(env: str, distribution: str) -> None:
    assert AGENT_PRESETS["ds-td3-2022"].distribution_for(env) == distribution


@pytest.mark.parametrize("name", [*AGENT_PRESETS])
def test_preset_can_be_used(name: str) -> None:
    preset = AGENT_PRESETS[name]
    assert preset.summary
    assert preset.schedule is None or preset.schedule in SCHEDULES
    for topology in PRESETS.values():
        layout = preset.distribution_for("Ant-v5") or topology.distribution
        shapes = [(256, 105), (256, 256), (8, 256)]
        assert sum(allocate(shapes, 0.9, layout, dense=[2])) == round(0.1 * sum(a * b for a, b in shapes))


def test_unknown_preset_is_named() -> None:
    with pytest.raises(ValueError, match="no preset called 'ds-td3'; did you mean 'ds-td3-2022'"):
        AGENT_PRESETS["ds-td3"]
