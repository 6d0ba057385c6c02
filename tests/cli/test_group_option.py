"""--group: every verb that asks running nodes takes it, and asks that group."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from cli_processes import assert_one_line
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parent.parent / "transport"))
from group_server import GroupServer
from transport_harness import Peer

from geraft.cli import main
from geraft.kv import put

OFFLINE = {"simulate"}
"""Verbs whose --seeds are no servers."""


@pytest.fixture
def server() -> Iterator[GroupServer]:
    with GroupServer("a", "b") as server:
        yield server


def geraft(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="geraft")


def verbs(command: click.Command = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from verbs(inner, (*path, name))
    else:
        yield path, command


ASKING = [
    path
    for path, command in verbs()
    if path[0] not in OFFLINE
    and any(
        parameter.name == "seeds" or (parameter.name == "address" and isinstance(parameter, click.Argument))
        for parameter in command.params
    )
]


def test_the_verbs_that_ask_running_nodes_are_found() -> None:
    assert len(ASKING) == 19
    assert {("kv", "put"), ("status",), ("config", "set"), ("backup",), ("timeout-now",), ("snapshot",)} < set(ASKING)


ARGUMENTS = {
    ("add-server",): ["n9", "127.0.0.1:1"],
    ("change-membership",): ["--voters", "n1"],
    ("config", "set"): ["phi_threshold=9"],
    ("kv", "cas"): ["key", "value"],
    ("kv", "delete"): ["key"],
    ("kv", "get"): ["key"],
    ("kv", "put"): ["key", "value"],
    ("monitor",): ["--once", "--interval", "0.1"],
    ("remove-server",): ["n9"],
    ("promote",): ["n9"],
    ("demote",): ["n9"],
}


@pytest.mark.parametrize("verb", ASKING, ids=" ".join)
def test_a_verb_asks_the_group_that_it_is_told(verb: tuple[str, ...], server: GroupServer, tmp_path: Path) -> None:
    assert "--group NAME" in geraft(*verb, "--help").output
    arguments = [str(tmp_path / "file")] if verb == ("backup",) else ARGUMENTS.get(verb, [])
    where = [server.address] if verb in {("timeout-now",), ("snapshot",)} else ["--seeds", server.address]
    done = geraft(*verb, *arguments, *where, "--group", "b", "--timeout", "10")
    assert done.exit_code != 2, done.output
    assert server.rpcs
    assert {group for _, group in server.rpcs} == {"b"}
    if verb == ("backup",):
        assert ("Backup", "b") in server.rpcs


def test_what_a_verb_writes_and_shows_is_of_its_group(server: GroupServer) -> None:
    geraft("kv", "put", "key", "value", "--seeds", server.address, "--group", "a")
    assert [each.message for each in server.peers["a"].calls] == [put("key", b"value")]
    assert not server.peers["b"].calls
    shown = geraft("cluster-info", "--seeds", server.address, "--group", "b")
    assert shown.output.startswith("cluster c-b")


def test_a_server_without_the_group_is_shown_with_those_that_it_has(server: GroupServer) -> None:
    with Peer("n1") as plain:
        seeds = ("--seeds", f"{server.address},{plain.address}", "--group", "c", "--timeout", "10")
        table = geraft("status", *seeds)
        lines = {line.split()[0]: line for line in table.stdout.splitlines()[1:]}
        assert "not there" in lines[server.address]
        assert "which has a, b: correct the group's name, or start it there" in lines[server.address]
        assert "at node n1, which has no groups: leave the group out" in lines[plain.address]
        assert table.exit_code == 1
        assert_one_line(table.stderr)
        assert "no group 'c'" in table.stderr
        assert "not there" in geraft("monitor", "--once", "--interval", "0.1", *seeds).stdout
        unnamed = geraft("kv", "get", "key", "--seeds", server.address, "--timeout", "3")
        assert unnamed.exit_code == 1
        assert_one_line(unnamed.stderr)
        assert "has several groups (a, b): name the one that is meant" in unnamed.stderr


def test_a_name_that_no_group_can_have_is_refused_at_once() -> None:
    done = geraft("status", "--group", "a group")
    assert done.exit_code == 2
    assert_one_line(done.stderr)
    assert "choose such a name" in done.stderr
