"""Settings of a node."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, NamedTuple

from geraft.errors import ConfigError

MIB = 1024 * 1024


def _fixed(default: float) -> Any:
    """A setting that is read when the node starts."""
    return field(default=default, metadata={"tunable": False})


def _tunable(default: float, *, cluster: bool = False, may_be_zero: bool = False) -> Any:
    """A setting that can be changed while the node runs. cluster: all nodes should have the same value."""
    return field(default=default, metadata={"tunable": True, "cluster": cluster, "may_be_zero": may_be_zero})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one node; docs/configuration.md tells of each when to change it, and whether RaftNode.tune may.

    Times are in seconds, sizes in bytes. The heartbeat and election times must be equal on all nodes of a cluster.
    """

    heartbeat_interval_seconds: float = _tunable(0.1, cluster=True)
    election_timeout_seconds: float = _tunable(1.0, cluster=True)
    """No follower suspects its leader earlier than this after it last heard it; leases rest on it."""
    phi_threshold: float = _tunable(8.0)
    """How unlikely the silence must be, as -log10(probability), before a follower suspects its leader."""
    phi_deviation_min_seconds: float = _tunable(0.1)
    """The least deviation assumed of heartbeat arrivals, however regular they were."""
    acceptable_pause_seconds: float = _tunable(0.5)
    """A pause between heartbeats that is no sign of a dead leader: a garbage collection, a busy interpreter."""
    clock_drift_max: float = _tunable(0.1)
    """By how much two nodes' clocks may differ in speed, as a fraction; lease reads are shortened by it."""
    append_bytes_max: int = _tunable(1 * MIB)
    """Of one AppendEntries message; a single larger entry still goes, alone."""
    inflight_messages_max: int = _tunable(64)
    """AppendEntries messages on their way to one peer."""
    inflight_bytes_max: int = _tunable(32 * MIB)
    """Bytes of AppendEntries on their way to one peer; one message may exceed it."""
    uncommitted_bytes_max: int = _tunable(128 * MIB)
    """Bytes proposed and not committed, beyond which proposals are dropped; one proposal may exceed it."""
    cache_bytes_max: int = _tunable(8 * MIB)
    """Of the newest durable entries kept in memory for peers and the app."""
    apply_bytes_max: int = _tunable(8 * MIB)
    """Committed bytes handed to the app's thread at a time."""
    command_bytes_max: int = _tunable(100 * MIB)
    """Of one command."""
    message_bytes_max: int = _fixed(256 * MIB)
    """Of one gRPC message, on both sides."""
    apply_retry_seconds: float = _tunable(0.1)
    """Pause after the first exception of process_write; doubles with each further one."""
    apply_retry_max_seconds: float = _tunable(10.0)
    """The longest such pause."""
    apply_stuck_seconds: float = _tunable(30.0, may_be_zero=True)
    """A leader whose app has not got on with an entry for so long hands over to a voter whose app has; 0 for never."""
    compaction_interval_seconds: float = _tunable(0.0, may_be_zero=True)
    """How often the app's fold_snapshot is called, beside what it asks for itself; 0 for never."""
    trailing_entries: int = _tunable(10_000, may_be_zero=True)
    """Entries kept in the log behind the newest snapshot, for followers that are a little slow."""
    compact_bytes_max: int = _tunable(1 * MIB)
    """Bytes cut off the log in one step; writes go on between two steps."""
    leader_priority: int = _tunable(0, may_be_zero=True)
    """A leader hands over to a voter with a higher one as soon as that holds all of the log; equal everywhere: off."""
    storage_stall_seconds: float = _tunable(10.0)
    """A write to the log store that takes longer counts as failed: the node steps down and stops."""
    stop_timeout_seconds: float = _tunable(10.0)
    """What stop() takes at most, handing over included."""
    read_threads: int = _fixed(4)
    """Native threads that run process_read."""
    sessions_max: int = _tunable(1000)
    """Sessions for exactly-once writes that are open at a time; beyond it the one used longest ago expires. A leader
    writes this and the next two into the entry that opens a session, so that all nodes go by the same."""
    session_writes_max: int = _tunable(1000)
    """Writes of one session from the lowest unanswered one on; further ones are dropped."""
    session_answer_bytes_max: int = _tunable(1 * MIB)
    """Of the unacknowledged answers kept for one session; one that has no room is not kept."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            name, value = setting.name, getattr(self, setting.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"{name} must be a number, not {value!r}")
            if value < 0 or (value == 0 and not setting.metadata.get("may_be_zero")):
                raise ConfigError(f"{name} must be above 0, not {value!r}")
            if setting.type == "int" and value != int(value):
                raise ConfigError(f"{name} must be a whole number, not {value!r}")
        if self.election_timeout_seconds < 4 * self.heartbeat_interval_seconds:
            raise ConfigError(
                "election_timeout_seconds must be at least four times heartbeat_interval_seconds,"
                " or one lost heartbeat starts an election"
            )
        if self.clock_drift_max >= 1:
            raise ConfigError("clock_drift_max is a fraction below 1")
        if self.leader_priority > 1000:
            raise ConfigError(f"leader_priority is at most 1000, not {self.leader_priority!r}")
        if self.message_bytes_max < max(self.command_bytes_max, self.append_bytes_max) + MIB:
            raise ConfigError(
                "message_bytes_max must exceed command_bytes_max and append_bytes_max by 1 MiB,"
                " or a command that was taken could never be sent"
            )

    @classmethod
    def of(cls, settings: Mapping[str, float]) -> Config:
        """A config with these values, as they come from a command line or a file: by name, a whole number as a float
        too. Raises ConfigError, which names what is wrong.
        """
        return replace(cls(), **_declared(settings))

    def tuned(self, changes: Mapping[str, float]) -> Config:
        """This config with other values for some of its tunable settings. Raises ConfigError, which names what is
        wrong: a setting that does not exist or is only read at the start, or a value that does not go with the others.
        """
        declared = _declared(changes)
        for setting in fields(self):
            if setting.name in declared and not is_tunable(setting):
                raise ConfigError(f"{setting.name} is read when a node starts: change its Config and restart the node")
        return replace(self, **declared)


class Setting(NamedTuple):
    """One setting of a node that was asked for it. tunable: whether it can be changed while the node runs; cluster:
    whether all nodes of a cluster should have the same value."""

    name: str
    value: float
    tunable: bool
    cluster: bool


def is_tunable(setting: Field[Any]) -> bool:
    """Whether RaftNode.tune may change this field of Config."""
    return bool(setting.metadata.get("tunable"))


def is_same_on_all(setting: Field[Any]) -> bool:
    """Whether all nodes of a cluster should have the same value of this field of Config."""
    return bool(setting.metadata.get("cluster"))


def _declared(settings: Mapping[str, float]) -> dict[str, Any]:
    """The same, of the types that Config declares. Raises ConfigError for a name that it does not have."""
    known = {setting.name: setting for setting in fields(Config)}
    for name in settings:
        if name not in known:
            raise ConfigError(f"there is no setting {name!r}; there are {', '.join(known)}")
    return {name: _as_declared(known[name], value) for name, value in settings.items()}


def _as_declared(setting: Field[Any], value: float) -> float:
    """A whole number as an int where one is declared; __post_init__ judges the rest."""
    whole = setting.type == "int" and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value
