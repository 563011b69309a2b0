"""A module of tasks that fails shows no password, in whatever form it was there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
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

MODULE = "shop_with_a_secret"


def run(folder: Path, where: str, within: str) -> tuple[int, str]:
    """The exit code of a worker whose module fails there, and what it showed."""
    (folder / "uri").write_text(URI)
    environment = {**os.environ, "STREAMQUEUE_URI_FILE": "uri", "SHOP_DB_PASSWORD": SECRET}
    environment.pop("STREAMQUEUE_URI", None)
    code = MODULES[where]
    if within != "at its import" and where != "in a syntax error":
        code = "def make():\n" + "\n".join(f"  {line}" for line in code.splitlines())
    (folder / f"{MODULE}.py").write_text(code)

    ended = programs.run(
        [sys.executable, "-m", "streamqueue", "worker", f"{MODULE}:make"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize("where", MODULES)
@pytest.mark.parametrize("within", WITHIN)
def test_a_module_that_fails_shows_no_password(tmp_path: Path, where: str, within: str) -> None:
    code, shown = run(tmp_path, where, within)

    assert code in (1, 2)
    assert shown
    assert not [part for part in PARTS if part in shown]
