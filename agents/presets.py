"""An agent's hyper-parameters by name; `--preset` picks one, explicit arguments beat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sparse_core.registry import Registry

NONE: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class AgentPreset:
    """What an agent is trained with; None leaves the choice to the topology's own preset."""

    summary: str
    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    batch_size: int = 256
    buffer_size: int = 1_000_000
    learning_starts: int = 25_000
    action_noise: float = 0.1
    gamma: float = 0.99
    tau: float = 0.005
    policy_delay: int = 2
    target_policy_noise: float = 0.2
    target_noise_clip: float = 0.5
    eval_every: int = 5_000
    eval_episodes: int = 10
    period: int = 1_000
    drop_fraction: float | None = None
    schedule: str | None = None
    stop: float | None = None
    distribution: str | None = None
    sparsity: float | None = None
    input_sparsity: float | None = None
    """Of the first layer alone, every other layer being dense; not for a dense topology."""
    input_factor: Mapping[str, float] = field(default_factory=lambda: NONE)
    """Per environment, the factor of the first layer that `distribution` has room for as `{}`."""

    def distribution_for(self, env: str) -> str | None:
        """The distribution with the environment's own factor filled in; by the name without its version."""
        factors = self.input_factor
        name = env.rpartition(":")[2].rpartition("-")[0]
        return (
            None
            if self.distribution is None
            else self.distribution.format(f"{factors.get(name, factors.get('', 1)):g}")
        )


AGENT_PRESETS: Registry[AgentPreset] = Registry("preset")

AGENT_PRESETS.add("td3", AgentPreset("TD3 as its authors ran it (Fujimoto et al. 2018, arXiv:1802.09477)"))
AGENT_PRESETS.add(
    "ds-td3-2022",
    AgentPreset(
        "DS-TD3's hyper-parameters (Sokar et al. 2022, arXiv:2106.04217) on this core; see docs/deviations.md",
        learning_rate=1e-3,
        weight_decay=2e-4,
        batch_size=100,
        drop_fraction=0.05,
        # The release stops 50,000 updates before the end of 975,000.
        stop=925 / 975,
        distribution="er:{},64",
        sparsity=0.5,
        input_factor=MappingProxyType({"": 7.0, "Ant": 40.0, "Humanoid": 61.0}),
    ),
)
AGENT_PRESETS.add(
    "anf",
    AgentPreset(
        "ANF: an input layer that is 80 % sparse, for noisy observations (Grooten et al. 2023, arXiv:2302.06548)",
        learning_rate=1e-3,
        weight_decay=2e-4,
        batch_size=100,
        drop_fraction=0.05,
        input_sparsity=0.8,
    ),
)
