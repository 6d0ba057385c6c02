"""assert_deterministic and check-app: right apps pass, each that is wrong on purpose is found, by entry and by key."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wrong_apps

from geraft.errors import ConfigError
from geraft.kv import KeyValueApp, compare_and_set, delete, list_pairs, put
from geraft.testing.determinism import AppFactory, Difference, assert_deterministic, check_determinism

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.slow  # each check starts processes: together they take about half a minute

WORDS = [b"alpha", b"beta", b"gamma", b"delta"] * 3


def first_difference(factory: AppFactory, queries: list[bytes] | None = None) -> Difference:
    outcome = check_determinism(factory, WORDS, queries=queries or [])
    assert str(outcome).startswith("not deterministic: 12 commands")
    assert str(outcome.differences[0]) in str(outcome)
    return outcome.differences[0]


def test_it_raises_what_it_found() -> None:
    with pytest.raises(AssertionError, match=r"entry 1 \(b'alpha'\), with another hash seed: the reply differs"):
        assert_deterministic(wrong_apps.RepliesInSetOrder, WORDS)


def test_the_key_value_app_is_deterministic() -> None:
    commands = [put("a", b"1"), put("b", b"2"), compare_and_set("a", b"1", b"3"), delete("b"), b"\xff"] * 4
    outcome = assert_deterministic(KeyValueApp, commands, queries=[list_pairs()])
    assert (outcome.commands, outcome.states) == (20, 20)
    assert outcome.copies == 20 + 16
    assert outcome.folds == 20 + 1
    assert outcome.note == ""


def test_long_logs_are_compared_at_some_entries_and_the_last() -> None:
    outcome = assert_deterministic(KeyValueApp, [put(f"k{number % 50}", b"%d" % number) for number in range(1000)])
    assert outcome.states == 200


def test_a_json_state_in_another_order_is_the_same() -> None:
    assert assert_deterministic(wrong_apps.Words, WORDS, queries=[b"alpha"]).states == len(WORDS)


@pytest.mark.parametrize(
    ("factory", "entry", "changed", "what", "key"),
    [
        (wrong_apps.ReadsTheClock, 1, "another time", "state", "alpha"),
        (wrong_apps.ReadsTheDate, 1, "another time", "reply", None),
        (wrong_apps.DrawsNumbers, 1, "random numbers", "reply", None),
        (wrong_apps.RepliesInSetOrder, 1, "hash seed", "reply", None),
        (wrong_apps.SharesState, 1, "once more in the same process", "reply", None),
        (wrong_apps.ForgetsOverASnapshot, 10, "each snapshot installed", "reply", None),
        (wrong_apps.LosesAKey, 2, "each snapshot installed", "state", "beta"),
        (wrong_apps.FoldsWrongly, 3, "each folded snapshot", "state", "gamma"),
        (wrong_apps.Raises, 3, "first replay", "reply", None),
        (wrong_apps.CanNotRestore, 1, "each snapshot installed", "snapshot", None),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_wrong_app_is_found(factory: AppFactory, entry: int, changed: str, what: str, key: str | None) -> None:
    found = check_determinism(factory, WORDS).differences
    assert found
    difference = found[0]
    assert (difference.entry, difference.what, difference.key) == (entry, what, key)
    assert changed in difference.changed
    assert difference.command == WORDS[entry - 1]


def test_what_is_not_by_key_is_compared_to_the_byte() -> None:
    difference = first_difference(wrong_apps.StoresInSetOrder)
    assert "hash seed" in difference.changed
    assert (difference.what, difference.key) == ("state", None)
    assert "from byte 0" in difference.expected


def test_unless_one_says_how_to_read_it_by_key() -> None:
    def items(snapshot: bytes) -> dict[bytes, bytes]:
        return dict(line.split() for line in snapshot.splitlines())  # type: ignore[misc]

    assert_deterministic(wrong_apps.StoresInSetOrder, WORDS, items_of=items)


def test_an_app_that_can_not_be_folded_says_so() -> None:
    outcome = assert_deterministic(wrong_apps.make_with_an_argument, WORDS)
    assert outcome.folds == 0
    assert "without arguments" in outcome.note


def test_a_raft_app_that_copies_now_and_then() -> None:
    outcome = assert_deterministic(wrong_apps.LongHand, WORDS, queries=[b""])
    assert (outcome.states, outcome.copies, outcome.folds) == (4, 4 + 3, 0)
    assert "does not fold" in outcome.note


def test_a_raft_app_that_forgets_is_found_by_its_answers() -> None:
    difference = first_difference(wrong_apps.LongHandForgets, queries=[b""])
    assert (difference.entry, difference.what) == (9, "answer to query 1")
    assert (difference.expected, difference.actual) == ("b'9'", "b'7'")


def test_what_can_not_be_checked_is_refused() -> None:
    with pytest.raises(ConfigError, match="another process"):
        assert_deterministic(lambda: KeyValueApp(), WORDS)
    with pytest.raises(ConfigError, match="no commands"):
        assert_deterministic(KeyValueApp, [])
    with pytest.raises(ConfigError, match="module:name"):
        assert_deterministic("geraft.kv", WORDS)
    with pytest.raises(ConfigError, match="no_such_module"):
        assert_deterministic("no_such_module:App", WORDS)
    with pytest.raises(ConfigError, match="neither RaftApp nor"):
        assert_deterministic("builtins:dict", WORDS)


def check_app(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "geraft", "check-app", *arguments],
        input=stdin,
        capture_output=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=100,
        check=False,
    )


def test_check_app_on_the_key_value_app() -> None:
    done = check_app("geraft.kv:KeyValueApp")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"deterministic: 100 commands")


@pytest.mark.parametrize("is_base64", [False, True])
def test_check_app_with_commands_from_a_file(tmp_path: Path, is_base64: bool) -> None:
    lines = [base64.b64encode(word) if is_base64 else word for word in WORDS]
    (tmp_path / "commands").write_bytes(b"\n".join(lines))
    done = check_app("wrong_apps:LosesAKey", "--commands", str(tmp_path / "commands"), *["--base64"] * is_base64)
    assert done.returncode == 1
    assert (
        b"entry 2 (b'beta'), with each snapshot installed in a new app: the state differs at key 'beta'" in done.stdout
    )
    assert done.stderr == b"geraft: wrong_apps:LosesAKey is not deterministic\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "said"),
    [
        (["wrong_apps:Words", "--commands", "-"], b"", 2, b"no commands"),
        (["wrong_apps:Words", "--commands", "-", "--base64"], b"%%%\n", 2, b"line 1"),
        (["nowhere"], b"", 1, b"module:name"),
        (["wrong_apps:Nothing", "--commands", "-"], b"x", 1, b"Nothing"),
    ],
    ids=["no commands", "no base64", "no factory", "no such factory"],
)
def test_check_app_asked_wrongly(arguments: list[str], stdin: bytes, code: int, said: bytes) -> None:
    done = check_app(*arguments, stdin=stdin)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count(b"\n") == 1
