"""Names for the parts of a method: a rule is registered where it is written and found by its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A table of named parts; an unknown name raises a `ValueError` that says what it may have meant."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: the decorated part is known as `name` from now on."""

        def add(entry: T) -> T:
            self.add(name, entry)
            return entry

        return add

    def add(self, name: str, entry: T) -> None:
        """Make `entry` known as `name`; a name that is taken raises a `ValueError`."""
        if name in self._entries:
            raise ValueError(f"a {self.kind} called {name!r} is registered already; choose another name")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        if name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(str(name), self._entries, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no {self.kind} called {name!r}; {hint}known: {', '.join(sorted(self._entries))}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
