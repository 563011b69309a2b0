"""What importing the package loads: no more than what is asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import streamqueue


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a fresh process has after a statement."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_package_alone_loads_none_of_its_modules() -> None:
    modules = loaded_by("import streamqueue")

    assert {name for name in modules if name.startswith("streamqueue")} == {"streamqueue"}


def test_a_program_that_puts_jobs_loads_no_worker_and_no_metrics() -> None:
    modules = loaded_by("from streamqueue import MongoQueue")

    assert "streamqueue.queue.blocking" in modules
    assert (
        not {"streamqueue.worker", "streamqueue.metrics", "streamqueue.queue.asynchronous"}
        & modules
    )


def test_a_program_that_blocks_loads_nothing_of_what_the_async_shell_stands_on() -> None:
    assert not {"anyio", "prometheus_client"} & loaded_by("from streamqueue import MongoQueue")


@pytest.mark.parametrize("name", streamqueue.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(streamqueue, name) is not None
    assert name in dir(streamqueue)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Wroker'"):
        streamqueue.Wroker  # noqa: B018  # type: ignore[attr-defined]


def test_everything_public_comes_with_a_star() -> None:
    names: dict[str, object] = {}

    exec("from streamqueue import *", names)

    assert set(streamqueue.__all__) <= set(names)
