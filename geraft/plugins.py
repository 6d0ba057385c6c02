"""Loads what hooks into geraft from other packages: entry points of the group geraft.plugins.

A plugin is a callable without arguments, which connects its receivers to geraft.signals. Whatever goes wrong in one of
them, when it is loaded or later in a receiver, is logged and harms neither a node nor another plugin. docs/plugins.md
shows how one is made.
"""

from __future__ import annotations

import logging
import os
from importlib.metadata import entry_points
from typing import NamedTuple

log = logging.getLogger(__name__)

GROUP = "geraft.plugins"
OFF_VARIABLE = "GERAFT_PLUGINS_OFF"
"""Environment variable with names of plugins, separated by commas, that are not loaded; "all" for none at all."""


class Plugin(NamedTuple):
    """One entry point that was found. error: what it raised when it was loaded or called, None if it works or is off.
    off: it was switched off, and not even imported."""

    name: str
    value: str
    error: BaseException | None = None
    off: bool = False


_loaded: dict[tuple[str, str, str], Plugin] = {}


def load_plugins(group: str = GROUP) -> list[Plugin]:
    """Load each installed plugin and call it, in the order of their names; one that fails is logged and skipped.

    A plugin is called once in a process, however often this is. GERAFT_PLUGINS_OFF names those to leave out.
    """
    unwanted = {name.strip() for name in os.environ.get(OFF_VARIABLE, "").split(",")}
    plugins = []
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        known = (group, point.name, point.value)
        if "all" in unwanted or point.name in unwanted:
            plugins.append(Plugin(point.name, point.value, off=True))
            continue
        if known not in _loaded:
            error: BaseException | None = None
            try:
                point.load()()
            except KeyboardInterrupt:
                raise
            except BaseException as raised:  # somebody else's code: it may even call sys.exit()
                log.exception("plugin %s (%s) failed and is left out", point.name, point.value)
                error = raised
            _loaded[known] = Plugin(point.name, point.value, error)
        plugins.append(_loaded[known])
    return plugins
