"""The two shells are one API: same names, same order, same arguments, same words."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import streamqueue
from streamqueue import AsyncJob, AsyncMongoQueue, AsyncTopic, Job, MongoQueue, Topic
from streamqueue.queue.answers.answers import AsyncAnswers, BlockingAnswers
from streamqueue.queue.schedules.schedules import AsyncSchedules, Schedules
from streamqueue.queue.steering.limiting import AsyncLimiting, BlockingLimiting
from streamqueue.queue.steering.pausing import AsyncPausing, BlockingPausing
from streamqueue.queue.steering.steering import AsyncSteering, BlockingSteering
from streamqueue.queue.steps import AsyncSteps, BlockingSteps

TWO_SHELLS: list[tuple[type, type]] = [
    (MongoQueue, AsyncMongoQueue),
    (Job, AsyncJob),
    (Topic, AsyncTopic),
    (BlockingSteering, AsyncSteering),
    (BlockingPausing, AsyncPausing),
    (BlockingLimiting, AsyncLimiting),
    (BlockingAnswers, AsyncAnswers),
    (Schedules, AsyncSchedules),
    (BlockingSteps, AsyncSteps),
]
PAIRS = [pytest.param(*pair, id=pair[0].__name__) for pair in TWO_SHELLS]
NOT_AWAITED = {"__init__"}
TWINS = {"__aiter__": "__iter__", "__aenter__": "__enter__", "__aexit__": "__exit__"}
"""How Python calls the same thing in an async class."""


def members(shell: type) -> dict[str, Any]:
    """What a class defines itself and shows, in its order, under the blocking names."""
    return {
        TWINS.get(name, name): value
        for name, value in vars(shell).items()
        if TWINS.get(name, name) in {"__init__", *TWINS.values()} or not name.startswith("_")
    }


def everything(shell: type) -> set[str]:
    return {name for name in dir(shell) if not name.startswith("_")}


def first_line(thing: object) -> str:
    """The first line of a docstring, in the blocking shell's words."""
    return (inspect.getdoc(thing) or "").partition("\n")[0].replace("Async", "")


def arguments(function: Any) -> list[tuple[str, object, object]]:
    """Names, kinds and defaults; the types differ where pymongo's do."""
    return [
        (parameter.name, parameter.kind, parameter.default)
        for parameter in inspect.signature(function).parameters.values()
    ]


METHODS = [
    pytest.param(name, member, members(asynchronous)[name], id=f"{blocking.__name__}.{name}")
    for blocking, asynchronous in TWO_SHELLS
    for name, member in members(blocking).items()
    if inspect.isfunction(member) and name in members(asynchronous)
]


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS)
def test_both_shells_have_the_same_names_in_the_same_order(
    blocking: type, asynchronous: type
) -> None:
    assert list(members(blocking)) == list(members(asynchronous))


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS)
def test_both_shells_inherit_the_same_names(blocking: type, asynchronous: type) -> None:
    assert everything(blocking) == everything(asynchronous)


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS)
def test_both_shells_say_the_same_of_themselves(blocking: type, asynchronous: type) -> None:
    assert first_line(blocking) == first_line(asynchronous) != ""


@pytest.mark.parametrize(("name", "blocking", "asynchronous"), METHODS)
def test_a_method_takes_the_same_arguments_in_both_shells(
    name: str, blocking: Any, asynchronous: Any
) -> None:
    assert arguments(blocking) == arguments(asynchronous)


@pytest.mark.parametrize(("name", "blocking", "asynchronous"), METHODS)
def test_a_method_says_the_same_in_both_shells(name: str, blocking: Any, asynchronous: Any) -> None:
    assert first_line(blocking) == first_line(asynchronous)


@pytest.mark.parametrize(("name", "blocking", "asynchronous"), METHODS)
def test_a_method_is_awaited_in_the_async_shell_only(
    name: str, blocking: Any, asynchronous: Any
) -> None:
    awaited = inspect.iscoroutinefunction(asynchronous) or inspect.isasyncgenfunction(asynchronous)

    assert not inspect.iscoroutinefunction(blocking)
    assert awaited == (name not in NOT_AWAITED)


def test_a_request_takes_what_a_put_takes_but_a_session() -> None:
    request, put = (
        inspect.signature(call).parameters for call in (MongoQueue.request, MongoQueue.put)
    )

    assert {*request} ^ {*put} == {"session", "timeout"}


def test_a_publish_takes_what_a_put_takes() -> None:
    publish, put = (inspect.signature(call).parameters for call in (Topic.publish, MongoQueue.put))

    assert list(publish.values()) == [
        parameter.replace(annotation=publish[name].annotation) for name, parameter in put.items()
    ]


def test_the_methods_compared_are_all_there_are() -> None:
    compared = {parameter.id for parameter in METHODS}

    assert {"MongoQueue.put", "MongoQueue.__iter__", "Job.complete", "Job.__exit__"} <= compared


@pytest.mark.parametrize("name", [name for name in streamqueue.__all__ if name != "__version__"])
def test_every_public_name_says_what_it_is(name: str) -> None:
    public = getattr(streamqueue, name)

    assert first_line(public).endswith((".", ":"))
    if inspect.isclass(public):
        assert public.__doc__ != getattr(public.__base__, "__doc__", None)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        pytest.param(owner, name, id=f"{owner.__name__}.{name}")
        for owner in (
            *(MongoQueue, AsyncMongoQueue, Job, AsyncJob, Topic, AsyncTopic),
            *(Schedules, AsyncSchedules, streamqueue.Worker),
        )
        for name in sorted(everything(owner))
    ],
)
def test_every_public_member_says_what_it_is(owner: type, name: str) -> None:
    assert first_line(inspect.getattr_static(owner, name)) != ""


def test_the_public_names_are_in_order_and_there() -> None:
    assert streamqueue.__all__ == sorted(streamqueue.__all__)
    assert all(hasattr(streamqueue, name) for name in streamqueue.__all__)
