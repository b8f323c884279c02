"""Checkpoints: folders that are whole or not there, and are checked when read.

    step-000000050000/         tensors.safetensors, state.json, replay-tail.safetensors
    step-000000050000-2/       the same step saved again, until the one above is removed
    replay/segment-….safetensors   replay rows that several checkpoints share
    .tmp-…                     what a killed process was writing or removing

One process writes at a time (`runs.lock`). A run has one line of time: saving a step
removes the checkpoints of later steps, left from before the run was resumed earlier.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from runs.checkpoint_files import (
    Content,
    Damaged,
    Rows,
    pack_manifest,
    pack_rows,
    pack_tensors,
    read_checked,
    unpack_manifest,
    unpack_rows,
    unpack_tensors,
)
from runs.failure import UserError
from runs.files import json_bytes, sync_directory, write_through, writing
from runs.replay_segments import SEGMENT_ROWS, Part, ReplaySource, Segments, oldest, restore_rows, tail

_FOLDER = re.compile(r"step-(\d{12,})(?:-(\d+))?")
_TENSORS, _STATE, _TAIL, _REPLAY = "tensors.safetensors", "state.json", "replay-tail.safetensors", "replay"


@dataclass(frozen=True)
class _Replay:
    """Where a checkpoint has its replay rows."""

    added: int
    capacity: int
    parts: list[tuple[Part, Content]]
    """In the order of the rows; the tail is the last, under its own name."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint holds, whole and checked."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]
    path: Path
    _replay: _Replay | None
    _segments: Segments

    def restore_replay(self, target: ReplaySource) -> None:
        """Put the replay rows into `target`, each in the place of the ring it was in."""
        replay = self._replay
        if replay is None:
            raise UserError(f"{self.path} holds no replay buffer; resume from a checkpoint that does")
        if replay.capacity != target.capacity:
            raise UserError(
                f"{self.path} holds a replay buffer of {replay.capacity} rows, the run has one of "
                f"{target.capacity}; resume with the settings the run began with"
            )
        try:
            restore_rows(target, replay.added, self._rows(replay))
        except Damaged as error:
            raise UserError(f"{error}; it was whole a moment ago: check the disk") from error
        self._segments.adopt(target, [entry for entry in replay.parts if entry[0].file != _TAIL])

    def _rows(self, replay: _Replay) -> Iterator[tuple[Part, Rows]]:
        for part, content in replay.parts:
            path = _path_of(self.path, part.file)
            yield part, unpack_rows(path, read_checked(path, content))


class CheckpointStore:
    """The checkpoints in `directory`, of which it keeps the newest `keep`.

    `run` is the directory to name when telling how to resume, by default the parent.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        *,
        segment_rows: int = SEGMENT_ROWS,
        run: Path | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"`keep` must be at least 1, got {keep!r}")
        if segment_rows < 1:
            raise ValueError(f"`segment_rows` must be at least 1, got {segment_rows!r}")
        self.directory = directory
        self.keep = keep
        self._then = f"`sparse-agents resume {directory.parent if run is None else run}`"
        self._segments = Segments(directory / _REPLAY, segment_rows, self._then)

    def save(
        self,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
        replay: ReplaySource | None = None,
    ) -> Path:
        """Store a checkpoint; its folder. After a failure the checkpoints are those from before.

        `state` is what JSON can hold, without NaN.
        """
        if step < 0:
            raise ValueError(f"`step` must not be negative, got {step!r}")
        # What can be refused is refused before anything is written.
        json_bytes(state, "the state of a checkpoint")
        files = {_TENSORS: pack_tensors(tensors)}
        revisions = [revision for known, revision, _ in self._folders() if known == step]
        name = f"step-{step:012d}" + (f"-{max(revisions) + 1}" if revisions else "")
        folder, temporary = self.directory / name, self.directory / f".tmp-{name}"
        with writing(folder, self._then):
            self._sweep()
            self.directory.mkdir(parents=True, exist_ok=True)
            sync_directory(self.directory.parent)
            try:
                stored = None if replay is None else self._write_replay(replay, files)
                _fill(temporary, files, _fields(step, state, stored), _shared(stored))
                temporary.rename(folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            sync_directory(self.directory)
            self._prune(step)
        return folder

    def drop_replay(self) -> None:
        """Write the newest checkpoint anew without its replay rows: of a run that has come to its end.

        A `UserError` says that it is damaged.
        """
        folders = self._newest()
        if not folders:
            return
        try:
            has_replay = unpack_manifest(folders[max(folders)] / _STATE)[0].get("replay") is not None
        except Damaged as error:
            raise UserError(f"{error}; the run's replay is kept") from error
        if has_replay:
            last = self.load(replay=False)
            self.save(last.step, last.tensors, last.state)
        else:
            self.rewind(max(folders))  # a kill may have left the replay rows of the one before

    def rewind(self, step: int) -> None:
        """Remove the checkpoints of steps after `step`: the run goes on from there."""
        with writing(self.directory, self._then):
            self._sweep()
            self._prune(step)

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, in rising order."""
        return sorted(self._newest())

    def load(self, step: int | None = None, *, replay: bool = True) -> Checkpoint:
        """The checkpoint of `step`, by default the newest, after checking each of its files.

        Without `replay` its replay rows are neither checked nor restored, which is quicker.
        Raises `UserError` if it is not there or not whole; the message names the newest
        earlier one that is.
        """
        folders = self._newest()
        if not folders:
            raise UserError(f"no checkpoint in {self.directory}; start the run again, or check the path")
        if step is None:
            step = max(folders)
        if step not in folders:
            known = ", ".join(map(str, sorted(folders)))
            raise UserError(f"no checkpoint of step {step} in {self.directory}; there are: {known}")
        try:
            return self._read(step, folders[step], replay)
        except Damaged as error:
            raise UserError(f"{error}; {self._instead(step, folders, replay)}") from error

    def _read(self, step: int, folder: Path, replay: bool) -> Checkpoint:
        fields, files = unpack_manifest(folder / _STATE)
        if fields.get("step") != step:
            raise Damaged(f"{folder / _STATE} is of step {fields.get('step')!r}, not {step}")
        try:
            tensors = unpack_tensors(folder / _TENSORS, read_checked(folder / _TENSORS, files[_TENSORS]))
            stored = _stored(fields["replay"], files) if replay else None
            state = dict(fields["state"])
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{folder / _STATE} is damaged (it does not describe a checkpoint)") from error
        for part, content in stored.parts if stored else []:
            read_checked(_path_of(folder, part.file), content)
        return Checkpoint(step, tensors, state, folder, stored, self._segments)

    def _instead(self, step: int, folders: Mapping[int, Path], replay: bool) -> str:
        """What to do without the checkpoint of `step`."""
        earlier = sorted((other for other in folders if other < step), reverse=True)
        later = sorted((other for other in folders if other > step), reverse=True)
        for other in [*earlier, *later]:
            try:
                self._read(other, folders[other], replay)
            except Damaged:
                continue
            return f"the checkpoint of step {other} is intact: resume from it with `--step {other}`"
        return f"no other checkpoint in {self.directory} is intact: start the run again in a new directory"

    def _write_replay(self, source: ReplaySource, files: dict[str, bytes]) -> _Replay:
        """Write the segments, and add the tail to the `files` to be written."""
        parts = self._segments.write(source)
        start, stop = tail(source.added, source.capacity, self._segments.segment_rows)
        if start < stop:
            files[_TAIL] = pack_rows(source.rows(start, stop), stop - start)
            parts.append((Part(_TAIL, start, stop), Content.of(files[_TAIL])))
        return _Replay(source.added, source.capacity, parts)

    def _folders(self) -> list[tuple[int, int, Path]]:
        """All checkpoint folders with step and revision, in rising order."""
        if not self.directory.is_dir():
            return []
        found = ((_FOLDER.fullmatch(path.name), path) for path in self.directory.iterdir())
        return sorted((int(match[1]), int(match[2] or 1), path) for match, path in found if match)

    def _newest(self) -> dict[int, Path]:
        """The folder of each step, the last revision where there are two."""
        return {step: path for step, _, path in self._folders()}

    def _sweep(self) -> None:
        for path in self.directory.glob(".tmp-*"):
            shutil.rmtree(path)

    def _prune(self, step: int) -> None:
        """Remove what is not among the newest `keep` up to `step`, and segments nobody needs."""
        newest = self._newest()
        kept = [newest[known] for known in sorted(newest) if known <= step][-self.keep :]
        for _, _, path in self._folders():
            if path not in kept:
                # First out of sight: half removed, it would be a damaged checkpoint.
                path.rename(path.with_name(f".tmp-{path.name}"))
        sync_directory(self.directory)
        self._sweep()
        needed: set[str] = set()
        for path in kept:
            try:
                _, files = unpack_manifest(path / _STATE)
            except Damaged:
                return  # no telling what it needs; it goes itself before long
            needed |= {Path(name).name for name in files if name.startswith(f"{_REPLAY}/")}
        self._segments.prune(needed)


def _fill(folder: Path, files: Mapping[str, bytes], fields: Mapping[str, Any], shared: Mapping[str, Content]) -> None:
    """Make `folder` with the files and a `state.json` that describes them and the shared ones."""
    contents = {name: Content.of(data) for name, data in files.items()}
    folder.mkdir()
    for name, data in files.items():
        write_through(folder / name, data)
    write_through(folder / _STATE, pack_manifest(fields, {**contents, **shared}))
    sync_directory(folder)


def _fields(step: int, state: Mapping[str, Any], replay: _Replay | None) -> dict[str, Any]:
    described = None
    if replay is not None:
        parts = [asdict(part) for part, _ in replay.parts]
        described = {"added": replay.added, "capacity": replay.capacity, "parts": parts}
    return {"step": step, "state": dict(state), "replay": described}


def _stored(described: Mapping[str, Any] | None, files: Mapping[str, Content]) -> _Replay | None:
    """What `_fields` described; a `ValueError` if the parts do not make up the ring."""
    if described is None:
        return None
    parts = [Part(**part) for part in described["parts"]]
    following = oldest(described["added"], described["capacity"])
    for part in parts:
        if not part.start <= following < part.stop or Path(part.file).name != part.file:
            raise ValueError(f"{part} does not follow row {following}")
        following = part.stop
    if following != described["added"]:
        raise ValueError(f"rows are missing from {following} on")
    entries = [(part, files[_name_of(part.file)]) for part in parts]
    return _Replay(described["added"], described["capacity"], entries)


def _shared(replay: _Replay | None) -> dict[str, Content]:
    """The segments among the parts, under their names in `state.json`."""
    parts = replay.parts if replay else []
    return {_name_of(part.file): content for part, content in parts if part.file != _TAIL}


def _name_of(file: str) -> str:
    return file if file == _TAIL else f"{_REPLAY}/{file}"


def _path_of(folder: Path, file: str) -> Path:
    return folder / file if file == _TAIL else folder.parent / _REPLAY / file
