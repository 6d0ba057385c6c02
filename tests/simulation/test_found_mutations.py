"""Broken clusters are found: the simulator knows nothing of the rules, and sees each of these mistakes by its harm.

found_by.json has the seed that found each of them when it was last written, which is tried first: that takes a second,
where all seeds up to it take a minute. When the code has changed, another seed may be needed, and is looked for:
python tests/simulation/write_found_by.py [--all] does that, and writes the file anew.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
FOUND_BY = HERE / "found_by.json"

FOUND = {
    # Rule 1: one loop, equal effects for equal events
    "an event is forgotten in one role": 40,
    "effects depend on chance that was not passed in": 40,
    "an effect is forgotten": 40,
    # 2: terms and senders
    "anybody is listened to": 40,
    # 3: append
    "prev is not checked": 60,
    "only the entry that conflicts is replaced": 40,
    "an append drops all that follows it, conflict or not": 40,
    "the follower commits up to its own end": 60,
    "heartbeats carry the leader's commit index": 60,
    # 4: commit
    "the leader counts itself before its disk has the entry": 40,
    # 5: durable before told
    "a vote is told before it is durable": 40,
    "what is in memory counts as durable": 40,
    "a term is told before it is durable": 40,
    "votes are asked for before our own is durable": 40,
    "a failed write is taken for done": 60,
    "replies leave before the disk has what they tell of": 40,
    "entries are lost when writes are grouped": 40,
    # 6: reads
    "reads do not wait for an entry of our term": 40,
    "lease reads do not wait for an entry of our term": 40,
    "confirmed reads do not wait for the app": 160,
    "every read is served at once": 40,
    "a linearizable read is content with a lease, whatever the clocks": 60,
    # 8: snapshots
    "a snapshot counts before it is recorded": 40,
    "the log is cut up to the snapshot": 40,
    "a cut takes the configuration in force with it": 40,
    "the log is cut under a follower that fetches a snapshot": 40,
    "always the newest snapshot is offered": 40,
    "a snapshot of what is committed is fetched": 40,
    "a fetch goes on when the log has come further": 160,
    "a log that reaches as far is kept, whatever it holds": 80,
    "a snapshot is acknowledged before it is durable": 40,
    "nobody is told of the snapshot's configuration": 40,
    "a snapshot is taken from whom it was asked, whoever leads now": 40,
    "nothing is appended while a snapshot comes": 160,
    # 9: elections
    "no pre-vote": 60,
    "no check-quorum": 40,
    # 10: who waits is answered, once, and with the truth
    "reads are forgotten at step-down": 60,
    "a proposal is told of after it was sent": 40,
    "waiting writes are forgotten at step-down": 40,
    "a transfer is forgotten at step-down": 40,
    "commitment leaves gaps": 40,
    "who waits for an index gets the answer of whatever is there": 40,
    "a lost leadership tells callers that nothing happened": 60,
    "parked calls are lost when a leader is found": 40,
    "reads of a deposed leader are lost": 60,
    "callers who wait for the commit are answered by the app too": 40,
    "an entry that the app refuses with an exception is skipped": 60,
    "answers are given to the callers before them": 40,
    # 11: what no member can have sent
    "acknowledgements are believed, whatever they say": 40,
    "a leader takes appends of its own term": 40,
}
"""Within how many seeds from 1 on. Most are found by the first few; the rest is for changes of the code, which give
every seed another history."""

FOUND_AMONG_CHANGING_MEMBERS = {
    # 7: membership
    "a new server votes at once": 40,
    "learners are promoted whatever they hold": 40,
    "who never answers is waited for without end": 80,
    "two changes at once": 80,
    "a step does not wait for the one before": 40,
    "a change does not wait for an entry of our term": 80,
    "a configuration is in force once it is committed": 40,
    "several voters change at once": 40,
    "a joint configuration needs the new voters only": 40,
    "nobody leaves the joint configuration": 160,
    "a wiped server is let in under its old id": 80,
    "a removed leader stays": 400,
    "a removed leader falls silent at once": 80,
    "a removed leader counts itself": 80,
    "a removed server hears no more": 80,
    "a removed server goes on standing for election": 80,
    "once removed is removed for ever": 80,
}
"""The same, of seeds 4, 9, 14 and so on, in which servers come and go."""

FOUND_AMONG_RESTING = {
    "a silent pulse wakes nobody": 40,
    "an ending node is silent": 40,
    "a node that wakes does not tick again": 40,
    "what comes to a node that rests is dropped": 40,
}
"""The same as FOUND, of groups that rest when idle (tests/runtime/rest_mutations.py)."""

FOUND_AMONG_RESTING_AND_CHANGING_MEMBERS = {
    "rest without a quorum": 160,
}

FOUND_BY_MANY_SEEDS = {
    "a lower term is handled like our own": 400,
    "replies do not make a leader step down": 400,
    "any answer confirms a read": 400,
    "a read joins the round that is on its way": 400,
    "the lease lasts as long as the promise, and longer": 400,
    "a lease outlives a transfer": 400,
    "a living leader is no reason to refuse": 400,
    "a transfer has no end": 400,
    "entries of earlier terms are committed by counting": 400,
    "a leader judges itself by its own silence": 400,
    "a dropped configuration stays in force": 400,
    "a node that stops forgets who waits for commitment": 400,
    "a snapshot is installed beside what the app is at": 400,
}
"""They take several rare events in one order."""


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def all_mutations() -> dict[str, tuple[str, str, str]]:
    """File below geraft/, old and new text, by name."""
    core = load(HERE.parent / "core" / "mutations.py").MUTATIONS
    around = load(HERE / "mutations.py").MUTATIONS
    rests = load(HERE.parent / "runtime" / "rest_mutations.py").MUTATIONS
    mutations = {mutation.name: (f"core/{mutation.file}", mutation.old, mutation.new) for mutation in core}
    return mutations | {mutation.name: (mutation.file, mutation.old, mutation.new) for mutation in (*around, *rests)}


MUTATIONS = all_mutations()


def campaigns(
    directory: Path, bounds: dict[str, int], *, members: bool = False, resting: bool = False
) -> dict[str, tuple[int | None, str]]:
    """A seed that found each mistake, and what it saw. Two processes side by side. members: of those seeds only in
    which servers come and go; resting: with nodes that rest when idle."""
    first, step = (4, 5) if members else (1, 1)
    likely: dict[str, int] = json.loads(FOUND_BY.read_text())
    outcome: dict[str, tuple[int | None, str]] = {}

    def run(part: int) -> None:
        names = list(bounds)[part::2]
        jobs = [[*MUTATIONS[name], first, bounds[name], 3, step, resting, likely.get(name)] for name in names]
        file = directory / f"jobs{part}.json"
        file.write_text(json.dumps(jobs))
        done = subprocess.run(
            [sys.executable, str(HERE / "broken_clusters.py"), str(file)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        for name, line in zip(names, done.stdout.splitlines(), strict=True):
            seed, reason, _ = json.loads(line)
            outcome[name] = seed, reason

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))
    return outcome


def all_campaigns(directory: Path) -> dict[str, tuple[int | None, str]]:
    """Of all that few seeds find."""
    return (
        campaigns(directory, FOUND)
        | campaigns(directory, FOUND_AMONG_CHANGING_MEMBERS, members=True)
        | campaigns(directory, FOUND_AMONG_RESTING, resting=True)
        | campaigns(directory, FOUND_AMONG_RESTING_AND_CHANGING_MEMBERS, members=True, resting=True)
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: Any) -> dict[str, tuple[int | None, str]]:
    return all_campaigns(tmp_path_factory.mktemp("broken"))


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    "name",
    [*FOUND, *FOUND_AMONG_CHANGING_MEMBERS, *FOUND_AMONG_RESTING, *FOUND_AMONG_RESTING_AND_CHANGING_MEMBERS],
    ids=lambda name: name.replace(" ", "-"),
)
def test_a_broken_rule_is_found(name: str, found: dict[str, tuple[int | None, str]]) -> None:
    seed, reason = found[name]
    assert seed is not None, f"not found within the seeds of the table. {reason}"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FOUND_BY_MANY_SEEDS, ids=lambda name: name.replace(" ", "-"))
def test_a_broken_rule_is_found_by_many_seeds(name: str, tmp_path: Path) -> None:
    bound = FOUND_BY_MANY_SEEDS[name]
    seed, reason = campaigns(tmp_path, {name: bound})[name]
    assert seed is not None, f"not found within {bound} seeds. {reason}"
