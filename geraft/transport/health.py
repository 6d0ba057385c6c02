"""The standard health service (grpc.health.v1) and the reflection service of a node's gRPC server.

Watch streams hold a thread each in native mode, as reflection streams do, so both are bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_reflection.v1alpha import reflection_pb2

from geraft.runtime.hub import native_lock
from geraft.transport.grpc_mode import GrpcMode, Outbox

OVERALL = ""
"""What the health service calls the server as a whole."""
HEALTH_SERVICE = "grpc.health.v1.Health"
REFLECTION_SERVICE = "grpc.reflection.v1alpha.ServerReflection"

WATCHES_MAX = 64
REFLECTIONS_MAX = 8
"""Streams of each kind at a time."""

SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Which services of a server serve: those that were told of, and OVERALL. Any thread."""

    def __init__(self, mode: GrpcMode) -> None:
        self._mode = mode
        self._lock = native_lock()
        self._statuses: dict[str, Any] = {OVERALL: NOT_SERVING}
        self._watches: dict[Outbox, str] = {}
        self._ended = False

    def tell(self, changes: Mapping[str, bool | None]) -> None:
        """Whether each of these services serves; None: there is no such service any more."""
        with self._lock:
            if self._ended:
                return
            changed: dict[str, Any] = {}
            for service, serving in changes.items():
                status = SERVICE_UNKNOWN if serving is None else SERVING if serving else NOT_SERVING
                if status != self._statuses.get(service, SERVICE_UNKNOWN):
                    changed[service] = status
                if serving is None:
                    self._statuses.pop(service, None)
                else:
                    self._statuses[service] = status
            for outbox, service in self._watches.items():
                if service in changed:
                    outbox.put(changed[service])

    def end(self) -> None:
        """Nothing is served any more; every Watch stream ends once it has said so."""
        self.tell(dict.fromkeys(list(self._statuses), False))
        with self._lock:
            self._ended = True
            watches = list(self._watches)
        for outbox in watches:
            outbox.close()

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a gRPC server is given to serve health."""
        check = grpc.unary_unary_rpc_method_handler(
            self._check,
            request_deserializer=pb.HealthCheckRequest.FromString,
            response_serializer=pb.HealthCheckResponse.SerializeToString,
        )
        watch = grpc.unary_stream_rpc_method_handler(
            self._watch,
            request_deserializer=pb.HealthCheckRequest.FromString,
            response_serializer=pb.HealthCheckResponse.SerializeToString,
        )
        return [grpc.method_handlers_generic_handler(HEALTH_SERVICE, {"Check": check, "Watch": watch})]

    def _check(self, request: pb.HealthCheckRequest, context: grpc.ServicerContext) -> pb.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            services = ", ".join(repr(service) for service in self._statuses)
            context.abort(grpc.StatusCode.NOT_FOUND, f"health is known of {services}")
        return pb.HealthCheckResponse(status=status)

    def _watch(self, request: pb.HealthCheckRequest, context: grpc.ServicerContext) -> Iterator[pb.HealthCheckResponse]:
        outbox = self._mode.outbox()
        with self._lock:
            full = len(self._watches) >= WATCHES_MAX
            if not full:
                self._watches[outbox] = request.service
                outbox.put(self._statuses.get(request.service, SERVICE_UNKNOWN))
        if full:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{WATCHES_MAX} callers watch already: use Check")
        try:
            if self._ended or not context.add_callback(outbox.close):  # the caller is gone, or soon will be
                outbox.close()
            last: Any = None
            for status in outbox:
                while (newer := outbox.take_more()) is not None:
                    status = newer
                if status != last:
                    yield pb.HealthCheckResponse(status=status)
                last = status
        finally:
            with self._lock:
                self._watches.pop(outbox, None)


class NodeHealth:
    """Of one node, told to a server's Health: its Raft service, for calls that need a leader, and, if the server is the
    node's alone, the server as a whole. Any thread."""

    def __init__(self, health: Health, service: str, *, alone: bool) -> None:
        self._health = health
        self._service = service
        self._alone = alone
        self._running = False
        self._leader_known = False
        self._tell()

    def set_running(self, running: bool) -> None:
        """The node takes part, or begins to stop."""
        self._running = running
        self._tell()

    def set_leader_known(self, known: bool) -> None:
        self._leader_known = known
        self._tell()

    def end(self) -> None:
        """The node serves nothing any more."""
        if self._alone:
            self._health.end()
        else:
            self._health.tell({self._service: None})

    def _tell(self) -> None:
        overall = {OVERALL: self._running} if self._alone else {}
        self._health.tell({**overall, self._service: self._running and self._leader_known})


class Reflection:
    """Tells callers such as grpcurl which services and messages there are."""

    def __init__(self, *services: str) -> None:
        self._services = (*services, REFLECTION_SERVICE)
        self._lock = native_lock()
        self._streams = 0
        self._servicer: Any = None

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a gRPC server is given to serve reflection."""
        info = grpc.stream_stream_rpc_method_handler(
            self._info,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return [grpc.method_handlers_generic_handler(REFLECTION_SERVICE, {"ServerReflectionInfo": info})]

    def _info(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        with self._lock:
            full = self._streams >= REFLECTIONS_MAX
            self._streams += not full
        if full:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{REFLECTIONS_MAX} callers ask already: try again")
        try:
            if self._servicer is None:
                # Here and not above: it brings asyncio with it, which a node that nobody asks need not load.
                from grpc_reflection.v1alpha.reflection import ReflectionServicer

                self._servicer = ReflectionServicer(self._services)
            yield from self._servicer.ServerReflectionInfo(requests, context)
        finally:
            with self._lock:
                self._streams -= 1
