"""Nodes inside processes with a life of their own: hosts that sleep, compute, fork, end, serve; patched and not."""

from __future__ import annotations

import http.client
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from host_processes import Hosts, end_program, line_of, start_program

from geraft.client import Client
from geraft.testing.cluster import wait_until, write_surely

pytestmark = pytest.mark.slow  # real processes, started and ended for each story: minutes together

UNPATCHED, PATCHED = "n1", "n2"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two unpatched hosts and a patched one in one cluster, with their logs on disk."""
    with Hosts(tmp_path_factory.mktemp("hosts"), 3, {PATCHED}) as hosts:
        yield hosts


@pytest.mark.parametrize(
    ("host", "work"),
    [
        (UNPATCHED, "compute"),
        pytest.param(UNPATCHED, "sleep", marks=pytest.mark.slow),
        pytest.param(PATCHED, "compute", marks=pytest.mark.slow),
        pytest.param(PATCHED, "sleep", marks=pytest.mark.slow),
    ],
    ids=lambda word: {UNPATCHED: "unpatched", PATCHED: "patched"}.get(word, word),
)
def test_a_main_thread_that_is_busy_for_five_seconds_costs_its_leader_nothing(
    hosts: Hosts, host: str, work: str
) -> None:
    term = hosts.let_lead(host)
    with Client(list(hosts.members.values())) as client:
        write_surely(client, "busy", b"before")
        hosts.tell(host, work, 5)  # the length is what this is about: far more than any election timeout
        slowest, writes = 0.0, 0
        while not hosts.answers(host):
            began = time.monotonic()
            write_surely(client, "busy", b"meanwhile")
            slowest, writes = max(slowest, time.monotonic() - began), writes + 1
            assert set(hosts.views().values()) == {(term, host)}
            time.sleep(0.05)
    assert hosts.answer(host)
    assert writes > 3
    assert slowest < 4.0, "beside the work the leader answers"
    assert hosts.settle() == (term, host)


@pytest.mark.parametrize("host", [UNPATCHED, PATCHED])
def test_health_and_reflection_are_served_beside_the_node(hosts: Hosts, host: str) -> None:
    hosts.settle()
    with grpc.insecure_channel(hosts.members[host]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        raft = health_pb2.HealthCheckRequest(service="geraft.Raft")
        serving = health_pb2.HealthCheckResponse.SERVING  # but not while there is no leader
        wait_until("it serves", lambda: stub.Check(raft, timeout=20).status == serving)
        watches = [stub.Watch(raft, timeout=60) for _ in range(20)]
        for watch in watches:
            assert any(told.status == serving for told in watch)
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(asked), timeout=20)
        assert "geraft.Raft" in {service.name for service in answer.list_services_response.service}
        assert hosts.ask(host, "write", "beside", "watchers") is not None
        for watch in watches:
            watch.cancel()


@pytest.mark.parametrize("host", [UNPATCHED, PATCHED])
@pytest.mark.parametrize("callers", ["greenlets", "threads"])
def test_two_hundred_callers_inside_the_host_are_all_answered(hosts: Hosts, host: str, callers: str) -> None:
    hosts.settle()
    assert hosts.ask(host, f"write_from_{callers}", 200) == 200


def test_what_one_host_writes_the_others_read(hosts: Hosts) -> None:
    for turn, (writer, reader) in enumerate((one, other) for one in hosts.members for other in hosts.members):
        hosts.ask(writer, "write", "shared", f"{writer}-{turn}")
        assert hosts.ask(reader, "read", "shared") == f"{writer}-{turn}"


@pytest.mark.parametrize("host", [UNPATCHED, PATCHED])
def test_a_forked_child_is_told_at_once_that_the_node_is_not_its_own(hosts: Hosts, host: str) -> None:
    term = hosts.let_lead(host)
    answers = hosts.ask(host, "use_in_fork")
    assert answers.pop("seconds") < 4.0
    assert set(answers.values()) == {"NodeForked"}
    assert {"apply", "read", "stale", "status"} <= answers.keys()
    # The parent's node goes on as if nothing had been.
    hosts.ask(host, "write", "after-the-fork", "1")
    assert hosts.ask(host, "read", "after-the-fork") == "1"
    assert hosts.settle() == (term, host)


@pytest.mark.parametrize("host", [UNPATCHED, PATCHED])
def test_an_interpreter_that_ends_without_stopping_its_node_ends_soon(hosts: Hosts, host: str) -> None:
    hosts.let_lead(host)
    hosts.ask(host, "write", "last", "words")
    assert hosts.seconds_to_end(host) < 20.0
    log = hosts.log(host).read_text()
    assert "Traceback" not in log
    assert "Fatal" not in log
    hosts.start(host)  # over the data that it left
    assert hosts.ask(host, "read", "last") == "words"


@pytest.mark.parametrize("kind", ["threaded", "patched"])
def test_a_flask_site_with_a_node_in_its_process_answers_writes(kind: str) -> None:
    site = start_program("flask_site.py", kind, stderr=subprocess.DEVNULL)
    try:
        address = line_of(site).strip()
        assert address

        def write_and_read(number: int) -> None:
            connection = http.client.HTTPConnection(address, timeout=60)
            for turn in range(5):
                connection.request("PUT", f"/key{number}/value{turn}")
                response = connection.getresponse()
                assert (response.status, response.read().isdigit()) == (200, True)
                connection.request("GET", f"/key{number}")
                assert connection.getresponse().read() == b"value%d" % turn
            connection.close()

        with ThreadPoolExecutor(16) as visitors:
            list(visitors.map(write_and_read, range(32)))
    finally:
        end_program(site)


def test_a_host_whose_own_hub_has_grpc_is_told_so() -> None:
    program = start_program("grpc_hub_taken.py")
    try:
        assert "refused: gRPC's gevent mode already belongs to another hub" in line_of(program)
        assert program.wait(30) == 0
    finally:
        end_program(program)
