"""How a command is called: usage and its mistakes, variables, completion, and what that loads."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from streamqueue.cli.command import Options
from streamqueue.cli.main import cli, main

VARIABLES = {
    "STREAMQUEUE_COLLECTION": ("stats", "collection", "work", "work"),
    "STREAMQUEUE_QUEUE": ("put", "queue", "emails", "emails"),
    "STREAMQUEUE_JSON": ("dead list", "json", "Yes", True),
    "STREAMQUEUE_INTERVAL": ("top", "interval", "2.5", 2.5),
    "STREAMQUEUE_VALIDATOR": ("init", "validator", "1", True),
    "STREAMQUEUE_JOBS": ("demo", "jobs", "7", 7),
    "STREAMQUEUE_DATA_DIR": ("server", "data_dir", "here", "here"),
    "STREAMQUEUE_MAX_PROCESSES": ("bench", "max_processes", "3", 3),
    "STREAMQUEUE_PROCESSES": ("worker a:b", "processes", "4", 4),
    "STREAMQUEUE_PORT_OFFSET": ("worker a:b", "port_offset", "0", 0),
    "STREAMQUEUE_EXPORT_STATE": ("worker a:b", "export_state", "LEADER", "leader"),
    "STREAMQUEUE_LOG_LEVEL": ("exporter", "log_level", "debug", "DEBUG"),
    "STREAMQUEUE_LOG_TRACEBACKS": ("worker a:b", "log_tracebacks", "true", True),
    "STREAMQUEUE_METRICS_HOST": ("exporter", "metrics_host", "::1", "::1"),
    "STREAMQUEUE_METRICS_PORT": ("exporter", "metrics_port", "1", 1),
    "STREAMQUEUE_METRICS_CERT": ("worker a:b", "metrics_cert", "", ""),
    "STREAMQUEUE_METRICS_CLIENT_CA": ("worker a:b", "metrics_client_ca", "ca.pem", "ca.pem"),
}
"""A command each, its option, the value of the variable, and what that is."""

NO_VARIABLES = ("yes", "limit", "key", "since", "match", "delay", "priority", "once", "supervised")


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command, and every group, by what is typed to call it."""
    context = click.Context(cli, info_name="streamqueue")
    for name in cli.list_commands(context):
        found = cli.get_command(context, name)
        assert found is not None
        yield name, found
        if isinstance(found, click.Group):
            for action in found.list_commands(context):
                yield f"{name} {action}", found.commands[action]


COMMANDS = dict(commands())


def given(line: str) -> Options:
    """What a command is given when this is typed, as its function would see it."""
    options = Options()
    with cli.make_context("streamqueue", shlex.split(line), obj=options) as context:
        cli.invoke(context)
    return options


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("dead", "completion")])
def test_the_example_of_a_help_can_be_called(name: str) -> None:
    example = (COMMANDS[name].epilog or "").splitlines()[-1].strip()

    assert example.startswith(f"streamqueue {name}")
    assert given(example.removeprefix("streamqueue ")) is not None


@pytest.mark.parametrize(
    ("line", "usage"),
    [
        ("stats --wat", "stats [OPTIONS]"),
        ("stats --queue", "stats [OPTIONS]"),
        ("stats one too many", "stats [OPTIONS]"),
        ("dead purge --limit many", "dead purge [OPTIONS]"),
        ("dead frobnicate", "dead ACTION ..."),
        ("worker", "worker [OPTIONS] MODULE:WORKER"),
        ("exporter --log-level loud", "exporter [OPTIONS]"),
        ("stats --uri a --uri-file b", "stats [OPTIONS]"),
        ("frobnicate", "[--version] COMMAND ..."),
    ],
)
def test_a_mistake_is_one_sentence_below_the_usage_of_what_was_called(
    capsys: pytest.CaptureFixture[str], line: str, usage: str
) -> None:
    assert main(line.split()) == 2

    said = capsys.readouterr()
    first, second = said.err.splitlines()
    assert first == f"Usage: streamqueue {usage}"
    assert second.startswith("streamqueue: ")
    assert said.out == ""


def test_a_mistake_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    uri = "mongodb://ada:hunter2@db.example/shop"

    for line in (
        ["stats", uri],
        [uri],
        ["top", "--interval", uri],
        ["put", "--priority", uri],
        ["exporter", "--log-level", uri],
        ["stats", f"--{uri}"],
        ["stats", "--uri", uri, "--uri-file", uri],
    ):
        assert main(line) == 2
        assert "hunter2" not in capsys.readouterr().err, line


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_setting_can_be_a_variable(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    line, name, value, wanted = VARIABLES[variable]
    monkeypatch.setenv(variable, value)

    assert getattr(given(line), name) == wanted


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMQUEUE_QUEUE", "")
    monkeypatch.setenv("STREAMQUEUE_METRICS_PORT", "")

    assert given("list").queue == "default"
    assert given("stats").queue is None
    assert given("exporter").metrics_port == 9465


def test_what_is_of_one_call_is_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("put", "dead requeue", "top", "worker a:b")
    before = [given(line) for line in lines]
    for name in NO_VARIABLES:
        monkeypatch.setenv(f"STREAMQUEUE_{name.upper()}", "1")

    assert [given(line) for line in lines] == before


def loaded_by(*arguments: str) -> set[str]:
    """The packages that a command has loaded when it ends."""
    program = (
        "import sys\nfrom streamqueue.cli.main import main\nmain(sys.argv[1:])\n"
        "import json\nprint()\nprint(json.dumps(list(sys.modules)))"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize("line", ["--version", "completion zsh", "--frob"])
def test_what_needs_no_server_loads_no_client(line: str) -> None:
    assert not loaded_by(*line.split()) & {"pymongo", "anyio", "prometheus_client"}


@pytest.mark.parametrize("statement", ["import streamqueue", "from streamqueue import MongoQueue"])
def test_the_package_does_not_load_the_command_line(statement: str) -> None:
    program = f"{statement}\nimport sys\nassert 'click' not in sys.modules"

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def completed_in_bash(*words: str) -> list[str]:
    """How bash goes on with the last of these words, when the script is in use."""
    script = """
        eval "$(streamqueue completion bash)"
        complete -p streamqueue >&2
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _streamqueue_completion streamqueue
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *words],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == "complete -o nosort -F _streamqueue_completion streamqueue\n"
    return done.stdout.split()


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["streamqueue", "co"], ["consumers", "completion"]),
        (["streamqueue", "dead", "re"], ["requeue"]),
        (["streamqueue", "dead", "purge", "--m"], ["--match"]),
        (["streamqueue", "exporter", "--log-format", "j"], ["json"]),
        (["streamqueue", "completion", ""], ["bash", "zsh", "fish"]),
        (["streamqueue", "worker", "tasks:worker", "--sup"], []),
    ],
)
def test_bash_completes_commands_options_and_values(words: list[str], wanted: list[str]) -> None:
    assert completed_in_bash(*words) == wanted


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_scripts_of_their_own(
    capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    assert main(["completion", shell]) == 0

    assert f"_STREAMQUEUE_COMPLETE={shell}_complete" in capsys.readouterr().out
