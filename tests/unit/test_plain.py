"""What anybody may have stored does nothing to a terminal and to a log."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from bson import Binary, Decimal128, ObjectId
from hypothesis import given
from hypothesis import strategies as st

import streamqueue
from streamqueue import plain
from streamqueue.logs import JsonFormatter, TextFormatter

PACKAGE = Path(streamqueue.__file__).parent
FORGED = "2026-11-29 03:00:00,000 ERROR streamqueue.worker: all is lost"
SWITCHES = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08\x7f\u202e\u2028"

hostile = st.text(st.characters() | st.sampled_from(SWITCHES + "\n"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | hostile | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hostile, inner, max_size=3),
    max_leaves=8,
)


@given(hostile)
def test_a_terminal_is_told_nothing_but_text(text: str) -> None:
    shown = plain.printable(text)

    assert shown.isprintable()
    assert len(shown) == len(text)
    assert all(was == now for was, now in zip(text, shown, strict=True) if was.isprintable())


@given(hostile)
def test_of_several_lines_each_is_only_text(text: str) -> None:
    lines = plain.printable_lines(text).split("\n")

    assert len(lines) == text.count("\n") + 1
    assert all(line.isprintable() for line in lines)


@given(hostile)
def test_a_log_says_what_was_there_on_one_line(text: str) -> None:
    assert plain.escaped(text).isprintable()


def test_what_cannot_be_seen_is_written_as_python_writes_it() -> None:
    assert plain.escaped("a\nb\x1b[2J \u202eé") == r"a\nb\x1b[2J \u202eé"


@given(values)
def test_json_is_one_line_of_printable_ascii(value: object) -> None:
    line = plain.as_json(value)

    assert line.isascii()
    assert line.isprintable()
    json.loads(line, parse_constant=pytest.fail)


def test_json_has_a_form_for_everything() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    odd = {"id": Decimal128("1"), "raw": Binary(b"x", 4), "no": float("nan"), 3: Unspeakable()}

    assert json.loads(plain.as_json(odd))["id"] == "1"
    assert plain.as_json(deep).isascii()


# the log


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("shop").makeRecord(
        "shop", logging.WARNING, __file__, 1, message, args, None, extra=extra or None
    )


def raised(error: BaseException) -> Any:
    try:
        raise error
    except BaseException as caught:
        return type(caught), caught, caught.__traceback__


FORGERIES = {
    "the message": record(f"held by x\n{FORGED}{SWITCHES}"),
    "an argument": record("held by %s", f"x\n{FORGED}{SWITCHES}"),
    "a field": record("held", consumer=f"x\n{FORGED}{SWITCHES}", more={SWITCHES: [SWITCHES]}),
}


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
@pytest.mark.parametrize("where", FORGERIES)
def test_a_record_is_one_line(formatter: logging.Formatter, where: str) -> None:
    assert formatter.format(FORGERIES[where]).isprintable()


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_no_line_of_an_exception_looks_like_a_record(formatter: logging.Formatter) -> None:
    made = record("failed")
    error = ValueError(f"cannot read x\n{FORGED}{SWITCHES}")
    error.add_note(f"see\n{FORGED}")
    made.exc_info = raised(ExceptionGroup(f"many\n{FORGED}", [error]))
    made.stack_info = f"Stack\n{FORGED}"
    copied = record("failed")  # as one that came from another process
    copied.exc_text = f"ValueError: x\n{FORGED}{SWITCHES}"

    for each in (made, copied):
        first, *others = formatter.format(each).split("\n")
        assert first.isprintable()
        assert all(line.isprintable() and line.startswith("  ") for line in others)


def test_with_a_programs_own_formatter_too_our_lines_are_one_line_each() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = plain.logger("streamqueue.test_plain")
    logger.addHandler(handler)
    try:
        logger.warning("Reaped %d of %s, %.1f s", 3, f"x\n{FORGED}{SWITCHES}", 0.5)
        logger.warning("Job %s and %s", ObjectId("65" * 12), Unspeakable())
    finally:
        logger.removeHandler(handler)

    first, second, end = written.getvalue().split("\n")
    assert end == ""
    assert first.isprintable()
    assert r"Reaped 3 of x\n2026" in first
    assert first.endswith(r"\u202e\u2028, 0.5 s")
    assert "Job 656565656565656565656565 and " in second


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no")


def callers(function: str) -> set[str]:
    """The modules that call it, as it is written."""
    return {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if f"{function}(" in path.read_text()
    }


def test_every_logger_of_ours_is_one_of_these() -> None:
    assert callers("logging.getLogger") <= {"plain.py", "cli/begin.py"}  # that of pymongo
    assert len(callers("plain.logger")) > 20


def test_json_for_people_and_scripts_is_made_in_one_place() -> None:
    # Bodies of answers, and what our own processes say to one another, go to no terminal.
    own = {name for name in callers("json.dumps") if not name.startswith("bench/")}

    assert own == {"plain.py", "cli/demo.py", "health/health.py"}
