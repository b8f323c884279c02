"""`sparse-agents`: parse, hand over, and turn what a person can mend into one line and exit code 2."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import tyro

from runs.failure import UserError
from runs.methods.options import Methods
from runs.options import Bench, Command, Continual, Demo, Evaluate, Export, List, Resume, Train
from runs.report.options import Report
from runs.studies.options import Compare, CompareContinual

DESCRIPTION = """Neural networks that are never dense: train, resume, compare and report sparse agents and learners.

Begin with `sparse-agents demo`, then `sparse-agents train td3 --sparsity 0.9` for control, `sparse-agents continual`
for tasks that come one after the other, or `sparse-agents compare` for whole grids with statistics."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 2 a mistake that can be mended, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without a letter shows another, and nothing fails
    options = parse(sys.argv[1:] if arguments is None else arguments)
    _announce()
    try:
        return _run(options)
    except (UserError, ValueError, FloatingPointError) as error:
        if os.environ.get("SPARSE_AGENTS_DEBUG"):
            raise
        return _fail(str(error))
    except MemoryError as error:
        return _fail(f"not enough memory: {str(error) or 'no more to be had'}; take a smaller buffer or network")
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)
    except BrokenPipeError:
        # The reader (`head`, say) has what it wanted; without this Python complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")


def parse(arguments: Sequence[str]) -> Any:
    """The options that a command line means; help and mistakes end with `SystemExit`."""
    return tyro.cli(
        Command,
        prog="sparse-agents",
        description=DESCRIPTION,
        args=_which_compare(arguments),
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )


def _which_compare(arguments: Sequence[str]) -> list[str]:
    """`compare` with strategies compares continual learners, whose flags are others."""
    first, *rest = arguments or [""]
    learners = first == "compare" and any(word.partition("=")[0] == "--strategies" for word in rest)
    return ["compare-continual", *rest] if learners else list(arguments)


def _announce() -> None:
    """Show on standard error what the core has to say about things that take seconds."""
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("sparse-agents: %(message)s"))
    logger = logging.getLogger("sparse_core")
    logger.handlers[:], logger.propagate = [shown], False


def _fail(message: str, code: int = 2) -> int:
    print(f"sparse-agents: {' '.join(message.split())}", file=sys.stderr)
    return code


_HANDLERS = {
    Train: "runs.training:train",
    Continual: "runs.continual.running:continual",
    Resume: "runs.resuming:resume",
    Compare: "runs.studies.command:compare",
    CompareContinual: "runs.studies.command:compare_learners",
    Report: "runs.report.command:report",
    Methods: "runs.methods.command:methods",
    Evaluate: "runs.evaluation:evaluate",
    Export: "runs.export:export",
    List: "runs.listing:show",
    Demo: "runs.demo:demo",
    Bench: "runs.bench.command:bench",
}


def _run(options: Any) -> int:
    """Each command imports only what it needs."""
    module, _, function = _HANDLERS[type(options)].partition(":")
    code: int = getattr(import_module(module), function)(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
