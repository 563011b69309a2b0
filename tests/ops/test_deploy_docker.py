"""The image: what the linter says, what it pins, and what its build and its health check do."""

from __future__ import annotations

import fnmatch
import http.server
import json
import re
import shlex
import shutil
import ssl
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from prometheus_client import CollectorRegistry

from streamqueue.health.health import Health
from streamqueue.health.server import HealthServer
from tests.ops.deploy_files import (
    DOCKERFILE,
    ROOT,
    dockerfile,
    environment,
    image,
    planted,
    python_tool,
    run,
    stages,
)
from tests.waiting import free_port

DOCKER = DOCKERFILE.parent
OWN_TASKS = DOCKER / "worker" / "Dockerfile"
HEALTHCHECK = DOCKER / "healthcheck.py"


# the linter


@pytest.mark.parametrize("path", [DOCKERFILE, OWN_TASKS], ids=["streamqueue", "worker"])
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    linted = run(python_tool("hadolint"), path)

    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ('CMD ["worker", "tasks:worker"]', "CMD worker tasks:worker", "DL3025"),
        ("--from=build", "--from=bild", "DL3022"),
        ("WORKDIR /app", "WORKDIR app", "DL3000"),
    ],
    ids=[
        "a shell between the signal and the worker",
        "a stage that is not there",
        "a relative path",
    ],
)
def test_hadolint_sees(right: str, wrong: str, rule: str, tmp_path: Path) -> None:
    linted = run(python_tool("hadolint"), planted(DOCKERFILE, right, wrong, tmp_path))

    assert linted.returncode == 1
    assert rule in linted.stdout


# the image


def test_the_image_runs_as_a_user_that_kubernetes_can_tell_is_not_root() -> None:
    user, group = image()["USER"].split(":")

    assert int(user) > 0
    assert int(group) > 0


def test_a_stop_of_the_container_reaches_the_worker_as_sigterm() -> None:
    assert image()["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(image()["ENTRYPOINT"]) == ["streamqueue"]
    assert isinstance(json.loads(image()["CMD"]), list)


def test_the_final_stage_holds_no_build_tool_of_its_own() -> None:
    instructions = [name for name, _ in stages()[-1]]

    assert "RUN" not in instructions


def test_tasks_on_top_of_the_image_change_neither_its_user_nor_its_command() -> None:
    (instructions,) = stages(OWN_TASKS)

    assert not {"USER", "CMD", "ENTRYPOINT", "STOPSIGNAL"} & {name for name, _ in instructions}


def test_the_base_is_one_minor_version_of_python_on_one_release_of_debian() -> None:
    base = next(arguments for name, arguments in dockerfile() if name == "ARG")

    assert re.fullmatch(r"PYTHON=python:3\.\d+-slim-[a-z]+", base)


# what is pinned


def pins(name: str) -> dict[str, tuple[str, list[str]]]:
    """The version and the hashes of each package in a constraints file."""
    text = (DOCKER / name).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        package, version = line.split()[0].split("==")
        found[package] = (version, [word for word in line.split() if word.startswith("--hash=")])
    return found


def project() -> dict[str, list[str]]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = content["project"]["optional-dependencies"]
    return {
        "constraints.txt": content["project"]["dependencies"] + extras["cron"] + extras["uvloop"],
        "build-constraints.txt": content["build-system"]["requires"],
    }


@pytest.mark.parametrize("name", ["constraints.txt", "build-constraints.txt"])
def test_every_package_is_pinned_with_its_hashes(name: str) -> None:
    assert all(hashes for _, hashes in pins(name).values())


@pytest.mark.parametrize("name", ["constraints.txt", "build-constraints.txt"])
def test_what_is_pinned_is_what_the_project_asks_for(name: str) -> None:
    pinned = pins(name)

    for text in project()[name]:
        wanted = Requirement(text)
        assert wanted.name in pinned
        assert pinned[wanted.name][0] in wanted.specifier


# the build, without an engine: its steps in a folder, with this Python


class Build:
    """The first stage of the Dockerfile, done in a folder: COPY by copying, RUN with sh."""

    def __init__(self, folder: Path) -> None:
        self.source, self.prefix = folder / "src", folder / "opt"
        self.source.mkdir()

    def take(self, arguments: str) -> None:
        *sources, target = arguments.split()
        for source in sources:
            assert is_in_the_context(source), f"{source} is not let in by .dockerignore"
            path = ROOT / source
            if path.is_dir():
                shutil.copytree(path, self.source / target)
            else:
                shutil.copy(path, self.source)

    def do(self, arguments: str) -> None:
        step = arguments.replace("/opt/streamqueue", str(self.prefix))
        # `python` is this one; an environment of its own, as the image of the stage is.
        path = f"{self.source.parent / 'base' / 'bin'}:/usr/bin:/bin"
        done = run("sh", "-ec", step, cwd=self.source, env=environment(PATH=path))
        assert done.returncode == 0, done.stderr

    def all(self) -> None:
        base = run(sys.executable, "-m", "venv", self.source.parent / "base")
        assert base.returncode == 0, base.stderr
        for name, arguments in stages()[0]:
            if name == "COPY":
                self.take(arguments)
            elif name == "RUN":
                self.do(arguments)


def is_in_the_context(source: str) -> bool:
    """Whether the last line of .dockerignore that fits lets this path in."""
    let_in = True
    for line in (DOCKER / "Dockerfile.dockerignore").read_text().split():
        pattern = line.removeprefix("!")
        if fnmatch.fnmatch(source, pattern):
            let_in = line.startswith("!")
    return let_in


@pytest.mark.slow
def test_the_steps_of_the_build_install_the_command(tmp_path: Path) -> None:
    build = Build(tmp_path)

    build.all()

    said = run(build.prefix / "bin" / "streamqueue", "--version")
    assert said.stdout.startswith("streamqueue ")
    assert run(build.prefix / "bin" / "python", "-c", "import cronsim, uvloop").returncode == 0


def test_a_package_that_is_not_the_one_that_was_pinned_is_refused(tmp_path: Path) -> None:
    *_, last = pins("build-constraints.txt")["setuptools"][1]
    text = (DOCKER / "build-constraints.txt").read_text()
    for _, hashes in pins("build-constraints.txt").values():
        for each in hashes:
            text = text.replace(each, last[:-64] + "0" * 64)
    (tmp_path / "constraints.txt").write_text(text)

    asked = run(
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"),
        *("--dest", tmp_path, "-r", tmp_path / "constraints.txt"),
    )

    assert asked.returncode != 0
    assert "DO NOT MATCH THE HASHES" in asked.stderr


def test_what_the_stages_copy_is_let_into_the_build() -> None:
    copied = [
        source
        for stage in stages()
        for name, arguments in stage
        if name == "COPY" and "--from" not in arguments
        for source in shlex.split(arguments)[:-1]
    ]

    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert is_in_the_context(source)


@pytest.mark.parametrize("path", [".git", ".venv", "tests", "deploy/compose", "secret.env"])
def test_nothing_else_is_let_into_the_build(path: str) -> None:
    assert not is_in_the_context(path)


# the health check


def healthcheck(port: int, **variables: str) -> tuple[int, str]:
    asked = run(
        sys.executable,
        HEALTHCHECK,
        env=environment(STREAMQUEUE_METRICS_PORT=str(port), **variables),
    )
    return asked.returncode, asked.stderr


def test_a_worker_whose_loop_turns_is_healthy() -> None:
    with HealthServer(CollectorRegistry(), Health()) as server:
        assert healthcheck(server.port) == (0, "")


def test_a_worker_whose_loop_is_stuck_is_not() -> None:
    stuck = Health(stall_after=0.000001)
    with HealthServer(CollectorRegistry(), stuck) as server:
        code, said = healthcheck(server.port)

    assert code == 1
    assert "says 503" in said


def test_a_worker_without_mongodb_is_not_ready_but_healthy() -> None:
    health = Health()
    health.not_ready("stream", "the change stream is closed")
    with HealthServer(CollectorRegistry(), health) as server:
        assert healthcheck(server.port) == (0, "")


def test_a_worker_that_does_not_answer_is_not_healthy_and_one_sentence_says_so() -> None:
    code, said = healthcheck(free_port())

    assert code == 1
    assert said.startswith("/healthz on port")
    assert said.count("\n") == 1


def test_the_health_check_asks_the_container_and_no_proxy() -> None:
    with HealthServer(CollectorRegistry(), Health()) as server:
        nowhere = f"http://127.0.0.1:{free_port()}"

        assert healthcheck(server.port, http_proxy=nowhere, HTTP_PROXY=nowhere) == (0, "")


@contextmanager
def https_server(certificate: Path) -> Iterator[int]:
    class Fine(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fine) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_a_worker_that_serves_over_tls_is_asked_over_tls(tmp_path: Path) -> None:
    certificate = tmp_path / "both.pem"
    made = run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-subj", "/CN=worker.example.org", "-keyout", certificate),
        *("-out", tmp_path / "certificate.pem"),
    )
    assert made.returncode == 0, made.stderr
    certificate.write_text(certificate.read_text() + (tmp_path / "certificate.pem").read_text())

    with https_server(certificate) as port:
        assert healthcheck(port, STREAMQUEUE_METRICS_CERT=str(certificate)) == (0, "")
