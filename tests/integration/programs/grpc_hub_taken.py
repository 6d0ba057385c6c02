"""A patched host that has bound gRPC's gevent mode to its own hub before it starts a node."""

# ruff: noqa: E402  (what is patched must be patched before it is imported)

from gevent import monkey

monkey.patch_all()

from grpc.experimental import gevent as grpc_gevent

from geraft import MemoryRepository, MemoryStorage, RaftNode, to_raft_app
from geraft.errors import GrpcHubTaken
from geraft.kv import KeyValueApp

grpc_gevent.init_gevent()
node = RaftNode(
    to_raft_app(KeyValueApp(), MemoryRepository()), MemoryStorage(), id="n1", bootstrap={"n1": "127.0.0.1:1"}
)
try:
    node.start()
except GrpcHubTaken as error:
    print("refused:", error)
