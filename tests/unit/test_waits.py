"""Who is told what of which job, whatever order events and looks come in."""

from __future__ import annotations

from typing import Any

import bson
import pytest
from bson import ObjectId, Timestamp
from bson.raw_bson import RawBSONDocument

from streamqueue.protocol.document import CODEC
from streamqueue.queue.answers import waits
from streamqueue.queue.answers.waits import Wait, Waits
from streamqueue.queue.info import JobInfo

ID = ObjectId()
BEFORE, LOOK, AFTER = (Timestamp(1_700_000_000, n) for n in (1, 2, 3))


class Silent:
    """A signal that nobody sleeps on."""

    def __init__(self) -> None:
        self.count = 0

    def set(self) -> None:
        self.count += 1

    def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


def job(state: str, **fields: Any) -> dict[str, Any]:
    return {"_id": ID, "queue": "default", "state": state, "awaited": True, **fields}


def event(at: Timestamp, kind: str = "update", full: Any = None, job_id: Any = ID) -> Any:
    document: dict[str, Any] = {
        "operationType": kind,
        "documentKey": {"_id": job_id},
        "clusterTime": at,
    }
    if full is not None:
        document["fullDocument"] = full
    codec = CODEC.with_options(document_class=RawBSONDocument)
    return RawBSONDocument(bson.encode(document, codec_options=CODEC), codec)


def one_that_waits(*, watches: bool = False, looked: bool = True) -> tuple[Waits, Wait]:
    everybody = Waits()
    wait = Wait([ID], BEFORE, Silent(), watches=watches)
    everybody.enter(wait)
    if looked:
        everybody.found(wait, ID, LOOK)
    return everybody, wait


@pytest.mark.parametrize("kind", ["update", "replace"])
@pytest.mark.parametrize("state", ["done", "dead", "cancelled"])
def test_an_end_is_told(kind: str, state: str) -> None:
    everybody, wait = one_that_waits()

    everybody.take([event(AFTER, kind, job(state))])

    assert wait.info is not None
    assert wait.info.state == state


def test_what_happened_before_the_first_look_is_old_news() -> None:
    everybody, wait = one_that_waits()

    everybody.take([event(BEFORE, "replace", job("dead")), event(LOOK, "delete")])

    assert not wait.told


@pytest.mark.parametrize("looked", [True, False], ids=["after", "meanwhile"])
@pytest.mark.parametrize("last", ["done", "gone"])
def test_what_may_have_happened_before_or_after_the_first_look_is_looked_at(
    looked: bool, last: str
) -> None:
    everybody, wait = one_that_waits(looked=looked)
    between = Timestamp(BEFORE.time + 1, 1)
    news = event(between, "delete") if last == "gone" else event(between, "update", job(last))

    if looked:
        everybody.found(wait, ID, Timestamp(BEFORE.time + 2, 1))
    everybody.take([news])
    if not looked:
        everybody.found(wait, ID, Timestamp(BEFORE.time + 2, 1))

    assert not wait.told
    assert everybody.to_look_at(10) == [wait]


def test_the_mark_of_who_watches_is_no_news() -> None:
    everybody, wait = one_that_waits(watches=True, looked=False)
    wait.last = JobInfo.from_document(job("ready"))
    everybody.found(wait, ID, LOOK)

    everybody.take([event(LOOK, "update", job("ready"))])

    assert not wait.told
    assert everybody.to_look_at(10) == []


def test_what_happens_while_the_first_look_is_under_way_is_told_after_it() -> None:
    everybody, wait = one_that_waits(looked=False)

    everybody.take([event(AFTER, "replace", job("done"))])
    told_before = wait.told
    everybody.found(wait, ID, LOOK)

    assert (told_before, wait.told) == (False, True)


@pytest.mark.parametrize("full", [None, job("ready")], ids=["removed since", "requeued since"])
def test_an_end_that_is_no_more_is_looked_at(full: Any) -> None:
    everybody, wait = one_that_waits()

    everybody.take([event(AFTER, "update", full)])

    assert not wait.told
    assert everybody.to_look_at(10) == [wait]


def test_a_job_that_was_ended_to_be_removed_is_gone() -> None:
    everybody, wait = one_that_waits()
    now = {"finished_at": bson.DatetimeMS(5), "removed_at": bson.DatetimeMS(5)}

    everybody.take([event(AFTER, "update", job("cancelled", **now) | {"awaited": False})])

    assert wait.gone


def test_nobody_is_told_of_the_job_of_another() -> None:
    everybody, wait = one_that_waits()

    everybody.take([event(AFTER, "update", job("done") | {"_id": 7}, job_id=7)])

    assert not wait.told


def test_who_watches_is_told_each_state_once() -> None:
    everybody, wait = one_that_waits(watches=True)
    told = []

    for progress in (1, 1, 2):
        everybody.saw([wait], [job("running", progress=progress)])
        told.append(wait.info and wait.info.progress)
        if wait.info is not None:
            wait.take_info()

    assert told == [1, None, 2]


def test_who_waits_for_an_end_is_told_of_nothing_else() -> None:
    everybody, wait = one_that_waits()

    everybody.saw([wait], [job("running", progress=1)])

    assert not wait.told


def test_a_live_job_without_its_mark_is_to_be_marked_again() -> None:
    everybody, wait = one_that_waits()

    assert everybody.saw([wait], [job("ready", awaited=None)]) == [wait]
    assert everybody.saw([wait], [job("ready")]) == []
    assert everybody.saw([wait], [job("dead", awaited=None)]) == []


def test_a_job_that_is_looked_at_and_not_there_is_gone() -> None:
    everybody, wait = one_that_waits()

    everybody.saw([wait], [])

    assert wait.gone


def test_nobody_is_looked_for_before_the_first_look_is_over() -> None:
    everybody, _ = one_that_waits(looked=False)

    everybody.look_at_all()

    assert everybody.to_look_at(10) == []


def test_who_has_waited_long_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(waits, "monotonic", lambda: now)
    everybody, wait = one_that_waits()
    assert (everybody.to_look_at(10), everybody.next_look() > now) == ([], True)

    now += 46

    assert everybody.to_look_at(10) == [wait]


def test_the_stream_begins_before_everybody_s_first_look() -> None:
    everybody, _ = one_that_waits()
    everybody.enter(Wait([1], AFTER, Silent(), watches=False))
    assert everybody.since() == BEFORE

    everybody.enter(Wait([2], None, Silent(), watches=False))

    assert everybody.since() is None


def test_nothing_is_kept_of_who_has_gone() -> None:
    everybody, wait = one_that_waits(watches=True)

    everybody.leave(wait)
    everybody.leave(wait)

    assert len(everybody) == 0
    assert everybody.watched() == {}
    assert everybody._by_key == {}


@pytest.mark.parametrize("job_id", ["text", 7, 7.0, bson.Int64(7), b"bytes", ObjectId()])
def test_an_event_finds_who_waits_for_an_id_of_any_kind(job_id: Any) -> None:
    everybody = Waits()
    wait = Wait([job_id], BEFORE, Silent(), watches=False)
    everybody.enter(wait)
    everybody.found(wait, job_id, LOOK)

    everybody.take([event(AFTER, "update", job("done") | {"_id": job_id}, job_id=job_id)])

    assert wait.told


def test_the_stream_is_read_by_one_that_sleeps() -> None:
    """Not by one whose first look is under way, nor by who watches between two changes."""
    everybody, busy = one_that_waits(watches=True)
    sleeper = Wait([ID], BEFORE, Silent(), watches=False)
    everybody.enter(sleeper)
    everybody.found(sleeper, ID, LOOK)

    assert everybody.another() is None
    with everybody.asleep(sleeper):
        assert everybody.another() is sleeper
        sleeper.be_gone()
        assert everybody.another() is None
    assert busy is not sleeper


def test_a_call_that_has_left_stays_away() -> None:
    everybody, wait = one_that_waits()
    everybody.leave(wait)

    everybody.found(wait, ID, AFTER)
    everybody.ask_for_all(wait)

    assert len(everybody) == 0
    assert everybody.watched() == {}


def test_a_look_that_was_asked_for_during_the_first_one_is_made_after_it() -> None:
    everybody, wait = one_that_waits(looked=False)
    everybody.look_at_all()
    assert everybody.to_look_at(9) == []

    everybody.found(wait, ID, LOOK)

    assert everybody.to_look_at(9) == [wait]


def test_those_who_wait_long_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(waits, "monotonic", lambda: now)
    everybody = Waits()
    for _ in range(300):
        wait = Wait([ID], BEFORE, Silent(), watches=False)
        everybody.enter(wait)
        everybody.found(wait, ID, LOOK)
    looks = 0
    end = now + 45

    while (now := everybody.next_look()) <= end:
        looks += bool(everybody.to_look_at(1000))

    assert looks <= 4
