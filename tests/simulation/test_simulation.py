"""The simulator keeps its promises: equal seeds, equal histories; sound clusters pass, broken ones do not."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gevent
import pytest

from geraft.core import raft as core
from geraft.core import reads
from geraft.runtime.hub import CallKind, RemoteCall
from geraft.testing.simulation import SITUATIONS, Faults, Simulation, SimulationFailed

ROOT = Path(__file__).resolve().parent.parent.parent


def simulate(root: Path, *arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "geraft", "simulate", *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.parametrize("nodes", [1, 3, 5])
def test_clusters_keep_their_promises_and_recover(nodes: int) -> None:
    for seed in range(1, 9):
        Simulation(seed, nodes=nodes, seconds=10).run()


def test_the_first_step_of_a_life_is_judged_like_any_other() -> None:
    simulation = Simulation(1, nodes=3)
    server = simulation.servers["1"]
    server.start(simulation.settings)
    assert server.raft is not None
    assert server.raft.seen == server.raft.compared() != ()


def test_a_hub_in_the_thread_makes_no_difference() -> None:
    alone = Simulation(2, nodes=3, seconds=10).run().counters
    gevent.sleep(0)  # makes one; code that asks for it would wait for it to run
    assert Simulation(2, nodes=3, seconds=10).run().counters == alone


def test_members_come_and_go_and_all_can_be_let_in_again() -> None:
    met: Counter[str] = Counter()
    for seed, nodes in ((1, 1), (2, 3), (3, 3), (4, 5)):
        faults = replace(Faults.drawn(random.Random(seed)), members=True)
        met += Simulation(seed, nodes=nodes, seconds=10, faults=faults).run().counters
    for situation in ("change done", "change refused", "joint configuration"):
        assert met[situation], situation


def test_without_faults_everyone_is_served() -> None:
    simulation = Simulation(1, seconds=10, faults=Faults(per_second=0)).run()
    assert min(client.done for client in simulation.clients) > 10
    assert simulation.counters["write with an unknown outcome"] == 0
    assert simulation.counters["leader deposed with an uncommitted tail"] == 0


@pytest.mark.parametrize("seed", [2, 5, 12])
def test_a_call_that_came_back_is_looked_at_though_heartbeats_arrive(seed: int) -> None:
    """They put off what a follower does by itself, and what is parked there is looked at by ticks alone."""
    simulation = Simulation(seed, faults=Faults(per_second=0))
    for server in simulation.servers.values():
        server.start(simulation.settings)
    simulation.agenda.run_until(5.0)
    (leader,) = simulation.leaders()
    follower = next(server for id, server in simulation.servers.items() if id != leader)
    answered: list[RemoteCall] = []
    call = RemoteCall(CallKind.APPLY, b"set a 1", deadline=follower.clock() + 5.0, number=1, sink=answered.extend)
    follower.at_once(follower.loop.park, [call])
    simulation.agenda.run_until(6.0)
    assert answered == [call]
    assert call.error is None


def test_a_seed_gives_the_same_trace_in_every_process() -> None:
    one, other = (simulate(ROOT, "--trace", "7", "--seconds", "5", hash_seed=hash_seed) for hash_seed in "12")
    assert one.returncode == 0, one.stdout[-3000:] + one.stderr
    assert len(one.stdout.splitlines()) > 1000
    assert one.stdout.splitlines()[:-1] == other.stdout.splitlines()[:-1]  # the last line tells the time it took


def test_a_trace_changes_nothing() -> None:
    lines: list[str] = []
    traced = Simulation(3, seconds=5, trace=lines.append).run()
    assert Simulation(3, seconds=5).run().counters == traced.counters


def test_a_violation_tells_the_seed_the_history_and_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def confirm_at_once(raft: core.Raft, request: reads.ReadRequested) -> None:
        raft.emit(reads.ReadConfirmed(tokens=(request.token,), read_index=raft.commit_index))

    monkeypatch.setitem(core.HANDLERS, (core.Role.LEADER, reads_requested()), confirm_at_once)
    with pytest.raises(SimulationFailed) as failed:
        for seed in range(1, 100):
            Simulation(seed).run()
    assert "confirms a read" in failed.value.reason
    assert len(failed.value.trace) > 10
    assert f"--trace {failed.value.seed} --nodes 3 --seconds 20" in str(failed.value)


def reads_requested() -> type:
    from geraft.core.events import ReadRequested

    return ReadRequested


def test_the_command_says_what_it_did() -> None:
    done = simulate(ROOT, "--seeds", "1:2", "--seconds", "3", "--verbose")
    assert done.returncode == 0, done.stderr
    *_, situation, last = done.stdout.splitlines()
    assert re.match(r"seeds 2, violations 0, simulated \d+ s, cpu ", last)
    assert situation.strip().endswith("write with an unknown outcome")


def test_the_command_takes_an_app(tmp_path: Path) -> None:
    commands = tmp_path / "commands"
    commands.write_bytes(b"deposit 10\nwithdraw 5\n")
    app = ("--app", "geraft.kv:KeyValueApp", "--commands", str(commands))
    done = simulate(ROOT, "--seeds", "1:2", "--seconds", "3", *app)
    assert done.returncode == 0, done.stderr
    assert simulate(ROOT, "--seeds", "1", *app[:2]).returncode == 2
    assert simulate(ROOT, "--seeds", "1", "--app", "geraft.kv:Nothing", *app[2:]).returncode == 2


def campaign() -> Iterator[Simulation]:
    for seed in range(40):
        faults = replace(Faults.drawn(random.Random(seed)), members=True, per_second=3.0)
        yield Simulation(seed, seconds=15, faults=faults)  # members come and go in every one of these
        for other in range(100 + 3 * seed, 103 + 3 * seed):
            yield Simulation(other)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_campaign_meets_the_rare_situations() -> None:
    met: Counter[str] = Counter()
    missing = set(SITUATIONS)
    for number, simulation in enumerate(campaign(), 1):
        met += simulation.run().counters
        missing -= set(met)
        if not missing and number >= 40:  # it is the invariants' campaign, too
            break
    assert not missing


def test_groups_that_rest_keep_every_promise() -> None:
    """Faults befall nodes that rest, and wake them; what they were not told in between must not matter."""
    counters: Counter[str] = Counter()
    for seed in range(1, 25):
        counters.update(Simulation(seed, nodes=3 if seed % 3 else 5, resting=True).run().counters)
    assert counters["a node rests"] > 500
    assert counters["crash between two effects"] > 10
    assert counters["node that ended in a process that lives"] > 2
    assert counters["leader whose node ended while all rested"] > 2
    assert counters["leader that stood still while all rested"] > 2
    still = Simulation(1, resting=True, faults=Faults(per_second=0.0), seconds=30.0).run()
    assert still.counters["a node rests"] > 20
