"""geraft's errors over the wire: as pb.Failure, and as a gRPC status with the failure beside it."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError

from geraft import errors
from geraft.errors import GeraftError, NotLeader, OutcomeUnknown, UnknownGroup, Unreachable
from geraft.pb import geraft_pb2 as pb

FAILURE_KEY = "geraft-failure-bin"
"""Trailing metadata that carries the pb.Failure of a unary call or of a stream that was refused."""

SENTENCE_CHARACTERS_MAX = 2000
"""Of a failure's message: it travels in metadata, whose size is limited."""

_CLASSES: dict[str, type[GeraftError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, GeraftError)
}


def failure_from_error(error: BaseException) -> pb.Failure:
    """The error as it travels. One that is not geraft's goes as OutcomeUnknown: nobody can tell what it left behind."""
    sentence = str(error)[:SENTENCE_CHARACTERS_MAX]
    if not isinstance(error, GeraftError):
        return pb.Failure(error=OutcomeUnknown.__name__, message=f"{type(error).__name__}: {sentence}")
    kind: type = type(error)
    while kind.__name__ not in _CLASSES:  # a subclass of the host's travels as the one of ours it extends
        kind = kind.__mro__[1]
    failure = pb.Failure(error=kind.__name__, message=sentence)
    if isinstance(error, NotLeader):
        failure.leader_id = error.leader_id
        failure.leader_address = error.leader_address
    return failure


def error_from_failure(failure: pb.Failure) -> GeraftError:
    """The error again. One that this version doesn't know becomes OutcomeUnknown, the careful reading."""
    kind = _CLASSES.get(failure.error)
    if kind is None:
        return OutcomeUnknown(f"{failure.error}: {failure.message}")
    if issubclass(kind, NotLeader):
        return kind(failure.message, leader_id=failure.leader_id, leader_address=failure.leader_address)
    return kind(failure.message)


def status_from_error(error: BaseException) -> grpc.StatusCode:
    """The status a unary call ends with, so that a caller without geraft can tell the families apart."""
    if isinstance(error, NotLeader | errors.SessionExpired):
        return grpc.StatusCode.FAILED_PRECONDITION
    if isinstance(error, UnknownGroup):
        return grpc.StatusCode.NOT_FOUND
    if isinstance(error, errors.ProposalDropped):
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    if isinstance(error, errors.ReadTimeout | OutcomeUnknown):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    if isinstance(error, errors.NothingHappened):
        return grpc.StatusCode.UNAVAILABLE
    if isinstance(error, errors.Rejected):
        return grpc.StatusCode.INVALID_ARGUMENT
    return grpc.StatusCode.INTERNAL


def abort(context: grpc.ServicerContext, error: BaseException) -> None:
    """End the RPC with the error; raises."""
    failure = failure_from_error(error)
    refuse(context, status_from_error(error), failure)


def refuse(context: grpc.ServicerContext, status: grpc.StatusCode, failure: pb.Failure) -> None:
    """End the RPC with this status and failure; raises."""
    context.set_trailing_metadata(((FAILURE_KEY, failure.SerializeToString()),))
    context.abort(status, failure.message)


def error_from_rpc(error: Any, address: str, *, sent: bool = False) -> GeraftError:
    """What a failed unary call means: the failure beside its status, or else a connection that broke.

    sent: the request may have been received, and was one that changes something.
    """
    for key, value in error.trailing_metadata() or ():
        if key == FAILURE_KEY:
            try:
                told = error_from_failure(pb.Failure.FromString(value))
            except DecodeError:
                break
            if isinstance(told, UnknownGroup) and address not in str(told):
                return UnknownGroup(f"{address}: {told}")  # it matters who said so: another server may have the group
            return told
    sentence = f"{address}: {reason_of(error)}"
    return OutcomeUnknown(sentence) if sent else Unreachable(sentence)


def never_connected(error: Any) -> bool:
    """Whether the RPC failed before anything could be sent."""
    return str(error.details()).startswith("failed to connect to all addresses")


def reason_of(error: Any) -> str:
    """Why an RPC failed, in short, for people."""
    try:
        details, code = error.details(), error.code()
    except AttributeError:
        return str(error) or type(error).__name__
    if code is None:
        return str(details)
    if str(details).startswith("failed to connect to all addresses"):
        return str(details).rpartition(": ")[2]  # what the system said of the last one: "Connection refused"
    return f"{code.name}: {details}"
