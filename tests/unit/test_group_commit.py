"""Group commit: a lone item is written alone at once; what comes meanwhile is written together.

The writes are fakes that the tests let through by hand. Nothing waits for the clock, only for the
event loop to turn.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - a cancellation that is asyncio's own passes anyio's shields
import gc
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo.errors import ConnectionFailure

from streamqueue.store.group_commit import MAX_GROUP, MAX_WRITES, GroupCommit
from tests.waiting import wait_until_async


async def settle() -> None:
    """Let every task do what it can: each step of theirs takes one turn of the loop, or two."""
    for _ in range(20):
        await checkpoint()


class Writes:
    """Writes that wait until the test lets them through.

    Attributes:
        groups: what was written, one list for each write that began.
        interrupted: a write was cancelled while it was in flight.
        answer: what the next write to end returns; None is success for each item.
        failure: what it raises instead.
        before_it_begins: called at the beginning of each.
        before_it_ends: called once, just before the write in flight returns.
    """

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.interrupted = False
        self.answer: list[BaseException | None] | None = None
        self.failure: Exception | None = None
        self.before_it_begins: Callable[[], object] = lambda: None
        self.before_it_ends: Callable[[], object] = lambda: None
        self.held = True
        self._gate = anyio.Event()

    async def __call__(self, items: Sequence[str]) -> Sequence[BaseException | None]:
        self.groups.append(list(items))
        self.before_it_begins()
        try:
            if self.held:
                await self._gate.wait()
        except BaseException:
            self.interrupted = True
            raise
        self._gate = anyio.Event()
        hook, self.before_it_ends = self.before_it_ends, lambda: None
        hook()
        if self.failure is not None:
            raise self.failure
        return self.answer or [None] * len(items)

    def open(self) -> None:
        """End the write in flight at the next turn of the loop."""
        self._gate.set()

    async def let_through(self) -> None:
        """End the write in flight and wait until everybody has reacted to that."""
        self.open()
        await settle()

    def let_all_through(self) -> None:
        """Hold no write from now on."""
        self.held = False
        self._gate.set()


class Submission:
    """One item on its way, in a task of its own."""

    def __init__(self, item: str) -> None:
        self.item = item
        self.scope = CancelScope()
        self.outcome: object = "waiting"

    async def run(self, group: GroupCommit[str]) -> None:
        with self.scope:
            try:
                await group.submit(self.item)
            except Exception as error:
                self.outcome = error
            else:
                self.outcome = "written"
        if self.outcome == "waiting":
            self.outcome = "cancelled"

    async def cancel(self) -> None:
        self.scope.cancel()
        await settle()


class Desk:
    """Takes items for one group commit; a write that is held is waited for, unless told otherwise.

    All writes in flight share a gate.
    """

    def __init__(self, tasks: TaskGroup, patience: float = 3600) -> None:
        self.writes = Writes()
        self.group = GroupCommit(self.writes, patience=patience)
        self.tasks = tasks

    async def submit(self, item: str) -> Submission:
        """Hand an item in and wait until it is on its way."""
        submission = Submission(item)
        self.tasks.start_soon(submission.run, self.group)
        await settle()
        return submission


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with create_task_group() as tasks:
        desk = Desk(tasks)
        yield desk
        desk.writes.let_all_through()
        await settle()
        tasks.cancel_scope.cancel()  # whoever is still waiting was forgotten


async def test_a_lone_item_is_written_alone_at_once(desk: Desk) -> None:
    await desk.submit("a")

    assert desk.writes.groups == [["a"]]


async def test_an_item_has_been_written_when_its_submit_returns(desk: Desk) -> None:
    a = await desk.submit("a")
    before = a.outcome

    await desk.writes.let_through()

    assert (before, a.outcome) == ("waiting", "written")


async def test_a_second_write_does_not_begin_before_the_first_has_ended(desk: Desk) -> None:
    await desk.submit("a")

    await desk.submit("b")

    assert desk.writes.groups == [["a"]]


async def test_what_comes_during_a_write_is_written_together_in_order(desk: Desk) -> None:
    for item in "abcd":
        await desk.submit(item)

    await desk.writes.let_through()

    assert desk.writes.groups == [["a"], ["b", "c", "d"]]


async def test_nobody_waits_for_a_group_after_their_own(desk: Desk) -> None:
    a = await desk.submit("a")
    await desk.submit("b")

    await desk.writes.let_through()

    assert a.outcome == "written"
    assert desk.writes.groups == [["a"], ["b"]]  # and b's is in flight


async def test_an_item_after_a_quiet_time_is_written_alone_at_once(desk: Desk) -> None:
    await desk.submit("a")
    await desk.submit("b")
    await desk.writes.let_through()
    await desk.writes.let_through()

    await desk.submit("c")

    assert desk.writes.groups == [["a"], ["b"], ["c"]]


async def test_a_newcomer_does_not_overtake_the_next_leader(desk: Desk) -> None:
    await desk.submit("a")
    await desk.submit("b")
    newcomer = Submission("c")
    desk.writes.before_it_ends = lambda: desk.tasks.start_soon(newcomer.run, desk.group)

    await desk.writes.let_through()
    await desk.writes.let_through()
    await desk.writes.let_through()

    assert [item for group in desk.writes.groups for item in group] == ["a", "b", "c"]


async def test_a_group_has_its_limit(desk: Desk) -> None:
    await desk.submit("first")
    for number in range(2 * MAX_GROUP + 1):
        desk.tasks.start_soon(Submission(str(number)).run, desk.group)
    await settle()

    for _ in range(4):
        await desk.writes.let_through()

    assert [len(group) for group in desk.writes.groups] == [1, MAX_GROUP, MAX_GROUP, 1]


async def test_an_error_goes_to_its_own_item(desk: Desk) -> None:
    await desk.submit("a")
    b, c, d = [await desk.submit(item) for item in "bcd"]
    await desk.writes.let_through()
    problem = ValueError("c")
    desk.writes.answer = [None, problem, None]

    await desk.writes.let_through()

    assert [b.outcome, c.outcome, d.outcome] == ["written", problem, "written"]


async def test_a_write_that_fails_as_a_whole_fails_for_each_of_its_items(desk: Desk) -> None:
    await desk.submit("a")
    b, c = [await desk.submit(item) for item in "bc"]
    await desk.writes.let_through()
    desk.writes.failure = ConnectionError("gone")

    await desk.writes.let_through()

    assert [b.outcome, c.outcome] == [desk.writes.failure] * 2


async def test_a_failed_write_does_not_stop_the_next(desk: Desk) -> None:
    await desk.submit("a")
    b = await desk.submit("b")
    desk.writes.failure = ConnectionError("gone")
    await desk.writes.let_through()
    desk.writes.failure = None

    await desk.writes.let_through()

    assert b.outcome == "written"


async def test_an_answer_of_the_wrong_length_is_nobodys_success(desk: Desk) -> None:
    await desk.submit("a")
    b, c = [await desk.submit(item) for item in "bc"]
    await desk.writes.let_through()
    desk.writes.answer = [None]

    await desk.writes.let_through()

    assert isinstance(b.outcome, ValueError)
    assert isinstance(c.outcome, ValueError)


async def test_an_item_cancelled_while_it_waits_is_withdrawn(desk: Desk) -> None:
    await desk.submit("a")
    b, _ = [await desk.submit(item) for item in "bc"]

    await b.cancel()
    await desk.writes.let_through()

    assert b.outcome == "cancelled"
    assert desk.writes.groups == [["a"], ["c"]]


async def test_when_all_who_wait_are_cancelled_the_next_is_written_at_once(desk: Desk) -> None:
    await desk.submit("a")
    b = await desk.submit("b")
    await b.cancel()
    await desk.writes.let_through()

    await desk.submit("c")

    assert desk.writes.groups == [["a"], ["c"]]


async def test_the_writer_cancelled_in_flight_waits_for_the_outcome(desk: Desk) -> None:
    a = await desk.submit("a")

    await a.cancel()

    assert a.outcome == "waiting"


async def test_another_cancelled_in_flight_waits_for_the_outcome(desk: Desk) -> None:
    await desk.submit("a")
    _, c = [await desk.submit(item) for item in "bc"]
    await desk.writes.let_through()

    await c.cancel()

    assert c.outcome == "waiting"


@pytest.mark.parametrize("whose", [0, 1], ids=["the writer's", "another's"])
async def test_a_cancellation_does_not_reach_the_write(desk: Desk, whose: int) -> None:
    await desk.submit("a")
    submissions = [await desk.submit(item) for item in "bc"]
    await desk.writes.let_through()

    await submissions[whose].cancel()
    await desk.writes.let_through()

    assert not desk.writes.interrupted
    assert submissions[1 - whose].outcome == "written"


async def test_the_writer_cancelled_in_flight_learns_of_an_error(desk: Desk) -> None:
    a = await desk.submit("a")
    await a.cancel()
    desk.writes.failure = ConnectionError("gone")

    await desk.writes.let_through()

    assert a.outcome is desk.writes.failure


async def test_a_writer_cancelled_in_flight_hands_over(desk: Desk) -> None:
    a = await desk.submit("a")
    await desk.submit("b")
    await a.cancel()

    await desk.writes.let_through()

    assert desk.writes.groups == [["a"], ["b"]]


async def test_a_leader_cancelled_the_moment_its_turn_comes_leaves_it_to_the_next(
    desk: Desk,
) -> None:
    await desk.submit("a")
    b, c = [await desk.submit(item) for item in "bc"]
    desk.writes.before_it_ends = b.scope.cancel

    await desk.writes.let_through()
    desk.writes.let_all_through()
    await settle()

    assert (b.outcome, c.outcome) == ("cancelled", "written")
    assert desk.writes.groups == [["a"], ["c"]]  # its own write had not begun


async def test_a_task_cancelled_by_asyncio_does_not_cancel_the_others(desk: Desk) -> None:
    # asyncio.timeout(), wait_for() and TaskGroup cancel in this way.
    await desk.submit("a")
    b, c = [asyncio.create_task(desk.group.submit(item)) for item in "bc"]
    await settle()
    await desk.writes.let_through()

    b.cancel()
    desk.writes.let_all_through()
    await asyncio.wait([b, c])

    assert not c.cancelled()


async def test_a_queue_goes_on_after_asyncio_cancelled_its_writer(desk: Desk) -> None:
    a = asyncio.create_task(desk.group.submit("a"))
    await settle()
    b = await desk.submit("b")

    a.cancel()
    await asyncio.wait([a])
    desk.writes.let_all_through()
    await settle()

    assert b.outcome == "written"


@pytest.mark.parametrize("how_often", [1, 3])
async def test_a_group_whose_leader_asyncio_cancels_in_flight_is_written_once(
    desk: Desk, how_often: int
) -> None:
    # The server has applied it, perhaps: a job that was done meanwhile would be done again.
    await desk.submit("a")
    leader, other = [asyncio.create_task(desk.group.submit(item)) for item in "bc"]
    await settle()
    await desk.writes.let_through()

    for _ in range(how_often):
        leader.cancel()
        await settle()
    waits_for_the_outcome = not leader.done()
    desk.writes.let_all_through()
    await asyncio.wait([leader, other])

    assert desk.writes.groups == [["a"], ["b", "c"]]
    assert waits_for_the_outcome
    assert leader.cancelled()
    assert not desk.writes.interrupted


limit: ContextVar[float | None] = ContextVar("limit", default=None)


async def test_a_group_is_written_in_a_context_of_its_own(desk: Desk) -> None:
    seen: list[float | None] = []

    async def submit_within_a_limit(item: str) -> None:
        limit.set(5)  # as pymongo.timeout() does
        await desk.group.submit(item)

    desk.writes.before_it_begins = lambda: seen.append(limit.get())
    for item in "abc":
        desk.tasks.start_soon(submit_within_a_limit, item)
        await settle()
    desk.writes.let_all_through()
    await settle()

    assert desk.writes.groups == [["a"], ["b", "c"]]
    assert seen == [5, None]  # the first wrote for itself alone


def writing_tasks() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if "_write_group" in repr(task)]


@pytest.mark.few(1)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("begun", [True, False], ids=["in flight", "before it began"])
async def test_when_the_write_itself_is_killed_the_outcome_is_unknown_to_all_of_its_items(
    desk: Desk, begun: bool
) -> None:
    await desk.submit("a")
    b, c = [await desk.submit(item) for item in "bc"]
    if begun:
        await desk.writes.let_through()
    else:
        desk.writes.open()
        while not writing_tasks():
            await checkpoint()

    for task in writing_tasks():
        task.cancel()
    await settle()
    d = await desk.submit("d")
    desk.writes.let_all_through()
    await settle()
    gc.collect()  # what never began warns of that

    assert [type(entry.outcome) for entry in (b, c)] == [ConnectionFailure] * 2
    assert d.outcome == "written"
    assert desk.writes.groups[-1] == ["d"]


# A write that the server holds up.


@pytest.fixture
async def impatient_desk() -> AsyncIterator[Desk]:
    async with create_task_group() as tasks:
        desk = Desk(tasks, patience=0.01)
        yield desk
        desk.writes.let_all_through()
        await settle()
        tasks.cancel_scope.cancel()


async def groups_in_flight(desk: Desk, count: int) -> None:
    await wait_until_async(lambda: len(desk.writes.groups) >= count, f"{count} writes have begun")


async def test_a_write_that_is_held_up_delays_the_next_for_a_moment(impatient_desk: Desk) -> None:
    desk = impatient_desk
    a = await desk.submit("a")

    b = await desk.submit("b")
    await groups_in_flight(desk, 2)

    assert desk.writes.groups == [["a"], ["b"]]
    assert (a.outcome, b.outcome) == ("waiting", "waiting")


async def test_if_the_first_in_line_is_cancelled_the_next_keeps_the_time(
    impatient_desk: Desk,
) -> None:
    desk = impatient_desk
    await desk.submit("a")
    b = Submission("b")
    desk.tasks.start_soon(b.run, desk.group)
    desk.tasks.start_soon(Submission("c").run, desk.group)
    await checkpoint()

    await b.cancel()
    await groups_in_flight(desk, 2)

    assert desk.writes.groups == [["a"], ["c"]]


async def test_what_a_full_group_leaves_behind_does_not_wait_for_ever_either(
    impatient_desk: Desk,
) -> None:
    desk = impatient_desk
    await desk.submit("a")

    for number in range(MAX_GROUP + 1):
        desk.tasks.start_soon(Submission(str(number)).run, desk.group)
    await groups_in_flight(desk, 3)

    assert [len(group) for group in desk.writes.groups] == [1, MAX_GROUP, 1]


async def test_so_many_writes_are_in_flight_and_no_more(impatient_desk: Desk) -> None:
    desk = impatient_desk
    for number in range(MAX_WRITES):
        await desk.submit(str(number))
        await groups_in_flight(desk, number + 1)

    late = await desk.submit("late")
    with anyio.move_on_after(0.05):  # five times as long as it would wait
        await groups_in_flight(desk, MAX_WRITES + 1)
    before = len(desk.writes.groups)
    desk.writes.let_all_through()
    await settle()

    assert before == MAX_WRITES
    assert late.outcome == "written"


def play(moves: random.Random) -> tuple[list[Submission], Writes]:
    """Submit, cancel and let through at random, then let everything through."""

    async def game(*_: Any) -> tuple[list[Submission], Writes]:
        submissions: list[Submission] = []
        async with create_task_group() as tasks:
            desk = Desk(tasks)
            for number in range(moves.randrange(1, 25)):
                match moves.choice(["submit", "submit", "submit", "cancel", "cancel later", "end"]):
                    case "submit":
                        submission = Submission(str(number))
                        submissions.append(submission)
                        tasks.start_soon(submission.run, desk.group)
                    case "cancel" if submissions:
                        moves.choice(submissions).scope.cancel()
                    case "cancel later" if submissions:
                        desk.writes.before_it_ends = moves.choice(submissions).scope.cancel
                    case "end":
                        await desk.writes.let_through()
                if moves.random() < 0.7:
                    await settle()
            desk.writes.let_all_through()
            await settle()
            tasks.cancel_scope.cancel()  # whoever is still waiting was forgotten
        return submissions, desk.writes

    return anyio.run(game, None)


@given(st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_whatever_happens_each_item_is_written_once_or_withdrawn(moves: random.Random) -> None:
    submissions, writes = play(moves)

    written = [item for group in writes.groups for item in group]
    assert len(written) == len(set(written))
    assert {entry.item for entry in submissions if entry.outcome == "written"} <= set(written)
    assert "waiting" not in [entry.outcome for entry in submissions]
