"""geraft check-app: does a state machine come to the same state on every node?"""

from __future__ import annotations

import base64
import binascii
import os
import sys
from typing import BinaryIO

import click

from geraft.cli.command import Failed


@click.command()
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option(
    "--commands",
    "file",
    type=click.File("rb"),
    help="The commands, one a line; - for stdin.  [default: 100 that are made up]",
)
@click.option("--base64", "is_base64", is_flag=True, help="The lines are base64, not text.")
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="What each process may take to replay the commands.",
)
def check_app(factory: str, file: BinaryIO | None, is_base64: bool, timeout_seconds: float) -> None:
    """Replay commands with all that differs between nodes, and say where replies or states differ.

    FACTORY is a class or function without arguments that makes the app. The commands are replayed with other hash
    seeds, another clock, other random numbers, and over snapshots saved and installed after each entry. Exits with 1 if
    that makes a difference. Without --commands, made-up ones are used: good ones for geraft.kv, for others just bytes.

    \b
    Example
      geraft check-app geraft.kv:KeyValueApp
      printf 'deposit 10\\nwithdraw 5\\n' | geraft check-app bank:Bank --commands -
    """
    from geraft.testing.determinism import check_determinism

    sys.path.insert(0, os.getcwd())  # where a user's module is, as for python -m
    commands = _made_up(factory) if file is None else _read(file, is_base64)
    try:
        outcome = check_determinism(factory, commands, timeout_seconds=timeout_seconds)
    except TimeoutError as error:
        raise Failed(str(error)) from None
    click.echo(str(outcome))
    if outcome.differences:
        raise Failed(f"{factory} is not deterministic")


def _read(file: BinaryIO, is_base64: bool) -> list[bytes]:
    commands = []
    for number, line in enumerate(file.read().splitlines(), start=1):
        try:
            commands.append(base64.b64decode(line.strip(), validate=True) if is_base64 else line)
        except binascii.Error as error:
            raise click.UsageError(f"line {number} of the commands is no base64: {error}") from None
    if not commands:
        raise click.UsageError("the file holds no commands")
    return commands


def _made_up(factory: str) -> list[bytes]:
    if factory.partition(":")[0].startswith("geraft.kv"):
        from geraft.kv import compare_and_set, delete, put

        commands = []
        for number in range(25):
            key, value = f"key-{number * 7 % 10}", b"%d" % number
            commands += [put(key, value), compare_and_set(key, value, b"set"), delete(f"key-{number % 4}"), b"\xff"]
        return commands
    return [bytes((number * step * 37 + 11) % 256 for step in range(number % 20)) for number in range(100)]
