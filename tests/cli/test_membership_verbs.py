"""The commands that change who is in a cluster, and who leads it, against nodes in this process."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from geraft import Config, MemoryRepository, MemoryStorage, RaftNode, to_raft_app
from geraft.cli import main
from geraft.cli.cluster import free_addresses
from geraft.kv import KeyValueApp
from geraft.testing.cluster import wait_until

PATIENT = Config(election_timeout_seconds=5.0)
"""Nobody is to campaign, to give up a transfer, or to take another for silent, because the machine has much to do."""


def node(id: str, address: str, **arguments: object) -> RaftNode:
    app = to_raft_app(KeyValueApp(), MemoryRepository())
    return RaftNode(app, MemoryStorage(), id=id, listen=address, config=PATIENT, **arguments)  # type: ignore[arg-type]


def geraft(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    return result.output if result.exit_code == 0 else f"exit {result.exit_code}: {result.output}"


def test_each_verb_does_what_it_says() -> None:
    one, two, three = free_addresses(3)
    seeds = ("--seeds", f"{one},{two}")
    with node("n1", one, bootstrap={"n1": one}) as n1, node("n2", two, join=[one], learner=True):
        assert geraft("add-server", "n2", two, *seeds) == f"n1  {one}  leader\nn2  {two}  voter\n"
        assert geraft("demote", "n2", *seeds) == f"n1  {one}  leader\nn2  {two}  learner\n"
        assert geraft("promote", "n2", *seeds) == f"n1  {one}  leader\nn2  {two}  voter\n"
        assert geraft("transfer", "n2", *seeds) == "n2 leads\n"
        assert geraft("transfer", *seeds) == "n1 leads\n"
        assert geraft("timeout-now", two) == "n2 leads\n"
        assert geraft("timeout-now", two) == "n2 leads\n"
        with node("n3", three, join=[one], learner=True):
            changed = geraft("change-membership", "--voters", "n2,n3", "--learners", "n1", *seeds)
            assert changed == f"n1  {one}  learner\nn2  {two}  leader\nn3  {three}  voter\n"
            assert geraft("remove-server", "n3", *seeds) == f"n1  {one}  learner\nn2  {two}  leader\n"
        wait_until("n1 follows", lambda: n1.status().explanation == "follows n2 as a learner")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("remove-server", "n1"), "without a voter"),
        (("remove-server", "n7"), "no member is called 'n7'"),
        (("demote", "n1"), "without a voter"),
        (("promote", "n7"), "no member is called 'n7'"),
        (("transfer", "n7"), "no other voter can take leadership"),
        (("change-membership", "--voters", "n1,n7"), "name its address"),
        (("change-membership", "--voters", "n1=,n7"), "neither NAME nor NAME=HOST:PORT"),
        (("change-membership", "--voters", "n1,n1"), "'n1' is named twice"),
        (("add-server", "n7", "nowhere"), "host:port"),
    ],
)
def test_what_is_refused_is_one_line(arguments: tuple[str, ...], sentence: str) -> None:
    (address,) = free_addresses(1)
    with node("n1", address, bootstrap={"n1": address}) as n1:
        n1.wait_for_leader()
        output = geraft(*arguments, "--seeds", address)
    assert output.startswith("exit ")
    assert sentence in output
    assert len(output.strip().splitlines()) == 1


def test_recover_wants_a_data_directory(tmp_path: object) -> None:
    output = geraft("recover", "--data-dir", str(tmp_path))
    assert output.startswith("exit 1")
    assert "holds no log store: give the data directory of a node" in output
