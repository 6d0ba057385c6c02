"""The crossing between threads: every answer arrives once, whoever waits, and no loop loses count."""

from __future__ import annotations

import gc
import threading
import time
import traceback
from collections.abc import Iterator
from functools import partial
from typing import Any

import gevent
import pytest
from runtime_parts import PATCH, in_thread, run_script, wait_until

from geraft.errors import NodeStopped, OutcomeUnknown
from geraft.runtime.hub import (
    Call,
    CallKind,
    HubThread,
    Inbox,
    RemoteCall,
    Waiter,
    acquire_hub,
    fail,
    finish,
    monotonic,
    release_hub,
)


@pytest.fixture
def hub() -> Iterator[HubThread]:
    running = acquire_hub()
    yield running
    assert release_hub(running)


def too_late() -> BaseException:
    return TimeoutError("too late")


def call(number: int = 0) -> Call:
    return Call(CallKind.APPLY, b"%d" % number, deadline=monotonic() + 60)


# Waiters


def test_a_native_thread_waits_for_its_answer() -> None:
    waiters: list[Waiter] = []

    def wait() -> Any:
        waiters.append(Waiter())
        return waiters[0].result(30, too_late)

    thread, outcome = in_thread(wait)
    wait_until(lambda: waiters)
    finish(waiters, ["answer"])
    thread.join(30)
    assert outcome == ["answer"]


def test_one_batch_answers_threads_and_greenlets_of_two_hubs() -> None:
    calls: list[Call] = []

    def wait(number: int) -> Any:
        mine = call(number)
        calls.append(mine)
        return mine.result(30, too_late)

    def many_greenlets(first: int) -> list[Any]:
        greenlets = [gevent.spawn(wait, first + number) for number in range(20)]
        gevent.joinall(greenlets)
        return [greenlet.value for greenlet in greenlets]

    native = [in_thread(partial(wait, number)) for number in range(20)]
    hubs = [in_thread(partial(many_greenlets, first)) for first in (20, 40)]
    wait_until(lambda: len(calls) == 60)
    finish(calls, [one.message for one in calls])
    for thread, _ in native + hubs:
        thread.join(30)
    found = [outcome[0] for _, outcome in native] + hubs[0][1][0] + hubs[1][1][0]
    assert found == [b"%d" % number for number in range(60)]


def test_a_batch_wakes_a_hub_and_a_remote_stream_once() -> None:
    batches: list[list[RemoteCall]] = []
    remote = [RemoteCall(CallKind.APPLY, b"", deadline=0, number=number, sink=batches.append) for number in range(100)]
    sent = []

    def greenlets() -> None:
        waiting = [gevent.spawn(lambda: calls.append(one := call()) or one.result(30, too_late)) for _ in range(100)]
        gevent.sleep(0)
        mailbox = calls[0]._home
        post = mailbox.post  # type: ignore[union-attr]
        mailbox.post = lambda *args: sent.append(1) or post(*args)  # type: ignore[union-attr, method-assign]
        mixed: list[Waiter] = [one for pair in zip(calls, remote, strict=True) for one in pair]
        finish(mixed, range(200))
        gevent.joinall(waiting)

    calls: list[Call] = []
    thread, outcome = in_thread(greenlets)
    thread.join(30)
    assert outcome == [None]
    assert sent == [1]
    assert [len(batch) for batch in batches] == [100]
    assert [one.value for one in batches[0]] == list(range(1, 200, 2))


@pytest.mark.parametrize("seconds", [0.0, 0.05, 1.05], ids=["at once", "precise", "coarse"])
@pytest.mark.parametrize("greenlet", [False, True], ids=["thread", "greenlet"])
def test_a_wait_ends_when_its_time_is_up_and_not_before(seconds: float, greenlet: bool) -> None:
    def wait() -> float:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="too late"):
            call().result(seconds, too_late)
        return time.monotonic() - began

    thread, outcome = in_thread(lambda: gevent.spawn(wait).get() if greenlet else wait())
    thread.join(30)
    assert seconds - 0.005 <= outcome[0] < seconds + 5


def test_an_answer_after_the_time_harms_nobody() -> None:
    late: list[Call] = []

    def wait() -> None:
        late.append(call())
        with pytest.raises(TimeoutError):
            late[-1].result(0.01, too_late)

    thread, outcome = in_thread(lambda: (wait(), gevent.spawn(wait).get()))
    thread.join(30)
    assert len(outcome) == 1 and not isinstance(outcome[0], BaseException)
    finish(late, [1, 2])


def test_a_greenlet_that_is_killed_or_timed_out_by_its_host_leaves_no_trace() -> None:
    def host() -> int:
        killed = gevent.spawn(lambda: call().result(60, too_late))
        gevent.sleep(0.01)
        killed.kill()
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            call().result(60, too_late)
        return gevent.get_hub()._geraft_mailbox.waiters  # type: ignore[attr-defined, no-any-return]

    thread, outcome = in_thread(lambda: gevent.spawn(host).get())
    thread.join(30)
    assert outcome == [0]


@pytest.mark.parametrize("how", ["answered", "too late"])
def test_a_raw_greenlet_that_raises_does_not_keep_the_others_waiting(how: str) -> None:
    """Errors of raw greenlets come up in whoever switched to them, which is the one that wakes the others next."""
    seconds = 30.0 if how == "answered" else 1.0

    def host() -> int:
        calls: list[Call] = []
        ended: list[int] = []

        def wait(number: int) -> None:
            calls.append(call())
            calls[-1]._home.hub.print_exception = lambda *_: None  # type: ignore[union-attr]
            try:
                calls[-1].result(seconds, lambda: OutcomeUnknown("too late"))
            finally:
                ended.append(number)

        for number in range(5):
            gevent.spawn_raw(wait, number)
        gevent.sleep(0.01)
        if how == "answered":
            fail(calls, OutcomeUnknown("lost leadership"))
        give_up = time.monotonic() + 15
        while len(ended) < 5 and time.monotonic() < give_up:
            gevent.sleep(0.01)
        return len(ended)

    thread, outcome = in_thread(lambda: gevent.spawn(host).get())
    thread.join(30)
    assert outcome == [5]


def test_those_who_fail_together_raise_their_own_traceback_and_no_cycle() -> None:
    calls = [call(), call()]
    fail(calls, OutcomeUnknown("lost leadership"))

    def lengths(one: Call) -> int:
        try:
            one.result(1, too_late)
        except OutcomeUnknown as error:
            return len(traceback.extract_tb(error.__traceback__))
        return 0

    assert lengths(calls[0]) == lengths(calls[1]) == 2
    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            failed = call()
            fail([failed], OutcomeUnknown("x"))
            with pytest.raises(OutcomeUnknown):
                failed.result(1, too_late)
        del failed
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert not [garbage for garbage in gc.garbage if isinstance(garbage, Call)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_an_answer_for_a_hub_that_has_ended_harms_nobody_else() -> None:
    """A host's thread ended, and its hub with it, while a greenlet of it still waited."""
    gone: list[Call] = []

    def host() -> None:
        gevent.spawn(lambda: gone.append(call()) or gone[0].result(60, too_late))
        gevent.sleep(0)
        gevent.get_hub().destroy(destroy_loop=True)

    thread, outcome = in_thread(host)
    thread.join(30)
    assert outcome == [None] and gone
    alive = call()
    finish([gone[0], alive], [1, 2])
    assert alive.result(5, too_late) == 2


# Inbox and mailbox


def test_an_inbox_hammered_by_threads_loses_nothing_and_the_loop_keeps_count(hub: HubThread) -> None:
    """Six threads put, and a timer expires all the while: what breaks a loop that is touched from other threads."""
    inbox: Inbox = hub.call(hub.inbox)
    hub.call(gevent.sleep, 0.05)
    count_before = hub.call(lambda: hub.hub.loop.activecnt)
    taken: list[tuple[int, int]] = []
    per_thread = 40_000

    def loop() -> None:
        while len(taken) < 6 * per_thread:
            inbox.wait()
            for _ in range(len(inbox.items)):
                taken.append(inbox.items.popleft())

    def timers() -> None:
        while len(taken) < 6 * per_thread:
            gevent.sleep(0.0001)

    def put(thread: int) -> None:
        for number in range(per_thread):
            inbox.put((thread, number))
            if number % 1000 == 0:
                hub.post(lambda: None)
                time.sleep(0.0005)  # the loop falls asleep in between

    hub.spawn(loop)
    hub.spawn(timers)
    putters = [in_thread(partial(put, thread)) for thread in range(6)]
    for thread, outcome in putters:
        thread.join(100)
        assert outcome == [None]
    wait_until(lambda: len(taken) == 6 * per_thread)
    for number in range(6):  # of each putter in order
        assert [item for item in taken if item[0] == number] == [(number, each) for each in range(per_thread)]
    hub.call(gevent.sleep, 0.05)
    assert hub.call(lambda: hub.hub.loop.activecnt) == count_before


def test_each_put_wakes_a_sleeping_loop(hub: HubThread) -> None:
    """One at a time, so that a lost wake-up could not be made good by the next."""
    inbox: Inbox = hub.call(hub.inbox)

    def loop() -> None:
        while True:
            inbox.wait()
            while inbox.items:
                finish([inbox.items.popleft()], [None])

    hub.spawn(loop)
    for _ in range(3000):
        waiter = Waiter()
        inbox.put(waiter)
        assert waiter.wait(10), "a wake-up was lost"


def test_quiet_news_is_taken_with_the_next_that_is_loud(hub: HubThread) -> None:
    inbox: Inbox = hub.call(hub.inbox)
    taken: list[str] = []

    def loop() -> None:
        while True:
            inbox.wait()
            while inbox.items:
                taken.append(inbox.items.popleft())

    hub.spawn(loop)
    hub.call(gevent.sleep, 0)
    inbox.put_quietly("quiet")
    hub.call(gevent.sleep, 0.01)
    assert taken == []
    inbox.put("loud")
    wait_until(lambda: taken == ["quiet", "loud"])


def test_each_item_of_a_closed_inbox_belongs_to_one_only(hub: HubThread) -> None:
    """Putters race against the close: each finds its item its own, or the closer has it; never both, never neither."""
    for _ in range(20):
        inbox: Inbox = hub.call(hub.inbox)
        kept: list[object] = []
        put: list[object] = []
        going = threading.Event()

        def putter(
            inbox: Inbox = inbox, kept: list[object] = kept, put: list[object] = put, going: threading.Event = going
        ) -> None:
            for _ in range(100_000):
                item = object()
                put.append(item)
                inbox.put(item)
                if inbox.closed:
                    if inbox.take_back(item):
                        kept.append(item)
                    return
                if len(put) > 200:
                    going.set()

        putters = [in_thread(putter) for _ in range(4)]
        assert going.wait(20)
        left = hub.call(inbox.close)
        for thread, outcome in putters:
            thread.join(30)
            assert outcome == [None]
        assert sorted(map(id, left + kept)) == sorted(map(id, put))
        assert hub.call(inbox.close) == []
        inbox.put("late")


def test_a_function_that_raises_in_the_hub_does_not_hold_up_the_next(hub: HubThread) -> None:
    ran: list[str] = []
    hub.hub.handle_error = lambda *_: ran.append("error")

    def leave() -> None:
        raise gevent.GreenletExit

    def post_together() -> None:
        hub.post(leave)
        hub.post(ran.append, "next")

    hub.call(post_together)
    wait_until(lambda: ran == ["error", "next"])


# The hub thread


def test_call_gives_results_and_errors_from_threads_and_greenlets(hub: HubThread) -> None:
    def refuse() -> None:
        raise KeyError("no")

    for run in (lambda: hub.call(lambda: 7), lambda: gevent.spawn(hub.call, lambda: 7).get()):
        assert run() == 7
    with pytest.raises(KeyError):
        hub.call(refuse)
    with pytest.raises(Exception, match="sleep took longer than"):
        hub.call(gevent.sleep, 5, timeout_seconds=0.05)


def test_a_hub_is_stopped_by_several_threads_and_greenlets() -> None:
    """Also by greenlets of another hub than the one it was started from."""
    hub = gevent.spawn(acquire_hub).get()
    stoppers = [in_thread(partial(hub.stop, 20.0)) for _ in range(4)]
    assert gevent.spawn(hub.stop, 20.0).get()
    for thread, outcome in stoppers:
        thread.join(30)
        assert outcome == [True]
    assert hub.stop(20.0)
    with pytest.raises(NodeStopped):
        hub.post(lambda: None)
    hub._mailbox.post(lambda: None)  # of one who had checked before


SCRIPT_IMPORTS = """
import gevent, os, sys, time
from runtime_parts import Journal, lone_node, wait_until
from geraft.errors import NodeForked, NodeStopped
from geraft.runtime import hub as crossing
"""


@pytest.mark.parametrize("patch", ["", PATCH], ids=["unpatched", "patched"])
def test_a_node_made_before_a_fork_runs_in_the_child(patch: str) -> None:
    """As with a server that loads the application first and forks its workers then."""
    done = run_script(
        patch
        + SCRIPT_IMPORTS
        + """
node = lone_node()
child = os.fork()
if child == 0:
    node.start()
    assert node.apply(b"x", 30)
    node.stop()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
node.start()
assert node.apply(b"x", 30)
"""
    )
    assert done.returncode == 0, done.stderr


def test_a_started_node_is_refused_in_a_forked_child_and_runs_on_in_the_parent() -> None:
    done = run_script(
        SCRIPT_IMPORTS
        + """
with lone_node() as node:
    node.apply(b"x", 30)
    child = os.fork()
    if child == 0:
        began = time.monotonic()
        for call in (lambda: node.apply(b"x"), lambda: node.read(b"x"), node.status, node.wait_for_leader):
            try:
                call()
            except NodeForked as error:
                assert "start nodes after the fork" in str(error)
            else:
                os._exit(1)
        node.stop()
        os._exit(7 if time.monotonic() - began < 5 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    node.apply(b"y", 30)
"""
    )
    assert done.returncode == 0, done.stderr


def test_nodes_of_a_patched_process_share_a_hub_that_outlives_them() -> None:
    """Started by greenlets of one thread at once; one fails, one stops, and another starts."""
    done = run_script(
        PATCH
        + SCRIPT_IMPORTS
        + """
import logging; logging.disable(logging.CRITICAL)
nodes = [lone_node(id=f"n{number}") for number in range(4)]
gevent.joinall([gevent.spawn(node.start) for node in nodes], timeout=30, raise_error=True)
assert [node.apply(b"x", 30) for node in nodes]
assert len({node._supervisor._hub for node in nodes}) == 1
hub = nodes[0]._supervisor._hub
count = hub.call(lambda: hub.hub.loop.activecnt)
nodes[0]._supervisor.failed(OSError("broken"))
try:
    nodes[0].apply(b"y")
    sys.exit("it goes on")
except NodeStopped as error:
    assert "broken" in str(error)
nodes[1].stop()
assert nodes[2].apply(b"y", 30) and nodes[3].apply(b"y", 30)
for node in nodes:
    node.stop()
with lone_node(id="n9") as node:
    assert node.apply(b"z", 30)
    assert node._supervisor._hub is hub
assert not hub.call(lambda: [g for g in __import__("gc").get_objects()
                             if isinstance(g, gevent.Greenlet) and not g.dead and "NodeLoop" in repr(g)])
print("well")
"""
    )
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr


def test_greenlets_of_a_patched_process_wait_for_one_another() -> None:
    done = run_script(
        PATCH
        + SCRIPT_IMPORTS
        + """
with lone_node() as node:
    node.wait_for_leader(30)
    hub = node._supervisor._hub
    gevent.sleep(0.2)
    counts = [(gevent.get_hub().loop.activecnt, hub.call(lambda: hub.hub.loop.activecnt))]
    greenlets = [gevent.spawn(lambda: [node.apply(b"x", 30) for _ in range(20)]) for _ in range(100)]
    gevent.joinall(greenlets, raise_error=True)
    gevent.sleep(0.2)
    counts.append((gevent.get_hub().loop.activecnt, hub.call(lambda: hub.hub.loop.activecnt)))
    assert counts[0] == counts[1], counts
print("well")
"""
    )
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr


ENDINGS: dict[str, str] = {
    "running": "",
    "failed": "node._supervisor.failed(OSError('broken'))",
    "stopped": "node.stop()",
    "not started": "node.stop(); node = lone_node()",
    "an app that hangs": "app.on_write = lambda *_: time.sleep(100)\\n"
    "import _thread; _thread.start_new_thread(lambda: node.apply(b'y', 100), ()); time.sleep(0.2)",
    "a start that hangs": "app.on_install = lambda: time.sleep(100); other = lone_node(app)\\n"
    "import _thread; _thread.start_new_thread(other.start, ()); time.sleep(0.2)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_process_ends_whatever_its_node_does(ending: str) -> None:
    done = run_script(
        SCRIPT_IMPORTS
        + "import logging; logging.disable(logging.CRITICAL)\n"
        + "app = Journal(); node = lone_node(app).start(); node.apply(b'x', 30)\n"
        + ENDINGS[ending].replace("\\n", "\n")
        + "\nprint('end', flush=True)",
        timeout_seconds=60,
    )
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr
