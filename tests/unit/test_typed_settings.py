"""The settings that type checkers know, beside those that are taken."""

from __future__ import annotations

import inspect
from dataclasses import fields

from streamqueue import Worker
from streamqueue.options import RarerSettings, WorkerOptions
from streamqueue.protocol.put import check_put
from streamqueue.protocol.schedules import NOT_TAKEN, TickSettings
from streamqueue.worker.handler_types import HandlerSettings

OF_CHECK_PUT = {"payload", "awaited", "rule", "parents", "queue"}
"""What it is told beside the settings of a put."""


def test_each_setting_of_a_worker_is_a_parameter_or_a_rarer_one() -> None:
    written_out = {*inspect.signature(Worker).parameters}

    assert {*RarerSettings.__annotations__} == {
        each.name for each in fields(WorkerOptions) if each.name not in written_out
    }


def test_each_parameter_of_a_handler_is_in_its_overloads() -> None:
    parameters = {*inspect.signature(Worker.handler).parameters}

    own = {"self", "queue", "run_in", "payload", "batch", "batch_wait"}
    assert {*HandlerSettings.__annotations__} == parameters - own


def test_each_setting_of_a_put_is_one_of_a_schedule_or_refused_there_with_its_reason() -> None:
    settings = {*inspect.signature(check_put).parameters} - OF_CHECK_PUT

    assert {*TickSettings.__annotations__} == settings - {*NOT_TAKEN}
