"""geraft: a Raft toolkit on gevent whose whole API is plain blocking calls."""

import geraft.transport  # noqa: F401  # first of all: it sets what grpc reads when it is imported
from geraft.app import MakeSnapshot, RaftApp
from geraft.client import Client
from geraft.config import Config
from geraft.core.membership import Member
from geraft.host import RaftHost
from geraft.node import RaftNode
from geraft.per_process import PerProcess
from geraft.runtime.hub import Consistency
from geraft.runtime.status import ClusterInfo, NodeStatus, PeerStatus
from geraft.service import make_raft_service, raft_server_options
from geraft.simple import FileRepository, FsspecRepository, MemoryRepository, SimpleRaftApp, to_raft_app
from geraft.storage import FileStorage, MemoryStorage, RocksdbStorage, SqliteStorage
from geraft.storage.base import RaftStorage

__all__ = [
    "Client",
    "ClusterInfo",
    "Config",
    "Consistency",
    "FileRepository",
    "FileStorage",
    "FsspecRepository",
    "MakeSnapshot",
    "Member",
    "MemoryRepository",
    "MemoryStorage",
    "NodeStatus",
    "PeerStatus",
    "PerProcess",
    "RaftApp",
    "RaftHost",
    "RaftNode",
    "RaftStorage",
    "RocksdbStorage",
    "SimpleRaftApp",
    "SqliteStorage",
    "make_raft_service",
    "raft_server_options",
    "to_raft_app",
]
