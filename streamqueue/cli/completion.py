"""``streamqueue completion``: the script that completes what is typed in a shell.

At each tab the script runs the program with a variable, which ``main`` answers.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .command import COMPLETE, PROGRAM, SETTINGS, shown


def _print_script(shell: str) -> None:
    cli = click.get_current_context().find_root().command
    if made := get_completion_class(shell):
        print(made(cli, {}, PROGRAM, COMPLETE).source())


completion = click.Command(
    "completion",
    params=[click.Argument(["shell"], type=click.Choice(["bash", "zsh", "fish"]))],
    callback=_print_script,
    help="Print the script with which a shell completes a command.\n\nFor "
    "bash and zsh it is evaluated where a shell starts, as in the example; for fish it is stored "
    "as ~/.config/fish/completions/streamqueue.fish.",
    context_settings=SETTINGS,
    epilog=shown('eval "$(streamqueue completion bash)"    # in ~/.bashrc'),
)
