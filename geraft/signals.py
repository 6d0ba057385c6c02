"""What a node tells of itself: blinker signals, sent by a thread of its own after the fact.

    from geraft import signals

    def tell(node, *, leader_id, term, **_):
        print(f"{leader_id} leads term {term}")

    signals.leader_changed.connect(tell)

The sender is the RaftNode; the rest comes as keyword arguments, to which later versions may add: end yours in **_.
A receiver that raises is logged; one that blocks delays only the signals after it, never consensus. blinker holds
receivers weakly: keep a reference to what you connect. docs/signals.md is the same list with more words.
"""

from __future__ import annotations

from blinker import NamedSignal, Namespace

__all__ = [
    "apply_failed",
    "committed",
    "configuration_changed",
    "leader_changed",
    "node_started",
    "node_stopping",
    "role_changed",
    "snapshot_created",
    "snapshot_installed",
]

_namespace = Namespace()


def _signal(name: str, doc: str) -> NamedSignal:
    return _namespace.signal(name, doc)


node_started = _signal("node_started", "The node runs and answers. No arguments.")
node_stopping = _signal("node_stopping", "stop() was called, or the node failed. No arguments.")
role_changed = _signal(
    "role_changed",
    "The node's own role is another one. old_role, new_role: follower, pre_candidate, candidate or leader; term: int.",
)
leader_changed = _signal(
    "leader_changed",
    'The node learned of another leader, or lost the one it knew. leader_id: str, "" if none is known; term: int.',
)
committed = _signal(
    "committed",
    "Entries were committed, one signal per batch. first_index, last_index: int, both included.",
)
configuration_changed = _signal(
    "configuration_changed",
    "Another configuration is in force on the node, committed or not. voters, learners: dict of address by id;"
    " outgoing: the same of the old voters while a joint configuration is in force; index: int, of its entry.",
)
apply_failed = _signal(
    "apply_failed",
    "process_write raised and will be tried again. index: int; attempt: int, from 1; error: Exception.",
)
snapshot_created = _signal(
    "snapshot_created",
    "A snapshot was recorded durably: made here, or fetched from the leader. index, size_bytes: int.",
)
snapshot_installed = _signal(
    "snapshot_installed",
    "The app has become the state of a snapshot of the leader's. index, size_bytes: int.",
)
