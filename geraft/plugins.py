"""Loads what hooks into geraft from other packages: entry points of the group geraft.plugins."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from typing import NamedTuple

log = logging.getLogger(__name__)

GROUP = "geraft.plugins"


class Plugin(NamedTuple):
    """One entry point that was found. error: what it raised when it was loaded or called, None if it works."""

    name: str
    value: str
    error: Exception | None = None


def load_plugins(group: str = GROUP) -> list[Plugin]:
    """Load each installed plugin and call it, in the order of their names; one that fails is logged and skipped.

    A plugin is a callable without arguments, which connects its receivers to geraft.signals.
    """
    plugins = []
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        error: Exception | None = None
        try:
            point.load()()
        except Exception as raised:  # somebody else's code may raise anything, and must not keep a node from starting
            log.exception("plugin %s (%s) failed and is left out", point.name, point.value)
            error = raised
        plugins.append(Plugin(point.name, point.value, error))
    return plugins
