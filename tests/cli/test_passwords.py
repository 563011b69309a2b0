"""A module of tasks that fails shows no password, in whatever form it was there."""

from __future__ import annotations

import os
import subprocess
import sys
from urllib.parse import quote_plus

import pytest

from tests import programs

SECRET = "hun/ter 2@é'x"
ENCODED = quote_plus(SECRET)
URI = f"mongodb://ada:{ENCODED}@db.example/shop"
PARTS = ("hun/ter", "ter 2", "hun%2F", "hun%2f", "2%40", ENCODED, "2@", "\\xe9")

MODULES = {
    "in a line of the code": f'import nothing; client("{URI}")',
    "in two lines of it": f'uri = (\n "mongodb://ada:"\n "{ENCODED}@db/x")\nraise ValueError(uri)',
    "in a text": f'raise ValueError("cannot use {URI}")',
    "decoded": f'uri = "{URI}"\nraise ValueError("cannot use " + {SECRET!r})',
    "as an argument": f"dict(host='db', password={SECRET!r}, x=1 / 0)",
    "as a variable": f"DB_PASSWORD = {SECRET!r}\nraise ValueError(DB_PASSWORD)",
    "as bytes": f"SECRET = {SECRET.encode()!r}\nraise ValueError(SECRET.decode())",
    "taken apart": "from pymongo.uri_parser import parse_uri\n"
    f"raise ValueError(parse_uri({URI!r}))",
    "in a cause": f'try:\n 1 / 0\nexcept Exception:\n raise KeyError("x") from OSError("{URI}")',
    "in a context": f'try:\n raise OSError("{URI}")\nexcept OSError:\n raise KeyError({SECRET!r})',
    "in a note": f'e = ValueError("x")\ne.add_note("{URI}")\ne.add_note({SECRET!r})\nraise e',
    "in a group": f'raise ExceptionGroup("{URI}", [ValueError({SECRET!r})])',
    "in a syntax error": f'uri = "{URI}" = 3',
    "in a function": f'def connect(uri):\n  raise ValueError(uri[14:40])\nconnect("{URI}")',
    "from a file": "import streamqueue\nuri = streamqueue.connection_uri()\n"
    "from urllib.parse import unquote_plus\nraise ValueError(unquote_plus(uri)[14:40])",
    "from a variable": "import os\nraise ValueError(os.environ['SHOP_DB_PASSWORD'])",
    "with an address that pymongo refuses": "from pymongo import MongoClient\n"
    f"MongoClient({URI!r} + '&&?x')",
    "with a file that is missing": f"open({URI!r})",
}


WITHIN = ("at its import", "in a function that makes the worker")

# Each worker in a process of its own, which the command is allowed to end; what all of them import
# is imported once.
PROGRAM = f"""
{programs.PRELOADED}
import os, sys
from streamqueue.__main__ import main

for name in sys.argv[1:]:
    if not (child := os.fork()):
        os.dup2(os.open(name + ".shown", os.O_CREAT | os.O_WRONLY), 2)
        sys.argv = ["streamqueue", "worker", name + ":make"]
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[int, str]]:
    """The exit code of each worker, and what it showed."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "uri").write_text(URI)
    environment = {**os.environ, "STREAMQUEUE_URI_FILE": "uri", "SHOP_DB_PASSWORD": SECRET}
    environment.pop("STREAMQUEUE_URI", None)
    cases = [(where, within) for where in MODULES for within in WITHIN]
    names = [f"shop_with_a_secret_{number}" for number in range(len(cases))]
    for name, (where, within) in zip(names, cases, strict=True):
        code = MODULES[where]
        if within != "at its import" and where != "in a syntax error":
            code = "def make():\n" + "\n".join(f"  {line}" for line in code.splitlines())
        (folder / f"{name}.py").write_text(code)

    command = [sys.executable, "-c", PROGRAM, *names]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )

    codes = map(int, done.stdout.split())
    shown = ((folder / f"{name}.shown").read_text() for name in names)
    return dict(zip(cases, zip(codes, shown, strict=True), strict=True))


@pytest.mark.few(9)
@pytest.mark.parametrize("where", MODULES)
@pytest.mark.parametrize("within", WITHIN)
def test_a_module_that_fails_shows_no_password(
    ended: dict[tuple[str, str], tuple[int, str]], where: str, within: str
) -> None:
    code, shown = ended[where, within]

    assert code in (1, 2)
    assert "streamqueue: " in shown or "cli/main.py" in shown  # the command, and not its parent
    assert not [part for part in PARTS if part in shown]
