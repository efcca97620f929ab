"""Names for things that can also be imported: a registry only finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from expunge.core.errors import InputError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Case-insensitive lookup by name, with a helpful error.

    Args:
        kind: What the entries are, for messages: "method", "benchmark".
        discover: Called once before the first lookup; imports the modules that register entries.
    """

    def __init__(self, kind: str, discover: Callable[[], None] | None = None) -> None:
        self.kind = kind
        self._discover = discover
        self._items: dict[str, T] = {}
        self._canonical: dict[str, str] = {}

    def add(self, name: str, item: T, *aliases: str) -> T:
        """Register `item` under `name` and its aliases.

        Raises:
            ValueError: The name is taken.
        """
        for key in (name, *aliases):
            if key.lower() in self._canonical:
                raise ValueError(f"{self.kind} {key} is registered twice")
            self._canonical[key.lower()] = name
        self._items[name] = item
        return item

    def _load(self) -> None:
        if self._discover is not None:
            discover, self._discover = self._discover, None
            discover()

    def names(self) -> list[str]:
        """Canonical names in the order of registration."""
        self._load()
        return list(self._items)

    def __contains__(self, name: object) -> bool:
        self._load()
        return isinstance(name, str) and name.lower() in self._canonical

    def __iter__(self) -> Iterator[T]:
        self._load()
        return iter(self._items.values())

    def get(self, name: str) -> T:
        """The entry called `name`, in any case.

        Raises:
            InputError: There is none; the message lists what exists.
        """
        self._load()
        try:
            return self._items[self._canonical[name.lower()]]
        except KeyError:
            raise InputError(
                f"unknown {self.kind} {name!r}. {did_you_mean(name, self.names())}"
            ) from None
