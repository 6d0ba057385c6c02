"""Majorities, also joint ones: of each group of voters a majority must agree (Raft dissertation 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

Groups = Iterable[frozenset[str]]


def is_quorum(agreeing: Collection[str], groups: Groups) -> bool:
    """Whether a majority of every group agrees. Nobody is a quorum of no voters."""
    some = False
    for group in groups:
        some = True
        if 2 * sum(voter in agreeing for voter in group) <= len(group):
            return False
    return some


def quorums_meet(groups: Groups, others: Groups) -> bool:
    """Whether each quorum of the one configuration shares a voter with each of the other (4.1)."""
    others = list(others)
    return any(
        len(one) // 2 + 1 + len(other) // 2 + 1 > len(one | other)
        for one in groups
        for other in others
        if one and other
    )


def agreed_value(value_of: Callable[[str], float], groups: Groups) -> float:
    """The highest value that a majority of every group has reached: of match indexes, what may be committed.

    0 if there is nobody to agree.
    """
    agreed = None
    for group in groups:
        values = sorted(map(value_of, group))
        reached = values[(len(values) - 1) // 2] if values else 0  # this one and all above it: a majority
        agreed = reached if agreed is None else min(agreed, reached)
    return 0 if agreed is None else agreed
