"""Which faults, when and to whom: one seed decides. Who it is that leads when a fault is meant for the leader, does not
stand in the plan."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

REST_SECONDS = 3.0
"""Without faults, at the beginning and before the end."""
FAULT_SECONDS = (0.5, 6.0)
PAUSE_SECONDS = (0.5, 4.0)
TOGETHER = 0.25
"""How often a fault begins while another one lasts."""

LEADER, ONE, SOME, MOST, ALL = "the leader", "one", "some", "most", "all"

KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "kill": ("SIGKILL, and started again afterwards", (LEADER, LEADER, ONE, SOME, MOST, ALL)),
    "stop": ("SIGTERM, and started again afterwards", (LEADER, ONE)),
    "pause": ("SIGSTOP, and SIGCONT afterwards", (LEADER, LEADER, ONE, SOME)),
    "isolate": ("no link to another node", (LEADER, LEADER, ONE)),
    "split": ("no link between them and the others", (SOME,)),
    "mute": ("nothing that it says reaches another node", (LEADER, LEADER, ONE)),
    "deafen": ("nothing that another node says reaches it", (LEADER, LEADER, ONE)),
    "part": ("no link between it and one other node", (LEADER, ONE)),
    "one-way": ("nothing that it says reaches one other node", (LEADER, ONE)),
    "flap": ("no link to another node, off and on", (LEADER, ONE)),
    "slow": ("all that it says and hears is late", (LEADER, ONE)),
    "half-open": ("its connections to other nodes are gone, and only one end knows", (LEADER, ONE)),
    "reset": ("its connections to other nodes break again and again", (LEADER, ONE)),
    "no-callers": ("no link to callers outside", (LEADER, ONE)),
    "mute-to-callers": ("nothing that it says reaches callers outside", (LEADER,)),
    "transfer": ("leadership is handed over again and again", (LEADER,)),
    "remove": ("taken out of the cluster, and let in again afterwards", (LEADER, ONE, ONE)),
    "demote": ("a learner, and a voter again afterwards", (LEADER, ONE)),
    "shrink": ("all taken out in one step, and let in again in one", (SOME,)),
    "replace": ("killed, taken out, and started again with an empty store that joins", (ONE,)),
    "snapshot": ("makes a snapshot again and again", (ALL, ONE)),
}
"""What each kind of fault does to those it meets, and whom it may be meant for."""

BY_LINKS_ONLY = frozenset({"slow", "half-open", "reset"})
"""Kinds that need Links: network namespaces can't do them."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of a plan. at_seconds: since the load began; draw: decides what is left to chance when it is played."""

    at_seconds: float
    seconds: float
    kind: str
    who: str
    draw: int


def make_plan(seed: int, seconds: float, kinds: Iterable[str] = tuple(KINDS)) -> list[Fault]:
    """The faults of so many seconds, in order; each kind comes before any comes again."""
    rng = random.Random(seed)
    kinds = list(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is no kind of fault; there are {', '.join(KINDS)}")
    plan: list[Fault] = []
    deck: list[str] = []
    at = REST_SECONDS
    while at < seconds - REST_SECONDS - FAULT_SECONDS[0]:
        if not deck:
            deck = rng.sample(kinds, len(kinds))
        kind = deck.pop()
        lasts = min(rng.uniform(*FAULT_SECONDS), seconds - REST_SECONDS - at)
        who = rng.choice(KINDS[kind][1])
        plan.append(
            Fault(at_seconds=round(at, 2), seconds=round(lasts, 2), kind=kind, who=who, draw=rng.getrandbits(32))
        )
        at += rng.uniform(0.2, lasts) if rng.random() < TOGETHER else lasts + rng.uniform(*PAUSE_SECONDS)
    return plan


def victims(fault: Fault, nodes: Sequence[str], leader: str) -> list[str]:
    """Whom the fault meets. nodes: those that may be met; leader: "" if there is none."""
    rng = random.Random(fault.draw)
    shuffled = rng.sample(sorted(nodes), len(nodes))
    if fault.who == LEADER and leader in nodes:
        return [leader]
    count = {SOME: max(1, (len(nodes) - 1) // 2), MOST: len(nodes) // 2 + 1, ALL: len(nodes)}.get(fault.who, 1)
    return shuffled[:count]
