"""`resume`: whichever kind of run a directory holds."""

from __future__ import annotations

import shlex

from runs.failure import UserError
from runs.files import read_json
from runs.options import Resume
from runs.studies.plan import FILE, read_study


def resume(options: Resume) -> int:
    """Continue the run in a directory; imports only what that kind of run needs."""
    directory = options.directory
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give the directory of a run")
    if (directory / FILE).exists():
        study = read_study(directory)
        raise UserError(
            f"{directory} is a study; the command that began it continues it: {shlex.join(study.commands[-1])}"
        )
    written = read_json(directory / "config.json", "config of a run")
    if written.get("format") == "sparse-agents-continual":
        from runs.continual.running import resume_continual

        return resume_continual(options, written)
    from runs.training import resume as resume_training

    return resume_training(options)
