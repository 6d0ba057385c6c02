"""make prove: it plays what it says, and anything that fails makes it fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

PRETENDER = """
import sys
verb, *rest = sys.argv[1:]
resting = rest[-1] == "--resting"
if resting:
    rest.pop()
options = dict(zip(rest[::2], rest[1::2]))
if verb == "simulate":
    first, last = map(int, options["--seeds"].split(":"))
    kind = "resting" if resting else options["--nodes"]
    bad = sum(seed == {bad_seed} for seed in range(first, last + 1)) if kind == "{bad_kind}" else 0
    if bad:
        print("seed {bad_seed}: two leaders in term 4")
    print(f"seeds {{last - first + 1}}, violations {{bad}}, simulated 1 s, cpu 1.0 s")
    sys.exit(bool(bad))
bad = options["--seed"] == "{bad_chaos}"
print(f"chaos seed {{options['--seed']}}: {{'FAILED' if bad else 'ok'}}, {{options['--seconds']}} s")
sys.exit(bad)
"""


def prove(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "prove"), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert not done.stderr
    return done.returncode, done.stdout


def pretend(tmp_path: Path, *, bad_seed: int = 0, bad_kind: str = "3", bad_chaos: int = 0) -> str:
    path = tmp_path / "pretender.py"
    path.write_text(PRETENDER.format(bad_seed=bad_seed, bad_kind=bad_kind, bad_chaos=bad_chaos))
    return f"{sys.executable} {path}"


def test_every_seed_is_played_once_and_chaos_as_long_as_asked(tmp_path: Path) -> None:
    code, said = prove("--geraft", pretend(tmp_path), "--seeds", "1234", "--chaos-seconds", "250")
    summary = said.partition("\nprove: ok")[2]
    assert code == 0
    assert "seeds 1234 of 1234, violations 0" in summary
    assert all(f"chaos seed {seed}: ok, {seconds} s" in summary for seed, seconds in ((1, 120), (2, 120), (3, 10)))
    assert summary.count("chaos seed") == 3


@pytest.mark.parametrize(
    ("bad", "failed"),
    [
        ({"bad_seed": 766}, "failed: geraft simulate --seeds 601:770 --nodes 3"),
        ({"bad_seed": 77, "bad_kind": "5"}, "failed: geraft simulate --seeds 1:200 --nodes 5"),
        ({"bad_seed": 77, "bad_kind": "resting"}, "failed: geraft simulate --seeds 1:110 --nodes 3 --resting"),
        ({"bad_chaos": 2}, "failed: geraft chaos --seconds 30 --seed 2"),
    ],
)
def test_one_failure_fails_it_all_and_is_told(tmp_path: Path, bad: dict[str, Any], failed: str) -> None:
    code, said = prove("--geraft", pretend(tmp_path, **bad), "--seeds", "1100", "--chaos-seconds", "150")
    summary = said.partition("\nprove: FAILED")[2]
    assert code == 1
    assert failed in summary
    assert "bad_seed" not in bad or "two leaders in term 4" in said


def test_a_part_that_does_not_run_at_all_fails_it(tmp_path: Path) -> None:
    code, said = prove("--geraft", f"{sys.executable} {tmp_path}/nowhere.py", "--seeds", "3", "--chaos-seconds", "10")
    assert code == 1
    assert "prove: FAILED" in said and "failed: geraft simulate" in said and "failed: geraft chaos" in said


@pytest.mark.slow
def test_the_real_simulator_is_understood() -> None:
    geraft = f"{sys.executable} -m geraft"
    code, said = prove("--geraft", geraft, "--seeds", "10", "--chaos-seconds", "0", "--jobs", "2")
    assert code == 0, said
    assert "seeds 10 of 10, violations 0" in said
