"""A node on a gRPC server that is yours, beside services of your own, on one port.

    server = run_in_grpc(lambda: grpc.server(grpc_executor(), options=raft_server_options()))
    node = make_raft_service(server, app, storage, id="n1", address="10.0.0.1:7001", bootstrap={...})
    add_GreeterServicer_to_server(Greeter(node), server)
    server.add_insecure_port("10.0.0.1:7001")
    node.start()
    run_in_grpc(server.start)

docs/services.md has the whole of it. In an unpatched process run_in_grpc only calls what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from typing import Any, TypeVar

import grpc
from gevent import monkey

from geraft.app import RaftApp
from geraft.config import Config
from geraft.node import RaftNode
from geraft.runtime.hub import HubThread, acquire_hub, fork_generation
from geraft.storage.base import RaftStorage
from geraft.transport.grpc_mode import GreenletExecutor, ThreadExecutor
from geraft.transport.server import RPCS_MAX, server_options

T = TypeVar("T")

_hub: tuple[int, HubThread] | None = None  # of a patched process, with the fork that it belongs to


def make_raft_service(
    server: grpc.Server,
    app: RaftApp,
    storage: RaftStorage,
    *,
    id: str,
    address: str,
    bootstrap: Mapping[str, str] | None = None,
    cluster_name: str = "",
    join: Iterable[str] | None = None,
    learner: bool = False,
    config: Config | None = None,
) -> RaftNode:
    """A node whose RPCs the server serves, beside whatever else it serves; to be started like any other node.

    server: not started yet, made with raft_server_options(); you start and stop it. address: "host:port" under which
    the server will be reached. All else is as for RaftNode; with join, start the server before the node, as the leader
    must reach it. Before the node starts and after it stopped, the server
    answers calls to it with NodeStopped. Stop the node before the server, so that leadership is handed over.

    Where something can be seen to be missing it is logged: too few threads, or a server that refuses large messages.
    """
    return RaftNode(
        app,
        storage,
        id=id,
        listen=address,
        bootstrap=bootstrap,
        cluster_name=cluster_name,
        join=join,
        learner=learner,
        config=config,
        server=server,
    )


def raft_server_options(config: Config | None = None) -> list[tuple[str, Any]]:
    """Options that a gRPC server needs to serve a node: how large messages may be, and how often peers may ping."""
    return list(server_options((config or Config()).message_bytes_max))


def grpc_executor(workers_max: int = RPCS_MAX) -> futures.Executor:
    """What to make a gRPC server with: threads made when needed, which keep no interpreter from ending; greenlets in a
    patched process."""
    return GreenletExecutor() if _patched() else ThreadExecutor(workers_max)


def run_in_grpc(run: Callable[..., T], *args: Any, timeout_seconds: float = 30.0) -> T:
    """Call it where gRPC may be used, and give what it gives: here, or in a patched process on geraft's own hub.

    There gRPC belongs to one hub of the process: make, start and stop servers and channels through this. Blocks until
    it is done; raises what it raises, GrpcHubTaken, and GeraftError if it took longer than timeout_seconds.
    """
    if not _patched():
        return run(*args)
    global _hub
    if _hub is None or _hub[0] != fork_generation():
        _hub = (fork_generation(), acquire_hub())
    result: T = _hub[1].call(run, *args, timeout_seconds=timeout_seconds)
    return result


def _patched() -> bool:
    return bool(monkey.is_module_patched("threading"))
