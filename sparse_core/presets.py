"""Methods of the field by name: a drop rule, a grow rule, a schedule, a distribution and an initialisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from sparse_core.drop import DROP_RULES
from sparse_core.grow import GROW_RULES
from sparse_core.maskings import MASKINGS
from sparse_core.registry import Registry, bound, like, options_of, with_options
from sparse_core.topology import Regrow

NOT_CHOSEN = ("summary", "dense", "given", "options", "birth", "own_period", "dense_by_nature", "chosen")
_OPTIONAL_NUMBERS = ("drop_temperature", "final_drop_temperature", "grow_temperature", "begin")


@dataclass(frozen=True)
class Preset:
    """A method's choices; without `drop`, `prune`, `masking` and `pruned_neurons` nothing ever changes place.

    Every choice, and every option of the method's rules, can be given with the name:
    `PRESETS["rigl:grow_mix=0.3:drop_fraction=0.2"]`; not `summary`, `dense`, `given`, `options`, `own_period`,
    `dense_by_nature` and `chosen`, which say what it is.
    """

    summary: str
    drop: str | None = None
    grow: str | None = None
    drop_fraction: float = 0.3
    schedule: str = "constant"
    period: int = 100
    stop: float = 1.0
    """Share of the training steps after which the topology stays."""
    regrow: Regrow = "no"
    distribution: str = "erk"
    init: str = "torch"
    initial_topology: str = "random"
    """Where connections are at the start, a name from `INITIAL_TOPOLOGIES`."""
    dense: bool = False
    """The dense baseline: a sparsity other than zero is an error."""
    given: bool = False
    """The topology is given, not drawn."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the drop, grow and prune rules by their names; see `options_of`."""
    drop_temperature: float | None = None
    """None drops the lowest scores; a number T keeps connections by odds of scoreᵀ (soft removal)."""
    final_drop_temperature: float | None = None
    """Temperature at the last change, approached along a line; None: as at the first."""
    drop_mix: float = 0.0
    """Share of what is dropped that is drawn at random."""
    grow_temperature: float | None = None
    grow_mix: float = 0.0
    """Share of what grows that is drawn at random: 0 is the rule, 1 is SET."""
    redistribute: str | None = None
    """In which layers connections grow, a name from `REDISTRIBUTIONS`; None: where as many were dropped."""
    chains: bool = False
    """Whether what a drop leaves without a way in or out goes, too (CHT)."""
    prune: str | None = None
    """The drop rule that brings the network down where the course of its sparsity falls."""
    course: str | None = None
    """Course of the sparsity along training, a name from `COURSES`; None: constant."""
    begin: float | None = None
    """Sparsity at the start; None: the final one."""
    overshoot: float = 1.0
    """Density at the start divided by the final one, where `begin` is None."""
    capture_batches: int = 1
    once: bool = False
    """Whether there is one change only, at step `period`."""
    own_period: bool = False
    """Whether it is itself only with its own `period`, whatever the user's usual one."""
    birth: float | str = 0.0
    """Value of a new connection: a number, or a name from `BIRTHS`."""
    pruned_neurons: float = 0.0
    """Share of each hidden layer's neurons that goes, the weakest by Σ|w| of their inputs (`NeuronPruning`)."""
    neurons_from: float = 0.4
    """Share of the way to the last change from which on neurons go."""
    warmup: int = 0
    """Steps over which a new connection's learning rate rises from zero (`sparse_core.Adam`)."""
    ages: bool = True
    """Whether `sparse_core.Adam` corrects its bias by each connection's own age; False is plain Adam."""
    step_rule: str | None = None
    """What is done to the values after every step of the optimizer, a name from `STEP_RULES`."""
    masking: str | None = None
    """How it multiplies fewer weights than it keeps, a name from `MASKINGS`; it chooses anew every `period` steps."""
    dense_by_nature: str = ""
    """What it does that is not sparse, in words; empty for a method that stays truly sparse."""
    chosen: frozenset[str] = frozenset()
    """Choices that were given with the name, which are the user's."""

    @property
    def keeps_period(self) -> bool:
        """Whether its `period` stands against the user's usual one: it makes the method, or came with the name."""
        return self.own_period or "period" in self.chosen

    @property
    def searches(self) -> bool:
        """Whether connections ever come to new places."""
        if self.grow is None:
            return self.drop is not None and DROP_RULES[self.drop].plans
        return not GROW_RULES[self.grow].in_place

    @property
    def changes(self) -> bool:
        """Whether what is multiplied ever changes: the topology, or a masking's choice."""
        return self.drop is not None or self.prune is not None or self.masking is not None or self.pruned_neurons > 0

    @property
    def begins_wider(self) -> bool:
        """Whether layers begin with more connections than the sparsity asks for, full ones included."""
        return self.prune is not None or self.masking is not None

    @property
    def keeps_count(self) -> bool:
        """Whether every layer multiplies the same number of weights from the first step to the last."""
        drops = self.drop is not None and (DROP_RULES[self.drop].network or DROP_RULES[self.drop].own_count)
        return not (self.prune or self.redistribute or drops or self.pruned_neurons or not self.exact)

    @property
    def exact(self) -> bool:
        """Whether it ends with exactly the sparsity that it is asked for."""
        return self.masking is None or MASKINGS[self.masking].exact

    @property
    def own_sparsity(self) -> float | None:
        """The sparsity that its masks have, where nothing else can be (n of m weights); None where it is asked for."""
        rule = self.rule(self.masking, MASKINGS)
        return None if rule is None or rule.sparsity is None else rule.sparsity(**options_of(rule))

    @property
    def group(self) -> int:
        """A layer's inputs must be a multiple of this; one whose are not stays dense."""
        rule = self.rule(self.masking, MASKINGS)
        return 1 if rule is None or rule.group is None else rule.group(**options_of(rule))

    def settled(self, sparsity: float | None) -> float | None:
        """The sparsity to take where this one is asked for, or none; a `ValueError` where that cannot be."""
        own = self.own_sparsity
        if own is not None and sparsity and abs(sparsity - own) > 1e-6:
            raise ValueError(
                f"masking {self.masking!r} makes every masked layer {own:g} sparse by its groups, got sparsity "
                f"{sparsity:g}; leave it out, or choose other groups, as 'sr-ste:n=1:m=4' for 0.75"
            )
        return own if sparsity is None else sparsity

    def starting(self, sparsity: float) -> float:
        """Sparsity with which training begins where it is to end with `sparsity`."""
        if self.begin is not None:
            return min(self.begin, sparsity)
        return max(1 - (1 - sparsity) * self.overshoot, 0.0)

    def rule(self, name: str | None, registry: Any) -> Any:
        """A rule of this method with those of its options that it has; None for no rule."""
        if name is None:
            return None
        rule = registry[name]
        known = options_of(rule)
        own = {option: value for option, value in self.options.items() if option in known}
        return bound(rule, f"{registry.kind} {name!r}", own) if own else rule

    def with_choices(self, name: str, given: Mapping[str, str]) -> Preset:
        """The same with other choices, as they are written behind its name; a `ValueError` for one it has not."""
        defaults: dict[str, Any] = {
            each.name: 0.0 if each.name in _OPTIONAL_NUMBERS else "" if each.default is None else each.default
            for each in fields(self)
            if each.default is not MISSING and each.name not in NOT_CHOSEN
        }
        rules: list[tuple[str | None, Any]] = [
            (self.drop, DROP_RULES), (self.grow, GROW_RULES), (self.prune, DROP_RULES), (self.masking, MASKINGS),
        ]  # fmt: skip
        known: dict[str, Any] = {
            option: default
            for rule, registry in rules
            if rule is not None
            for option, default in options_of(registry[rule]).items()
        }
        chosen: dict[str, Any] = {}
        options = dict(self.options)
        for option, value in given.items():
            what = f"option {option!r} of topology {name!r}"
            if option in known:
                options[option] = like(known[option], value, what)
            elif option == "birth":
                chosen[option] = _number_or_name(value)
            elif option in defaults:
                chosen[option] = like(defaults[option], value, what)
            else:
                names = ", ".join(sorted({*known, *defaults, "birth"}))
                raise ValueError(f"topology {name!r} has no option {option!r}; known: {names}")
        return replace(self, **chosen, options=options, chosen=frozenset(chosen))


def _number_or_name(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


class Presets(Registry[Preset]):
    """Methods by name, and by a name with options: `"rigl:grow_mix=0.3"`."""

    def __getitem__(self, name: str) -> Preset:
        plain, options = with_options(name)
        preset = super().__getitem__(plain)
        return preset.with_choices(plain, options) if options else preset

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.partition(":")[0] in self._entries


PRESETS = Presets("topology")

PRESETS.add("dense", Preset("every connection: the baseline", dense=True))
PRESETS.add("static", Preset("a sparse topology that never changes"))
PRESETS.add(
    "final-topology",
    Preset("control: the last topology of a finished run, weights drawn anew, never changes", given=True),
)
