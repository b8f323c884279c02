"""An agent's hyper-parameters by name; `--preset` picks one, explicit arguments beat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from sparse_core.registry import Registry

Factors = Mapping[str, tuple[float, ...]]
NONE: Factors = MappingProxyType({})


@dataclass(frozen=True)
class AgentPreset:
    """What an agent is trained with; None leaves the choice to the topology's own preset."""

    summary: str
    algo: str = "td3"
    """The agent it is for."""
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
    ent_coef: float | None = None
    """SAC's entropy coefficient; None: learned."""
    target_update_interval: int = 1
    """SAC: updates between two of the targets."""
    n_steps: int = 1
    """Steps of a return."""
    n_step_onset: float = 0.0
    """Share of the steps in all after which returns are that long; over one step until then."""
    buffer_min: float | None = None
    """Share of the steps in all that the replay buffer keeps in any case while it forgets; None: it forgets nothing."""
    buffer_every: float = 1 / 300
    """Share of the steps in all after which it looks at its oldest rows."""
    buffer_distance: float = 0.2
    """Half the mean squared distance between their actions and the policy's from which on a tenth of the rows goes."""
    eval_every: int = 5_000
    eval_episodes: int = 10
    topology: str = "set"
    period_share: float | None = None
    """Share of the steps in all between two changes; None: a thousand updates, or the topology's own."""
    drop_fraction: float | None = None
    schedule: str | None = None
    stop: float | None = None
    distribution: str | None = None
    sparsity: float | None = None
    input_sparsity: float | None = None
    """Of the first layer alone, every other layer being dense; not for a dense topology."""
    layer_factors: Factors = field(default_factory=lambda: NONE)
    """Per environment (under "" of all others), the layers' factors that `distribution` has room for as `{}`."""

    def distribution_for(self, env: str) -> str | None:
        """The distribution with the environment's own factors filled in; by the name without its version."""
        if self.distribution is None:
            return None
        name = env.rpartition(":")[2].rpartition("-")[0]
        factors = self.layer_factors.get(name, self.layer_factors.get("", ()))
        return self.distribution.format(*(f"{factor:g}" for factor in factors))

    def scaled(self, share: float, steps: int) -> int:
        """A share of the steps in all, in steps; at least one unless it is nothing."""
        return max(1, round(share * steps)) if share else 0


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
        layer_factors=MappingProxyType({"": (7.0,), "Ant": (40.0,), "Humanoid": (61.0,)}),
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
AGENT_PRESETS.add(
    "rlx2",
    AgentPreset(
        "RLx2: gradient growth, delayed three-step returns, a buffer that forgets (Tan et al. 2023, arXiv:2205.15043)",
        topology="rigl",
        sparsity=0.9,
        drop_fraction=0.5,
        stop=1.0,
        # Of the paper's 3 M steps: 10,000, 300,000, 100,000 and 10,000.
        period_share=1 / 300,
        n_steps=3,
        n_step_onset=1 / 10,
        buffer_min=1 / 30,
        buffer_every=1 / 300,
    ),
)

_SAC = AgentPreset(
    "SAC as Stable-Baselines3 has it (Haarnoja et al. 2018, arXiv:1812.05905), its entropy coefficient learned",
    algo="sac",
    learning_starts=100,
    action_noise=0.0,
)
AGENT_PRESETS.add("sac", _SAC)
AGENT_PRESETS.add(
    "ds-sac",
    replace(
        _SAC,
        summary="DS-SAC's hyper-parameters (Sokar et al. 2022, arXiv:2106.04217, appendix): targets are copies",
        learning_starts=25_000,
        tau=1.0,
        target_update_interval=1_000,
        ent_coef=0.2,
        drop_fraction=0.1,
        distribution="er:{},{}",
        sparsity=0.5,
        layer_factors=MappingProxyType(
            {"": (12.0, 80.0), "Hopper": (7.0, 20.0), "Ant": (30.0, 64.0), "Humanoid": (61.0, 64.0)}
        ),
    ),
)
