"""What all verbs share: errors are one line on stderr, with exit code 1 (it failed) or 2 (it was asked wrongly)."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from geraft.errors import GeraftError

Verb = TypeVar("Verb", bound=Callable[..., Any])


class Failed(Exception):
    """The verb did not reach its end; the message is for the user."""


def one_line(text: object) -> str:
    return " ".join(str(text).split())


class VerbGroup(click.Group):
    """A group of verbs whose errors are one line, without a traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            exit_code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            exit_code = 2
        except click.ClickException as error:
            path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "geraft"
            click.echo(f"{path}: {one_line(error.format_message())} (see {path} --help)", err=True)
            exit_code = 2 if isinstance(error, click.UsageError) else 1
        except (click.Abort, KeyboardInterrupt):
            click.echo("geraft: interrupted", err=True)
            exit_code = 1
        except BrokenPipeError:  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            exit_code = 1
        except (Failed, GeraftError, OSError) as error:
            click.echo(f"geraft: {one_line(error) or type(error).__name__}", err=True)
            exit_code = 1
        sys.exit(exit_code if isinstance(exit_code, int) else 0)


class Address(click.ParamType[str]):
    """host:port."""

    name = "host:port"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        from geraft.errors import ConfigError
        from geraft.transport.addresses import split

        try:
            split(value)
        except ConfigError as error:
            self.fail(str(error), parameter, context)
        return str(value)


class Addresses(click.ParamType[tuple[str, ...]]):
    """host:port,host:port,..."""

    name = "host:port,..."

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        if not isinstance(value, str):
            return tuple(value)
        addresses = [part.strip() for part in value.split(",") if part.strip()]
        if not addresses:
            self.fail("it names no address", parameter, context)
        return tuple(Address().convert(address, parameter, context) for address in addresses)


class Group(click.ParamType[str]):
    """Which of the groups that servers share is meant."""

    name = "name"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        from geraft.errors import ConfigError
        from geraft.transport.groups import check_group

        try:
            check_group(value)
        except ConfigError as error:
            self.fail(str(error), parameter, context)
        return str(value)


class Members(click.ParamType[dict[str, str]]):
    """id=host:port,id=host:port,..."""

    name = "id=host:port,..."

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> dict[str, str]:
        if not isinstance(value, str):
            return dict(value)
        members: dict[str, str] = {}
        for part in filter(None, map(str.strip, value.split(","))):
            member, equals, address = part.partition("=")
            if not equals or not member:
                self.fail(f"{part!r} is not of the form id=host:port", parameter, context)
            if member in members:
                self.fail(f"{member!r} is named twice", parameter, context)
            members[member] = Address().convert(address, parameter, context)
        if not members:
            self.fail("it names no member", parameter, context)
        return members


class Change(click.ParamType[tuple[str, float]]):
    """NAME=VALUE: a setting of Config and a number."""

    name = "NAME=VALUE"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        name, equals, number = str(value).partition("=")
        try:
            if not name or not equals:
                raise ValueError
            return name, float(number)
        except ValueError:
            self.fail(f"{value!r} is not of the form NAME=VALUE, with a number for VALUE", parameter, context)


class Dial(click.ParamType[dict[str, str]]):
    """host:port=host:port,...: by which address another one is reached."""

    name = "host:port=host:port,..."

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> dict[str, str]:
        if not isinstance(value, str):
            return dict(value)
        dial: dict[str, str] = {}
        for part in filter(None, map(str.strip, value.split(","))):
            address, equals, dialled = part.partition("=")
            if not equals:
                self.fail(f"{part!r} is not of the form host:port=host:port", parameter, context)
            dial[Address().convert(address, parameter, context)] = Address().convert(dialled, parameter, context)
        return dial


class AppFactory(click.ParamType[Callable[[], Any]]):
    """module:name of a class or function that makes a RaftApp or a SimpleRaftApp; found from the current directory."""

    name = "module:name"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Callable[[], Any]:
        if not isinstance(value, str):
            factory: Callable[[], Any] = value
            return factory
        module_name, colon, name = value.partition(":")
        if not colon or not module_name or not name:
            self.fail(f"{value!r} is not of the form module:name", parameter, context)
        sys.path.insert(0, os.getcwd())  # as for python -m
        try:
            found: Any = importlib.import_module(module_name)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            self.fail(f"{value!r} can't be found: {error}", parameter, context)
        if not callable(found):
            self.fail(f"{value!r} is a {type(found).__name__}, which makes no app", parameter, context)
        factory = found
        return factory


def seeds_option(verb: Verb) -> Verb:
    return click.option(
        "--seeds",
        type=Addresses(),
        default="127.0.0.1:7001",
        show_default=True,
        help="Nodes to ask first; one that answers is enough, it knows the others.",
    )(verb)


def group_option(verb: Verb) -> Verb:
    return click.option(
        "--group", type=Group(), default="", help="The group that is meant, where the nodes' processes hold several."
    )(verb)


def cluster_options(verb: Verb) -> Verb:
    """--seeds and --group: which cluster is meant."""
    return seeds_option(group_option(verb))


def timeout_option(verb: Verb) -> Verb:
    return click.option(
        "--timeout",
        "timeout_seconds",
        type=click.FloatRange(min=0, min_open=True),
        default=5.0,
        show_default=True,
        metavar="SECONDS",
        help="What an answer may take.",
    )(verb)


def join_members(members: Sequence[tuple[str, str]]) -> str:
    """The inverse of Members: what --bootstrap takes."""
    return ",".join(f"{member}={address}" for member, address in members)
