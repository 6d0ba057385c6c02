"""Several groups behind one address: how a call says which of them it is meant for.

A *group* is a Raft cluster that shares its processes, and their ports, with others. Its name travels in the metadata of
every RPC that is meant for one group of a process with several.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from geraft.errors import ConfigError, UnknownGroup

GROUP_KEY = "geraft-group"
"""Metadata key of every RPC that is meant for one group of a process with several; absent or empty: the only node
there."""
GROUP_CHARACTERS_MAX = 100
NAMES_TOLD = 10
"""Of the groups that a server has, to one who asked for another."""

_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{GROUP_CHARACTERS_MAX}}}")


def check_group(name: str) -> None:
    """Raise ConfigError unless it can name a group: 1 to 100 letters, digits, dots, dashes and underlines of ASCII.

    "" is allowed: it means no group.
    """
    if not isinstance(name, str) or (name and (_NAME.fullmatch(name) is None or not name.strip("."))):
        raise ConfigError(
            f"a group is named by up to {GROUP_CHARACTERS_MAX} of A-Z, a-z, 0-9, '.', '_' and '-', and not by dots"
            f" alone, as the name of a folder is, not {name!r}: choose such a name"
        )


def metadata_of(group: str) -> tuple[tuple[str, str], ...]:
    """What an RPC for the group carries; empty for no group."""
    return ((GROUP_KEY, group),) if group else ()


def group_of(metadata: Iterable[Any] | None) -> str:
    """The group that an RPC with this metadata is meant for; "" if it names none. Any caller may have written it."""
    for key, value in metadata or ():
        if key == GROUP_KEY:
            return str(value)
    return ""


def unknown_group(group: str, where: str, groups: Iterable[str] = ()) -> UnknownGroup:
    """What a call is told that names a group which is not there, or none where there are several.

    where: the server, for people. groups: those that it has; none if it is a node that has no group.
    """
    names = sorted(groups)
    having = ", ".join(names[:NAMES_TOLD]) + (f" and {more} more" if (more := len(names) - NAMES_TOLD) > 0 else "")
    if not group:
        return UnknownGroup(f"{where} has several groups ({having}): name the one that is meant")
    named = repr(group[:GROUP_CHARACTERS_MAX])
    if not having:
        return UnknownGroup(f"no group {named} at {where}, which has no groups: leave the group out, or ask elsewhere")
    return UnknownGroup(f"no group {named} at {where}, which has {having}: correct the group's name, or start it there")
