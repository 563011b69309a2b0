"""Where the MongoDB URI comes from, and what is refused before it is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamqueue import ConfigurationError, connection_uri
from streamqueue.uri import find_uri

URI = "mongodb://ada:hunter2@db.example.org/shop?replicaSet=rs0"
OTHER = "mongodb://other.example.org/shop"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMQUEUE_URI", raising=False)
    monkeypatch.delenv("STREAMQUEUE_URI_FILE", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "uri"
    path.write_text(f"\n  {URI} \n")
    return path


def test_the_uri_comes_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI", URI)

    assert connection_uri() == URI


def test_it_comes_from_a_file_without_the_space_around_it(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI_FILE", str(file))

    assert connection_uri() == URI


def test_without_either_it_says_how_to_name_one() -> None:
    with pytest.raises(ConfigurationError, match="STREAMQUEUE_URI_FILE"):
        connection_uri()


def test_a_variable_that_is_empty_counts_as_not_set(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI", "")
    monkeypatch.setenv("STREAMQUEUE_URI_FILE", str(file))

    assert connection_uri() == URI


def test_both_variables_are_one_too_many(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI", OTHER)
    monkeypatch.setenv("STREAMQUEUE_URI_FILE", str(file))

    with pytest.raises(ConfigurationError, match="both STREAMQUEUE_URI and STREAMQUEUE_URI_FILE"):
        connection_uri()


@pytest.mark.parametrize("variable", ["STREAMQUEUE_URI", "STREAMQUEUE_URI_FILE"])
def test_an_option_beats_the_variables(
    monkeypatch: pytest.MonkeyPatch, file: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, "mongodb://never.example.org")

    assert find_uri(path=str(file)) == find_uri(uri=URI) == URI


def test_nothing_anywhere_is_none() -> None:
    assert find_uri() is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: no such file"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"mongodb://a/\nmongodb://b/\n", "more than the MongoDB URI"),
        (b"\xff\xfe\x00", "is no text"),
    ],
)
def test_a_file_that_does_not_hold_a_uri_is_refused_by_name(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "uri"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=words) as raised:
        find_uri(path=str(path))

    assert str(path) in str(raised.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: is a directory"):
        find_uri(path=str(tmp_path))


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://ada:12/hunter2@db/shop",
        "mongodb://ada:p@12/hunter2@db/shop",
        "mongodb+srv://ada:12/hunter2@db/shop",
        "mongodb://ada:12?hunter2@db/shop",
        "mongodb://ada:12?x=hunter2@db/shop",
        "mongodb://ada:hunter2/shop",
        "mongodb://ada:hunter2@db:port/shop",
        "mongodb://ada:hunter2@db:0/shop",
    ],
)
def test_a_uri_of_which_a_part_would_be_taken_for_another_is_refused_without_being_shown(
    uri: str,
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        find_uri(uri)

    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "uri",
    [
        URI,
        "mongodb://ada:p%40ss%2Fw%3Frd%3A@db:27017,db2:27018/shop?appName=a@b",
        "mongodb://%2Ftmp%2Fmongodb-27017.sock/shop",
        "mongodb://[::1]:27017,127.0.0.1/?replicaSet=rs0",
        "mongodb+srv://ada:hunter2@cluster.example.org/shop?w=majority",
        "mongodb://db?replicaSet=rs0",
    ],
)
def test_everything_else_is_left_to_pymongo(uri: str) -> None:
    assert find_uri(uri) == uri


@pytest.mark.parametrize("uri", ["localhost", "ada:hunter2@db/shop", "http://db/shop"])
def test_an_address_without_its_scheme_is_refused_and_not_quoted(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="has no mongodb://") as refused:
        find_uri(uri)

    assert "hunter2" not in str(refused.value)
