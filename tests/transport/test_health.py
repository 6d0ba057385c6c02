"""The health and reflection services of a node, asked as a load balancer and grpcurl ask them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from geraft import Config, MemoryStorage, RaftNode, SimpleRaftApp, to_raft_app
from geraft.simple import MemoryRepository
from geraft.testing.cluster import free_addresses, wait_until
from geraft.transport import health

SERVING, NOT_SERVING = health.SERVING, health.NOT_SERVING
PATIENT = Config(heartbeat_interval_seconds=0.05, election_timeout_seconds=0.5, acceptable_pause_seconds=2.0)


class Nothing(SimpleRaftApp):
    def process_write(self, request: bytes, entry_index: int) -> bytes:
        return b""

    def process_read(self, request: bytes) -> bytes:
        return b""

    def snapshot(self) -> bytes:
        return b""

    def restore(self, snapshot: bytes | None) -> None:
        pass


def make(id: str, voters: dict[str, str]) -> RaftNode:
    app = to_raft_app(Nothing(), MemoryRepository())
    return RaftNode(app, MemoryStorage(), id=id, bootstrap=voters, config=PATIENT)


@pytest.fixture
def two() -> Iterator[list[RaftNode]]:
    """Of a cluster of two; not started."""
    voters = dict(zip(["n1", "n2"], free_addresses(2), strict=True))
    nodes = [make(id, voters) for id in voters]
    yield nodes
    for node in nodes:
        node.stop(5.0)


class Asker:
    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.stub = health_pb2_grpc.HealthStub(self.channel)

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def check(self, service: str) -> int:
        return int(self.stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status)

    def watch(self, service: str) -> tuple[list[int], threading.Thread]:
        """What comes over a Watch stream, until it ends."""
        came: list[int] = []
        stream = self.stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=60)

        def read() -> None:
            try:
                for answer in stream:
                    came.append(answer.status)
            except grpc.RpcError as error:
                came.append(-int(error.code().value[0]))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return came, thread


def test_a_node_serves_while_it_runs_and_its_raft_service_while_a_leader_is_known(two: list[RaftNode]) -> None:
    first, second = two
    first.start()
    with Asker(first.address) as asker:
        assert asker.check("") == SERVING
        assert asker.check("geraft.Raft") == NOT_SERVING, "one of two knows no leader"
        came, thread = asker.watch("geraft.Raft")
        overall, _ = asker.watch("")
        wait_until("the present status", lambda: came == [NOT_SERVING] and overall == [SERVING])
        second.start()
        wait_until("a leader", lambda: came[:2] == [NOT_SERVING, SERVING])
        wait_until("and serving", lambda: asker.check("geraft.Raft") == SERVING)
        second.stop(5.0)
        wait_until("no leader", lambda: asker.check("geraft.Raft") == NOT_SERVING)
        wait_until("and who watches hears of it", lambda: came[-1] == NOT_SERVING)
        assert all(one != other for one, other in pairwise(came))
        assert (asker.check(""), asker.check("geraft.Raft")) == (SERVING, NOT_SERVING)
        first.stop(5.0)
        thread.join(20)
        wait_until("the end is told before the stream ends", lambda: overall[:2] == [SERVING, NOT_SERVING])


def test_a_service_that_is_none_is_unknown(two: list[RaftNode]) -> None:
    two[0].start()
    with Asker(two[0].address) as asker:
        with pytest.raises(grpc.RpcError) as caught:
            asker.check("kv.Store")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        came, _ = asker.watch("kv.Store")
        wait_until("it may come one day", lambda: came == [health.SERVICE_UNKNOWN])


def test_watchers_are_bounded_and_make_room_when_they_go(two: list[RaftNode], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "WATCHES_MAX", 2)
    two[0].start()
    with Asker(two[0].address) as asker:
        with Asker(two[0].address) as guest:
            held = [guest.watch("")[0] for _ in range(2)]
            wait_until("both watch", lambda: held == [[SERVING], [SERVING]])
            refused, thread = asker.watch("")
            thread.join(20)
            assert refused == [-grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]]
        # Those of the guest end with its channel, which the node learns of a moment later.
        wait_until("room again", lambda: let_in(asker))


def let_in(asker: Asker) -> bool:
    came, _ = asker.watch("")
    wait_until("an answer", lambda: came)
    return came == [SERVING]


def test_reflection_tells_the_services_and_their_messages(two: list[RaftNode]) -> None:
    two[0].start()
    with Asker(two[0].address) as asker:
        stub = reflection_pb2_grpc.ServerReflectionStub(asker.channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="geraft.Raft"),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="geraft.NoSuchThing"),
        ]
        services, file, nothing = list(stub.ServerReflectionInfo(iter(asked), timeout=20))
        names = {service.name for service in services.list_services_response.service}
        assert names == {"geraft.Raft", health.HEALTH_SERVICE, health.REFLECTION_SERVICE}
        described = FileDescriptorProto.FromString(file.file_descriptor_response.file_descriptor_proto[0])
        methods = {method.name for service in described.service for method in service.method}
        assert {"RequestApply", "Status", "GetConfig"} <= methods
        assert nothing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
