"""The stories of tests/scenarios/*.txt: each must print what stands beside it. `pytest --rewrite` refreshes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from geraft.testing.scenarios import ScenarioError, Story, replay

FOLDER = Path(__file__).parent.parent / "scenarios"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    told = path.read_text()
    happened = replay(told)
    if request.config.getoption("--rewrite"):
        path.write_text(happened)
    else:
        assert happened.splitlines() == told.splitlines()


def test_a_story_that_happens_otherwise_is_noticed() -> None:
    told = "cluster 1\nrun 0.3s\n----\n1 leads, of course\n"
    assert "1 candidate -> leader term=2" in replay(told)
    assert replay(told) != told
    assert replay(replay(told)) == replay(told)


def test_an_unknown_command_is_an_error() -> None:
    with pytest.raises(ScenarioError, match="no command is called 'dance'"):
        replay("dance 1\n")


def test_every_command_stands_in_the_readme() -> None:
    readme = (FOLDER / "README.md").read_text()
    for name in vars(Story):
        if name.startswith("do_"):
            assert f"`{name.removeprefix('do_')}" in readme, f"the scenario command {name} is not in its README"
