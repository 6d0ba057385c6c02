"""geraft kv against three nodes: what each verb prints, and how it exits."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from cli_processes import Command, assert_one_line, run_here

from geraft.cli.cluster import LocalCluster

pytestmark = pytest.mark.slow  # real nodes are started and asked from the command line

Kv = Callable[..., "subprocess.CompletedProcess[str]"]


def kv_by(geraft: Command, cluster: LocalCluster) -> Kv:
    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return geraft("kv", *arguments, "--seeds", ",".join(cluster.addresses), "--timeout", "20", stdin=stdin)

    return run


@pytest.fixture
def kv(cluster: LocalCluster) -> Kv:
    """Runs `geraft kv` with the arguments against the cluster, in this process."""
    return kv_by(run_here, cluster)


def test_put_get_delete(kv: Kv) -> None:
    assert kv("put", "color", "green").stdout == "added\n"
    assert kv("put", "color", "red").stdout == "replaced\n"
    assert kv("get", "color").stdout == "red"
    assert kv("get", "color", "--consistency", "lease").stdout == "red"
    assert kv("delete", "color").stdout == "deleted\n"
    for gone in (kv("get", "color"), kv("delete", "color")):
        assert gone.returncode == 1
        assert gone.stdout == ""
        assert_one_line(gone.stderr)


def test_a_value_from_stdin_and_one_that_is_not_ascii(geraft: Command, cluster: LocalCluster) -> None:
    kv = kv_by(geraft, cluster)  # whose streams are real ones
    kv("put", "letter", "-", stdin="two\nlines\n")
    assert kv("get", "letter").stdout == "two\nlines\n"
    kv("put", "größe", "1 µm")
    assert kv("get", "größe").stdout == "1 µm"


def test_compare_and_set(kv: Kv) -> None:
    assert kv("cas", "lock", "me").stdout == "set\n"
    second = kv("cas", "lock", "you")
    assert second.returncode == 1
    assert_one_line(second.stderr)
    assert kv("cas", "lock", "you", "--expect", "somebody").returncode == 1
    assert kv("cas", "lock", "you", "--expect", "me").stdout == "set\n"
    assert kv("get", "lock").stdout == "you"


def test_list(kv: Kv) -> None:
    for name in ("b", "a", "c"):
        kv("put", f"list/{name}", name.upper())
    assert kv("list", "list/").stdout == "list/a\tA\nlist/b\tB\nlist/c\tC\n"
    assert kv("list", "list/", "--limit", "2").stdout == "list/a\tA\nlist/b\tB\n"
    assert kv("list", "nothing/").stdout == ""
