"""What the files in ``deploy/`` say, and the tools that judge them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
KUBERNETES = DEPLOY / "kubernetes"
EXAMPLE = KUBERNETES / "overlays" / "example"
RULES = DEPLOY / "prometheus" / "streamqueue.rules.yml"
CRDS = Path(__file__).with_name("crds")

CUSTOM = ("monitoring.coreos.com/", "keda.sh/")
OURS = ("streamqueue:", "streamqueue-worker:")


# the tools


def run(*command: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run a tool and return what it said, whatever its exit code."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=240, **settings
    )


def python_tool(name: str) -> Path:
    """The path of a command of the development group."""
    path = Path(sys.executable).with_name(name)
    assert path.exists(), f"{name} is missing: pip install --group dev"
    return path


def system_tool(*names: str) -> str:
    """The path of the first of these commands that is here; skips the test if none is."""
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.skip(f"none of {', '.join(names)} is here")


def faults_of_custom_resources(resources: Sequence[Any]) -> list[str]:
    """What the published schemas have against these resources."""
    node = system_tool("node")
    assert (CRDS / "node_modules").exists(), "the schemas are missing: make deploy-tools"
    judged = run(node, CRDS / "validate.js", input=json.dumps(resources))
    assert judged.returncode in (0, 1), judged.stderr
    assert not judged.stderr
    return judged.stdout.splitlines()


def planted(source: Path, right: str, wrong: str, folder: Path) -> Path:
    """A copy of the file, under its name, with a mistake in it."""
    text = source.read_text()
    assert right in text, f"{source.name} has no {right!r}: plant another mistake"
    copy = folder / source.name
    copy.write_text(text.replace(right, wrong, 1))
    return copy


# the files


def documents(path: Path) -> list[Any]:
    """Every YAML document in a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests() -> list[Path]:
    """The files with Kubernetes resources, without those that only kustomize reads."""
    return [
        path for path in sorted(KUBERNETES.rglob("*.yaml")) if path.name != "kustomization.yaml"
    ]


def is_custom(resource: Any) -> bool:
    return str(resource["apiVersion"]).startswith(CUSTOM)


def resources(kind: str) -> list[Any]:
    """Every resource of this kind in the base and the components."""
    return [
        document
        for path in manifests()
        if EXAMPLE not in path.parents
        for document in documents(path)
        if document["kind"] == kind
    ]


def dockerfile(path: Path = DOCKERFILE) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with its arguments, continued lines joined."""
    text = path.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines]


def stages(path: Path = DOCKERFILE) -> list[list[tuple[str, str]]]:
    """The instructions of a Dockerfile, split where a FROM begins a stage."""
    parts: list[list[tuple[str, str]]] = [[]]
    for instruction in dockerfile(path):
        if instruction[0] == "FROM":
            parts.append([])
        parts[-1].append(instruction)
    return parts[1:]


def image() -> dict[str, str]:
    """The last word of each instruction of the final stage."""
    return dict(stages()[-1])


def image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in image()["ENV"].split())


# the containers that run streamqueue


@dataclass(frozen=True)
class Container:
    """One container of our image, as one of the deployments starts it."""

    where: str
    arguments: tuple[str, ...]
    variables: dict[str, str]
    """Those of the image, and what the deployment sets."""
    grace_seconds: float | None = None
    program: str | None = None
    """What it runs instead of ``streamqueue``."""

    @property
    def command(self) -> str:
        return self.arguments[0] if self.arguments else ""

    @property
    def own_variables(self) -> dict[str, str]:
        return {
            name: value for name, value in self.variables.items() if name.startswith("STREAMQUEUE_")
        }


def containers() -> list[Container]:
    """Every one in the image, in Compose and in Kubernetes."""
    return [
        Container("Dockerfile", tuple(json.loads(image()["CMD"])), image_environment()),
        *_compose_containers(),
        *_kubernetes_containers(),
    ]


def compose() -> Any:
    return documents(COMPOSE)[0]


def _compose_containers() -> Iterator[Container]:
    for name, service in compose()["services"].items():
        if service["image"].startswith(OURS):
            entrypoint = service.get("entrypoint")
            yield Container(
                f"compose {name}",
                tuple(service["command"]),
                image_environment() | service["environment"],
                float(service["stop_grace_period"].removesuffix("s")),
                None if entrypoint is None else entrypoint[-1],
            )


def _kubernetes_containers() -> Iterator[Container]:
    for resource in resources("Deployment") + resources("Job"):
        pod = resource["spec"]["template"]["spec"]
        for container in pod["containers"]:
            yield Container(
                f"kubernetes {container['name']}",
                tuple(container["args"]),
                image_environment() | {each["name"]: each["value"] for each in container["env"]},
                float(pod["terminationGracePeriodSeconds"]),
            )


def environment(**variables: str) -> dict[str, str]:
    """This process's variables without any of ours, and these."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("STREAMQUEUE_")
    }
    return kept | variables
