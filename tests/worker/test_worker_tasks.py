"""Tasks in a worker: which function runs a job, with what, and what is said of it.

Laws: poison is contained; a limit is a limit.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import (
    AsyncJob,
    AsyncMongoQueue,
    Backoff,
    ConfigurationError,
    Discard,
    Job,
    Limit,
    Task,
    Worker,
)
from streamqueue.protocol.limits import Rule
from streamqueue.worker.worker import settings_of
from tests.waiting import wait_until_async
from tests.worker.programs import tasks_in_child
from tests.worker.started import StartedWorker, WorkerStarter

AT_ONCE = Backoff(initial=0.001, maximum=0.001)
LONG = 60.0
"""Seconds that a child may take to start on a machine that does much else."""


@pytest.fixture
def prepared(start: WorkerStarter) -> StartedWorker:
    """A worker to register tasks with."""
    return start.prepare(backoff=AT_ONCE)


@pytest.fixture
def worker(prepared: StartedWorker) -> Worker:
    return prepared.worker


def stored(jobs: Collection[Any], **wanted: Any) -> dict[str, Any]:
    """Return the only such job."""
    [job] = jobs.find(wanted)
    return job


# what runs, and with what


async def test_each_job_is_run_by_the_function_of_its_task(
    start: WorkerStarter, prepared: StartedWorker, worker: Worker, queue: AsyncMongoQueue
) -> None:
    seen: list[object] = []

    @worker.task()
    async def welcome(name: str, lang: str = "en") -> None:
        seen.append(("welcome", name, lang))

    @worker.task()
    async def resize(*, width: int) -> None:
        seen.append(("resize", width))

    await start.begin(prepared)
    await queue.put(welcome.call("ada", lang="fr"))
    await queue.put(resize.call(width=3))
    await queue.put(welcome.call("bob"))

    await prepared.until_outcomes(completed=3)
    assert sorted(map(str, seen)) == sorted(
        map(str, [("welcome", "ada", "fr"), ("resize", 3), ("welcome", "bob", "en")])
    )


async def test_a_task_may_take_the_job_before_its_arguments(
    start: WorkerStarter, prepared: StartedWorker, worker: Worker, queue: AsyncMongoQueue
) -> None:
    seen: list[object] = []

    @worker.task()
    async def welcome(job: AsyncJob, name: str) -> None:
        seen.append((type(job), job.task, name))

    await start.begin(prepared)
    await queue.put(welcome.call("ada"))

    await prepared.until_outcomes(completed=1)
    assert seen == [(AsyncJob, "welcome", "ada")]


async def test_a_blocking_task_runs_in_a_thread(
    start: WorkerStarter, prepared: StartedWorker, worker: Worker, queue: AsyncMongoQueue
) -> None:
    seen: list[object] = []

    @worker.task()
    def welcome(job: Job, name: str) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        seen.append((type(job), name, in_main))

    await start.begin(prepared)
    await queue.put(welcome.call("ada"))

    await prepared.until_outcomes(completed=1)
    assert seen == [(Job, "ada", False)]


async def test_a_task_in_a_process_gets_its_arguments(
    start: WorkerStarter, prepared: StartedWorker, worker: Worker, queue: AsyncMongoQueue
) -> None:
    area = worker.task(run_in="process", keep=60)(tasks_in_child.area)

    await start.begin(prepared)
    result, pid = await queue.request(area.call(3), timeout=LONG)
    assert result == 6
    assert pid != os.getpid()


async def test_what_a_task_returns_is_the_result_of_its_job(
    start: WorkerStarter, prepared: StartedWorker, worker: Worker, queue: AsyncMongoQueue
) -> None:
    @worker.task()
    async def add(a: int, b: int) -> int:
        return a + b

    await start.begin(prepared)

    assert await queue.request(add.call(1, b=2), timeout=10) == 3


async def test_a_task_is_called_by_other_code_as_the_function_that_it_is(worker: Worker) -> None:
    @worker.task()
    async def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    assert await add(1, b=2) == 3
    assert (add.__name__, add.__doc__, add.name, add.queue) == ("add", "Add.", "add", "default")


async def test_a_call_needs_no_function_where_it_is_put(
    start: WorkerStarter, prepared: StartedWorker, worker: Worker, queue: AsyncMongoQueue
) -> None:
    seen: list[int] = []

    @worker.task()
    async def resize(width: int) -> None:
        seen.append(width)

    await start.begin(prepared)
    await queue.put(Task("resize").call(width=3))

    await prepared.until_outcomes(completed=1)
    assert seen == [3]


@pytest.mark.parametrize(
    ("arguments", "field"), [({"height": 3, "width": 1}, "height"), ({}, "width")], ids=str
)
async def test_arguments_that_do_not_fit_are_left_to_other_workers(
    start: WorkerStarter,
    prepared: StartedWorker,
    worker: Worker,
    queue: AsyncMongoQueue,
    jobs: Any,
    arguments: dict[str, Any],
    field: str,
) -> None:
    @worker.task()
    async def resize(width: int) -> None:
        raise AssertionError("called")

    await start.begin(prepared)
    job_id = await queue.put(Task("resize").call(**arguments))

    await wait_until_async(lambda: stored(jobs)["state"] == "waiting", "it is left", 10)
    info = await queue.get(job_id)
    assert info.attempts == 0
    assert info.waits_for is not None
    assert info.waits_for["misfit"].startswith(f"{field}: ")


async def test_a_call_of_a_newer_program_is_run_by_a_worker_of_that(
    start: WorkerStarter, prepared: StartedWorker, worker: Worker, queue: AsyncMongoQueue, jobs: Any
) -> None:
    newer, seen = start.prepare(), []

    @worker.task(name="resize")
    async def resize(width: int) -> None:
        raise AssertionError("called")

    @newer.worker.task(name="resize")
    async def resize_better(width: int, height: int) -> None:
        seen.append((width, height))

    await start.begin(prepared)
    await queue.put(resize_better.call(1, 2))
    await wait_until_async(lambda: stored(jobs)["state"] == "waiting", "it is left", 10)

    await start.begin(newer)

    await newer.until_outcomes(completed=1)
    assert seen == [(1, 2)]


# names


async def test_a_task_runs_jobs_of_its_former_names(
    start: WorkerStarter, prepared: StartedWorker, worker: Worker, queue: AsyncMongoQueue
) -> None:
    seen: list[str | None] = []

    @worker.task(name="shrink", aliases=["resize", "scale"])
    async def anything(job: AsyncJob) -> None:
        seen.append(job.task)

    await start.begin(prepared)
    for name in ("resize", "shrink", "scale"):
        await queue.put(Task(name).call())

    await prepared.until_outcomes(completed=3)
    assert sorted(map(str, seen)) == ["resize", "scale", "shrink"]


@pytest.mark.parametrize(
    "again",
    [{"name": "resize"}, {"name": "x", "aliases": ["resize"]}, {"name": "scale"}],
    ids=["a name", "an alias", "a name that is an alias"],
)
async def test_two_tasks_of_one_name_in_a_queue_are_refused(worker: Worker, again: Any) -> None:
    worker.task("images", name="resize", aliases=["scale"])(lambda: None)

    with pytest.raises(ConfigurationError, match=r"queue 'images' has a task '(resize|scale)'"):
        worker.task("images", **again)(lambda: None)
    assert "x" not in settings_of(worker).handlers["images"].tasks


async def test_tasks_of_one_name_in_two_queues_are_two(worker: Worker) -> None:
    worker.task("images", name="resize")(lambda: None)
    worker.task("videos", name="resize")(lambda: None)

    assert list(settings_of(worker).handlers) == ["images", "videos"]


async def test_the_name_is_the_bare_one_of_the_function(worker: Worker) -> None:
    class Shop:
        @staticmethod
        def order(n: int) -> None: ...

    assert worker.task()(Shop.order).name == "order"


# what is known


async def test_with_tasks_in_its_worker_a_handler_runs_jobs_without_a_task(
    start: WorkerStarter, prepared: StartedWorker, worker: Worker, queue: AsyncMongoQueue
) -> None:
    seen: list[object] = []

    @worker.task()
    async def resize(width: int) -> None:
        seen.append(width)

    @worker.handler("default")
    async def plain(job: AsyncJob) -> None:
        seen.append(job.data)

    await start.begin(prepared)
    await queue.put({"width": 1})
    await queue.put(resize.call(width=2))

    await prepared.until_outcomes(completed=2)
    assert sorted(map(str, seen)) == ["2", "{'width': 1}"]


async def test_without_tasks_a_handler_runs_jobs_of_any(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    seen: list[str | None] = []

    async def handler(job: AsyncJob) -> None:
        seen.append(job.task)

    worker = await start(handler)
    await queue.put(Task("resize").call())

    await worker.until_outcomes(completed=1)
    assert seen == ["resize"]


@pytest.mark.parametrize("with_handler", [False, True], ids=["tasks", "tasks and a handler"])
async def test_a_job_of_an_unknown_task_is_left_as_it_is(
    start: WorkerStarter,
    prepared: StartedWorker,
    worker: Worker,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    with_handler: bool,
) -> None:
    @worker.task()
    async def resize(width: int) -> None: ...

    if with_handler:

        @worker.handler("default")
        async def plain(job: AsyncJob) -> None: ...

    await start.begin(prepared)
    await queue.put(Task("unknown").call())
    await queue.put(resize.call(width=2))

    await prepared.until_outcomes(completed=1)
    await prepared.until_idle()
    assert (stored(jobs)["state"], stored(jobs)["attempts"]) == ("ready", 0)
    assert len(prepared.commands.claims()) == 1


async def test_a_job_of_an_unknown_task_is_run_by_who_knows_it(
    start: WorkerStarter,
    prepared: StartedWorker,
    worker: Worker,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
) -> None:
    @worker.task()
    async def resize(width: int) -> None: ...

    await start.begin(prepared)
    await queue.put(Task("newer").call())
    newer = start.prepare()

    @newer.worker.task(name="newer")
    async def as_named() -> None: ...

    await start.begin(newer)

    await newer.until_outcomes(completed=1)


async def test_what_is_known_of_a_queue_is_its_tasks_and_their_former_names(worker: Worker) -> None:
    worker.task("images", name="resize", aliases=["scale"])(lambda: None)
    worker.task("both", name="resize")(lambda: None)
    worker.handler("both")(lambda job: None)
    worker.handler("plain")(lambda job: None)

    assert settings_of(worker).known_tasks == {
        "images": {"resize", "scale"},
        "both": {"resize", None},
    }


# what is said of a task


async def test_each_task_has_attempts_of_its_own(
    start: WorkerStarter,
    prepared: StartedWorker,
    worker: Worker,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
) -> None:
    async def fail() -> None:
        raise RuntimeError

    worker.task(name="one", max_attempts=1)(fail)
    worker.task(name="$four", max_attempts=4)(fail)
    worker.task(name="usual", aliases=["former"])(fail)
    await start.begin(prepared)
    for name in ("one", "$four", "usual", "former"):
        await queue.put(Task(name).call())

    await prepared.until_outcomes(dead=4, retried=7)
    dead = {job["task"]: job["attempts"] for job in jobs.find()}
    assert dead == {"one": 1, "$four": 4, "usual": 3, "former": 3}


async def test_each_task_keeps_its_jobs_for_its_own_time(
    start: WorkerStarter,
    prepared: StartedWorker,
    worker: Worker,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
) -> None:
    async def work() -> None: ...

    worker.task(name="kept", keep=60)(work)
    worker.task(name="usual")(work)
    await start.begin(prepared)
    for name in ("kept", "usual"):
        await queue.put(Task(name).call())

    await prepared.until_outcomes(completed=2)
    assert stored(jobs)["task"] == "kept"


async def test_each_task_is_counted_by_its_name(
    start: WorkerStarter, prepared: StartedWorker, worker: Worker, queue: AsyncMongoQueue
) -> None:
    async def work(fails: bool) -> None:
        if fails:
            raise Discard("no")

    worker.task(name="a")(work)
    worker.task(name="b", aliases=["c"])(work)
    await start.begin(prepared)
    for name, fails in (("a", False), ("b", True), ("c", True)):
        await queue.put(Task(name).call(fails=fails))

    await prepared.until_outcomes(completed=1, dead=2)
    count = "streamqueue_attempts_total"
    assert prepared.metric(count, task="a", outcome="completed") == 1
    assert prepared.metric(count, task="b", outcome="dead") == 2


async def test_a_limit_at_a_task_is_for_that_task(
    start: WorkerStarter, prepared: StartedWorker, worker: Worker, queue: AsyncMongoQueue
) -> None:
    running = {"limited": 0, "free": 0}
    most = {"limited": 0, "free": 0}

    async def work(job: AsyncJob) -> None:
        name = str(job.task)
        running[name] += 1
        most[name] = max(most[name], running[name])
        await anyio.sleep(0.05)
        running[name] -= 1

    worker.task(name="limited", limits=Limit(running=1))(work)
    worker.task(name="free")(work)
    await start.begin(prepared)
    await queue.put_many([Task(name).call() for name in ["limited", "free"] * 4])

    await prepared.until_outcomes(completed=8)
    assert most["limited"] == 1
    assert most["free"] > 1


@pytest.mark.parametrize(
    ("per", "rule"),
    [
        (None, Rule("queue", "resize", 3)),
        ("task", Rule("queue", "resize", 3)),
        ("group", Rule("group", "resize", 3)),
        ("queue", Rule("queue", None, 3)),
    ],
)
async def test_a_limit_at_a_task_is_of_its_jobs_unless_it_is_of_the_queue(
    worker: Worker, per: Any, rule: Rule
) -> None:
    worker.task(name="resize", limits=Limit(running=3, per=per))(lambda: None)

    assert settings_of(worker).handlers["default"].rules.limits == (rule,)


async def test_a_limit_at_a_task_is_for_each_of_its_names(worker: Worker) -> None:
    worker.task(name="resize", aliases=["scale"], limits=Limit(running=3))(lambda: None)

    limits = settings_of(worker).handlers["default"].rules.limits
    assert limits == (Rule("queue", "resize", 3), Rule("queue", "scale", 3))


async def test_what_is_said_of_a_queue_at_one_function_holds_for_all(
    worker: Worker,
) -> None:
    worker.task(name="a")(lambda: None)
    worker.task(name="b", concurrency=3, weight=2, ordered=True, fair=True)(lambda: None)
    worker.handler("default", concurrency=3)(lambda job: None)

    queue = settings_of(worker).handlers["default"]
    assert (queue.concurrency, queue.weight) == (3, 2)
    assert (queue.rules.ordered, queue.rules.fair) == (True, True)


@pytest.mark.parametrize(
    ("one", "other", "error"),
    [
        ({"concurrency": 3}, {"concurrency": 4}, "concurrency is said of queue 'default' twice"),
        ({"weight": 3}, {"weight": 4}, "weight is said of queue 'default' twice, as 3 and as 4"),
        ({"ordered": True}, {"ordered": "strict"}, "ordered is said"),
        (
            {"limits": Limit(running=1, per="queue")},
            {"limits": Limit(running=2, per="queue")},
            'have different limits with per="queue"',
        ),
    ],
    ids=["concurrency", "weight", "ordered", "limits"],
)
async def test_two_things_said_of_one_queue_are_refused(
    worker: Worker, one: Any, other: Any, error: str
) -> None:
    worker.task(name="a", **one)(lambda: None)

    with pytest.raises(ConfigurationError, match=error):
        worker.task(name="b", **other)(lambda: None)
    with pytest.raises(ConfigurationError, match=error):
        worker.handler("default", **other)


# what is refused


def takes_job(job: Job) -> None: ...


async def awaits_a_job(job: Job) -> None: ...


@pytest.mark.parametrize(
    ("settings", "function", "error"),
    [
        ({}, lambda: None, "has no name that a task could have"),
        ({"name": "a", "run_in": "process"}, takes_job, "runs in a process, which has no job"),
        ({"name": "a"}, awaits_a_job, "says that it takes a Job"),
        ({"name": "a"}, lambda *rest: None, "has a parameter without one"),
        ({"name": "a"}, Worker, "not the class"),
        ({"name": "a", "run_in": "loop"}, lambda: None, "would block the event loop"),
    ],
    ids=[
        "no name",
        "a job in a process",
        "the other kind of job",
        "no names",
        "a class",
        "a def in the loop",
    ],
)
async def test_a_function_that_cannot_be_a_task_is_refused(
    worker: Worker, settings: Any, function: Callable[..., Any], error: str
) -> None:
    with pytest.raises(ConfigurationError, match=error):
        worker.task(**settings)(function)
    assert settings_of(worker).handlers == {}


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"queue": "a b"}, "queue"),
        ({"name": ""}, "name of a task"),
        ({"aliases": "resize"}, "aliases must be a list of names"),
        ({"aliases": [3]}, "name of a task"),
        ({"time_limit": 0}, "time_limit"),
    ],
    ids=["queue", "name", "aliases", "an alias", "a term"],
)
async def test_what_is_out_of_its_range_is_refused_where_it_stands(
    worker: Worker, settings: Any, error: str
) -> None:
    with pytest.raises(ConfigurationError, match=error):
        worker.task(**settings)


# schedules


async def test_a_tick_is_a_call_of_the_task_below_the_schedule(
    start: WorkerStarter, prepared: StartedWorker, worker: Worker, jobs: Collection[Any]
) -> None:
    seen: list[object] = []

    @worker.schedule(every=1)
    @worker.task()
    async def tidy(job: AsyncJob, days: int = 7) -> None:
        seen.append((job.task, job.run_at and job.run_at.microsecond, days))

    @worker.task()
    @worker.schedule(every=1, payload={"days": 3})
    async def sweep(days: int) -> None:
        seen.append(days)

    await start.begin(prepared)

    await wait_until_async(lambda: ("tidy", 0, 7) in seen and 3 in seen, "both have run", 10)
    settings = jobs.database[f"{jobs.name}.settings"]
    names = [one["_id"] for one in settings.find({"kind": "schedule"})]
    assert sorted(names) == ["schedule:sweep", "schedule:tidy"]


async def test_a_task_with_arguments_needs_them_in_its_schedule(worker: Worker) -> None:
    @worker.task()
    def tidy(days: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"'tidy'.*missing a required argument: 'days'"):
        worker.schedule(every=60)(tidy)
    with pytest.raises(ConfigurationError, match="unexpected keyword argument 'hours'"):
        worker.schedule(every=60, payload={"days": 1, "hours": 3})(tidy)
    worker.schedule(every=60, payload={"days": 3})(tidy)
    worker.schedule(every=60, name="call", payload=tidy.call(3))(tidy)
    settings_of(worker).check_handlers()


async def test_a_task_above_a_schedule_that_does_not_fit_does_not_start(worker: Worker) -> None:
    @worker.task()
    @worker.schedule(every=60)
    def tidy(days: int) -> None: ...

    with (
        anyio.fail_after(10),
        pytest.raises(ConfigurationError, match="missing a required argument: 'days'"),
    ):
        await worker.run(handle_signals=False)


async def test_a_call_of_another_task_is_no_payload_of_a_schedule(worker: Worker) -> None:
    @worker.task()
    def tidy() -> None: ...

    with pytest.raises(ConfigurationError, match="a call of task 'sweep'"):
        worker.schedule(every=60, payload=Task("sweep").call())(tidy)
