"""Questions of a node to servers that it knows by address only: seeds, as long as it is no member, and members."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from geraft.config import Config
from geraft.errors import GeraftError, Unreachable
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import HubThread, Waiter, fail, finish
from geraft.runtime.wishes import Wish
from geraft.transport import failures
from geraft.transport.groups import metadata_of
from geraft.transport.grpc_mode import LazyChannel, mode_for
from geraft.transport.peer import channel_options
from geraft.transport.wishes import encode_wish

A = TypeVar("A")

PROBE_SECONDS = 2.0
"""How long a seed is waited for."""
GRACE_SECONDS = 0.3


class Seeds:
    """Asks one server after another over channels of its own. Blocks; for any thread, and any greenlet.

    group: which of the servers' groups is meant.
    """

    def __init__(self, hub: HubThread, config: Config, dial: Mapping[str, str], group: str = "") -> None:
        self._dial = dial
        self._metadata = metadata_of(group)
        self._mode = mode_for(hub)
        self._options = channel_options(int(config.message_bytes_max))

    def cluster_infos(
        self, addresses: Iterable[str], timeout_seconds: float = PROBE_SECONDS
    ) -> tuple[list[pb.ClusterInfoRep], list[str]]:
        """What those say that answer, and why the others do not."""
        asked = [
            (address, self._begin(address, "RequestClusterInfo", pb.ClusterInfoReq(), timeout_seconds))
            for address in addresses
        ]
        answers, reasons = [], []
        for address, waiter in asked:
            try:
                answers.append(self._end(address, waiter, pb.ClusterInfoRep, timeout_seconds))
            except GeraftError as error:
                reasons.append(str(error))
        return answers, reasons

    def fulfil(self, address: str, wish: Wish, cluster_id: str, timeout_seconds: float) -> None:
        """Ask the server, which forwards it to the leader. Raises what it answers, or Unreachable."""
        method, record = encode_wish(wish, forwarded=False, cluster_id=cluster_id)
        record.timeout_ms = int(timeout_seconds * 1000)
        self._end(address, self._begin(address, method, record, timeout_seconds), pb.MembershipRep, timeout_seconds)

    def _begin(self, address: str, method: str, record: Any, timeout_seconds: float) -> Waiter:
        waiter = Waiter()
        self._mode.enter(self._ask, waiter, address, method, record, timeout_seconds, name="geraft seed")
        return waiter

    def _end(self, address: str, waiter: Waiter, kind: type[A], timeout_seconds: float) -> A:
        encoded = waiter.result(
            timeout_seconds + 2 * GRACE_SECONDS, lambda: Unreachable(f"{address}: no answer in time")
        )
        try:
            answer: A = kind.FromString(encoded)  # type: ignore[attr-defined]
        except DecodeError:
            raise Unreachable(f"{address}: the answer is none of a geraft node") from None
        return answer

    def _ask(self, waiter: Waiter, address: str, method: str, record: Any, timeout_seconds: float) -> None:
        """Where gRPC may be used."""
        channel = LazyChannel(self._dial.get(address, address), self._options)

        def done(future: Any) -> None:
            try:
                finish([waiter], [future.result()])
            except grpc.RpcError as error:
                fail([waiter], failures.error_from_rpc(error, address))
            except grpc.FutureCancelledError:
                fail([waiter], Unreachable(f"{address}: the connection was closed"))
            finally:
                self._mode.spawn(channel.close, name="geraft seed close")

        rpc: Any = channel.get().unary_unary(f"/geraft.Raft/{method}")
        future = rpc.future(
            record.SerializeToString(), timeout=timeout_seconds + GRACE_SECONDS, metadata=self._metadata
        )
        future.add_done_callback(done)
