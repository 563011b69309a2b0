"""A page, followed by somebody who does what stands there, from its first line to its last."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import click
from pymongo import AsyncMongoClient, MongoClient
from pymongo.synchronous.collection import Collection
from pymongo.synchronous.database import Database

from streamqueue import MongoQueue
from streamqueue.cli.main import cli
from tests import programs
from tests.docs.blocks import ROOT, Block, Command, commands_of
from tests.waiting import free_port, wait_until_async

AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
ANY_OF_THEM = "mongodb://localhost/?replicaSet=rs0"
"""How the pages write the address of the reader's own server."""
GO_ON = re.compile(r"streamqueue (worker|exporter)(?!.*--until-empty)|uvicorn ")
"""What runs until it is told to stop."""
ONLY_READ = re.compile(r"streamqueue (server|bench|demo)\b")
"""What takes long, or starts a server, and has tests of its own: its arguments must be right."""
SHELL = re.compile(r"[|<>;&$`*?~]")
"""What only a shell understands."""
READY = {"worker": "Working on queues", "exporter": "http://"}
PATIENCE = 60.0


@dataclass
class Surroundings:
    """What a page takes for granted.

    Attributes:
        before: code whose names the page uses; run again before each block if `afresh`.
        edits: what stands in the page, and what is run instead.
        files: modules that are there already.
        worker: commands that run beside it, from its beginning.
    """

    before: str = ""
    afresh: bool = False
    edits: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    worker: str = ""


class Session:
    """Runs the blocks of a page, in a folder and a database of its own.

    Args:
        folder: where its files are written, and its commands run.
        address: the server, and the database.
        surroundings: what the page takes for granted.
    """

    def __init__(self, folder: Path, address: str, surroundings: Surroundings) -> None:
        self.names: dict[str, Any] = {}
        self.printed: list[str] = []
        self._folder, self._address, self._given = folder, address, surroundings
        self._services: dict[str, subprocess.Popen[bytes]] = {}
        self._running = ExitStack()
        self._port = free_port(following=8)
        folders = [str(folder), str(ROOT), *sys.path]
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("STREAMQUEUE_")},
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(filter(None, folders)),
            "PYTHONUNBUFFERED": "1",
            "STREAMQUEUE_URI": address,
        }

    async def begin(self) -> None:
        """Make what the page takes for granted."""
        for name, text in self._given.files.items():
            (self._folder / name).write_text(text)
        await self._python(self._given.before)
        if self._given.worker:
            await self._start(self._given.worker)

    async def follow(self, block: Block) -> None:
        """Do what a block says."""
        text = block.text
        for old, new in self._given.edits.items():
            text = text.replace(old, new)
        if block.language == "console":
            for command in commands_of(block._replace(text=text)):
                await self._command(command)
        elif block.file:
            (self._folder / block.file).write_text(text)
        else:
            if self._given.afresh:
                await self._python(self._given.before)
            await self._python(text)

    async def end(self) -> None:
        """Stop what runs, and see that it went well.

        Raises:
            AssertionError: something had ended by itself, or ended badly.
        """
        for what in list(self._services):
            await self._stop(what)
        for value in self.names.values():
            if isinstance(value, MongoQueue):
                await anyio.to_thread.run_sync(value.close)
                await anyio.to_thread.run_sync(value._jobs.database.client.close)
            elif isinstance(value, MongoClient):
                await anyio.to_thread.run_sync(value.close)
            elif isinstance(value, AsyncMongoClient):
                await value.close()
            elif isinstance(value, Database):
                await anyio.to_thread.run_sync(value.client.close)
            elif isinstance(value, Collection):
                await anyio.to_thread.run_sync(value.database.client.close)
        self._running.close()

    # Python

    async def _python(self, text: str) -> None:
        database = self._address.rpartition("/")[2].partition("?")[0]
        text = text.replace(f'"{ANY_OF_THEM}"', repr(self._address))
        text = text.replace(".shop.jobs", f'["{database}"].jobs')
        code = compile(text, "page", "exec", flags=AWAIT)
        self.names.setdefault("print", lambda *what: self.printed.append(" ".join(map(str, what))))
        if code.co_flags & inspect.CO_COROUTINE:
            with anyio.fail_after(PATIENCE):
                await eval(code, self.names)
        else:
            await anyio.to_thread.run_sync(exec, code, self.names)

    # commands

    async def _command(self, command: Command) -> None:
        words = shlex.split(command.line, comments=True)
        line = re.sub(
            r"\b94(6\d|7\d)\b", lambda port: str(self._port + int(port[1]) % 8), command.line
        )
        command = command._replace(line=line)
        if words[:2] == ["pip", "install"]:
            _check_extras(words[2])
        elif words[0] == "make":
            _check_target(words[1])
        elif words[0] == "export":
            name, _, value = words[1].partition("=")
            self._environment.setdefault(name, value)
        elif ONLY_READ.match(command.line):
            name, *arguments = words[1:]
            found = cli.get_command(click.Context(cli), name)
            assert found is not None, f"there is no command {name}"
            found.make_context(name, arguments)
        elif GO_ON.match(command.line):
            await self._start(command.line)
        elif words[:2] == ["streamqueue", "top"]:
            await self._typed(Command("streamqueue top --once", command.shown))
        else:
            await self._typed(command)

    async def _typed(self, command: Command) -> None:
        ended = await anyio.to_thread.run_sync(self._run, command.line)
        said = ended.stdout.decode()
        assert ended.returncode == 0, f"{command.line}\n{said}"
        lines = [_likened(line) for line in said.splitlines()]
        lost = [line for line in command.shown if line != "..." and not _is_among(line, lines)]
        assert lost == [], f"{command.line}\n{said}"

    def _run(self, line: str) -> subprocess.CompletedProcess[bytes]:
        words, environment = ["bash", "-c", line], self._environment
        if line.startswith("streamqueue ") and not SHELL.search(
            re.sub(r"\s#.*", "", line)
        ):  # forked, which is faster
            words = [sys.executable, "-m", *shlex.split(line, comments=True)]
            environment = {k: v for k, v in environment.items() if not k.startswith("PYTHON")}
            environment |= {k: v for k, v in os.environ.items() if k.startswith("PYTHON")}
        out: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return programs.run(words, cwd=self._folder, env=environment, **out)

    async def _start(self, line: str) -> None:
        found = GO_ON.match(line)
        what = (found and found[1]) or "uvicorn"
        await self._stop(what)
        log = self._folder / f"{what}.log"
        environment = dict(self._environment)
        if what == "exporter":
            environment["STREAMQUEUE_METRICS_PORT"] = str(self._port + 9465 % 100 % 8)
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                cwd=self._folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._running.callback(process.kill)
        self._services[what] = process
        sign = READY.get(what, "running on")
        await wait_until_async(
            lambda: sign in log.read_text() or process.poll() is not None,
            f"{what} is ready",
            PATIENCE,
        )
        assert process.poll() is None, log.read_text()

    async def _stop(self, what: str) -> None:
        process = self._services.pop(what, None)
        if process is None:
            return
        log = (self._folder / f"{what}.log").read_text()
        assert process.poll() is None, f"{what} has ended by itself:\n{log}"
        process.send_signal(signal.SIGTERM)
        code = await anyio.to_thread.run_sync(process.wait, PATIENCE)
        # uvicorn ends as whoever is ended by the signal
        assert code == 0 or what == "uvicorn", (self._folder / f"{what}.log").read_text()


def _is_among(shown: str, lines: list[str]) -> bool:
    """Whether a line was there; of one that begins with an ellipsis, its end."""
    if shown.startswith("… "):
        return any(line.endswith(_likened(shown[2:])) for line in lines)
    return _likened(shown) in lines


def _likened(line: str) -> str:
    """Return a line of output without what is another one each time."""
    line = re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.]+Z?", "TIME", line)
    line = re.sub(r"\b[0-9a-f]{24}\b", "ID", line)
    line = re.sub(r"\S+:\d+\b", "CONSUMER", line)
    line = re.sub(r"\d+", "N", line)
    return re.sub(r"\s+", " ", line).strip()


def _check_extras(what: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"[\w-]+", what.partition("[")[2])
    assert {*extras} <= {*project["optional-dependencies"]}, f"there is no such extra: {what}"
    assert what.partition("[")[0] in {".", project["name"]}, f"that is not ours: {what}"


def _check_target(target: str) -> None:
    rules = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    assert target in rules, f"make has no {target}"
