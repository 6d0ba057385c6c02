"""Simulate clusters whose code is broken in one place: python broken_clusters.py FILE, which holds a JSON list of
[file below geraft/, old text, new text, first seed, last seed, nodes, step, resting, the seed to try first or null]. A
step of 5 from 4 on plays those seeds in which members come and go; resting: whether the nodes are of one group among
many, and rest when idle.

Prints a JSON line for each, in order: [the seed that found it or null, what it found, CPU seconds].
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from broken_package import break_in_one_place, in_a_fork


def campaign(
    file: str, old: str, new: str, first: int, last: int, nodes: int, step: int, resting: bool, likely: int | None
) -> tuple[int | None, str, float]:
    """The seed that finds the mistake: the likely one, or the first that does."""
    break_in_one_place(file, old, new)
    from geraft.testing.simulation import Simulation, SimulationFailed

    found: tuple[int | None, str] = None, ""
    seeds = range(first, last + 1, step)
    for seed in [likely, *seeds] if likely in seeds else seeds:
        try:
            Simulation(seed, nodes=nodes, resting=resting).run()
        except SimulationFailed as failure:
            found = seed, failure.reason
            break
    return *found, round(time.process_time(), 2)


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        result: Any = in_a_fork(campaign, *job)
        print(json.dumps([None, result, 0.0] if isinstance(result, str) else result), flush=True)
