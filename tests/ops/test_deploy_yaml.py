"""The form of every YAML file of the deployment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ops.deploy_files import COMPOSE, DEPLOY, planted, python_tool, run

FORM = DEPLOY / ".yamllint.yaml"


def test_every_file_has_the_same_form() -> None:
    linted = run(python_tool("yamllint"), "--strict", "-c", FORM, DEPLOY)

    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("    image: mongo:8\n", "    image: mongo:8\n    image: mongo:7\n", "duplication of key"),
        ("    image: mongo:8\n", "   image: mongo:8\n", "syntax error"),
        ("    image: mongo:8\n", "    image: mongo:8  \n", "trailing spaces"),
    ],
    ids=["a key that is there twice", "a key that is out of line", "spaces that nobody sees"],
)
def test_the_linter_sees(right: str, wrong: str, fault: str, tmp_path: Path) -> None:
    linted = run(
        python_tool("yamllint"), "--strict", "-c", FORM, planted(COMPOSE, right, wrong, tmp_path)
    )

    assert linted.returncode == 1
    assert fault in linted.stdout
