"""What is to be done for a schedule that is due, late, or was paused.

No server: moments are given, and a schedule is what was read of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson.code import Code

from streamqueue import ConfigurationError, PayloadError
from streamqueue.protocol.schedules import (
    Behind,
    StoredSchedule,
    check_schedule,
    next_step,
)
from streamqueue.protocol.ticks import check_rule

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
CATCH_UPS = ["none", "one", "all"]


def stored(every: float, last_tick: datetime, **fields: Any) -> StoredSchedule:
    """A schedule as it is read."""
    document = {
        "_id": "schedule:s",
        "queue": "default",
        "rule": {"every": every, "offset": 0.0},
        "catch_up": "one",
        "catch_up_limit": 1000,
        "last_tick": last_tick,
    }
    schedule = StoredSchedule.from_document({**document, **fields})
    assert schedule is not None
    return schedule


def worked_off(schedule: StoredSchedule, now: datetime) -> list[datetime]:
    """The ticks that are put until nothing is left to do at this moment."""
    put = []
    while (step := next_step(schedule, now)) is not None:
        assert schedule.last_tick is not None
        assert schedule.last_tick < step.tick <= now
        if step.fires:
            put.append(step.tick)
        schedule = schedule.after(step)
    return put


def before(*seconds: float) -> list[datetime]:
    return [NOON - timedelta(seconds=each) for each in seconds]


def test_nothing_is_to_be_done_before_the_next_tick() -> None:
    assert next_step(stored(10, NOON), NOON + timedelta(seconds=9.999)) is None
    assert worked_off(stored(10, NOON), NOON + timedelta(seconds=10)) == before(-10)


@pytest.mark.parametrize("catch_up", CATCH_UPS)
def test_a_tick_within_a_minute_is_put_with_every_catch_up(catch_up: str) -> None:
    late = stored(3600, NOON - timedelta(hours=1), catch_up=catch_up)

    assert worked_off(late, NOON + timedelta(seconds=59)) == before(0)


def test_a_tick_that_is_later_than_a_minute_is_dropped_with_none_alone() -> None:
    put = {
        catch_up: worked_off(
            stored(3600, NOON - timedelta(hours=1), catch_up=catch_up),
            NOON + timedelta(seconds=61),
        )
        for catch_up in CATCH_UPS
    }

    assert put == {"none": [], "one": before(0), "all": before(0)}


@pytest.mark.parametrize(
    ("catch_up", "put"),
    [
        ("none", []),
        ("one", before(600)),
        ("all", before(3000, 2400, 1800, 1200, 600)),
    ],
)
def test_an_hours_outage_with_a_tick_each_ten_minutes(catch_up: str, put: list[datetime]) -> None:
    schedule = stored(600, NOON - timedelta(hours=1), catch_up=catch_up)

    assert worked_off(schedule, NOON - timedelta(seconds=1)) == put


@pytest.mark.parametrize(("catch_up", "count"), [("none", 7), ("one", 7), ("all", 360)])
def test_ticks_of_the_last_minute_are_put_besides(catch_up: str, count: int) -> None:
    schedule = stored(10, NOON - timedelta(hours=1), catch_up=catch_up)

    put = worked_off(schedule, NOON)

    assert len(put) in (count, count - 1)
    assert put == sorted(put)
    assert put[-1] == NOON


def test_of_a_month_all_puts_no_more_than_its_limit_the_oldest_first() -> None:
    month = NOON - timedelta(days=30)

    put = worked_off(stored(10, month, catch_up="all"), NOON)

    assert len(put) == 1000
    assert put == sorted(put)
    assert put[0] == month + timedelta(seconds=10)
    assert put[990] == month + timedelta(seconds=9910)
    assert put[-1] == NOON


def test_who_goes_on_with_catching_up_keeps_to_the_limit() -> None:
    schedule = stored(60, NOON - timedelta(hours=2), catch_up="all", catch_up_limit=10)
    put = []
    for second in range(30):  # each step by another process, a second later
        now = NOON + timedelta(seconds=second)
        step = next_step(schedule, now)
        if step is None:
            break
        put += [step.tick] * step.fires
        behind = step.behind._asdict() if step.behind else None
        schedule = stored(60, step.tick, catch_up="all", catch_up_limit=10, behind=behind)

    assert len(put) == 10


def test_a_pause_that_ends_with_a_wish_catches_up_once_by_that_wish() -> None:
    missed = stored(600, NOON - timedelta(hours=1), catch_up="none")
    asked = replace(missed, behind=Behind(NOON - timedelta(seconds=1), 1000, "all"))

    assert len(worked_off(asked, NOON - timedelta(seconds=1))) == 5
    assert worked_off(missed, NOON - timedelta(seconds=1)) == []


def test_a_paused_schedule_and_one_that_cannot_be_read_have_nothing_to_do() -> None:
    later = NOON + timedelta(days=1)

    assert next_step(stored(10, NOON, paused=True), later) is None
    assert stored(10, NOON, paused=True).due() is None
    assert next_step(stored(10, NOON, rule={"cron": "x"}), later) is None
    assert next_step(replace(stored(10, NOON), last_tick=None), later) is None


def test_a_schedule_whose_start_would_be_after_the_end_of_all_years_has_nothing_to_do() -> None:
    last = datetime(9999, 12, 31, 23, 59, 50, tzinfo=UTC)
    delayed = replace(stored(5, last, spread=86_400.0), name="backup")

    assert delayed.delay > timedelta(seconds=5)
    assert delayed.due() is None
    assert stored(5, last).due() == last + timedelta(seconds=5)


def test_a_schedule_whose_rule_cannot_be_read_says_so_where_it_is_to_be_put() -> None:
    unreadable = stored(10, NOON, rule={"cron": "x"})

    with pytest.raises(ConfigurationError, match="the rule of schedule s cannot be read here"):
        unreadable.schedule()


def test_a_spread_moves_the_start_by_the_name_alone_and_never_before_the_tick() -> None:
    delays: Counter[int] = Counter()
    for number in range(600):
        schedule = replace(stored(3600, NOON, spread=600.0), name=f"s{number}")
        due = schedule.due()
        assert due is not None
        tick = NOON + timedelta(hours=1)
        assert tick <= due < tick + timedelta(seconds=600)
        assert next_step(schedule, due - timedelta(milliseconds=1)) is None
        assert worked_off(schedule, due) == [tick]
        assert due == replace(schedule, digest="other").due()
        delays[(due - tick).seconds // 60] += 1

    assert len(delays) == 10
    assert max(delays.values()) < 120


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"put": {"delay": 5}}, "takes no delay=: a tick has its time"),
        ({"put": {"run_at": NOON}}, "takes no run_at="),
        ({"put": {"session": None}}, "takes no session="),
        ({"put": {"job_id": 1}}, "takes no job_id="),
        ({"put": {"prioritty": 1}}, "no setting 'prioritty'; of those of put it takes .*priority"),
        ({"put": {"priority": "high"}}, "priority"),
        ({"put": {"key": ""}}, "key"),
        ({"catch_up": "some"}, "catch_up must be one of 'none', 'one', 'all'"),
        ({"catch_up_limit": 0}, "catch_up_limit"),
        ({"spread": -1}, "spread"),
        ({"name": "a:b"}, "name of a schedule"),
        ({"queue": "a b"}, "queue"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused_with_the_reason(
    settings: dict[str, Any], reason: str
) -> None:
    arguments = {"name": "s", "queue": "q", "put": {}, **settings}

    with pytest.raises(ConfigurationError, match=reason):
        check_schedule(rule=check_rule(None, 5), **arguments)


def test_a_payload_that_cannot_be_stored_is_refused() -> None:
    with pytest.raises(PayloadError, match="BSON"):
        check_schedule("s", "q", check_rule(None, 5), payload={"a": object()}, put={})


@pytest.mark.parametrize("value", [None, "x", 5, [], {"a": 1}, float("nan"), Code("x"), NOON])
@pytest.mark.parametrize(
    "field",
    [
        *("queue", "rule", "spread", "catch_up", "catch_up_limit", "payload", "put", "digest"),
        *("source", "declared_by", "last_tick", "behind", "paused", "next_tick", "last_job"),
    ],
)
def test_whatever_is_stored_in_a_field_can_be_read(field: str, value: Any) -> None:
    schedule = stored(10, **{"last_tick": NOON, field: value})

    schedule.due()
    next_step(schedule, NOON + timedelta(days=1))


def test_a_name_that_is_none_is_no_schedule() -> None:
    assert StoredSchedule.from_document({"_id": "schedule:a b"}) is None
    assert StoredSchedule.from_document({"_id": "schedule:"}) is None
