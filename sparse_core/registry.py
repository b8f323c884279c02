"""Names for the parts of a method: a rule is registered where it is written and found by its name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Registry(Mapping[str, T]):
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
        if not isinstance(name, str) or not name or ":" in name:
            raise ValueError(f"a {self.kind} is registered under a name without a colon, as 'mine', got {name!r}")
        if name in self._entries:
            raise ValueError(f"a {self.kind} called {name!r} is registered already; choose another name")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        if name in self._entries:
            return self._entries[name]
        raise ValueError(f"no {self.kind} called {name!r}; {hint(name, self._entries)}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class Rules(Registry[T]):
    """A registry of rules with a `choose` whose keyword-only arguments are options: `"name:option=value:…"`.

    `make(choose, **traits)` is a rule: a named tuple that says what there is to know of a function.
    """

    def __init__(self, kind: str, make: Callable[..., T]) -> None:
        super().__init__(kind)
        self._make = make

    def rule(self, name: str, **traits: Any) -> Callable[[F], F]:
        """Decorator: the function is the rule `name` from now on; `traits` are further fields of a rule."""

        def add(choose: F) -> F:
            rule = self._make(choose, **traits)
            without = [option for option, default in options_of(rule).items() if default is inspect.Parameter.empty]
            if without:
                raise ValueError(f"options of {self.kind} {name!r} need defaults: {', '.join(without)}")
            self.add(name, rule)
            return choose

        if callable(name):
            raise TypeError(f'a {self.kind} is registered under a name: write the decorator as ("mine")')

        return add

    def __getitem__(self, name: str) -> T:
        plain, options = with_options(name)
        rule = super().__getitem__(plain)
        return bound(rule, f"{self.kind} {plain!r}", options) if options else rule

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.partition(":")[0] in self._entries


def options_of(rule: Any) -> dict[str, Any]:
    """The options of a rule and their defaults: its function's keyword-only arguments."""
    function = rule.choose
    given = function.keywords if isinstance(function, partial) else {}
    parameters = inspect.signature(function).parameters.values()
    own = {each.name: each.default for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}
    return own | given


def bound(rule: Any, what: str, options: Mapping[str, Any]) -> Any:
    """The rule with these options in the place of its defaults; `what` says whose they are, for errors."""
    known = options_of(rule)
    values = {}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{what} has no option {name!r}; {hint(name, known)}")
        values[name] = like(known[name], value, f"option {name!r} of {what}")
    return rule._replace(choose=partial(rule.choose, **values))


def with_options(text: str) -> tuple[str, dict[str, str]]:
    """`"name:option=value:…"` as the name and its options, values still text."""
    name, *parts = str(text).split(":")
    options = {}
    for part in parts:
        option, equals, value = part.partition("=")
        if not (option and equals and value):
            raise ValueError(f"options are written name:option=value, got {part!r} in {text!r}")
        options[option] = value
    return name, options


def like(default: Any, value: Any, what: str) -> Any:
    """A value of an option in the type of its default; text is read, anything that does not fit is an error."""
    kind = type(default)
    try:
        if kind is bool and isinstance(value, str):
            return {"true": True, "false": False}[value.lower()]
        if kind in (int, float, str):
            return kind(value)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
        raise ValueError(f"{what} must be {wanted}, got {value!r}") from None
    return value


def hint(name: object, known: Collection[str]) -> str:
    """What a name that is not known may have meant, and what there is."""
    return f"{meant(name, known)}known: {', '.join(sorted(known)) or 'none'}"


def meant(name: object, known: Collection[str]) -> str:
    """A question after the known name that is most like this one; nothing where none is."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]!r}? " if near else ""
