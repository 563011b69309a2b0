"""What is hidden in texts, and what is said of servers that refuse."""

from __future__ import annotations

import pytest
from pymongo.errors import OperationFailure

from streamqueue.cli.diagnosis import explain
from streamqueue.passwords import hide_password

REFUSAL = (
    'not authorized on shop to execute command { insert: "jobs", documents: [ { payload: { card: '
    '"4111-1111" } } ], ordered: true, $db: "shop" }'
)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("mongodb://ada:hunter2@db/x", "mongodb://ada:***@db/x"),
        ("mongodb+srv://ada:hunter2@db/x", "mongodb+srv://ada:***@db/x"),
        ("mongodb://ada:%40hunter2%3A@db/x", "mongodb://ada:***@db/x"),
        ("mongodb://ada:p@hunter2@db/x", "mongodb://ada:***@db/x"),
        ("mongodb://ada:p:hunter2@db/x", "mongodb://ada:***@db/x"),
        ("mongodb://ada:p/hunter2@db/x", "mongodb://ada:***@db/x"),
        ("mongodb://ada:p?hunter2#@db/x", "mongodb://ada:***@db/x"),
        ("mongodb://ada@example.org:hunter2@db/x", "mongodb://ada@example.org:***@db/x"),
        (
            "not mongodb://a:hunter2@x/ but mongodb://b:hunter2@y/, or mongodb://c@z:1/",
            "not mongodb://a:***@x/ but mongodb://b:***@y/, or mongodb://c@z:1/",
        ),
        ("mongodb://a:hunter2@x,mongodb://b:hunter2@y", "mongodb://a:***@x,mongodb://b:***@y"),
        ("x?tlsCertificateKeyFilePassword=hunter2&w=1", "x?tlsCertificateKeyFilePassword=***&w=1"),
        ("p=AWS_SESSION_TOKEN:hunter2&w=1", "p=AWS_SESSION_TOKEN:***&w=1"),
        ("mongodb://db:27017/x?appName=y mail ada@example.org", None),
        ("mongodb://ada@db:27017,db2:27017/x", None),
        ("at 10:30 ada@example.org", None),
    ],
)
def test_passwords_are_hidden_and_nothing_else(text: str, hidden: str | None) -> None:
    assert hide_password(text) == (text if hidden is None else hidden)


def test_a_refused_command_is_named_and_not_quoted() -> None:
    sentence, usage = explain(OperationFailure(REFUSAL, 13), None)

    assert "not authorized on shop to insert;" in sentence
    assert "4111" not in sentence
    assert not usage


def test_a_refused_stream_is_named_as_such() -> None:
    refusal = REFUSAL.replace("insert", "aggregate").replace("documents", "$changeStream")

    sentence, _ = explain(OperationFailure(refusal, 13), None)

    assert "not authorized on shop to open a changeStream;" in sentence


def test_a_server_that_cannot_be_named_is_not_made_up() -> None:
    from pymongo.errors import ServerSelectionTimeoutError

    sentence, _ = explain(ServerSelectionTimeoutError("db7:27017: connection refused"), None)

    assert "db7:27017" in sentence
    assert "localhost" not in sentence
