"""The ``streamqueue`` command: finds the command that is called, and sees to how it ends.

The commands are in modules by their subject, each loaded when it is asked for. Options come from
the command line or from ``STREAMQUEUE_*`` variables (``--uri`` from ``STREAMQUEUE_URI``); the URI
also from a file. What is wrong with them is said below the usage of the command that was called.
"""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource
from click.exceptions import NoArgsIsHelpError

from .. import __version__
from ..passwords import hide_passwords
from ..plain import printable, printable_lines
from .command import COMPLETE, PROGRAM, Group, Options

if TYPE_CHECKING:
    from collections.abc import Sequence

HOMES = {
    "demo": "local",
    "server": "local",
    "bench": "local",
    "init": "setup",
    "worker": "services",
    "exporter": "services",
    "put": "jobs",
    "get": "jobs",
    "list": "jobs:list_jobs",
    "stats": "monitor.stats",
    "pause": "jobs",
    "resume": "jobs",
    "limit": "limits",
    "consumers": "monitor.monitor",
    "top": "monitor.monitor",
    "reap": "jobs",
    "cancel": "steering",
    "dead": "dead",
    "requeue": "steering",
    "reschedule": "steering",
    "schedule": "schedules",
    "topic": "topics",
    "migrate": "migrate",
    "completion": "completion",
}
"""The commands, and the module of each; with its name there, where that is another one."""

LONGEST = 300
"""Characters of a sentence about the arguments, which may quote any number of them."""


class _Commands(Group):
    """Loads a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in HOMES:
            return None
        home, _, other_name = HOMES[cmd_name].partition(":")
        found: click.Command = getattr(import_module(f"..{home}", __name__), other_name or cmd_name)
        return found


cli = _Commands(
    PROGRAM,
    help="A job queue on MongoDB: put, wake on a change stream, claim, complete.\n\nWhat is set "
    "by an option can be a variable too: --uri is STREAMQUEUE_URI, and so on.",
    example='streamqueue put \'{"to": "ada@example.org"}\' --queue emails',
    subcommand_metavar="COMMAND ...",
    options_metavar="[--version]",
)
click.version_option(__version__, message="%(prog)s %(version)s")(cli)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a locale has no character for is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    options = Options()
    try:
        if instruction := os.environ.get(COMPLETE):
            from click.shell_completion import shell_complete

            return shell_complete(cli, {}, PROGRAM, COMPLETE, instruction)
        code = _run(list(sys.argv[1:] if arguments is None else arguments), options)
        _flush()
        return code
    except BaseException as error:
        from .exits import exit_code  # it brings what it takes to explain an error

        return exit_code(error, options)


def _run(arguments: list[str], options: Options) -> int:
    try:
        with cli.make_context(PROGRAM, arguments, obj=options) as context:
            run = cli.invoke(context)
    except click.exceptions.Exit as end:  # after --help and the like
        return end.exit_code
    except NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    except click.UsageError as error:
        usage = error.ctx.get_usage() if error.ctx else ""
        sentence = printable(hide_passwords(_sentence(error)))
        if len(sentence) > LONGEST:
            sentence = f"{sentence[:LONGEST]}..."
        print(f"{printable_lines(usage)}\n{PROGRAM}: {sentence}", file=sys.stderr)
        return error.exit_code
    if run is None:  # click has done it all
        return 0
    from .begin import begin  # it brings what neither help nor completion waits for

    begin(options)
    return int(run(options) or 0)


def _sentence(error: click.UsageError) -> str:
    """Return what is wrong, with the variable that the value came from."""
    if isinstance(error, click.MissingParameter) or not isinstance(error, click.BadParameter):
        return error.format_message()
    context, parameter = error.ctx, error.param
    if context is None or parameter is None or parameter.name is None:
        return error.message
    is_option = isinstance(parameter, click.Option)
    name = parameter.opts[0] if is_option else parameter.human_readable_name
    source = context.get_parameter_source(parameter.name)
    variable = f"{context.auto_envvar_prefix}_{parameter.name.upper()}"
    origin = f" (from the variable {variable})" if source is ParameterSource.ENVIRONMENT else ""
    return f"argument {name}: {error.message.rstrip('.')}{origin}"


def _flush() -> None:
    """Write what was printed, while it can still be said that it could not be.

    Raises:
        BrokenPipeError: nobody reads it, which is their affair.
        OutputLost: the disk is full, or the like.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        from .exits import OutputLost

        raise OutputLost(f"the output could not be written: {error.strerror}") from error
