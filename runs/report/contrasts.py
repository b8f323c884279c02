"""Which arms are held against which, and what may be said of them: yes, no, or undecided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from runs.report.endpoints import Endpoint, overall, values_of
from runs.report.loading import Evidence
from runs.report.statistics import (
    Difference,
    Interval,
    generator_for,
    holm,
    permutation,
    probability_of_improvement,
    seeds_needed,
    smallest_p,
    welch,
)
from runs.studies.plan import Arm
from sparse_core import PRESETS

Word = Literal["yes", "no", "undecided"]
LEVEL = 0.05
FEWEST = 3
"""Runs of each arm without which there is no verdict.

Where runs of either arm end in one of two places (a quarter or more of them in the rarer one, simulated), Welch's test
finds two and two "surely" different 4 to 7 times in a hundred at level 0.05 / 13, three and three 1 to 3 times, four
and four in less than 1.
"""
_ALL_PAIRS = 4  # arms of a continual study up to which each is held against each


@dataclass(frozen=True)
class Pair:
    """Does the first do better than the second?"""

    first: Arm
    second: Arm


@dataclass(frozen=True)
class Contrast:
    """Two arms in one group, on the primary endpoint."""

    group: str
    pair: Pair
    difference: Difference
    reference: float
    """The second arm's mean."""
    p_holm: float | None
    p_permutation: float | None
    improvement: Interval
    word: Word
    why: str
    lost: str = ""
    """Which runs failed, which a verdict does not count."""

    @property
    def relative(self) -> tuple[float, float | None, float | None]:
        """The difference and its interval as shares of the reference's size."""
        size = abs(self.reference) or 1.0
        low, high = self.difference.low, self.difference.high
        return self.difference.value / size, None if low is None else low / size, None if high is None else high / size


def pairs(evidence: Evidence, wanted: Sequence[str]) -> list[Pair]:
    """The pairs that are asked for, or the usual ones; a `ValueError` for an arm that is not there."""
    arms = {arm.name: arm for arm in evidence.study.arms}
    if wanted:
        if len({*wanted}) < len(wanted):
            raise ValueError(f"`contrast` must name each pair once, got {', '.join(wanted)}")
        return [_asked(text, arms) for text in wanted]
    usual = _usual_agents if evidence.study.kind == "agents" else _usual_learners
    present = {arm.name for arm in evidence.arms}
    return [pair for pair in usual([*arms.values()]) if {pair.first.name, pair.second.name} <= present]


def _asked(text: str, arms: dict[str, Arm]) -> Pair:
    first, _, second = text.partition(":")
    if first not in arms or second not in arms or first == second:
        raise ValueError(f"`contrast` must name two arms as FIRST:SECOND, of {', '.join(arms)}; got {text!r}")
    return Pair(arms[first], arms[second])


def _usual_agents(arms: list[Arm]) -> Iterator[Pair]:
    """What searches against its controls, then a static topology against dense networks."""
    for arm in arms:
        if _is_sparse(arm) and PRESETS[arm.method].searches:
            for control in ("static", "reset-in-place", "final-topology", "small-dense", "dense"):
                yield from (Pair(arm, other) for other in arms if other.method == control and _comparable(arm, other))
    for arm in arms:
        if arm.method == "static":
            for control in ("small-dense", "dense"):
                yield from (Pair(arm, other) for other in arms if other.method == control and _comparable(arm, other))


def _is_sparse(arm: Arm) -> bool:
    return arm.method in PRESETS and not PRESETS[arm.method].dense


def _any(arm: Arm) -> dict[str, Any]:
    return next(iter(arm.settings.values()))


def _comparable(arm: Arm, control: Arm) -> bool:
    """Whether the two differ in the method alone, or in being dense."""
    mine, others = _any(arm), _any(control)
    if (mine["norm"], mine["preset"]) != (others["norm"], others["preset"]):
        return False
    if control.method == "small-dense":
        return control.as_large_as == mine["sparsity"]
    if control.method == "final-topology":
        return control.of == arm.name
    if control.method == "dense":
        return True
    return bool((mine["sparsity"], mine["hidden"]) == (others["sparsity"], others["hidden"]))


def _usual_learners(arms: list[Arm]) -> Iterator[Pair]:
    """Each arm against each that comes after it; the first against all others where that would be many."""
    for number, arm in enumerate(arms if len(arms) <= _ALL_PAIRS else arms[:1]):
        yield from (Pair(arm, other) for other in arms[number + 1 :])


def contrasts(
    evidence: Evidence, found: list[Pair], endpoint: Endpoint, margin: float, resamples: int
) -> list[Contrast]:
    """Every pair in every group where both have runs, first over all groups; p adjusted over all of them by Holm."""
    groups = [*filter(None, [overall(evidence)]), *evidence.groups]
    bare = [_contrast(evidence, group, pair, endpoint, resamples) for group in groups for pair in found]
    there = [each for each in bare if each is not None]
    adjusted = holm([each.difference.p for each in there])
    known = sum(p is not None for p in adjusted)
    return [
        _judged(replace(each, p_holm=p), evidence, endpoint, margin, known)
        for each, p in zip(there, adjusted, strict=True)
    ]


def _contrast(evidence: Evidence, group: str, pair: Pair, endpoint: Endpoint, resamples: int) -> Contrast | None:
    first, second = (values_of(evidence, endpoint, group, arm.name) for arm in (pair.first, pair.second))
    if not len(first) or not len(second):
        return None
    generator = generator_for("contrast", group, pair.first.name, pair.second.name)
    groups = evidence.groups if group == overall(evidence) else [group]
    each = [
        tuple(values_of(evidence, endpoint, name, arm.name) for arm in (pair.first, pair.second)) for name in groups
    ]
    return Contrast(
        group, pair, welch(first, second), float(np.mean(second)), None, permutation(first, second, generator),
        probability_of_improvement([(one, other) for one, other in each], generator, resamples), "undecided", "",
        _lost(evidence, groups, pair),
    )  # fmt: skip


def _lost(evidence: Evidence, groups: Sequence[str], pair: Pair) -> str:
    """How many runs of either arm failed or cannot be used, in words."""
    counts = {
        arm.name: sum(cell.group in groups and cell.arm.name == arm.name for cell, _ in evidence.lost)
        for arm in (pair.first, pair.second)
    }
    return ", ".join(
        f"{count} of {name} failed and {'is' if count == 1 else 'are'} left out"
        for name, count in counts.items()
        if count
    )


def not_compared(evidence: Evidence, found: Sequence[Pair], endpoint: Endpoint) -> list[str]:
    """A line for every pair that cannot be held against each other somewhere, and why."""
    lines = []
    for group in evidence.groups:
        for pair in found:
            for arm in (pair.first, pair.second):
                if not len(values_of(evidence, endpoint, group, arm.name)):
                    what = f"no {endpoint.label}" if evidence.of(group, arm.name) else "no finished run"
                    lines.append(
                        f"not compared on {group}: {pair.first.name} and {pair.second.name}: {arm.name} has {what}"
                    )
                    break
    return lines


def _judged(contrast: Contrast, evidence: Evidence, endpoint: Endpoint, margin: float, tests: int) -> Contrast:
    difference, pair = contrast.difference, contrast.pair
    fewest = min(difference.runs)
    if difference.low is None or difference.high is None or fewest < FEWEST:
        little = "one run says nothing" if fewest == 1 else "two runs say next to nothing"
        return replace(contrast, why=f"{little} about spread; at least three of each are needed")
    allowed = margin * abs(contrast.reference)
    if max(-difference.low, difference.high) <= allowed:
        return replace(contrast, word="no", why=f"no difference of {100 * margin:g} % or more")
    if contrast.p_holm is None:
        return replace(contrast, why="the runs of neither arm differ, so that nothing tells how sure this is")
    if contrast.p_holm < LEVEL:
        better = difference.value * endpoint.better > 0
        return replace(contrast, word="yes" if better else "no", why="" if better else "it does worse")
    first, second = (values_of(evidence, endpoint, contrast.group, arm.name) for arm in (pair.first, pair.second))
    needed = seeds_needed(first, second, allowed, tests)
    return replace(
        contrast, why="more than 1,000 seeds an arm needed" if needed is None else _about(needed, difference)
    )


def _about(needed: int, difference: Difference) -> str:
    # Holm may withhold a yes from a study whose seeds would suffice for its own difference.
    more = max(needed, min(difference.runs) + 1)
    return f"about {more} seeds an arm needed"


def sentence(contrast: Contrast, endpoint: Endpoint) -> str:
    """The answer in words."""
    question = f"Does {contrast.pair.first.name} do better than {contrast.pair.second.name}?"
    difference, n, m = contrast.difference, *contrast.difference.runs
    value, low, high = (difference.value, difference.low, difference.high) if endpoint.percent else contrast.relative
    unit = "points" if endpoint.percent else "%"
    details = [f"n = {n} and {m}"]
    if low is not None and high is not None:
        details.insert(0, f"95 % interval {_signed(low)} … {_signed(high)} {unit} by Welch")
    if contrast.p_holm is not None:
        details.append(f"p {_equals(contrast.p_holm)} after Holm")
    if contrast.lost:
        details.append(contrast.lost)
    word = contrast.word.capitalize() + (f", {contrast.why}" if contrast.why else "")
    return f"{question} {word}: {endpoint.label} {_signed(value)} {unit} ({', '.join(details)})"


def _signed(share: float) -> str:
    """Whole percents with a sign; one digit more where that would be nothing."""
    percents = 100 * share
    return f"{percents:+.0f}" if abs(percents) >= 0.5 or percents == 0 else f"{percents:+.1f}"


def _equals(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def p_text(p: float | None) -> str:
    """A p as people write it."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def too_few_for_permutation(found: Sequence[Contrast]) -> str | None:
    """Where no permutation test of so few runs could reach the level after Holm, that it is so."""
    runs = {contrast.difference.runs for contrast in found if min(contrast.difference.runs) > 1}
    least = {pair: smallest_p(pair) for pair in sorted(runs)}
    out_of_reach = [f"{n} against {m}: {p:.3f}" for (n, m), p in least.items() if p * len(found) >= LEVEL]
    if not out_of_reach:
        return None
    return (
        f"With so few runs a permutation test cannot reach {LEVEL} after Holm over {len(found)} contrasts (smallest p: "
        f"{', '.join(out_of_reach)}): verdicts rest on Welch's test, which trusts the values to be about normal."
    )
