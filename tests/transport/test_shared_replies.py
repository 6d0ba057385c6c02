"""Where a node answers on streams that many groups share: on the newest one that is left."""

from __future__ import annotations

import threading
from typing import Any

from transport_harness import CLUSTER, CONFIG, Peer

from geraft.core.entries import EntryId
from geraft.core.messages import Heartbeat, HeartbeatReply
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import acquire_hub, release_hub
from geraft.transport.grpc_mode import mode_for
from geraft.transport.pulse import Pulse, RestOffer
from geraft.transport.server import RaftHandlers

HEADER = pb.Header(cluster_id=CLUSTER, sender="n2", receiver="n1", sender_store="store-n2", term=1)
HEARTBEAT = Heartbeat(sender="n2", sender_store="store-n2", term=1, commit_index=0, round=1)


class Stream:
    """What was answered on it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def put(self, encoded: bytes) -> None:
        self.sent.append(encoded)

    def close(self) -> None:
        pass


class Taken(tuple[Stream, ...]):
    """Streams that end; while that is told, a new one takes the place of an old one, in another thread."""

    def __new__(cls, streams: Any, meanwhile: Any) -> Taken:
        made = super().__new__(cls, streams)
        made.thread = threading.Thread(target=meanwhile)
        return made

    thread: threading.Thread

    def __contains__(self, stream: object) -> bool:
        if super().__contains__(stream):
            if not self.thread.ident:
                self.thread.start()
                self.thread.join(0.2)
            return True
        return False


def test_a_stream_that_ends_takes_nothing_from_the_one_that_takes_its_place() -> None:
    hub = acquire_hub()
    node = Peer("n1", hub=hub, start=False)
    handlers = RaftHandlers(node, mode_for(hub), CONFIG, "g")
    try:
        old, new = Stream(), Stream()
        offer = RestOffer(sender="n2", term=1, last_entry=EntryId(1, 1), number=1, pulse=Pulse(lambda run: None))
        assert handlers.take(HEADER, HEARTBEAT, old) == handlers.take(HEADER, offer, old) == ""

        def take_over() -> None:
            handlers.take(HEADER, HEARTBEAT, new)
            handlers.take(HEADER, offer, new)

        gone = Taken([old], take_over)
        handlers.forget(gone)
        gone.thread.join(10)
        handlers.answer_rest("n2", 1, 1, True)
        handlers.reply("n2", HeartbeatReply(sender="n1", sender_store="store-n1", term=1, round=1))
        assert len(new.sent) == 2
        assert not old.sent
        handlers.forget((new,))
        handlers.answer_rest("n2", 1, 1, False)
        assert len(new.sent) == 2
    finally:
        node.stop()
        release_hub(hub)
