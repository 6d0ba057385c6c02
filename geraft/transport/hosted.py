"""A node's RPCs on a gRPC server that the host owns, beside services of the host's own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import grpc

from geraft.errors import NodeStopped
from geraft.runtime.hub import native_lock
from geraft.transport import addresses, failures
from geraft.transport.grpc_mode import GrpcMode, LazyChannel
from geraft.transport.peer import channel_options
from geraft.transport.server import SERVICE

log = logging.getLogger(__name__)

PROBE_BYTES = 5 * 1024 * 1024
"""More than a gRPC server takes that was made without options."""
PROBE_SECONDS = 60.0
"""For so long the host's server may not be started yet."""
WORKERS_MIN = 24
"""Threads below which a cluster of three is likely to starve: each peer holds two, each caller's stream one."""


class Door(grpc.GenericRpcHandler):
    """Where calls to the node come in. Put into the server before it starts; behind it a node comes and goes."""

    def __init__(self, server: grpc.Server) -> None:
        self._server = server
        self._lock = native_lock()
        self._inner: tuple[grpc.GenericRpcHandler, ...] = ()
        _warn_if_too_few_workers(server)
        server.add_generic_rpc_handlers((self,))

    def open(self, *inner: grpc.GenericRpcHandler) -> None:
        self._inner = inner

    def close(self) -> None:
        self._inner = ()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method: Any = handler_call_details.method
        for handler in self._inner:
            found = handler.service(handler_call_details)
            if found is not None:
                return found
        if not self._inner and method.startswith(f"/{SERVICE}/"):
            return grpc.stream_stream_rpc_method_handler(_not_running)
        return None


def _not_running(requests: Any, context: grpc.ServicerContext) -> Any:
    failures.abort(context, NodeStopped("the node on this server does not run"))


def _warn_if_too_few_workers(server: Any) -> None:
    """As far as can be told: gRPC does not say what its server runs on."""
    pool = getattr(getattr(server, "_state", None), "thread_pool", None)
    workers = getattr(pool, "_max_workers", None)
    if isinstance(workers, int) and workers < WORKERS_MIN:
        log.warning(
            "the server's executor has %d threads: each peer holds two of them and each caller's stream one, so make it"
            " larger, or take geraft.service.grpc_executor()",
            workers,
        )


class HostedServer:
    """Stands where RaftServer does, for a server that somebody else starts and stops."""

    def __init__(
        self, door: Door, handlers: Sequence[grpc.GenericRpcHandler], mode: GrpcMode, listen: str, bytes_max: int
    ) -> None:
        self._door = door
        self._handlers = handlers
        self._mode = mode
        self._bytes_max = bytes_max
        self._stopped = False
        self.address = listen
        """Where the host says that its server can be reached."""

    def start(self) -> None:
        """Take calls from now on, or from when the host starts its server."""
        addresses.split(self.address)
        self._door.open(*self._handlers)
        self._mode.spawn(self._probe, name="geraft server probe")

    def stop(self, grace_seconds: float = 0.5, timeout_seconds: float = 5.0) -> None:
        """Take no more calls; the server and its other services go on."""
        self._stopped = True
        self._door.close()

    def _probe(self) -> None:
        """Send a message that a server without options refuses, and say so: else the first large command would tell."""
        options = channel_options(self._bytes_max)
        channel = LazyChannel(self.address, options)
        padding = b"\xfa\x07" + _varint(PROBE_BYTES) + bytes(PROBE_BYTES)  # a field that no message of ours has
        try:
            rpc: Any = channel.get().unary_unary(f"/{SERVICE}/Status")
            rpc.future(padding, timeout=PROBE_SECONDS, wait_for_ready=True).result()
        except grpc.RpcError as error:
            status: Any = error
            if status.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and not self._stopped:
                log.error(
                    "the gRPC server at %s takes no message of %d bytes (%s), so entries may never reach this node:"
                    " make it with options=geraft.raft_server_options()",
                    self.address,
                    PROBE_BYTES,
                    status.details(),
                )
        except Exception as error:  # a probe, no more
            log.debug("the server at %s could not be probed: %s", self.address, error)
        finally:
            self._mode.enter(channel.close, name="geraft server probe")


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
