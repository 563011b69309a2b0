"""Settings: what is refused, by which name, and what is filled in."""

from __future__ import annotations

import dataclasses
import math
import re
from datetime import timedelta
from enum import StrEnum

import pytest
from bson import Int64, Regex
from hypothesis import given
from hypothesis import strategies as st

from streamqueue import Backoff, ConfigurationError
from streamqueue.options import (
    MAX_BATCH,
    MAX_PRIORITY,
    QueueOptions,
    WorkerOptions,
    consumer_name,
    key_name,
    max_attempts,
    priority,
    queue_name,
    whole_number,
)

NAME = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}\Z", re.ASCII)


class Name(StrEnum):
    EMAILS = "emails"


@pytest.mark.parametrize("name", ["a", "0", "default", "a.b", "A-b_c.9", "system.x", "x" * 64])
def test_a_queue_name_is_returned_as_it_is(name: str) -> None:
    assert queue_name(name) == name


def test_a_queue_name_that_is_a_subclass_of_str_becomes_a_plain_one() -> None:
    assert type(queue_name(Name.EMAILS)) is str


BAD_NAMES = [
    pytest.param("", id="empty"),
    pytest.param("x" * 65, id="65 characters"),
    pytest.param("$x", id="an operator"),
    pytest.param("a$x", id="a dollar inside"),
    pytest.param("a\0b", id="NUL"),
    pytest.param("a b", id="a space"),
    pytest.param("a\n", id="a newline at the end"),
    pytest.param(".a", id="a dot first"),
    pytest.param("-a", id="a dash first"),
    pytest.param("_a", id="an underscore first"),
    pytest.param("é", id="a letter outside ASCII"),
    pytest.param("\u0663", id="a digit outside ASCII"),
    pytest.param("a\u202eb", id="a direction mark"),
    pytest.param("\ud800", id="a lone surrogate"),
    pytest.param({"a": 1}, id="a dict"),
    pytest.param({"$ne": None}, id="an operator in a dict"),
    pytest.param({"$regex": ".*"}, id="a pattern in a dict"),
    pytest.param(re.compile(".*"), id="a pattern"),
    pytest.param(Regex(".*"), id="a BSON pattern"),
    pytest.param(["a"], id="a list"),
    pytest.param(b"a", id="bytes"),
    pytest.param(5, id="a number"),
    pytest.param(True, id="a bool"),
    pytest.param(None, id="None"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_queue_name_is_refused(name: object) -> None:
    with pytest.raises(ConfigurationError, match="a queue name is 1 to 64 letters"):
        queue_name(name)


@given(st.text(max_size=70))
def test_a_queue_name_is_accepted_exactly_when_it_fits_the_rule(name: str) -> None:
    try:
        accepted = queue_name(name) == name
    except ConfigurationError:
        accepted = False

    assert accepted == bool(NAME.match(name))


@pytest.mark.parametrize("number", [1, 10, Int64(5)])
def test_a_whole_number_in_its_range_becomes_a_plain_int(number: int) -> None:
    value = whole_number(number, "limit", 1, 10)

    assert value == number
    assert type(value) is int


@pytest.mark.parametrize(
    "number",
    [
        *(0, 11, -1, 2**64, 5.0, math.nan, math.inf, True, "5", None, [5]),
        pytest.param(10**5000, id="too large to be printed"),
    ],
)
def test_what_is_no_whole_number_in_the_range_is_refused(number: object) -> None:
    with pytest.raises(ConfigurationError, match="limit must be a whole number from 1 to 10"):
        whole_number(number, "limit", 1, 10)


@pytest.mark.parametrize("value", [-MAX_PRIORITY, 0, MAX_PRIORITY])
def test_a_priority_may_be_anything_that_a_32_bit_int_holds(value: int) -> None:
    assert priority(value) == value


@pytest.mark.parametrize("value", [-MAX_PRIORITY - 1, MAX_PRIORITY + 1, 1.5, True])
def test_a_priority_outside_its_range_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="priority must be"):
        priority(value)


@pytest.mark.parametrize("value", [0, -1, 1_000_001, 2.0, True, None])
def test_a_bad_number_of_attempts_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="max_attempts must be"):
        max_attempts(value)


def test_two_consumers_without_a_name_get_different_ones() -> None:
    assert consumer_name(None) != consumer_name(None)


@pytest.mark.parametrize("value", ["c", "consumer-1", "$x", "c" * 256, "ü\0"])
def test_a_consumer_may_have_any_name(value: str) -> None:
    assert consumer_name(value) == value


@pytest.mark.parametrize("value", ["", "c" * 257, 5, b"c", {"$ne": None}, ["c"]])
def test_what_is_no_consumer_name_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="consumer_id must be a string"):
        consumer_name(value)


@pytest.mark.parametrize("value", ["k", "order:5", "$x", "a.b", "k" * 256, "ü\0" * 85])
def test_a_job_may_have_any_key(value: str) -> None:
    assert key_name(value) == value


@pytest.mark.parametrize("value", ["", "k" * 257, "ü" * 129, 5, b"k", {"$gt": ""}, None])
def test_what_is_no_key_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="key must be a string"):
        key_name(value)


def test_a_key_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="key"):
        key_name("\ud800")


def test_a_consumer_name_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="consumer_id"):
        consumer_name("\ud800")


def test_a_queue_has_the_defaults_of_mongoqueue() -> None:
    options = QueueOptions()

    assert (options.name, options.timeout, options.max_attempts) == ("default", 300.0, 3)


def test_a_timeout_is_float_seconds_whatever_it_was_given_as() -> None:
    options = QueueOptions(timeout=timedelta(minutes=5))

    assert options.timeout == 300.0
    assert type(options.timeout) is float


def test_the_options_of_a_queue_cannot_be_changed() -> None:
    options = QueueOptions()

    with pytest.raises(dataclasses.FrozenInstanceError):
        options.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("name", {"$ne": None}),
        ("consumer_id", 5),
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", math.nan),
        ("timeout", True),
        ("max_attempts", 0),
        ("max_attempts", 1.5),
        ("backoff", 5),
        ("backoff", None),
    ],
)
def test_a_bad_setting_of_a_queue_is_refused(setting: str, value: object) -> None:
    with pytest.raises(ConfigurationError):
        QueueOptions(**{setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("concurrency", 0),
        ("concurrency", MAX_BATCH + 1),
        ("concurrency", True),
        ("timeout", 0.09),
        ("timeout", math.inf),
        ("max_attempts", 0),
        ("backoff", "fast"),
        ("drain_timeout", -1),
        ("sweep_interval", 0),
        ("sweep_interval", math.nan),
        ("reap_interval", 0),
        ("reap_interval", None),
        ("max_await", 0.01),
        ("consumer_id", ""),
    ],
)
def test_a_bad_setting_of_a_worker_is_refused(setting: str, value: object) -> None:
    with pytest.raises(ConfigurationError):
        WorkerOptions(**{setting: value})  # type: ignore[arg-type]


def test_a_worker_takes_durations_as_timedeltas() -> None:
    options = WorkerOptions(timeout=timedelta(minutes=1), drain_timeout=timedelta(0))

    assert (options.timeout, options.drain_timeout) == (60.0, 0.0)


def test_a_worker_may_do_without_the_safety_sweep() -> None:
    assert WorkerOptions(sweep_interval=None).sweep_interval is None


def test_each_options_object_has_a_backoff() -> None:
    assert QueueOptions().backoff == WorkerOptions().backoff == Backoff()
