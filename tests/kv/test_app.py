"""The key-value app: its answers, what it refuses, lists beside writes, and its snapshot."""

from __future__ import annotations

import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geraft.kv import (
    CommandReply,
    KeyValueApp,
    compare_and_set,
    decode_command_reply,
    decode_pairs,
    decode_value,
    delete,
    get,
    list_pairs,
    put,
)


def write(app: KeyValueApp, command: bytes) -> CommandReply:
    return decode_command_reply(app.process_write(command, 1))


def value_of(app: KeyValueApp, key: str) -> bytes | None:
    return decode_value(app.process_read(get(key)))


def pairs_of(app: KeyValueApp, prefix: str = "", limit: int = 0) -> list[tuple[str, bytes]]:
    return decode_pairs(app.process_read(list_pairs(prefix, limit)))


def test_a_put_tells_whether_a_value_was_there() -> None:
    app = KeyValueApp()
    assert write(app, put("a", b"1")) == CommandReply(done=False)
    assert write(app, put("a", b"2")) == CommandReply(done=True)
    assert value_of(app, "a") == b"2"


def test_empty_keys_and_values_are_keys_and_values() -> None:
    app = KeyValueApp()
    write(app, put("", b""))
    assert value_of(app, "") == b""
    assert value_of(app, "other") is None
    assert write(app, delete("")) == CommandReply(done=True)


def test_a_delete_tells_whether_the_key_existed() -> None:
    app = KeyValueApp()
    write(app, put("a", b"1"))
    assert write(app, delete("a")) == CommandReply(done=True)
    assert write(app, delete("a")) == CommandReply(done=False)
    assert value_of(app, "a") is None


def test_compare_and_set_sets_only_what_is_as_expected() -> None:
    app = KeyValueApp()
    assert write(app, compare_and_set("a", b"", b"no")) == CommandReply(done=False)
    assert write(app, compare_and_set("a", None, b"1")) == CommandReply(done=True)
    assert write(app, compare_and_set("a", None, b"no")) == CommandReply(done=False)
    assert write(app, compare_and_set("a", b"no", b"no")) == CommandReply(done=False)
    assert write(app, compare_and_set("a", b"1", b"2")) == CommandReply(done=True)
    assert value_of(app, "a") == b"2"


@pytest.mark.parametrize(
    "command",
    [b"", b"\xff\xff", b"\x0a\x05abc", b"\x0a\x03\x0a\x01\xff"],
    ids=["empty", "noise", "cut off", "not UTF-8"],
)
def test_what_is_no_command_is_refused_and_changes_nothing(command: bytes) -> None:
    app = KeyValueApp()
    write(app, put("a", b"1"))
    reply = write(app, command)
    assert not reply.done
    assert reply.refused
    assert pairs_of(app) == [("a", b"1")]


@given(command=st.binary(max_size=40))
def test_no_bytes_make_process_write_raise(command: bytes) -> None:
    write(KeyValueApp(), command)


def test_what_is_no_query_raises() -> None:
    for query in (b"", b"\xff\xff"):
        with pytest.raises(ValueError, match="quer"):
            KeyValueApp().process_read(query)


@given(
    keys=st.sets(st.text(alphabet="abé𝄞", max_size=4)),
    prefix=st.text(alphabet="abé𝄞", max_size=2),
    limit=st.integers(0, 5),
)
def test_a_list_holds_the_keys_with_the_prefix_in_order(keys: set[str], prefix: str, limit: int) -> None:
    app = KeyValueApp()
    for key in keys:
        write(app, put(key, key.encode()))
    expected = sorted(key for key in keys if key.startswith(prefix))
    assert pairs_of(app, prefix, limit) == [(key, key.encode()) for key in (expected[:limit] if limit else expected)]


def test_a_list_follows_keys_that_come_and_go() -> None:
    app = KeyValueApp()
    write(app, put("b", b""))
    assert pairs_of(app) == [("b", b"")]
    write(app, compare_and_set("a", None, b"1"))
    assert pairs_of(app) == [("a", b"1"), ("b", b"")]
    write(app, delete("b"))
    assert pairs_of(app) == [("a", b"1")]
    app.restore(None)
    assert pairs_of(app) == []


def test_a_list_beside_writes_shows_one_moment() -> None:
    """One thread moves the same number through many keys, in order, and adds keys; no list may see it out of order."""
    app = KeyValueApp()
    stop = threading.Event()

    def write_on() -> None:
        round_ = 0
        while not stop.is_set():
            round_ += 1
            for key in range(200):
                write(app, put(f"key-{key:03}", b"%d" % round_))
            write(app, put(f"new-{round_ % 500}", b""))
            write(app, delete(f"new-{(round_ + 250) % 500}"))

    thread = threading.Thread(target=write_on)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns often enough for a list without its lock to be caught
    thread.start()
    try:
        for _ in range(300):
            rounds = [int(value) for _, value in pairs_of(app, "key-")]
            assert rounds == sorted(rounds, reverse=True), "a later key was written before an earlier one"
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(usual)


def test_a_snapshot_is_the_state_and_equal_for_equal_states() -> None:
    first, second = KeyValueApp(), KeyValueApp()
    write(first, put("a", b"1"))
    write(first, put("b", b"2"))
    write(second, put("b", b"2"))
    write(second, put("a", b"1"))
    assert first.snapshot() == second.snapshot()
    third = KeyValueApp()
    write(third, put("old", b""))
    third.restore(first.snapshot())
    assert pairs_of(third) == [("a", b"1"), ("b", b"2")]


def test_a_fold_replays_the_commands() -> None:
    app = KeyValueApp()
    write(app, put("a", b"1"))
    folded = app.fold(app.snapshot(), [put("b", b"2"), delete("a")])
    app.restore(folded)
    assert pairs_of(app) == [("b", b"2")]
