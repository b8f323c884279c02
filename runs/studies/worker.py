"""A process that does runs one after the other: jobs as JSON lines come in on standard input, reports go out.

It ends at once when its parent does: the pipe closes. What a run prints goes into a log beside its directory.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, TextIO


def main() -> None:
    """Do jobs until there are no more."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    jobs: list[str] = []
    arrived = threading.Condition()
    threading.Thread(target=_read, args=(sys.stdin, jobs, arrived), daemon=True).start()
    while True:
        with arrived:
            arrived.wait_for(lambda: jobs)
            line = jobs.pop(0)
        reports.write(json.dumps(_perform(json.loads(line))) + "\n")
        reports.flush()
        gc.collect()  # agents and their replay buffers refer to each other: they would pile up


def _read(lines: TextIO, jobs: list[str], arrived: threading.Condition) -> None:
    """Take in jobs; the end of the input is the end of the parent, and so ours."""
    for line in lines:
        with arrived:
            jobs.append(line)
            arrived.notify()
    os._exit(1)


def _perform(job: dict[str, Any]) -> dict[str, Any]:
    log = Path(f"{job['directory']}.log")
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("a", encoding="utf-8")
    except OSError as error:
        return {"outcome": "failed", "error": f"cannot write {log}: {error.strerror}"}
    with file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    from runs.studies.jobs import perform  # with its imports: what they print belongs into the log

    return perform(job)


if __name__ == "__main__":
    main()
