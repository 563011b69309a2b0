"""The formatters, and that every line the package logs carries known fields."""

from __future__ import annotations

import ast
import json
import logging
import logging.config
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bson import ObjectId
from pymongo.errors import OperationFailure

import streamqueue
from streamqueue.failures import failure_facts
from streamqueue.logs import EVENTS, FIELDS, JsonFormatter, TextFormatter
from streamqueue.processes.process import ProcessEnd
from streamqueue.protocol.document import JobRecord
from streamqueue.queue.lines import facts
from streamqueue.running import Running, running
from tests.hellish import HELLISH

PACKAGE = Path(streamqueue.__file__).parent
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
ADDRESS = "mongodb://shop:hunter2@db.example:27017/shop"


# what the package logs


class Call(NamedTuple):
    place: str
    extra: ast.expr | None


def calls() -> Iterator[Call]:
    """Every call of a logger in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and ast.unparse(node.func.value).endswith("logger")
            ):
                extra = [word.value for word in node.keywords if word.arg == "extra"]
                place = f"{path.relative_to(PACKAGE)}:{node.lineno}"
                yield Call(place, extra[0] if extra else None)


def constants(node: ast.AST) -> set[str]:
    """The strings an expression may be."""
    if isinstance(node, ast.IfExp):
        return constants(node.body) | constants(node.orelse)
    assert isinstance(node, ast.Constant), ast.unparse(node)
    return {str(node.value)}


CALLS = list(calls())


def fields_of(call: Call) -> dict[str, ast.expr]:
    """The fields of a line by name, without those that a function adds."""
    assert isinstance(call.extra, ast.Dict), call.place
    pairs = zip(call.extra.keys, call.extra.values, strict=True)
    return {ast.literal_eval(key): value for key, value in pairs if key is not None}


def added_by_functions(call: Call) -> list[str]:
    assert isinstance(call.extra, ast.Dict), call.place
    pairs = zip(call.extra.keys, call.extra.values, strict=True)
    return [ast.unparse(value) for key, value in pairs if key is None]


def test_the_calls_are_found() -> None:
    # The tests below would pass with none.
    assert len(CALLS) > 30


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.place)
def test_a_line_names_a_known_event(call: Call) -> None:
    assert constants(fields_of(call)["event"]) <= EVENTS.keys()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.place)
def test_a_line_has_known_fields_only(call: Call) -> None:
    assert fields_of(call).keys() <= FIELDS.keys()
    assert all("facts(" in added for added in added_by_functions(call))


def test_every_event_is_logged_somewhere() -> None:
    logged = {name for call in CALLS for name in constants(fields_of(call)["event"])}

    assert logged == EVENTS.keys()


def test_the_facts_of_jobs_and_processes_are_known_fields_and_no_payload() -> None:
    record = JobRecord.from_document(
        {"_id": ObjectId(), "queue": "default", "payload": {"card": "4111"}}, max_attempts=3
    )
    of_a_job, of_a_process = facts(record), ProcessEnd("Process 1", 1, 17, -9, None).facts()

    assert of_a_job.keys() | of_a_process.keys() <= FIELDS.keys()
    assert "4111" not in str(of_a_job)
    assert (of_a_process["signal"], of_a_process["exit_code"]) == ("SIGKILL", None)


def test_every_field_is_used() -> None:
    used = {name for call in CALLS for name in fields_of(call)}
    record = JobRecord.from_document({"_id": ObjectId()}, max_attempts=3)
    used |= failure_facts(OperationFailure("no", 18)).keys()

    assert (
        used | facts(record).keys() | ProcessEnd("", 0, 0, 0, None).facts().keys() == FIELDS.keys()
    )


def test_no_field_collides_with_what_every_record_has() -> None:
    reserved = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}

    assert not reserved & FIELDS.keys()


def test_the_library_adds_no_handler_and_sets_no_level() -> None:
    program = """
import logging
before = list(logging.root.handlers), logging.root.level
import streamqueue.logs
from streamqueue import AsyncMongoQueue, MongoQueue, Worker
names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "streamqueue"]
assert len(names) > 5
for logger in map(logging.getLogger, names):
    assert (logger.handlers, logger.level, logger.propagate) == ([], logging.NOTSET, True)
assert (list(logging.root.handlers), logging.root.level) == before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


# JSON


def record(message: str = "Sold %d", *args: object, **extra: Any) -> logging.LogRecord:
    made = logging.getLogger("streamqueue.shop").makeRecord(
        "streamqueue.shop",
        logging.WARNING,
        __file__,
        1,
        message,
        args,
        exc_info=None,
        extra=extra or None,
    )
    made.created = datetime(2026, 7, 1, 12, 30, 5, 42_900, tzinfo=UTC).timestamp()
    return made


def as_json(made: logging.LogRecord, **settings: Any) -> dict[str, Any]:
    line = JsonFormatter(**settings).format(made)
    assert len(line.splitlines()) == 1
    parsed: dict[str, Any] = json.loads(line, parse_constant=pytest.fail)
    return parsed


def raised(error: BaseException) -> Any:
    try:
        raise error
    except BaseException as caught:
        return type(caught), caught, caught.__traceback__


def test_a_record_is_an_object_with_its_fields() -> None:
    assert as_json(record("Sold %d", 3, event="sold", count=3, seconds=0.5, queues=["a"])) == {
        "time": "2026-07-01T12:30:05.042Z",
        "level": "WARNING",
        "logger": "streamqueue.shop",
        "message": "Sold 3",
        "event": "sold",
        "count": 3,
        "seconds": 0.5,
        "queues": ["a"],
    }


@pytest.mark.parametrize(
    "text", ["two\nlines", "a \u2028 separator", "half a pair \ud800", 'a "quote" \\ \x00']
)
def test_any_text_is_one_line_and_comes_back_as_it_was(text: str) -> None:
    made = as_json(record("%s", text, reason=text))

    assert (made["message"], made["reason"]) == (text, text)


def test_a_line_is_plain_ascii() -> None:
    assert JsonFormatter().format(record("Grüße, %s", "世界")).isascii()


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no")


def circle() -> list[Any]:
    own: list[Any] = []
    own.append(own)
    return own


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (ObjectId("6570000000000000000000aa"), "6570000000000000000000aa"),
        (datetime(2026, 7, 1, tzinfo=UTC), "2026-07-01 00:00:00+00:00"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (None, None),
        (True, True),
        ({"a": {1: b"x"}}, {"a": {"1": "b'x'"}}),
        (("a", 1), ["a", 1]),
        ({"a"}, ["a"]),
        (Unspeakable(), "<Unspeakable: RuntimeError>"),
        (circle(), [[[["[[...]]"]]]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_has_no_form_for_is_written_as_text(value: object, written: object) -> None:
    assert as_json(record("x", found=value))["found"] == written


def test_an_exception_has_its_class_and_its_traceback() -> None:
    made = record("Gone")
    made.exc_info = raised(KeyError("id"))

    line = as_json(made)

    assert line["error"] == "KeyError"
    assert line["traceback"].startswith("Traceback (most recent call last):\n")
    assert line["traceback"].endswith("KeyError: 'id'")


def test_an_error_that_the_record_names_itself_stays() -> None:
    made = record("Gone", error="AutoReconnect")
    made.exc_info = raised(KeyError("id"))

    assert as_json(made)["error"] == "AutoReconnect"


def test_exc_info_without_an_exception_is_nothing() -> None:
    made = record("Gone")
    made.exc_info = (None, None, None)

    assert not {"error", "traceback"} & as_json(made).keys()


def test_a_stack_is_written() -> None:
    made = record("Here")
    made.stack_info = "Stack (most recent call last):\n  here"

    assert as_json(made)["stack"].endswith("here")


def test_the_number_of_a_supervised_process_is_on_every_line() -> None:
    assert as_json(record("x"), process=0)["process"] == 0
    assert "process" not in as_json(record("x"))


def test_a_line_about_a_process_names_it_as_the_process_itself_does() -> None:
    assert as_json(record("x", process_number=2))["process"] == 2


@pytest.fixture
def in_an_attempt() -> Iterator[None]:
    token = running.set(Running("reports", 17, 2))
    yield
    running.reset(token)


@pytest.mark.usefixtures("in_an_attempt")
def test_a_line_written_in_a_handler_says_whose_it_is() -> None:
    line = json.loads(JsonFormatter().format(record("Sold")))
    text = TextFormatter().format(record("Sold"))

    assert (line["queue"], line["job_id"], line["attempt"]) == ("reports", "17", 2)
    assert text.endswith("streamqueue.shop: Sold [queue=reports job_id=17 attempt=2]")


@pytest.mark.usefixtures("in_an_attempt")
def test_a_line_that_names_a_job_itself_is_left_as_it_is() -> None:
    line = json.loads(JsonFormatter().format(record("Reaped", job_id="18")))
    text = TextFormatter().format(record("Reaped", job_id="18"))

    assert (line["job_id"], "attempt" in line) == ("18", False)
    assert text.endswith("Reaped")


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
@pytest.mark.parametrize("kind", HELLISH, ids=lambda kind: kind.__name__)
def test_a_traceback_that_cannot_be_made_costs_no_line(
    formatter: logging.Formatter, kind: type[BaseException]
) -> None:
    failed = record("Failed")
    error = kind()
    failed.exc_info = (kind, error, None)

    assert kind.__name__ in formatter.format(failed)


def test_an_extra_never_replaces_what_every_line_has() -> None:
    line = as_json(record("x", level="mine", time="now"))

    assert (line["level"], line["level_"], line["time_"]) == ("WARNING", "mine", "now")


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_passwords_are_masked_wherever_they_are(formatter: logging.Formatter) -> None:
    made = record("%s", ADDRESS, where=ADDRESS, all={"a": [ADDRESS]}, odd={ADDRESS: 1})
    made.exc_info = raised(ValueError(ADDRESS))
    made.stack_info = ADDRESS

    line = formatter.format(made)

    assert "hunter2" not in line
    assert "mongodb://shop:***@db.example:27017/shop" in line


def test_a_password_in_something_that_is_not_text_is_masked() -> None:
    class Settings:
        def __str__(self) -> str:
            return ADDRESS

    assert as_json(record("x", settings=Settings()))["settings"] == ADDRESS.replace(
        "hunter2", "***"
    )


def test_it_can_be_named_in_a_logging_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("test_logs.configured")
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": "streamqueue.logs.JsonFormatter"}},
            "handlers": {
                "out": {
                    "class": "logging.StreamHandler",
                    "formatter": "json",
                    "stream": "ext://sys.stdout",
                }
            },
            "loggers": {logger.name: {"handlers": ["out"], "propagate": False}},
        }
    )

    logger.warning("Sold", extra={"count": 3})

    assert json.loads(capsys.readouterr().out)["count"] == 3


# text


@pytest.mark.parametrize(("process", "which"), [(None, ""), (1, "process 1 ")])
def test_text_has_the_time_the_level_the_logger_and_the_sentence(
    process: int | None, which: str
) -> None:
    line = TextFormatter(process=process).format(record("Sold %d", 3, event="sold"))

    assert line.split(" ", 2)[2] == f"WARNING {which}streamqueue.shop: Sold 3"
