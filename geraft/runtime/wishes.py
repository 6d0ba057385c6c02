"""What callers want of the leader now and then: another membership, another leader. Each waits for its answer."""

from __future__ import annotations

import math

from geraft.core.membership import MembershipChange
from geraft.runtime.hub import Waiter


class Wish(Waiter):
    """deadline: of monotonic(), until which a leader is looked for. forwarded: it is not forwarded again."""

    __slots__ = ("deadline", "forwarded")

    def __init__(self, deadline: float, *, forwarded: bool) -> None:
        super().__init__()
        self.deadline = deadline
        self.forwarded = forwarded


class Transfer(Wish):
    """Leadership is to be handed over. target: a voter's id, "" for the most caught-up one."""

    __slots__ = ("target",)

    def __init__(self, target: str, deadline: float = math.inf, *, forwarded: bool = True) -> None:
        super().__init__(deadline, forwarded=forwarded)
        self.target = target


class Change(Wish):
    """The members are to change. Answered with the configuration that came of it."""

    __slots__ = ("change",)

    def __init__(self, change: MembershipChange, deadline: float, *, forwarded: bool = False) -> None:
        super().__init__(deadline, forwarded=forwarded)
        self.change = change
