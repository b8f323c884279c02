"""A replay buffer in files that are written once, so that saving costs the same at any age.

Rows are counted from the beginning of the run: row `i` lies at place `i % capacity` of the
ring. They are cut into segments of a fixed number of rows. A full segment never changes, so
it is written once and shared by all checkpoints that need it; the unfinished last one,
the tail, goes into each checkpoint.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from runs.checkpoint_files import Content, Damaged, Rows, pack_rows, read_checked
from runs.files import write_atomically

SEGMENT_ROWS = 8192


class ReplaySource(Protocol):
    """A ring of rows that can be stored.

    The store remembers by the object what it has already written, so give it the same
    object at each save. A new one is stored rightly too, but read anew in full. A ring that
    is emptied and filled again is a new one.
    """

    @property
    def added(self) -> int:
        """Rows ever added since the run began."""

    @property
    def capacity(self) -> int:
        """Places in the ring."""

    def rows(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Copies of the rows from `start` up to `stop`, all of which the ring still holds."""

    def restore(self, start: int, rows: Mapping[str, NDArray[Any]]) -> None:
        """Put rows in their places, the first being row `start`; called in order, without gaps."""

    def finish_restore(self, added: int) -> None:
        """Take `added` over; all rows are in their places."""


@dataclass(frozen=True)
class Part:
    """The rows from `start` up to `stop`, in one file."""

    file: str
    start: int
    stop: int


def oldest(added: int, capacity: int) -> int:
    """The oldest row that the ring still holds."""
    return max(0, added - capacity)


def spans(added: int, capacity: int, segment_rows: int) -> Iterator[tuple[int, int]]:
    """The full segments a checkpoint needs, each without the rows already overwritten."""
    first = oldest(added, capacity)
    for number in range(first // segment_rows, added // segment_rows):
        yield max(first, number * segment_rows), (number + 1) * segment_rows


def tail(added: int, capacity: int, segment_rows: int) -> tuple[int, int]:
    """The rows of the unfinished last segment; possibly none."""
    return max(oldest(added, capacity), added - added % segment_rows), added


class Segments:
    """The folder of segments, shared by the checkpoints of a run."""

    def __init__(self, directory: Path, segment_rows: int, then: str) -> None:
        self.directory = directory
        self.segment_rows = segment_rows
        self._then = then
        self._source: ReplaySource | None = None
        self._added = 0
        self._written: dict[int, tuple[Part, Content]] = {}  # by the row after the last

    def write(self, source: ReplaySource) -> list[tuple[Part, Content]]:
        """Write the full segments of `source` that are not there yet; all that it needs."""
        if source is not self._source or source.added < self._added:
            self.adopt(source, [])
        self._added = source.added
        needed = []
        for start, stop in spans(source.added, source.capacity, self.segment_rows):
            entry = self._written.get(stop)
            if entry is None or not self._serves(entry, start, stop):
                entry = self._write(start, stop, pack_rows(source.rows(start, stop), stop - start))
                self._written[stop] = entry
            needed.append(entry)
        return needed

    def adopt(self, source: ReplaySource, entries: list[tuple[Part, Content]]) -> None:
        """Know from now on that the rows of `source` lie in these segments.

        Only what was written from this very source, or restored into it, may be used again:
        after resuming from an earlier step the same rows may have come out differently.
        """
        self._source, self._added = source, source.added
        self._written = {part.stop: (part, content) for part, content in entries}

    def prune(self, needed: set[str]) -> None:
        """Remove the segments that are not `needed`, and what killed writers left."""
        if not self.directory.exists():
            return
        for path in self.directory.iterdir():
            if path.name not in needed and (path.match("segment-*.safetensors") or path.match(".*.tmp")):
                path.unlink()
        self._written = {stop: entry for stop, entry in self._written.items() if entry[0].file in needed}

    def _serves(self, entry: tuple[Part, Content], start: int, stop: int) -> bool:
        part, content = entry
        if not stop - self.segment_rows <= part.start <= start:
            return False  # a store with another segment size wrote it
        with suppress(OSError):
            return (self.directory / part.file).stat().st_size == content.size
        return False

    def _write(self, start: int, stop: int, data: bytes) -> tuple[Part, Content]:
        content = Content.of(data)
        name = f"segment-{start:012d}.safetensors"
        if (self.directory / name).exists() and not self._holds(name, content):
            # Another checkpoint may need that one: it has these rows as they came out before.
            name = f"segment-{start:012d}-{content.sha256[:12]}.safetensors"
        if not self._holds(name, content):
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self.directory / name, data, self._then)
        return Part(name, start, stop), content

    def _holds(self, name: str, content: Content) -> bool:
        try:
            return bool(read_checked(self.directory / name, content))
        except Damaged:
            return False


def restore_rows(target: ReplaySource, added: int, parts: Iterator[tuple[Part, Rows]]) -> None:
    """Fill the ring of `target` from `parts`, which are in order."""
    following = oldest(added, target.capacity)
    for part, rows in parts:
        # A segment written earlier may begin with rows overwritten since.
        old = following - part.start
        target.restore(following, {name: array[old:] for name, array in rows.items()})
        following = part.stop
    target.finish_restore(added)
