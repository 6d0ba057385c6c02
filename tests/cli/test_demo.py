"""geraft demo, in full: and that it would notice a loss."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_processes import Command, assert_one_line

from geraft.cli.command import Failed
from geraft.cli.demo import Demo, longest_silence


def running_below(directory: Path) -> list[str]:
    """Command lines of live processes that name the directory."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in line:
            lines.append(line)
    return lines


@pytest.mark.slow
def test_the_leader_dies_and_nothing_is_lost(geraft: Command, tmp_path: Path) -> None:
    done = geraft("demo", "--writes", "3000", "--callers", "16", "--directory", str(tmp_path), timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[-1] == "acknowledged 3000, lost 0"
    for said in (
        "SIGKILL",
        "took over in term",
        "without an acknowledged write",
        "caught up with them",
        "hold the same",
    ):
        assert any(said in line for line in lines), said
    assert running_below(tmp_path) == []


@pytest.mark.slow
def test_a_value_that_is_not_what_was_acknowledged_is_a_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Forgetful(Demo):
        """Expects another value of one write than the one that was written."""

        def value(self, number: int) -> bytes:
            after = number == 7 and len(self.acknowledged) == self.writes
            return b"another" if after else super().value(number)

    with pytest.raises(Failed, match="1 acknowledged writes are not on every node"):
        Forgetful(tmp_path, writes=200, callers=4, seed=1).run()
    assert capsys.readouterr().out.endswith("acknowledged 200, lost 1\n")
    assert running_below(tmp_path) == []


def test_a_directory_in_use_is_refused(geraft: Command, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    done = geraft("demo", "--directory", str(tmp_path))
    assert done.returncode == 2
    assert_one_line(done.stderr)


def test_the_longest_silence_is_counted_over_its_whole_length() -> None:
    assert longest_silence([1.0, 2.0, 2.5, 9.0, 9.1], since=2.2) == 6.5
    assert longest_silence([1.0, 8.0, 9.0], since=8.5) == 1.0
    assert longest_silence([], since=0.0) == 0.0
