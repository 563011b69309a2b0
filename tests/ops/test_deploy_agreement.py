"""The deployments, the command line and the README agree with one another."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path, PurePath
from typing import Any

import click
import pytest

from streamqueue.cli.main import cli
from streamqueue.options import WorkerOptions
from streamqueue.uri import FILE_VARIABLE, URI_VARIABLE
from tests.ops.deploy_files import (
    COMPOSE,
    DEPLOY,
    DOCKERFILE,
    ROOT,
    Container,
    compose,
    containers,
    documents,
    image,
    resources,
)

README = DEPLOY / "README.md"
PORTS = {"worker": 9464, "exporter": 9465}
IN_THE_IMAGE = {"STREAMQUEUE_METRICS_HOST", "STREAMQUEUE_METRICS_PORT"}
"""Variables that are there for every command, also for those that serve nothing."""


def where(container: Container) -> str:
    return container.where


ALL = containers()
COMMANDS = [each for each in ALL if each.program is None]
SERVING = [each for each in COMMANDS if each.command in PORTS]


def parsed(container: Container, monkeypatch: pytest.MonkeyPatch, *without: str) -> Any:
    """What the command line makes of a container's arguments and variables."""
    with monkeypatch.context() as variables:
        for name, value in container.own_variables.items():
            if name not in without:
                variables.setenv(name, value)
        name, *arguments = container.arguments
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        return command.make_context(name, arguments).params


@pytest.mark.parametrize("container", COMMANDS, ids=where)
def test_the_command_line_takes_what_each_container_says(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        assert parsed(container, monkeypatch)
    except click.UsageError:
        pytest.fail(f"streamqueue refuses {shlex.join(container.arguments)}")


def read_by_its_programs(container: Container, name: str) -> bool:
    """Whether a program that the container runs besides the command asks for the variable."""
    programs = ["docker/healthcheck.py"]
    if container.command == "worker":
        programs.append("compose/tasks.py")
    if container.program is not None:
        programs.append(f"compose/{container.program}")
    words = [f'"{name}"']
    if name in (URI_VARIABLE, FILE_VARIABLE):
        words.append("connection_uri()")
    texts = [(DEPLOY / program).read_text() for program in programs]
    return any(word in text for word in words for text in texts)


@pytest.mark.parametrize("container", ALL, ids=where)
def test_somebody_reads_each_variable(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = None if container.program else parsed(container, monkeypatch)
    for name in container.own_variables.keys() - IN_THE_IMAGE:
        if name in (URI_VARIABLE, FILE_VARIABLE) and (options is not None and "uri" in options):
            continue  # the command finds the address after it has read its arguments
        if not read_by_its_programs(container, name):
            assert options is not None, name
            assert options != parsed(container, monkeypatch, name), name


@pytest.mark.parametrize("container", SERVING, ids=where)
def test_metrics_are_served_to_the_outside_on_the_port_of_this_command(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = parsed(container, monkeypatch)

    assert options["metrics_host"] == "0.0.0.0"
    assert options["metrics_port"] == PORTS[container.command]


@pytest.mark.parametrize(
    "container",
    [each for each in ALL if each.command == "worker" and each.grace_seconds],
    ids=where,
)
def test_a_worker_is_given_longer_than_its_handlers_have(container: Container) -> None:
    drain = WorkerOptions().drain_timeout
    tasks = re.search(r"drain_timeout=(\d+)", (COMPOSE.parent / "tasks.py").read_text())

    assert isinstance(drain, float)
    assert tasks
    assert container.grace_seconds is not None
    assert container.grace_seconds >= max(drain, float(tasks[1])) + 10


def test_the_ports_that_the_image_names_are_those_that_are_served() -> None:
    assert [int(port) for port in image()["EXPOSE"].split()] == list(PORTS.values())


def test_kubernetes_names_the_port_that_is_served() -> None:
    for deployment in resources("Deployment"):
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            assert container["ports"] == [
                {"name": "metrics", "containerPort": PORTS[container["args"][0]]}
            ]


def test_prometheus_asks_where_compose_serves() -> None:
    (settings,) = documents(COMPOSE.parent / "prometheus.yml")
    jobs = {job["job_name"]: job for job in settings["scrape_configs"]}

    (looked_up,) = jobs["streamqueue-worker"]["dns_sd_configs"]
    assert (looked_up["names"], looked_up["port"]) == (["worker"], PORTS["worker"])
    (static,) = jobs["streamqueue-exporter"]["static_configs"]
    assert static["targets"] == [f"exporter:{PORTS['exporter']}"]
    assert {"worker", "exporter"} <= compose()["services"].keys()


def test_prometheus_calls_the_jobs_the_same_everywhere() -> None:
    (settings,) = documents(COMPOSE.parent / "prometheus.yml")
    (monitor,) = resources("PodMonitor")
    (relabelled,) = monitor["spec"]["podMetricsEndpoints"][0]["relabelings"]

    jobs = {job["job_name"] for job in settings["scrape_configs"]}

    components = {
        deployment["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
        for deployment in resources("Deployment")
    }
    assert relabelled["targetLabel"] == "job"
    assert jobs == {relabelled["replacement"].replace("$1", each) for each in components}


@pytest.mark.parametrize("provisioning", ["../../grafana/provisioning"])
def test_grafana_finds_the_boards_and_prometheus(provisioning: str) -> None:
    grafana = compose()["services"]["grafana"]
    folder = COMPOSE.parent / provisioning
    (boards,) = (folder / "dashboards").iterdir()
    (sources,) = (folder / "datasources").iterdir()
    mounted = {volume.split(":")[1] for volume in grafana["volumes"]}
    home = PurePath(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])

    assert documents(boards)[0]["providers"][0]["options"]["path"] in mounted
    assert str(home.parent) in mounted
    assert (COMPOSE.parent / "../../grafana/dashboards" / home.name).exists()
    assert documents(sources)[0]["datasources"][0]["url"] == "$PROMETHEUS_URL"
    assert grafana["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"


def test_compose_builds_the_image_that_the_dockerfile_is_for() -> None:
    build = compose()["services"]["worker"]["build"]

    assert (COMPOSE.parent / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] == DOCKERFILE
    assert json.loads(image()["CMD"]) == compose()["services"]["worker"]["command"]


# the README


def test_the_readme_names_no_file_that_is_not_there() -> None:
    text = README.read_text()
    named = set(re.findall(r"(?<![\w/.])(?:deploy|grafana)/[\w./-]*[\w-]", text))
    beside = {
        target for target in re.findall(r"\]\(([^)#]+)\)", text) if not target.startswith("http")
    }

    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    assert [path for path in sorted(beside) if not (DEPLOY / path).exists()] == []


GUIDES = [
    *(ROOT / f"{name}.md" for name in ("README", "SECURITY", "CONTRIBUTING")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(DEPLOY.rglob("README.md")),
]


def sections(guide: Path) -> set[str]:
    """What a link may name after ``#``, as the hosts of repositories make it of a heading."""
    headings = re.findall(r"^#+ (.+)$", guide.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: str(guide.relative_to(ROOT)))
def test_every_link_of_a_guide_leads_somewhere(guide: Path) -> None:
    lost = []
    prose = re.sub(r"^```.*?^```$", "", guide.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" not in link:
            file, _, section = link.partition("#")
            target = (guide.parent / file).resolve() if file else guide
            if not target.exists() or (section and section not in sections(target)):
                lost.append(link)

    assert lost == []


def test_the_readme_names_the_ports() -> None:
    text = README.read_text()

    for port in PORTS.values():
        assert f"{port}" in text
