"""Whatever a person or a script gives a command, what is wrong with it is one sentence."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue.cli.main import main
from tests import programs

DEEP = b"[" * 60_000 + b"]" * 60_000
NOT_UTF8 = "\udcff"  # as the interpreter hands on a byte of an argument that is none
HUGE = "1" + "0" * 5000

WRONG_PAYLOADS: dict[str, tuple[bytes, str]] = {
    "too deep": (DEEP, "payload 1 is not JSON (it is nested too deep)"),
    "deep in objects": (b'{"a":' * 60_000 + b"1" + b"}" * 60_000, "nested too deep"),
    "not UTF-8": (b'{"a": 1}\n{"a": "\xff"}\n', "payload 2 is not UTF-8 (byte 8 of its line)"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "payload 1 is not UTF-8"),
    "a key twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
    "NaN": (b'{"a": NaN}', "NaN is no number in JSON"),
    "infinity": (b'{"a": [-Infinity]}', "-Infinity is no number in JSON"),
    "more than a double": (b'{"a": 1e999}', "too large for a double"),
    "a huge number": (b'{"a": %s}' % HUGE.encode(), "beyond 64 bits"),
    "half a surrogate": (b'{"a": "\\ud800"}', "not valid Unicode"),
    "a control character": (b'{"a": "\x1b"}', "payload 1 is not JSON"),
    "no JSON": (b"\n\n{", "payload 3 is not JSON"),
}

WRONG_OPTIONS: list[list[str]] = [
    ["dead", "list", "--limit", "100000000000000000000"],
    ["dead", "list", "--limit", HUGE],
    ["dead", "list", "--match", NOT_UTF8],
    ["dead", "list", "--match", ""],
    ["dead", "list", "--match", "a" * 50_000],
    ["dead", "list", "--since", "9999999d"],
    ["dead", "list", "--since", NOT_UTF8],
    ["dead", "requeue", NOT_UTF8],
    ["dead", "requeue", "--yes", "--limit", "-1"],
    ["put", "{}", "--key", NOT_UTF8],
    ["put", "{}", "--priority", HUGE],
    ["put", "{}", "--delay", "nan"],
    ["put", "{}", "--max-attempts", "100000000000000000000"],
    ["put", f'{{"a": "{NOT_UTF8}"}}'],
    ["stats", "--queue", NOT_UTF8],
    ["stats", "--collection", NOT_UTF8],
    ["stats", "--uri", f"mongodb://{NOT_UTF8}/x"],
    ["top", "--interval", "nan"],
    ["worker", "tasks:worker", "--processes", "100000000000000000000"],
    ["worker", "tasks:worker", "--port-offset", HUGE],
    ["worker", "tasks:worker", "--metrics-port", HUGE],
    ["worker", "..:worker"],
    ["worker", "tasks..more:worker"],
    ["worker", f"{NOT_UTF8}:worker"],
    ["demo", "--jobs", HUGE],
]


@pytest.fixture(autouse=True)
def in_reach(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI", address)


def says_one_sentence(said: str) -> bool:
    """Below the usage."""
    lines = [line for line in said.splitlines() if line.startswith("streamqueue")]
    return len(lines) == 1 and said.endswith(f"{lines[0]}\n") and len(lines[0]) < 400


@pytest.mark.parametrize("wrong", WRONG_PAYLOADS)
def test_what_is_no_payload_is_told_and_nothing_is_put(
    jobs: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: str,
) -> None:
    content, words = WRONG_PAYLOADS[wrong]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    assert main(["put"]) != 0

    said = capsys.readouterr().err
    assert words in said
    assert says_one_sentence(said)
    assert jobs.count_documents({}) == 0


def test_a_mark_of_the_byte_order_and_any_line_end_are_no_mistake(
    jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b'\xef\xbb\xbf{"n": 1}\r\n\r\n{"n": 1e3, "s": "\\u00e9\xc3\xa9"}'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "ascii"))

    assert main(["put", "-"]) == 0

    found = [job["payload"] for job in jobs.find().sort("payload.n", 1)]
    assert found == [{"n": 1}, {"n": 1000.0, "s": "éé"}]


def test_a_closed_standard_input_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)

    for command in (["put"], ["dead", "purge"]):
        assert main(command) == 2
        assert says_one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize("arguments", WRONG_OPTIONS, ids=lambda each: ascii(" ".join(each))[:40])
def test_what_is_wrong_with_an_option_is_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    if arguments[0] == "worker":  # it sees to it that its process ends, which is not to be ours
        command = [sys.executable, "-m", "streamqueue", *arguments]
        ended = programs.run(command, capture_output=True, text=True, timeout=30)
        code, said = ended.returncode, ended.stderr
    else:
        code = main(arguments)
        said = capsys.readouterr().err

    assert code == 2
    assert says_one_sentence(said), said


def test_output_that_cannot_be_written_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["stats"]) == 1

    assert says_one_sentence(capfd.readouterr().err)


def test_what_a_locale_has_no_character_for_is_printed_all_the_same(
    jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.insert_one({"queue": "default", "state": "dead", "last_error": "Grüße"})
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))

    assert main(["dead", "list"]) == 0

    sys.stdout.flush()
    assert rb"Gr\xfc\xdfe" in written.getvalue()
