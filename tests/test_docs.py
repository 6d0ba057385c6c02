"""What users can set, catch and type stands in the documentation."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from geraft import errors, signals
from geraft.cli import main
from geraft.cli.cluster import free_addresses
from geraft.config import Config, is_same_on_all, is_tunable

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def names_in_tables(page: str) -> dict[str, str]:
    """Each name that a table row of the page starts with, and the rest of the row."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", (DOCS / page).read_text(), re.MULTILINE)
    return {name: rest.strip() for name, rest in rows}


def test_every_setting_is_documented_with_its_default() -> None:
    documented = names_in_tables("configuration.md")
    assert documented.keys() == {field.name for field in dataclasses.fields(Config)}
    for field in dataclasses.fields(Config):
        written = documented[field.name].split("|")[0].strip()
        number, _, unit = written.partition(" ")
        assert float(number) * (1024 * 1024 if unit == "MiB" else 1) == field.default, field.name


def test_every_setting_that_is_only_read_at_the_start_or_must_be_equal_is_marked() -> None:
    documented = names_in_tables("configuration.md")
    for field in dataclasses.fields(Config):
        assert ("*start*" in documented[field.name]) == (not is_tunable(field)), field.name
        assert ("*cluster*" in documented[field.name]) == is_same_on_all(field), field.name


def test_every_error_is_documented() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert classes - {"GeraftError"} == names_in_tables("errors.md").keys()


def test_every_signal_is_documented() -> None:
    sent = {name for name, value in vars(signals).items() if isinstance(value, signals.NamedSignal)}
    assert sent
    assert sent == names_in_tables("signals.md").keys()


def test_every_test_that_the_table_of_the_original_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (DOCS / "parity.md").read_text())
    assert len(named) > 30
    for path, name in named:
        assert (ROOT / path).is_file(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


def every_verb() -> list[tuple[str, ...]]:
    def below(command: click.Command, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        if not isinstance(command, click.Group):
            return [path]
        return [path, *(one for name, inner in command.commands.items() for one in below(inner, (*path, name)))]

    return below(main, ())


@pytest.mark.parametrize("verb", every_verb(), ids=" ".join)
def test_every_verb_has_a_help_with_an_example(verb: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*verb, "--help"])
    assert result.exit_code == 0
    assert f"geraft {' '.join(verb)}".rstrip() in result.output.partition("Example")[2]


def readme_code(mark: str) -> str:
    """The one Python example of the README that contains `mark`, with a free address of this machine for each in it."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if mark in block]
    for address in sorted(set(re.findall(r"\d+\.\d+\.\d+\.\d+:7001", code))):
        code = code.replace(f'"{address}"', f'"{free_addresses(1)[0]}"')
    return str(code)


def run_python(code: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_ten_line_script_works_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    code = readme_code("class Counter")
    assert run_python(code, tmp_path) == "b'5'\nb'5'\n"
    assert run_python(code, tmp_path) == "b'10'\nb'10'\n"


def test_the_flask_view_works(tmp_path: Path) -> None:
    code = readme_code("from flask import")
    code = re.sub(r', "n2": "[^"]+", "n3": "[^"]+"', "", code)  # a cluster of one is enough to see the view work
    code += """
client = app.test_client()
print(client.get("/color").status_code, client.put("/color", data=b"green").status_code, client.get("/color").data)
node.stop()
print(client.put("/color", data=b"red").status_code)
"""
    assert run_python(code, tmp_path) == "404 204 b'green'\n503\n"
