"""Calls of tasks: bound and encoded where they are made."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from bson import Decimal128, ObjectId

from streamqueue import AsyncJob, Call, ConfigurationError, Job, PayloadError, Task
from streamqueue.protocol.tasks import Takes

MOMENT = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


class Size(enum.StrEnum):
    LARGE = "large"


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Address:
    city: str


def welcome(name: str, lang: str = "en", **more: Any) -> None:
    raise AssertionError("a call runs nothing")


@pytest.fixture
def task() -> Task[...]:
    return Task("welcome", queue="emails", like=welcome)


# arguments


def test_a_call_has_its_arguments_by_the_names_of_the_parameters(task: Task[...]) -> None:
    assert dict(task.call("ada", "fr")) == {"name": "ada", "lang": "fr"}


def test_a_default_is_not_part_of_a_call(task: Task[...]) -> None:
    assert dict(task.call("ada")) == {"name": "ada"}


def test_what_has_no_parameter_goes_to_those_of_any_name(task: Task[...]) -> None:
    assert dict(task.call("ada", title="Countess")) == {"name": "ada", "title": "Countess"}


@pytest.mark.parametrize(
    ("arguments", "named", "error"),
    [
        ((), {}, "a call of task 'welcome': missing a required argument: 'name'"),
        (("ada", "fr", 1), {}, "too many positional arguments"),
        (("ada",), {"name": "ada"}, "multiple values for argument 'name'"),
    ],
)
def test_arguments_that_the_function_does_not_take_are_a_type_error(
    task: Task[...], arguments: tuple[Any, ...], named: dict[str, Any], error: str
) -> None:
    with pytest.raises(TypeError, match=error):
        task.call(*arguments, **named)


def test_without_a_function_a_call_takes_any_arguments_by_name() -> None:
    call = Task("resize", queue="images").call(width=3, self=1, queue="x")

    assert (call.task, call.queue) == ("resize", "images")
    assert dict(call) == {"width": 3, "self": 1, "queue": "x"}


def test_without_a_function_a_call_takes_none_by_position() -> None:
    with pytest.raises(TypeError, match="takes its arguments by name"):
        Task("resize").call(3)


def test_later_changes_of_an_argument_are_not_part_of_a_call(task: Task[...]) -> None:
    names = ["ada"]
    call = task.call("x", names=names)
    names.append("bob")

    assert call["names"] == ["ada"]


def test_the_arguments_are_not_in_the_repr_of_a_call(task: Task[...]) -> None:
    assert repr(task.call("secret")) == "<Call of task 'welcome' in queue 'emails'>"


# values


@pytest.mark.parametrize(
    "value",
    [
        *("é", 2**63 - 1, 1.5, True, None, b"\0", ObjectId("6b05640f5d3001cc2b552327")),
        *(UUID(int=5), Size.LARGE, Decimal128("1.10"), {"$a": {"b.c": [1, {"": None}]}}),
        *(MOMENT, MOMENT.replace(microsecond=5000)),
        MOMENT.astimezone(timezone(timedelta(hours=2))),
    ],
    ids=repr,
)
def test_what_can_be_stored_comes_back_equal(value: Any) -> None:
    assert Task("t").call(value=value)["value"] == value


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ((1, 2), "value is a tuple, which would come back as a list"),
        ([{"a": (1,)}], r"value\[0\]\['a'\] is a tuple"),
        ({1}, "it holds a builtins.set, at value"),
        ([Decimal("1.1")], r"it holds a decimal.Decimal, at value\[0\]"),
        ({"a": Colour.RED}, r"Colour, at value\['a'\]"),
        (re.compile("x"), "value is a Pattern, which would come back as a Regex"),
        (MOMENT.replace(tzinfo=None), "value is a datetime without a time zone"),
        (MOMENT.replace(microsecond=1), "value has microseconds"),
        (2**63, "it holds an int beyond 64 bits, at value"),
        ({1: 2}, "a key that is not a string, at value"),
        ("\ud800", "not valid Unicode, at value"),
    ],
    ids=ascii,
)
def test_what_would_come_back_as_something_else_is_refused_with_its_place(
    value: Any, error: str
) -> None:
    with pytest.raises(PayloadError, match=error):
        Task("t").call(value=value)


def test_of_a_dataclass_in_a_call_it_is_said_what_makes_a_dict_of_it() -> None:
    with pytest.raises(PayloadError, match=r"Address, at value\[0\] \(dataclasses.asdict\(\)"):
        Task("t").call(value=[Address("Rome")])
    with pytest.raises(PayloadError, match=r"builtins.type, at value$"):
        Task("t").call(value=Address)


def test_a_call_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)

    with pytest.raises(PayloadError, match=r"a call of task 't': .* levels deep"):
        Task("t").call(value=value)


# functions


def annotated(work: AsyncJob, n: int) -> None: ...


def of_a_job(work: Job, n: int) -> None: ...


def named(job, n):  # type: ignore[no-untyped-def]
    ...


def real(work, n):  # type: ignore[no-untyped-def]
    ...


real.__annotations__ = {"work": AsyncJob}


@pytest.mark.parametrize(
    "function", [annotated, of_a_job, named, real], ids=lambda function: function.__name__
)
def test_the_job_is_no_argument_of_a_call(function: Callable[..., None]) -> None:
    assert dict(Task("t", like=function).call(1)) == {"n": 1}


@pytest.mark.parametrize("function", [annotated, named], ids=lambda function: function.__name__)
def test_the_job_cannot_be_given(function: Callable[..., None]) -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument|is the job"):
        Task("t", like=function).call(n=1, work=2, job=3)


def test_the_job_cannot_be_given_to_a_function_that_takes_any_name() -> None:
    def any_name(job, **more):  # type: ignore[no-untyped-def]
        ...

    with pytest.raises(TypeError, match="its job is the job that it runs as"):
        Task("t", like=any_name).call(job=3)


def test_a_parameter_called_job_may_be_an_argument() -> None:
    def hire(job: str) -> None: ...

    assert dict(Task("t", like=hire).call("clerk")) == {"job": "clerk"}


def test_a_function_is_called_with_what_is_in_the_payload_and_with_the_job() -> None:
    held = SimpleNamespace(data={"n": 1})

    assert Takes.of(annotated).arguments(held) == {"n": 1, "work": held}
    assert Takes.of(welcome).arguments(held) == {"n": 1}


def test_a_payload_of_another_program_cannot_name_the_job() -> None:
    with pytest.raises(TypeError, match="work is in the payload, and is the job"):
        Takes.of(annotated).arguments(SimpleNamespace(data={"n": 1, "work": 2}))


@pytest.mark.parametrize("function", [5, iter], ids=ascii)
def test_what_has_no_parameters_that_are_known_is_no_function_of_a_task(function: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be one whose parameters are known, not"):
        Task("t", like=function)


def positional(a: int, /, b: int) -> None: ...


def starred(*numbers: int) -> None: ...


@pytest.mark.parametrize("function", [positional, starred], ids=lambda one: one.__name__)
def test_a_function_whose_arguments_have_no_names_is_refused(function: Callable[..., None]) -> None:
    with pytest.raises(ConfigurationError, match="has a parameter without one"):
        Task("t", like=function)


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", 5])
def test_a_task_has_a_printable_name(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="name of a task"):
        Task(name)


def test_a_call_is_a_payload_for_another_queue_object_only_by_name(task: Task[...]) -> None:
    call: Call = task.call("ada")

    call.check_queue("emails")
    with pytest.raises(ConfigurationError, match=r"in queue 'emails'.*put into 'default'"):
        call.check_queue("default")
