"""Chaos: real node processes under load and faults, and the verdict on what callers saw. `geraft chaos` runs it.

plan.py      which faults, when and to whom: one seed decides
faults.py    doing them: signals to processes, links cut, slowed and broken
callers.py   who writes and reads meanwhile, outside of the nodes and within
history.py   what they saw, on disk, so that no SIGKILL takes it away
run.py       Chaos: all of it together, and what came of it
"""

from geraft.testing.chaos.callers import Load
from geraft.testing.chaos.history import read_history
from geraft.testing.chaos.plan import KINDS, Fault, make_plan
from geraft.testing.chaos.run import Chaos, Outcome, Setting

__all__ = ["KINDS", "Chaos", "Fault", "Load", "Outcome", "Setting", "make_plan", "read_history"]
