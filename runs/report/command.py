"""`sparse-agents report`: the answer first, and everything it rests on."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from runs.files import write_atomically, writing
from runs.report import page
from runs.report.contrasts import Contrast, contrasts, not_compared, pairs, sentence, too_few_for_permutation
from runs.report.curves import not_timed
from runs.report.endpoints import Endpoint, endpoints, normalised, overall, small_bases
from runs.report.learners import learner_sections
from runs.report.loading import Evidence, load
from runs.report.options import Report
from runs.report.outputs import Files
from runs.report.record import record
from runs.report.sections import agent_sections
from runs.report.tables import contrast_headings, contrast_rows, contrasts_csv, cost_sentence

_SHOWN = 3  # problems at the top of the page; all are in their section
_OF_RUNS_THERE = ("unequal", "not of this study", "not compared", "small divisor", "not timed")
_COVERS = "50 % (2 runs), 75 % (3), 87 % (4), 92 % (5) and 94 % (10)"  # 2,000 normal samples each
_IN_BETWEEN = (
    "this is a look in between. Who looks again with every run and stops at the first yes finds one where there is "
    "none more often than once in twenty times; the look at the end of the plan is the one that counts."
)
_SMALL = 10  # runs of an arm below which a number of seeds is said to be small


@dataclass(frozen=True)
class Findings:
    """What a report says."""

    evidence: Evidence
    endpoint: Endpoint
    contrasts: list[Contrast]
    path: Path


def report(options: Report) -> int:
    """Write the report and say its verdicts."""
    findings = make_report(options)
    if options.record is not None:
        record(findings.evidence, options.record)
        make_report(replace(options, directory=options.record, record=None))
        for picture in (options.record / "report").glob("*.png"):
            picture.unlink()  # the page has it
    say(findings)
    return 0


def make_report(options: Report) -> Findings:
    """Write `report.html` and the files beside it; bad input is an error before anything is written."""
    if not 0 <= options.margin < float("inf"):
        raise ValueError(f"`margin` must be a share ≥ 0 such as 0.05, got {options.margin}")
    if options.resamples < 100:
        raise ValueError(f"`resamples` must be at least 100, got {options.resamples}")
    evidence = load(options.directory)
    asked = endpoints(evidence)
    asked_for = pairs(evidence, options.contrast)
    found = contrasts(evidence, asked_for, asked[0], options.margin, options.resamples)
    more = [*not_compared(evidence, asked_for, asked[0]), *small_bases(evidence, asked[0]), *not_timed(evidence)]
    evidence = replace(evidence, problems=[*evidence.problems, *more])
    files = Files()
    body = [part for part in _body(evidence, asked, found, files, options) if part]
    files.contents["contrasts.csv"] = contrasts_csv(evidence, found, asked[0])
    path = options.directory / "report.html"
    folder = options.directory / "report"
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for old in [*folder.glob("*.png"), *folder.glob("*.csv")]:
            if files.is_stale(old.name):
                old.unlink()
    for name, content in sorted(files.contents.items()):
        write_atomically(folder / name, content)
    write_atomically(path, page.page(_title(evidence), body).encode())
    return Findings(evidence, asked[0], found, path)


def say(findings: Findings) -> None:
    """Print problems, verdicts and the path, the path last."""
    console = Console(highlight=False)
    for problem in findings.evidence.problems:
        print(problem, file=sys.stderr)
    colours = {"yes": "bold green", "no": "bold red", "undecided": "bold yellow"}
    for contrast in findings.contrasts:
        group = f"{_capital(contrast.group)}: " if len(findings.evidence.groups) > 1 else ""
        text = Text(group + sentence(contrast, findings.endpoint))
        text.highlight_words([f"? {contrast.word.capitalize()}"], colours[contrast.word])
        console.print(text, soft_wrap=True)
    if not findings.contrasts:
        console.print("nothing to compare: the study has no two arms that answer a question; see --contrast")
    elif _more_to_come(findings.evidence):
        console.print(f"Runs are still to come: {_IN_BETWEEN}", soft_wrap=True, markup=False)
    console.print(str(findings.path), soft_wrap=True, markup=False)


def _more_to_come(evidence: Evidence) -> bool:
    return any(line.startswith(("missing:", "not finished:")) for line in evidence.problems)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _title(evidence: Evidence) -> str:
    what = "Adaptive or static?" if evidence.study.kind == "agents" else "Continual learners"
    return f"{what} {', '.join(evidence.groups)}"


def _body(
    evidence: Evidence, asked: Sequence[Endpoint], found: list[Contrast], files: Files, options: Report
) -> Iterator[str]:
    yield f"<h1>{escape(_title(evidence))}</h1>"
    yield page.paragraph(_summary(evidence), "quiet")
    if evidence.problems:
        yield page.pointer(f"{_finished(evidence)} {_what_is_wrong(evidence)}", "missing", "All that is missing or odd")
    yield page.heading("The answer")
    if found and _more_to_come(evidence):
        yield page.paragraph(f"Runs are still to come: {_IN_BETWEEN}")
    for group in [*filter(None, [overall(evidence)]), *evidence.groups]:
        if len(evidence.groups) > 1:
            yield page.heading(_capital(group), 3)
        mine = [
            (each.word, sentence(each, asked[0]), cost_sentence(evidence, each))
            for each in found
            if each.group == group
        ]
        yield page.answers(mine) if mine else page.paragraph("No two arms here answer a question; see --contrast.")
    yield page.paragraph(_how_verdicts_come(asked[0], options, found), "quiet")
    if overall(evidence) is not None and evidence.study.kind == "agents":
        yield page.paragraph(
            f"In the {overall(evidence)} a seed counts by its mean over all of them, each return divided by "
            f"{normalised(evidence, asked[0])[1]} there; only seeds that have a run in each count.",
            "quiet",
        )
    small = _small(evidence, found)
    if small:
        yield page.paragraph(small, "quiet")
    yield page.heading("What is there and what is missing", name="missing")
    yield page.problems(evidence.problems, _finished(evidence))
    yield page.heading("Contrasts")
    yield page.table(contrast_headings(evidence.groups), contrast_rows(found, asked[0], evidence.groups))
    if evidence.study.kind == "agents":
        yield from agent_sections(evidence, asked, files, options.resamples)
    else:
        yield from learner_sections(evidence, asked, files)
    yield page.heading("How this was made")
    yield from _provenance(evidence, options)


def _summary(evidence: Evidence) -> str:
    arms, seeds = evidence.arms, sorted({run.seed for run in evidence.runs})
    text = f"{len(arms)} arm{'s' if len(arms) > 1 else ''} ({', '.join(arm.name for arm in arms)}), "
    text += f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    steps = {int(each["steps"]) for arm in arms for each in arm.settings.values() if "steps" in each}
    return text + (f", {max(steps):,} environment steps" if len(steps) == 1 else "")


def _finished(evidence: Evidence) -> str:
    return f"{len(evidence.runs)} of {evidence.planned} runs are finished."


def _what_is_wrong(evidence: Evidence) -> str:
    """The lines on runs that are not there, as far as they fit one paragraph."""
    lines = [line for line in evidence.problems if not line.startswith(_OF_RUNS_THERE)]
    if not lines:
        return "Not all is as planned."
    rest = len(lines) - _SHOWN
    return "; ".join(lines[:_SHOWN]) + (f"; and {rest} more." if rest > 0 else ".")


def _how_verdicts_come(endpoint: Endpoint, options: Report, found: Sequence[Contrast]) -> str:
    unit = (
        "Points are percentage points."
        if endpoint.percent
        else "Percentages, of intervals, too, are of the second arm's mean as it came out, as if that were sure."
    )
    return (
        f"Primary endpoint: {endpoint.label}. {unit} No: the 95 % interval of the difference lies within ± "
        f"{100 * options.margin:g} % of the second arm's mean. Otherwise yes and no: Welch's test, p < 0.05 after Holm "
        f"over the {len(found)} contrasts of this page. Everything else is undecided. The "
        "seeds needed are those of each arm with which, if mean and spread stayed as they are, 80 % of studies would "
        "find the difference, or have its interval within that margin; they are as uncertain as the spread they come "
        "from."
    )


def _small(evidence: Evidence, found: Sequence[Contrast]) -> str:
    counts = [len(evidence.of(group, arm.name)) for group in evidence.groups for arm in evidence.arms]
    fewest = min(count for count in counts if count)
    if fewest >= _SMALL:
        return ""
    text = (
        f"As few as {fewest} seed{'s' if fewest > 1 else ''} an arm is little. Intervals are Student's and Welch's t, "
        "and where only a bootstrap will do (curves, interquartile means, profiles), expanded percentiles (Hesterberg "
        f"2015). No bootstrap of so few reaches beyond what was seen: where these say 95 %, they cover about {_COVERS} "
        "of means of normal values."
    )
    return " ".join(filter(None, [text, too_few_for_permutation(found)]))


def _provenance(evidence: Evidence, options: Report) -> Iterator[str]:
    study = evidence.study
    yield page.code("\n".join(shlex.join(command) for command in [*study.commands, _this_command(options)]))
    machines = {_machine(run.result["measured"].get("machine") or {}) for run in evidence.runs}
    yield page.paragraph(f"Machines: {'; '.join(sorted(machines))}.")
    versions = ", ".join(f"{name} {version}" for name, version in sorted(study.versions.items()))
    yield page.paragraph(f"Commit {study.commit or 'not known'} when the study began; {versions}.")
    yield page.paragraph(
        "Numbers: report/*.csv beside this page. Statistics: rliable, with generators seeded by the names of what is "
        "compared, so that the same study gives the same page.",
        "quiet",
    )


def _this_command(options: Report) -> list[str]:
    """How this page is made from its study, wherever that lies."""
    words = ["sparse-agents", "report", "STUDY"]
    for pair in options.contrast:
        words += ["--contrast", pair]
    for name, usual in (("margin", Report.margin), ("resamples", Report.resamples)):
        if getattr(options, name) != usual:
            words += [f"--{name}", f"{getattr(options, name):g}"]
    return words


def _machine(machine: dict[str, Any]) -> str:
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    return f"{machine.get('processor', 'unknown')}, {machine.get('cores', '?')} cores{gpu}"
