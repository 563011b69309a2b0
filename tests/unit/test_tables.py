"""What the command line prints: in columns, and never wider than a terminal."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamqueue.cli import tables
from streamqueue.cli.monitor import top
from streamqueue.cli.monitor.pulse import Failure, Flow, Pulse, flow
from streamqueue.exporter.counts import Census, ConsumerCensus, QueueCensus
from streamqueue.tracebacks import last_line

NOW = datetime(2026, 3, 1, 3, 0, 0, tzinfo=UTC)
counts = st.integers(0, 10**9)
lengths = st.floats(0, 10**8)
texts = st.text(min_size=1, max_size=300)

queues = st.builds(
    QueueCensus,
    name=texts,
    ready=counts,
    scheduled=counts,
    waiting=counts,
    running=st.integers(0, 10**5),
    dead=counts,
    oldest_ready_age=lengths,
    consumers=counts,
    slots=st.integers(0, 10**5),
)
consumers = st.builds(
    ConsumerCensus,
    name=texts,
    queues=st.lists(texts, max_size=3),
    slots=st.none() | st.integers(0, 10**4),
    up=st.none() | lengths,
    silent=st.none() | lengths,
    running=st.integers(0, 10**4),
    longest=lengths,
)
failures = st.builds(
    Failure,
    job_id=st.text("0123456789abcdef", min_size=24, max_size=24),
    queue=texts,
    at=st.none() | st.just(NOW),
    attempts=counts,
    dead=st.booleans(),
    error=texts,
)


@given(
    st.lists(queues, max_size=20, unique_by=lambda queue: queue.name),
    st.none() | st.lists(consumers, max_size=15, unique_by=lambda consumer: consumer.name),
    st.lists(failures, max_size=5),
    st.none() | st.floats(0, 10**7),
    st.sampled_from(["open", "broken (history_lost)"]),
)
def test_the_pulse_fits_80_columns_and_24_lines_and_a_few(
    found: list[QueueCensus],
    who: list[ConsumerCensus] | None,
    failed: list[Failure],
    rate: float | None,
    stream: str,
) -> None:
    census = Census(
        {queue.name: queue for queue in found},
        None if who is None else {consumer.name: consumer for consumer in who},
        late_schedules={queue.name: queue.oldest_ready_age for queue in found},
        paused_schedules=[queue.name for queue in found],
    )
    flows = {queue.name: Flow(rate, rate) for queue in found}

    lines = list(tables.pulse("shop.jobs", Pulse(NOW, census, flows, tuple(failed), stream)))

    assert max(len(line) for line in lines) <= 80
    assert len(lines) <= 40
    assert all(line.isprintable() for line in lines)


def test_the_pulse_shows_how_the_queues_are() -> None:
    census = Census(
        {
            "emails": QueueCensus("emails", 1234, 10, 7, 20, 3, 4.2, consumers=2, slots=40),
            "reports": QueueCensus("reports"),
        },
        {"vm:1:aa": ConsumerCensus("vm:1:aa", ["emails"], 20, up=60, silent=3, running=20)},
    )
    failure = Failure("6b05640f5d3001cc2b552327", "emails", NOW, 2, False, "ValueError: no")
    now = Pulse(NOW, census, {"emails": Flow(120.25, 99.5)}, (failure,))

    assert list(tables.pulse("shop.jobs", now)) == [
        "shop.jobs  03:00:00 UTC  stream open",
        "",
        "QUEUE                 READY  SCHED   WAIT RUN/SLOTS   DEAD OLDEST   IN/S  OUT/S",
        "emails                1,234     10      7     20/40      3   4.2s    120   99.5",
        "reports                   0      0      0       0/0      0   0.0s      -      -",
        "",
        "CONSUMER                       QUEUES                 HOLDS LONGEST    UP  SEEN",
        "vm:1:aa                        emails                 20/20    0.0s   60s  3.0s",
        "",
        "LATEST FAILURES",
        "03:00:00 emails 6b05640f5d3001cc2b552327 attempt 2: ValueError: no",
    ]


def test_queues_that_nobody_works_on_or_that_have_no_slot_are_named() -> None:
    census = Census(
        {
            "starved": QueueCensus("starved", 350, consumers=1, slots=4),
            "hung": QueueCensus("hung", 6, running=4, consumers=1, slots=4),
            "lost": QueueCensus("lost", 25),
            "held": QueueCensus("held", 35, paused=True),
        },
        {"a": ConsumerCensus("a", ["starved", "hung"], 4, running=4)},
    )

    lines = list(tables.pulse("shop.jobs", Pulse(NOW, census)))

    assert lines[7:10] == [
        "PAUSED: held",
        "NOBODY WORKS ON: lost",
        "OTHERS HAVE ALL SLOTS OF: starved",
    ]


def test_schedules_that_are_late_or_paused_are_named_below_the_queues() -> None:
    census = Census(
        {"reports": QueueCensus("reports")},
        late_schedules={"report": 4000, "poll": 12.5},
        paused_schedules=["tidy", "weekly"],
    )

    lines = list(tables.pulse("shop.jobs", Pulse(NOW, census)))

    assert lines[4:6] == ["LATE SCHEDULES: report 67m, poll 12s", "PAUSED SCHEDULES: tidy, weekly"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        *((0, "0.0s"), (-1, "0.0s"), (9.94, "9.9s"), (10, "10s"), (119, "119s"), (120, "2m")),
        *((7199, "120m"), (7200, "2h"), (200_000, "2d"), (10**7, "116d")),
    ],
)
def test_a_length_of_time_is_shown_in_one_unit(seconds: float, shown: str) -> None:
    assert tables.length(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (12_345, "12,345"), (99_999, "99,999"), (100_000, "100k"), (4_500_000, "4.5M")],
)
def test_a_count_is_shown_short(count: int, shown: str) -> None:
    assert tables.short(count) == shown


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    consumer = ConsumerCensus("\x1b[2J\r\nevil", ["default"])

    assert list(tables.consumers([consumer]))[1].startswith("·[2J··evil  default")


@pytest.mark.parametrize(
    ("stored", "line"),
    [
        ("Traceback ...\n  in send\nValueError: no\n", "ValueError: no"),
        ("no", "no"),
        (None, "no error stored"),
        ("  \n", ""),
    ],
)
def test_of_a_stored_error_the_last_line_is_shown(stored: str | None, line: str) -> None:
    assert last_line(stored) == line


# what came and went


def test_what_went_is_what_came_less_what_there_is_more() -> None:
    assert flow(came=10, before=100, now=90, seconds=2) == Flow(5, 10)
    assert flow(came=10, before=0, now=10, seconds=1) == Flow(10, 0)


def test_nothing_goes_backwards() -> None:
    assert flow(came=0, before=0, now=5, seconds=1).went == 0


def test_no_time_is_no_flow() -> None:
    assert flow(came=10, before=0, now=0, seconds=0) == Flow()


@pytest.mark.parametrize("name", ["(", "a+b", "[", "emails"])
def test_a_queue_that_is_late_is_in_red_whatever_its_name(name: str) -> None:
    late = QueueCensus(name, ready=1, oldest_ready_age=100, consumers=1, running=1)
    pulse = Pulse(NOW, Census(queues={name: late}, consumers={}))

    drawn = top._in_colours("shop.jobs", pulse)

    red = [drawn.plain[span.start : span.end] for span in drawn.spans if span.style == "red"]
    assert [line.split()[0] for line in red] == [name]
