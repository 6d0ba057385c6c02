"""A node on a gRPC server of the host's, beside a service of the host's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from geraft import Config, MemoryStorage, RaftNode, make_raft_service, raft_server_options
from geraft.client import Client
from geraft.errors import NodeStopped
from geraft.kv import KeyValueApp, decode_value, get, put
from geraft.service import grpc_executor
from geraft.simple import MemoryRepository, to_raft_app
from geraft.testing.cluster import free_addresses, wait_until

PATIENT = Config(heartbeat_interval_seconds=0.05, election_timeout_seconds=0.5, acceptable_pause_seconds=2.0)


class Host:
    """A server with a service of its own, example.Echo, and a node; neither started."""

    def __init__(self, id: str, voters: dict[str, str], executor: Any = None, options: Any = None) -> None:
        self.address = voters[id]
        self.server = grpc.server(
            executor or grpc_executor(), options=raft_server_options() if options is None else options
        )
        self.node: RaftNode = make_raft_service(
            self.server,
            to_raft_app(KeyValueApp(), MemoryRepository()),
            MemoryStorage(),
            id=id,
            address=self.address,
            bootstrap=voters,
            config=PATIENT,
        )
        methods = {"Write": grpc.unary_unary_rpc_method_handler(self.write)}
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("example.Echo", methods)])
        assert self.server.add_insecure_port(self.address)
        self.channel = grpc.insecure_channel(self.address)

    def write(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.node.apply(put("echo", request), timeout_seconds=20)
        return b"wrote " + request

    def ask(self, value: bytes) -> bytes:
        return bytes(self.channel.unary_unary("/example.Echo/Write")(value, timeout=30))

    def stop(self) -> None:
        self.node.stop(5.0)
        self.channel.close()
        self.server.stop(0.5).wait(10)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Three, of one cluster."""
    voters = dict(zip(["n1", "n2", "n3"], free_addresses(3), strict=True))
    hosts = [Host(id, voters) for id in voters]
    yield hosts
    for host in hosts:
        host.stop()


def test_one_port_serves_the_node_and_a_service_of_the_users(hosts: list[Host]) -> None:
    for host in hosts:
        host.node.start()
        host.server.start()
    assert [host.node.address for host in hosts] == [host.address for host in hosts]
    for number, host in enumerate(hosts):
        assert host.ask(b"%d" % number) == b"wrote %d" % number, "on each of the three, leader or not"
    with Client([host.address for host in hosts]) as client:
        large = bytes(6 * 1024 * 1024)  # more than a server without our options takes
        client.apply(put("large", large), timeout_seconds=30)
        assert decode_value(client.read(get("large"), timeout_seconds=20)) == large
        assert decode_value(client.read(get("echo"), timeout_seconds=20)) == b"2"
        wait_until("all hold it", lambda: len({client.status(host.address).last_applied for host in hosts}) == 1)
    health = health_pb2_grpc.HealthStub(hosts[0].channel)
    serving = health.Check(health_pb2.HealthCheckRequest(service="geraft.Raft"), timeout=20)
    assert serving.status == health_pb2.HealthCheckResponse.SERVING


def test_without_its_node_the_server_goes_on_and_says_what_is_missing(hosts: list[Host]) -> None:
    host = hosts[0]
    host.server.start()
    with Client(host.address) as client:
        with pytest.raises(NodeStopped, match="the node on this server does not run"):
            client.status(host.address)
        for each in hosts:
            each.node.start()
        for each in hosts[1:]:
            each.server.start()
        assert host.ask(b"x") == b"wrote x"
        host.node.stop(5.0)
        with pytest.raises(NodeStopped):
            client.status(host.address)
        with pytest.raises(grpc.RpcError) as caught:
            host.ask(b"y")
        assert "NodeStopped" in str(caught.value) or "was stopped" in str(caught.value), "its own service still answers"
    assert hosts[1].ask(b"z") == b"wrote z", "leadership was handed over"


def test_what_a_server_lacks_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    (address,) = free_addresses(1)
    with caplog.at_level(logging.WARNING, "geraft"):
        host = Host("n1", {"n1": address}, executor=ThreadPoolExecutor(10), options=())
        try:
            assert "executor has 10 threads" in caplog.text
            host.node.start()
            host.server.start()
            wait_until("the probe tells", lambda: "takes no message of 5242880 bytes" in caplog.text)
            assert "raft_server_options" in caplog.text
        finally:
            host.stop()


def test_nothing_is_logged_of_a_server_that_lacks_nothing(hosts: list[Host], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "geraft"):
        for host in hosts:
            host.node.start()
            host.server.start()
        assert hosts[0].ask(b"x") == b"wrote x"
    assert "server" not in caplog.text
