"""When rules fire: both daylight-saving nights, odd zones, grids, and rules that are none.

No server: moments are given.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from bson.code import Code
from hypothesis import given, settings
from hypothesis import strategies as st

from streamqueue import ConfigurationError
from streamqueue.protocol.ticks import NAMED, Rule, check_rule

BERLIN = "Europe/Berlin"
SPRING = datetime(2026, 3, 29, tzinfo=ZoneInfo(BERLIN)).astimezone(UTC)
AUTUMN = datetime(2026, 10, 25, tzinfo=ZoneInfo(BERLIN)).astimezone(UTC)


def local_ticks(cron: str, start: datetime, hours: float, zone: str = BERLIN) -> list[str]:
    """The ticks from a moment on, as the clock on the wall shows them."""
    rule = check_rule(cron, None, 0, zone)
    shown = []
    for tick in rule.ticks(start - timedelta(seconds=1)):
        if tick >= start + timedelta(hours=hours):
            return shown
        shown.append(tick.astimezone(ZoneInfo(zone)).strftime("%H:%M%z")[:8])
    return shown


@pytest.mark.parametrize(
    ("cron", "ticks"),
    [
        ("30 2 * * *", ["03:00+02"]),
        ("0 2 * * *", ["03:00+02"]),
        ("0 2,3 * * *", ["03:00+02"]),
        ("0 * * * *", ["00:00+01", "01:00+01", "03:00+02", "04:00+02"]),
    ],
)
def test_in_the_spring_night_of_berlin_a_skipped_time_fires_after_the_gap_and_once(
    cron: str, ticks: list[str]
) -> None:
    assert local_ticks(cron, SPRING, hours=4) == ticks


@pytest.mark.parametrize(
    ("cron", "ticks"),
    [
        ("30 2 * * *", ["02:30+02"]),
        ("0 * * * *", ["00:00+02", "01:00+02", "02:00+02", "02:00+01", "03:00+01"]),
        (
            "*/30 1-3 * * *",
            [
                *("01:00+02", "01:30+02", "02:00+02", "02:30+02"),
                *("02:00+01", "02:30+01", "03:00+01", "03:30+01"),
            ],
        ),
    ],
)
def test_in_the_autumn_night_of_berlin_a_fixed_time_fires_once_and_a_repeated_one_each_hour(
    cron: str, ticks: list[str]
) -> None:
    assert local_ticks(cron, AUTUMN, hours=5) == ticks


def test_a_fixed_time_of_the_first_pass_does_not_come_again_for_who_looks_in_the_second() -> None:
    rule = check_rule("30 2 * * *", None, 0, BERLIN)
    second_pass = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)  # 02:10+01

    assert rule.next(second_pass) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "day", "ticks"),
    [
        ("15 2 * * *", datetime(2026, 10, 3, 13, tzinfo=UTC), ["02:30+11"]),  # 30 minutes skipped
        (
            "*/15 1 * * *",
            datetime(2026, 4, 4, 13, tzinfo=UTC),
            ["01:00+11", "01:15+11", "01:30+11", "01:45+11", "01:30+10", "01:45+10"],
        ),
    ],
)
def test_on_lord_howe_where_clocks_change_by_half_an_hour(
    cron: str, day: datetime, ticks: list[str]
) -> None:
    assert local_ticks(cron, day, hours=10, zone="Australia/Lord_Howe") == ticks


def test_where_a_date_was_skipped_a_daily_time_of_that_day_fires_when_the_next_begins() -> None:
    rule = check_rule("0 12 * * *", None, 0, "Pacific/Apia")
    zone = ZoneInfo("Pacific/Apia")
    start = datetime(2011, 12, 29, 0, tzinfo=zone).astimezone(UTC)

    ticks = [tick.astimezone(zone) for tick in islice(rule.ticks(start), 4)]

    assert [f"{tick:%d %H}" for tick in ticks] == ["29 12", "31 00", "31 12", "01 12"]


FIELDS = [
    st.sampled_from(["*", "*/7", "0", "30", "15,45", "0-59/20"]),
    st.sampled_from(["*", "*/5", "0", "1", "2", "3", "1-3", "23"]),
    st.sampled_from(["*", "1", "13", "*/2", "29", "L"]),
    st.sampled_from(["*", "3", "10", "*/3", "2"]),
    st.sampled_from(["*", "0", "5", "1-5", "SUN"]),
]
ZONES = [
    *(BERLIN, "UTC", "Australia/Lord_Howe", "America/Sao_Paulo", "America/New_York"),
    *("Pacific/Apia", "Africa/Casablanca", "Asia/Kathmandu", "America/Havana", "Europe/Dublin"),
]
MOMENTS = st.datetimes(datetime(2008, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))


@settings(max_examples=150, deadline=None)
@given(st.tuples(*FIELDS).map(" ".join), st.sampled_from(ZONES), MOMENTS)
def test_ticks_strictly_rise_and_are_the_same_for_who_looks_again(
    cron: str, zone: str, start: datetime
) -> None:
    try:
        rule = check_rule(cron, None, 0, zone)
    except ConfigurationError:
        return  # one that never fires
    ticks = list(islice(rule.ticks(start), 12))

    assert all(one < other for one, other in pairwise([start, *ticks]))
    assert [rule.next(tick) for tick in ticks[:-1]] == ticks[1:]


@settings(max_examples=100, deadline=None)
@given(
    st.floats(1, 1e6, allow_nan=False), st.floats(0, 1e6, allow_nan=False), MOMENTS, st.integers(1)
)
def test_a_period_is_on_the_same_grid_whoever_looks_when(
    every: float, offset: float, start: datetime, index: int
) -> None:
    rule = check_rule(None, every, offset)
    ticks = list(islice(rule.ticks(start), 5))
    again = check_rule(None, every, offset).next(ticks[index % 4])

    assert all(one < other for one, other in pairwise([start, *ticks]))
    assert ticks[0] - start <= timedelta(seconds=rule.every or 0)
    assert again == ticks[index % 4 + 1]


def test_a_period_begins_at_the_epoch_and_an_offset_moves_it() -> None:
    noon = datetime(2026, 11, 29, 12, 0, 1, tzinfo=UTC)

    assert check_rule(None, 3600).next(noon) == noon.replace(hour=13, second=0)
    assert check_rule(None, 3600, 600).next(noon) == noon.replace(minute=10, second=0)
    assert check_rule(None, 3600, 7200 + 600) == check_rule(None, 3600, 600)


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "30 2 * * *", "* * * * *", "0 0 1 1 *"])
def test_the_latest_tick_and_their_number_agree_with_stepping_through_all(cron: str) -> None:
    rule = check_rule(cron, None, 0, BERLIN)
    start, end = datetime(2026, 10, 24, tzinfo=UTC), datetime(2026, 10, 26, tzinfo=UTC)
    stepped = [
        tick for tick in islice(rule.ticks(start), 2881 if cron[0] == "*" else 5) if tick <= end
    ]

    assert rule.latest(start, end) == (stepped[-1] if stepped else None)
    assert rule.count(start, end, 10_000) == len(stepped)
    assert rule.count(start, end, 1) == min(1, len(stepped))


def test_the_latest_tick_of_a_period_and_their_number() -> None:
    rule, start = check_rule(None, 10), datetime(2026, 1, 1, tzinfo=UTC)
    month = start + timedelta(days=30, seconds=5)

    assert rule.latest(start, month) == start + timedelta(days=30)
    assert rule.count(start, month, 10**6) == 259_200
    assert rule.latest(start, start + timedelta(seconds=9)) is None


def test_the_latest_tick_of_a_rule_that_fires_once_in_four_years() -> None:
    rule = check_rule("0 0 29 2 *", None)

    latest = rule.latest(datetime(2020, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))

    assert latest == datetime(2024, 2, 29, tzinfo=UTC)


@pytest.mark.parametrize("name", NAMED)
def test_a_name_stands_for_a_line(name: str) -> None:
    assert check_rule(name, None) == check_rule(NAMED[name], None)
    assert check_rule(name.upper(), None) == check_rule(NAMED[name], None)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"cron": "0 0 31 2 *"}, "never fires"),
        ({"cron": "0 0 30 2 *"}, "never fires"),
        ({"cron": "0 0 31 4,6 *"}, "never fires"),
        ({"cron": "0 0 */30 2 SUN#5"}, "never fires: there is no such day"),
        ({"cron": "* * * * * *"}, "for seconds, use every="),
        ({"cron": "* * * *"}, "has 4"),
        ({"cron": ""}, "has 0"),
        ({"cron": "61 * * * *"}, "minute"),
        ({"cron": "@fortnightly"}, "@weekly"),
        ({"cron": "@reboot"}, "@weekly"),
        ({"cron": 5}, "is a text"),
        ({"cron": "* " * 300}, "at most 200"),
        ({"cron": "0 3 * * *", "timezone": "Mars/Olympus"}, "no time zone 'Mars/Olympus'"),
        ({"cron": "0 3 * * *", "timezone": "../etc/passwd"}, "no time zone"),
        ({"cron": "0 3 * * *", "timezone": "Europe"}, "no time zone"),
        ({"cron": "0 3 * * *", "timezone": None}, "is a name"),
        ({"cron": "0 3 * * *", "offset": 5}, "offset= is for every="),
        ({"cron": "0 3 * * *", "every": 5}, "not both"),
        ({}, "when is it to fire"),
        ({"every": 0.5}, "from 1 seconds"),
        ({"every": float("nan")}, "from 1 seconds"),
        ({"every": "10"}, "number of seconds"),
        ({"every": 10, "offset": -1}, "offset"),
        ({"every": 10, "timezone": BERLIN}, "for a line of cron"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_reason(rule: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        check_rule(**{"cron": None, "every": None, **rule})


def test_a_line_of_cron_without_cronsim_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)

    with pytest.raises(ConfigurationError, match=r"pip install 'streamqueue\[cron\]'"):
        check_rule("0 3 * * *", None)
    assert check_rule(None, 5) == Rule(None, 5.0)


@pytest.mark.parametrize(
    "stored",
    [
        *(None, 5, [], "0 3 * * *", {}, {"every": "x"}, {"every": None, "cron": 3}),
        {"every": 5, "offset": None},
        {"cron": "0 3 * * *", "timezone": 5},
        {"cron": ["0 3 * * *"]},
        {"cron": Code("0 3 * * *")},
        {"cron": "0 3 * * *", "timezone": Code("UTC")},
        {"every": 5, "offset": {}},
    ],
)
def test_a_stored_rule_that_is_none_reads_as_none(stored: object) -> None:
    assert Rule.from_document(stored) is None


def test_a_rule_is_read_as_it_was_stored() -> None:
    for rule in (check_rule("30  2 * * *", None, 0, BERLIN), check_rule(None, 90, 30)):
        assert Rule.from_document(rule.document()) == rule


def test_a_rule_at_the_end_of_all_years_ends() -> None:
    end = datetime(9999, 12, 31, 23, 59, 58, tzinfo=UTC)

    assert len(list(check_rule(None, 1).ticks(end))) <= 1
    assert check_rule("0 3 * * *", None).next(end) is None


def test_ticks_are_counted_and_the_latest_is_found_up_to_the_end_of_all_years() -> None:
    leap_days = check_rule("0 0 29 2 *", None)
    start, end = datetime(9990, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)

    assert leap_days.count(start, end) == 2
    assert leap_days.latest(start, end) == datetime(9996, 2, 29, tzinfo=UTC)
    assert leap_days.latest(datetime(9997, 1, 1, tzinfo=UTC), end) is None


def test_a_period_has_no_ticks_before_the_first() -> None:
    noon = datetime(2026, 11, 29, 12, tzinfo=UTC)

    assert check_rule(None, 3600).count(noon, noon + timedelta(minutes=59)) == 0


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        (check_rule(None, 90), "every 90 s"),
        (check_rule(None, 90, 30), "every 90 s + 30 s"),
        (check_rule("0 3 * * *", None, 0, BERLIN), "0 3 * * * (Europe/Berlin)"),
    ],
    ids=str,
)
def test_a_rule_is_shown_as_it_was_given(rule: Rule, shown: str) -> None:
    assert str(rule) == shown
