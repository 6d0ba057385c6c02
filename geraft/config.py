"""Settings of a node."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from geraft.errors import ConfigError

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one node; docs/configuration.md tells of each when to change it.

    Times are in seconds, sizes in bytes. The heartbeat and election times must be equal on all nodes of a cluster.
    """

    heartbeat_interval_seconds: float = 0.1
    election_timeout_seconds: float = 1.0
    """No follower suspects its leader earlier than this after it last heard it; leases rest on it."""
    phi_threshold: float = 8.0
    """How unlikely the silence must be, as -log10(probability), before a follower suspects its leader."""
    phi_deviation_min_seconds: float = 0.1
    """The least deviation assumed of heartbeat arrivals, however regular they were."""
    acceptable_pause_seconds: float = 0.5
    """A pause between heartbeats that is no sign of a dead leader: a garbage collection, a busy interpreter."""
    clock_drift_max: float = 0.1
    """By how much two nodes' clocks may differ in speed, as a fraction; lease reads are shortened by it."""
    append_bytes_max: int = 1 * MIB
    """Of one AppendEntries message; a single larger entry still goes, alone."""
    inflight_messages_max: int = 64
    """AppendEntries messages on their way to one peer."""
    inflight_bytes_max: int = 32 * MIB
    """Bytes of AppendEntries on their way to one peer; one message may exceed it."""
    uncommitted_bytes_max: int = 128 * MIB
    """Bytes proposed and not committed, beyond which proposals are dropped; one proposal may exceed it."""
    cache_bytes_max: int = 8 * MIB
    """Of the newest durable entries kept in memory for peers and the app."""
    apply_bytes_max: int = 8 * MIB
    """Committed bytes handed to the app's thread at a time."""
    command_bytes_max: int = 100 * MIB
    """Of one command."""
    message_bytes_max: int = 256 * MIB
    """Of one gRPC message, on both sides."""
    apply_retry_seconds: float = 0.1
    """Pause after the first exception of process_write; doubles with each further one."""
    apply_retry_max_seconds: float = 10.0
    storage_stall_seconds: float = 10.0
    """A write to the log store that takes longer counts as failed: the node steps down and stops."""
    stop_timeout_seconds: float = 10.0
    """What stop() takes at most, handing over included."""
    read_threads: int = 4
    """Native threads that run process_read."""

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"{name} must be a number, not {value!r}")
            if value <= 0:
                raise ConfigError(f"{name} must be above 0, not {value!r}")
            if field.type == "int" and value != int(value):
                raise ConfigError(f"{name} must be a whole number, not {value!r}")
        if self.election_timeout_seconds < 4 * self.heartbeat_interval_seconds:
            raise ConfigError(
                "election_timeout_seconds must be at least four times heartbeat_interval_seconds,"
                " or one lost heartbeat starts an election"
            )
        if self.clock_drift_max >= 1:
            raise ConfigError("clock_drift_max is a fraction below 1")
        if self.message_bytes_max < max(self.command_bytes_max, self.append_bytes_max) + MIB:
            raise ConfigError(
                "message_bytes_max must exceed command_bytes_max and append_bytes_max by 1 MiB,"
                " or a command that was taken could never be sent"
            )
