"""gRPC in and out. Sees only the core's data types; what it needs of the node stands in `services.Services`.

transport   Transport: the node's end of everything below
server      RaftHandlers: the RPCs; RaftServer: the listening gRPC server
peer        PeerLink: one channel and two streams to one peer
calls       callers' writes and reads: CallStream (the asking end), CallSession (the answering end)
codec       core messages <-> protobuf; nothing undecodable passes
groups      which of several groups behind one address a call is meant for
failures    geraft's errors <-> pb.Failure and gRPC status
grpc_mode   native threads or greenlets: the two ways in which gRPC runs
"""

import os

# gRPC's fork handlers abort one in ten children of a patched process, and nothing here uses gRPC across a fork.
# Read once, when grpc is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# A peer that goes away is no news for the host's stderr: geraft logs it through logging. Set it to INFO to see more.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
