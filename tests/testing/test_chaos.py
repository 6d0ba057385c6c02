"""Chaos on real processes: its plan, its journals, a run that must be good, and one that must be found out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from math import inf
from pathlib import Path

import pytest

from geraft.errors import NoLeader, OutcomeUnknown
from geraft.testing.chaos import KINDS, Chaos, Fault, Setting, make_plan, read_history
from geraft.testing.chaos.history import Journal, read_journal, write_history
from geraft.testing.chaos.plan import ALL, LEADER, MOST, ONE, SOME, victims
from geraft.testing.linearizability import Operation, Verdict, check
from geraft.testing.models import CompareAndSet, Delete, Get, KeyValue, Put

NODES = ("n1", "n2", "n3", "n4", "n5")


def fault(who: str, draw: int = 1) -> Fault:
    return Fault(at_seconds=0.0, seconds=1.0, kind="kill", who=who, draw=draw)


# The plan


def test_one_seed_is_one_plan() -> None:
    assert make_plan(7, 300) == make_plan(7, 300)
    assert make_plan(7, 300) != make_plan(8, 300)


def test_a_plan_plays_every_kind_and_leaves_time_to_recover() -> None:
    plan = make_plan(1, 200)
    assert {one.kind for one in plan} == set(KINDS)
    assert [one.at_seconds for one in plan] == sorted(one.at_seconds for one in plan)
    assert all(one.at_seconds + one.seconds <= 198 for one in plan)
    overlapping = [one for one, other in pairwise(plan) if other.at_seconds < one.at_seconds + one.seconds]
    assert overlapping
    assert {one.kind for one in make_plan(1, 200, ["kill", "mute"])} == {"kill", "mute"}


def test_an_unheard_of_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'earthquake' is no kind"):
        make_plan(1, 60, ["earthquake"])


def test_who_is_meant() -> None:
    for draw in range(20):
        assert victims(fault(LEADER, draw), NODES, "n3") == ["n3"]
        assert len(victims(fault(LEADER, draw), NODES, "")) == 1, "anyone, if nobody leads"
        assert len(victims(fault(ONE, draw), NODES, "n3")) == 1
        assert len(set(victims(fault(SOME, draw), NODES, "n3"))) == 2, "a quorum is left"
        assert len(set(victims(fault(MOST, draw), NODES, "n3"))) == 3, "no quorum is left"
        assert set(victims(fault(ALL, draw), NODES, "n3")) == set(NODES)
    assert len({victims(fault(ONE, draw), NODES, "n3")[0] for draw in range(50)}) == 5
    assert victims(fault(LEADER), [], "n3") == []


# What callers saw


def test_a_journal_tells_every_outcome_apart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    with journal.operation("c", Put("k", b"1")) as call:
        call.output = False
    with journal.operation("c", Get("k")) as call:
        call.output = b"1"
    with journal.operation("c", Get("other")) as call:
        call.output = None
    with journal.operation("c", CompareAndSet("k", None, b"2")) as call:
        call.output = False
    with pytest.raises(NoLeader), journal.operation("c", Delete("k")):
        raise NoLeader("nobody")
    with pytest.raises(OutcomeUnknown), journal.operation("c", CompareAndSet("k", b"1", b"3")):
        raise OutcomeUnknown("who knows")
    assert (journal.acknowledged, journal.unknown, journal.refused) == (4, 1, 1)
    journal.close()

    seen = read_journal(tmp_path / "journal")
    assert [(operation.input, operation.output) for operation in seen.operations] == [
        (Put("k", b"1"), False),
        (Get("k"), b"1"),
        (Get("other"), None),
        (CompareAndSet("k", None, b"2"), False),
        (CompareAndSet("k", b"1", b"3"), None),
    ]
    assert [operation.returned is None for operation in seen.operations] == [False] * 4 + [True]
    assert all(operation.returned is None or operation.called <= operation.returned for operation in seen.operations)
    assert (seen.refused, seen.unknown) == (Counter(NoLeader=1), Counter(OutcomeUnknown=1))


def test_a_call_under_way_at_a_sigkill_is_unknown(tmp_path: Path) -> None:
    code = """
import os, pathlib, signal, sys
from geraft.testing.chaos.history import Journal
from geraft.testing.models import Get, Put
journal = Journal(pathlib.Path(sys.argv[1]))
with journal.operation("c", Get("k")) as call:
    call.output = None
with journal.operation("c", Put("k", b"1")):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "journal"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60)
    assert done.returncode < 0
    with path.open("a") as file:
        file.write('{"call": 3, "cli')  # its end may be missing
    seen = read_journal(path)
    assert [(operation.input, operation.returned is None) for operation in seen.operations] == [
        (Get("k"), False),
        (Put("k", b"1"), True),
    ]
    assert seen.unknown == Counter(lost=1)


def test_a_history_is_what_was_written(tmp_path: Path) -> None:
    operations = [
        Operation(client="a", called=1, returned=3, input=Put("k", b"1"), output=False),
        Operation(client="b", called=2, returned=4, input=Get("k"), output=b"1"),
        Operation(client="b", called=5, returned=None, input=Delete("k")),
        Operation(client="c", called=6, returned=7, input=CompareAndSet("k", None, b"2"), output=True),
    ]
    write_history(tmp_path / "history", reversed(operations))
    assert read_history(tmp_path / "history") == operations


@pytest.mark.parametrize(
    "content", ["", "dear diary\n", "[]\n", '{"format": "geraft chaos history 1"}\n{"client": 1}\n']
)
def test_a_file_that_is_no_history_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "history"
    path.write_text(content)
    with pytest.raises(ValueError, match="is no history of geraft chaos"):
        read_history(path)


# Whole runs


def answered(history: Iterable[Operation], since: float = 0.0, until: float = inf) -> tuple[int, int]:
    """How many calls were answered in that time, of time.monotonic(), and how many of them were writes."""
    within = [one for one in history if one.returned is not None and since <= one.returned / 1e9 <= until]
    return len(within), sum(not isinstance(one.input, Get) for one in within)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_callers_see_under_chaos_is_linearizable(tmp_path: Path) -> None:
    lines: list[str] = []
    setting = Setting(
        seed=8, seconds=18, nodes=3, callers=4, callers_inside=1, kinds=("kill", "mute", "half-open", "reset")
    )
    chaos = Chaos(tmp_path, setting, lines.append)
    outcome = chaos.run()
    assert outcome.good, str(outcome)
    assert len(outcome.rows) >= 3 and outcome.silence[0] > 0
    assert "3 nodes hold the same" in str(outcome)
    assert outcome.summary().startswith("chaos seed 8: ok, 18 s")
    assert any("callers outside: acknowledged" in line for line in lines)
    assert len(json.loads((tmp_path / "plan.json").read_text())["plan"]) == len(outcome.rows)
    history = read_history(tmp_path / "history.jsonl")
    assert answered(history) == (outcome.acknowledged, outcome.acknowledged_writes)
    began, rows = chaos._began, outcome.rows
    first, last = rows[0].at_seconds, max(row.at_seconds + row.seconds for row in rows)
    calls, writes = answered(history, began + first, began + last)
    assert calls > 40 and writes > 15, f"callers are answered while faults are played: {calls}, {writes}"
    clients = {operation.client.split(".")[0] for operation in history}
    assert clients == {"n1", "n2", "n3", "outside", "at the end"}, "callers within every node, and outside"
    # The same history, but for one read that answers what was there before: the check must notice.
    position, stale = next(
        (position, read)
        for position, read in enumerate(history)
        if isinstance(read.input, Get)
        and read.client == "at the end"
        and any(one.input == Put(read.input.key, read.output) for one in history)
    )
    history[position] = Operation(
        client=stale.client, called=stale.called, returned=stale.returned, input=stale.input, output=b"never written"
    )
    assert check(history, KeyValue()).verdict is Verdict.ILLEGAL


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_kind_of_fault_is_played_and_survived(tmp_path: Path) -> None:
    plans = ((seed, make_plan(seed, 150)) for seed in range(100))
    seed = next(seed for seed, plan in plans if {fault.kind for fault in plan} == set(KINDS))
    outcome = Chaos(tmp_path, Setting(seed=seed, seconds=150)).run()
    assert outcome.good, str(outcome)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_stale_reads_are_found_out_and_all_is_kept(tmp_path: Path) -> None:
    geraft = [sys.executable, "-m", "geraft", "chaos"]
    options = "--seconds 12 --seed 1 --nodes 3 --callers 3 --calls-per-second 200 --reads stale --faults deafen,isolate"
    for attempt in range(3):
        directory = tmp_path / f"run{attempt}"
        done = subprocess.run(
            [*geraft, *options.split(), "--directory", str(directory)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        if done.returncode != 0:  # else the machine was too slow for a read to be seen as stale
            break
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no order of these operations of key" in done.stdout
    assert re.search(r"^chaos seed 1: FAILED", done.stdout, re.MULTILINE)
    assert str(directory / "history.jsonl") in done.stderr
    for kept in ("plan.json", "history.jsonl", "key.txt", "nodes/n1.log", "nodes/n1/log.db"):
        assert (directory / kept).exists(), kept

    again = subprocess.run(
        [*geraft, "--check", str(directory / "history.jsonl")], capture_output=True, text=True, timeout=100, check=False
    )
    assert again.returncode == 1
    assert "no order of these operations of key" in again.stdout


def test_the_kinds_of_faults_are_listed_and_others_refused() -> None:
    geraft = [sys.executable, "-m", "geraft", "chaos"]
    done = subprocess.run([*geraft, "--list-faults"], capture_output=True, text=True, timeout=60, check=True)
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(KINDS)
    done = subprocess.run([*geraft, "--faults", "earthquake"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "'earthquake' is none of kill" in done.stderr
