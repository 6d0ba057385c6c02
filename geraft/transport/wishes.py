"""Wishes of callers for the leader, as RPCs: AddServer, RemoveServer, ChangeMembership, TransferLeadership."""

from __future__ import annotations

from typing import Any

from geraft import records
from geraft.core.membership import (
    AddServer,
    Configuration,
    DemoteServer,
    Member,
    PromoteServer,
    RemoveServer,
    ReplaceMembers,
)
from geraft.errors import ConfigError
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import monotonic
from geraft.runtime.wishes import Change, Transfer, Wish
from geraft.transport import addresses, codec
from geraft.transport.codec import BadMessage

TIMEOUT_MS_MAX = 2**31 - 1


def encode_wish(wish: Wish, *, forwarded: bool, cluster_id: str = "") -> tuple[str, Any]:
    """The RPC that carries the wish, and its request; the time that it may take is what its deadline leaves."""
    timeout_ms = min(max(int((wish.deadline - monotonic()) * 1000), 1), TIMEOUT_MS_MAX)
    limits: dict[str, Any] = {"timeout_ms": timeout_ms, "forwarded": forwarded}
    if isinstance(wish, Transfer):
        return "TransferLeadership", pb.TransferLeadershipReq(target=wish.target, **limits)
    assert isinstance(wish, Change), "there are no other wishes"
    match wish.change:
        case AddServer() as add:
            record = pb.AddServerReq(
                id=add.id,
                address=add.address,
                store_id=add.store_id,
                learner=add.learner,
                cluster_id=cluster_id,
                **limits,
            )
            return "AddServer", record
        case RemoveServer():
            return "RemoveServer", pb.RemoveServerReq(id=wish.change.id, **limits)
        case PromoteServer():
            return "ChangeMembership", pb.ChangeMembershipReq(promote=wish.change.id, **limits)
        case DemoteServer():
            return "ChangeMembership", pb.ChangeMembershipReq(demote=wish.change.id, **limits)
        case ReplaceMembers():
            return "ChangeMembership", pb.ChangeMembershipReq(
                voters=[pb.Member(id=member.id, address=member.address) for member in wish.change.voters],
                learners=[pb.Member(id=member.id, address=member.address) for member in wish.change.learners],
                **limits,
            )


def decode_answer(wish: Wish, encoded: bytes) -> Configuration | None:
    """What the caller is answered: the members as they are now, or nothing for a transfer. Raises BadMessage."""
    if isinstance(wish, Transfer):
        return None
    try:
        return records.decode_configuration(codec.parse(pb.MembershipRep.FromString, encoded).configuration)
    except records.BadRecord as error:
        raise BadMessage(f"the configuration is none: {error}") from None


def decode_add(record: pb.AddServerReq, deadline: float) -> Change:
    change = AddServer(
        id=_checked_id(record.id),
        address=_checked_address(record.address),
        store_id=_checked_name(record.store_id),
        learner=record.learner,
    )
    return Change(change, deadline, forwarded=record.forwarded)


def decode_remove(record: pb.RemoveServerReq, deadline: float) -> Change:
    return Change(RemoveServer(id=_checked_id(record.id)), deadline, forwarded=record.forwarded)


def decode_change(record: pb.ChangeMembershipReq, deadline: float) -> Change:
    given = [bool(record.promote), bool(record.demote), bool(record.voters or record.learners)]
    if sum(given) != 1:
        raise BadMessage("name one of: whom to promote, whom to demote, or all members")
    change: PromoteServer | DemoteServer | ReplaceMembers
    if record.promote:
        change = PromoteServer(id=_checked_id(record.promote))
    elif record.demote:
        change = DemoteServer(id=_checked_id(record.demote))
    else:
        change = ReplaceMembers(
            voters=tuple(_checked_member(member) for member in record.voters),
            learners=tuple(_checked_member(member) for member in record.learners),
        )
    return Change(change, deadline, forwarded=record.forwarded)


def decode_transfer(record: pb.TransferLeadershipReq, deadline: float) -> Transfer:
    return Transfer(_checked_name(record.target), deadline, forwarded=record.forwarded)


def _checked_member(record: pb.Member) -> Member:
    return Member(_checked_id(record.id), _checked_address(record.address) if record.address else "")


def _checked_id(id: str) -> str:
    if not id or len(id) > 255 or any(character in id for character in ",= \t\n"):
        raise BadMessage(f"a node id is 1 to 255 characters without spaces, commas and equal signs, not {id!r}")
    return id


def _checked_name(name: str) -> str:
    if len(name) > codec.NAME_CHARACTERS_MAX:
        raise BadMessage(f"a name is longer than {codec.NAME_CHARACTERS_MAX} characters")
    return name


def _checked_address(address: str) -> str:
    try:
        _, port = addresses.split(address)
    except ConfigError as error:
        raise BadMessage(str(error)) from None
    if port == 0:
        raise BadMessage(f"nobody can be reached at port 0 ({address})")
    return address
