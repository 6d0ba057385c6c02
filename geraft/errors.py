"""Every exception geraft raises. What a caller may do next is told by three families:

    NothingHappened   nothing was appended and nothing will be: retry freely
    Rejected          the request itself is wrong: retrying it unchanged is pointless
    OutcomeUnknown    it may have happened, or still happen

Beside them stand StartRefused (a node that would not start) and StorageError (what is wrong with a store).
"""

from __future__ import annotations


class GeraftError(Exception):
    """Whatever geraft raises."""


# What can come of a call ---------------------------------------------------------------------------------------------


class NothingHappened(GeraftError):
    """Nothing was appended to the log and nothing will be. Retry freely."""


class NotLeader(NothingHappened):
    """The node asked is not the leader and did not forward the call. Ask leader_address, if it is known."""

    def __init__(self, message: str, *, leader_id: str = "", leader_address: str = "") -> None:
        super().__init__(message)
        self.leader_id = leader_id
        self.leader_address = leader_address


class NoLeader(NothingHappened):
    """No leader is known; the message says why as far as this node can tell ("1 of 3 voters answers")."""


class ProposalDropped(NothingHappened):
    """The leader did not take the command: too much waits for commitment, or leadership is being handed over."""


class ReadTimeout(NothingHappened, TimeoutError):
    """A read or a status question was not answered in time. Reads change nothing."""


class NodeStopped(NothingHappened):
    """The node is not running: never started, stopped, or failed. The message and `cause` say why."""

    def __init__(self, message: str, *, cause: BaseException | None = None) -> None:
        super().__init__(message)
        self.cause = cause


class NodeForked(NothingHappened):
    """The node was started in another process: a forked child must start one of its own."""


class MembershipPending(NothingHappened):
    """Another change of the membership is under way. Wait until it has ended, then ask again."""


class CatchUpFailed(NothingHappened):
    """A server did not answer or did not catch up, so it is no voter; one that came in for this is out again."""


class TransferFailed(NothingHappened):
    """Leadership stayed where it was."""


class SnapshotFailed(NothingHappened):
    """No snapshot was made; the log stays as it is."""


class Unreachable(NothingHappened):
    """No server answered under the addresses given."""


class UnknownGroup(NothingHappened):
    """The server asked has no node of the group that was named; the message says which it has."""


class Rejected(GeraftError):
    """The request is wrong as it stands; the message says what to change."""


class ConfigError(Rejected, ValueError):
    """A setting has a value it must not have."""


class CommandTooLarge(Rejected, ValueError):
    """The command is larger than Config.command_bytes_max."""


class MembershipRefused(Rejected):
    """The membership can't be changed so; the message says why and what to do."""


class ReadFailed(Rejected):
    """The app's process_read raised; the message carries what it said."""


class AnswerForgotten(GeraftError):
    """The write of a session happened, once, but its answer is not known any more: it was too large to be kept."""


class OutcomeUnknown(GeraftError, TimeoutError):
    """The write may have happened, or may still happen: the caller timed out, or leadership was lost meanwhile.

    Retry only what is safe to do twice. may_still_happen: False if it can only have happened before.
    """

    may_still_happen = True


class SessionExpired(OutcomeUnknown):
    """The session of the write is not known any more: others were opened, and it was used longest ago of all.

    The write is not applied by this attempt, nor by a later one. An earlier attempt may have been, before the session
    expired.
    """

    may_still_happen = False


# What keeps a node from starting -------------------------------------------------------------------------------------


class StartRefused(GeraftError):
    """The node did not start, and changed nothing."""


class AddressInUse(StartRefused):
    """Another process, or another node, listens on the address."""


class BootstrapRefused(StartRefused):
    """The store already holds the state of a cluster, or holds none and no bootstrap list was given."""


class JoinRefused(StartRefused):
    """The cluster does not let this node in: its store holds other state, or its id or address is taken."""


class RecoveryRefused(StartRefused):
    """The store holds nothing that a cluster could go on with."""


class GrpcHubTaken(StartRefused):
    """gRPC's gevent mode belongs to another hub of this process (see docs/gevent.md)."""


# What can be wrong with a store --------------------------------------------------------------------------------------


class StorageError(GeraftError):
    """Something is wrong with a store. path: the file, "" if there is none."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class StorageLocked(StorageError):
    """A live process holds the store."""


class StorageCorrupt(StorageError):
    """What is stored can't be what was written."""


class StorageForeign(StorageError):
    """The store belongs to another node or cluster, or is no geraft store."""


class StorageFormatTooNew(StorageError):
    """A newer geraft wrote the store."""


class StorageFailed(StorageError):
    """A read or a write failed or hung: full disk, read-only file system, broken device."""


class LogGap(StorageError):
    """An append would leave a gap in the log."""


class CompactionRefused(StorageError):
    """No snapshot reaches as far as the log was to be cut: its entries would be lost."""
