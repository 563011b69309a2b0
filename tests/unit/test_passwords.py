"""No password is in what is shown of somebody's code, in whatever form it was there."""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from pymongo.uri_parser import parse_uri

from streamqueue.logs import JsonFormatter, TextFormatter
from streamqueue.passwords import hide_passwords, passwords_of
from streamqueue.tracebacks import describe
from streamqueue.uri import connection_uri
from tests.hellish import HELLISH

SECRET = "hun/ter 2@é'x"
ENCODED = quote_plus(SECRET)
URI = f"mongodb://ada:{ENCODED}@db.example/shop"
PARTS = ("hun/ter", "ter 2", "hun%2F", "hun%2f", "2%40", ENCODED, "2@", "\\xe9")


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_a_traceback_in_the_log_shows_none(formatter: logging.Formatter) -> None:
    uri = URI
    try:
        raise ValueError(parse_uri(uri)["password"])
    except ValueError as error:
        made = logging.makeLogRecord({"exc_info": (ValueError, error, error.__traceback__)})

    assert not [part for part in PARTS if part in formatter.format(made)]


def test_what_is_no_password_stays() -> None:
    text = 'File "shop.py", line 3, in connect\n  raise KeyError("emails")  # 1 / 2 = "x"'

    assert hide_passwords(text, {"x"}) == text


def test_an_argument_that_is_called_a_password_is_masked_alone() -> None:
    shown = hide_passwords("connect(host='db', password='hunter2', port=1)\npassword=hunter2&w=1")

    assert shown == "connect(host='db', password='***', port=1)\npassword=***&w=1"


@pytest.mark.parametrize("kind", HELLISH, ids=lambda kind: type.__dict__["__name__"].__get__(kind))
def test_an_exception_that_raises_when_it_is_looked_at_is_shown_all_the_same(
    kind: type[BaseException],
) -> None:
    error = kind()

    assert hide_passwords(describe(error), passwords_of(error))


def test_the_password_of_an_address_from_a_file_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uri").write_text(URI)
    monkeypatch.setenv("STREAMQUEUE_URI_FILE", str(tmp_path / "uri"))
    monkeypatch.delenv("STREAMQUEUE_URI", raising=False)
    connection_uri()

    assert hide_passwords(f"cannot use {SECRET}") == "cannot use ***"
