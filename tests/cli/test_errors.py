"""Errors are one line on stderr, with exit code 2 for what was asked wrongly and 1 for what failed. No tracebacks."""

from __future__ import annotations

import pytest
from cli_processes import Command, assert_one_line, run_here

from geraft.cli.cluster import free_addresses


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-verb"], "no-such-verb"),
        (["serve"], "--id"),
        (["serve", "--id", "n1"], "--data-dir"),
        (["serve", "--id", "n1", "--storage", "tape"], "tape"),
        (["serve", "--id", "n1", "--storage", "memory", "--bootstrap", "n2=127.0.0.1:7001"], "n1=HOST:PORT"),
        (["serve", "--id", "n1", "--storage", "memory", "--bootstrap", "n1"], "id=host:port"),
        (["serve", "--id", "n1", "--storage", "memory", "--bootstrap", "n1=nowhere"], "host:port"),
        (["serve", "--id", "n1", "--storage", "memory", "--listen", "127.0.0.1:99999"], "65535"),
        (["serve", "--id", "n1", "--storage", "memory", "--dial", "127.0.0.1:7001"], "host:port=host:port"),
        (["serve", "--id", "n1", "--storage", "memory", "--dial", "127.0.0.1:7001=n1"], "host:port"),
        (["kv", "get", "--seeds", "127.0.0.1", "key"], "host:port"),
        (["kv", "put", "key"], "VALUE"),
        (["kv", "list", "--timeout", "0"], "0"),
        (["demo", "--writes", "0"], "0"),
        (["bench", "write", "--callers", "many"], "many"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_was_asked_wrongly(arguments: list[str], said: str) -> None:
    done = run_here(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert_one_line(done.stderr)
    assert said in done.stderr
    assert "--help" in done.stderr


@pytest.mark.parametrize("verb", [["kv", "get", "key"], ["kv", "put", "key", "value"], ["status"]], ids=" ".join)
def test_nobody_there(geraft: Command, verb: list[str]) -> None:
    (nobody,) = free_addresses(1)
    done = geraft(*verb, "--seeds", nobody, "--timeout", "0.5")
    assert done.returncode == 1
    assert_one_line(done.stderr)


def test_a_node_that_cannot_start(geraft: Command) -> None:
    (address,) = free_addresses(1)
    done = geraft("serve", "--id", "n1", "--bootstrap", f"n1={address}", "--data-dir", "/proc/no-such-place")
    assert done.returncode == 1
    assert done.stdout == ""
    assert_one_line(done.stderr)
    assert "/proc/no-such-place" in done.stderr


def test_without_arguments_it_shows_the_help(geraft: Command) -> None:
    done = geraft()
    assert done.returncode == 2
    assert "demo" in done.stdout
