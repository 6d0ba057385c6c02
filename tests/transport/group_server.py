"""One port with a node for each of several groups behind it, each of which notes what it is told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from transport_harness import CONFIG, Peer

from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import acquire_hub, release_hub
from geraft.transport import failures
from geraft.transport.groups import group_of, unknown_group
from geraft.transport.grpc_mode import mode_for
from geraft.transport.server import RaftHandlers, server_options
from geraft.transport.services import Services

METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["Raft"].methods}
METHODS.pop("Carry")  # between processes, of all groups


def open_rpc(channel: grpc.Channel, name: str) -> Any:
    """The method of that name, for bytes; called with one message in any case."""
    method, path = METHODS[name], f"/geraft.Raft/{name}"
    if method.client_streaming:
        rpc: Any = channel.stream_stream(path)
        return lambda message, **options: next(rpc(iter([message]), **options))
    if method.server_streaming:
        rpc = channel.unary_stream(path)
        return lambda message, **options: next(rpc(message, **options))
    return channel.unary_unary(path)


class GroupServer(grpc.GenericRpcHandler):
    """Routes each RPC by its metadata, and notes it in `rpcs`, as (method, group)."""

    def __init__(self, *groups: str) -> None:
        self.peers: dict[str, Peer] = {}
        self.rpcs: list[tuple[str, str]] = []
        self._stopped = False
        self._handlers: dict[str, RaftHandlers] = {}
        for group in groups:
            self.add(group)
        self._hub = acquire_hub()
        self._mode = mode_for(self._hub)
        self._mode.call(self._start, timeout_seconds=10.0)
        self.lead(self)

    def _start(self) -> None:
        self._server = grpc.server(
            self._mode.executor(64),  # type: ignore[arg-type]
            handlers=[self],
            options=[("grpc.so_reuseport", 0), *server_options(CONFIG.message_bytes_max)],
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def add(self, group: str) -> None:
        peer = self.peers[group] = Peer(f"n-{group}", cluster_id=f"c-{group}", start=False)
        self._handlers[group] = RaftHandlers(peer, mode_for(peer.hub), CONFIG, group, self.services_of)

    def lead(self, leader: GroupServer, members: Iterable[GroupServer] = ()) -> None:
        """Have the nodes here say that those of that server lead."""
        for group, peer in self.peers.items():
            peer.leader = (f"n-{group}", leader.address)
            peer.members = {f"n-{group}-{number}": member.address for number, member in enumerate(members or [self])}

    def remove(self, group: str) -> None:
        self._handlers.pop(group).close()
        self.peers.pop(group).stop()

    def stop(self) -> None:
        for group in list(self.peers):
            self.remove(group)
        if not self._stopped:
            self._stopped = True
            self._mode.call(lambda: self._server.stop(0.5).wait(10), timeout_seconds=11.0)
            release_hub(self._hub)

    def __enter__(self) -> GroupServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def services_of(self, group: str) -> Services:
        if group not in self.peers:
            raise unknown_group(group, self.address, self.peers)
        return self.peers[group]  # type: ignore[return-value]

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method: Any = handler_call_details.method
        group = group_of(handler_call_details.invocation_metadata)
        self.rpcs.append((method.rpartition("/")[2], group))
        if group in self._handlers:
            return self._handlers[group].generic_handler().service(handler_call_details)

        def refuse(requests: Any, context: grpc.ServicerContext) -> Any:
            failures.abort(context, unknown_group(group, self.address, self._handlers))

        return grpc.stream_stream_rpc_method_handler(refuse)
