"""Models for geraft.testing.linearizability: what a register, a key-value store, a counter and a lock would answer.

Each input says what it asks for, and what a call answers stands beside it. To write a model of your own, see
linearizability.Model and docs/testing.md.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from geraft import kv

# A register ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Read:
    """Answers the value of a register or a counter."""


@dataclass(frozen=True, slots=True)
class Write:
    """Answers None."""

    value: Hashable


@dataclass(frozen=True, slots=True)
class Register:
    """One value that is read and written."""

    initial_value: Hashable = None

    def initial(self, key: Hashable) -> Hashable:
        return self.initial_value

    def key_of(self, input: Read | Write) -> Hashable:
        return None

    def is_read(self, input: Read | Write) -> bool:
        return isinstance(input, Read)

    def step(self, state: Hashable, input: Read | Write) -> tuple[Hashable, Any]:
        return (input.value, None) if isinstance(input, Write) else (state, state)


# A key-value store ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Get:
    """Answers the value, None if there is none."""

    key: str


@dataclass(frozen=True, slots=True)
class Put:
    """Answers whether a value was there before."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Answers whether the key existed."""

    key: str


@dataclass(frozen=True, slots=True)
class CompareAndSet:
    """Answers whether the value was the expected one, and so was set. expected None: the key must not exist."""

    key: str
    expected: bytes | None
    value: bytes


KeyValueInput = Get | Put | Delete | CompareAndSet


@dataclass(frozen=True, slots=True)
class KeyValue:
    """What geraft.kv promises. The state is that of one key: bytes, or None if it does not exist."""

    def initial(self, key: Hashable) -> bytes | None:
        return None

    def key_of(self, input: KeyValueInput) -> Hashable:
        return input.key

    def is_read(self, input: KeyValueInput) -> bool:
        return isinstance(input, Get)

    def step(self, state: bytes | None, input: KeyValueInput) -> tuple[bytes | None, Any]:
        match input:
            case Get():
                return state, state
            case Put():
                return input.value, state is not None
            case Delete():
                return None, state is not None
            case CompareAndSet():
                return (input.value, True) if state == input.expected else (state, False)


class Caller(Protocol):
    """A RaftNode, or a Client."""

    def apply(self, message: bytes, /) -> bytes: ...

    def read(self, message: bytes, /) -> bytes: ...


def call_key_value(caller: Caller, input: KeyValueInput) -> Any:
    """Do it on a cluster that runs geraft.kv, and give the answer as the model KeyValue words it."""
    match input:
        case Get():
            return kv.decode_value(caller.read(kv.get(input.key)))
        case Put():
            command = kv.put(input.key, input.value)
        case Delete():
            command = kv.delete(input.key)
        case CompareAndSet():
            command = kv.compare_and_set(input.key, input.expected, input.value)
    return kv.decode_command_reply(caller.apply(command)).done


# A counter -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Add:
    """Answers the sum after it."""

    amount: int = 1


@dataclass(frozen=True, slots=True)
class Counter:
    """A number that is added to; Read answers it."""

    initial_value: int = 0

    def initial(self, key: Hashable) -> int:
        return self.initial_value

    def key_of(self, input: Read | Add) -> Hashable:
        return None

    def is_read(self, input: Read | Add) -> bool:
        return isinstance(input, Read)

    def step(self, state: int, input: Read | Add) -> tuple[int, int]:
        after = state + input.amount if isinstance(input, Add) else state
        return after, after


# A lock --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acquire:
    """Answers whether the lock was free and is now the owner's; never waits."""

    lock: str
    owner: str


@dataclass(frozen=True, slots=True)
class Release:
    """Answers whether the owner held the lock, which is free now."""

    lock: str
    owner: str


@dataclass(frozen=True, slots=True)
class Lock:
    """Locks by name, each held by one owner at most, who can't take it twice. The state is the owner, "" for none."""

    def initial(self, key: Hashable) -> str:
        return ""

    def key_of(self, input: Acquire | Release) -> Hashable:
        return input.lock

    def is_read(self, input: Acquire | Release) -> bool:
        return False

    def step(self, state: str, input: Acquire | Release) -> tuple[str, bool]:
        if isinstance(input, Acquire):
            return (input.owner, True) if state == "" else (state, False)
        return ("", True) if state == input.owner else (state, False)
