"""The model of a deployment: what is used, what gives first, and what to do then."""

from __future__ import annotations

import pytest

from streamqueue.bench.capacity.model import (
    FULL,
    Costs,
    Deployment,
    drained_here,
    oplog_hours,
    parts_of,
)

COSTS = Costs(put=100, drain=60, stream=5.0, worker=50, dispatcher=10, oplog_bytes=1000)


def test_of_the_server_a_job_uses_its_put_its_drain_and_word_of_it_in_each_stream() -> None:
    deployment = Deployment(1000, hosts=2, processes=8, server_processors=2)

    [server] = [part for part in parts_of(COSTS, deployment) if "primary" in part.name]

    assert server.used == pytest.approx(1000 * (100 + 60 + 2 * 5) / 1e6 / 2)
    assert server.most == pytest.approx(FULL * 2 * 1e6 / 170)


def test_what_gives_first_is_first() -> None:
    one_process = Deployment(1000, hosts=1, processes=1, dispatched=False, server_processors=16)
    many = Deployment(1000, hosts=8, processes=8, server_processors=1)

    assert "consumer" in parts_of(COSTS, one_process)[0].name
    assert "primary" in parts_of(COSTS, many)[0].name


def test_where_streams_cost_more_than_jobs_a_dispatcher_is_the_next_step() -> None:
    separate = Deployment(1000, hosts=4, processes=16, dispatched=False)
    dispatched = Deployment(1000, hosts=4, processes=16)

    assert (separate.streams, dispatched.streams) == (64, 4)
    assert "--processes" in parts_of(COSTS, separate)[0].next_step
    assert "--processes" not in parts_of(COSTS, dispatched)[0].next_step


def test_a_dispatcher_is_there_for_several_processes_only() -> None:
    def names(processes: int) -> list[str]:
        return [part.name for part in parts_of(COSTS, Deployment(1, 1, processes))]

    assert len(names(1)) == 2
    assert any("dispatcher" in name for name in names(4))


def test_on_one_machine_all_share_its_processors_and_a_process_has_one() -> None:
    assert drained_here(COSTS, 1, 2) == pytest.approx(2e6 / 110)
    assert drained_here(COSTS, 1, 64) == pytest.approx(1e6 / 50)
    assert drained_here(COSTS, 4, 2) == pytest.approx(2e6 / 120)


def test_an_oplog_goes_back_for_its_size_by_what_is_written() -> None:
    assert oplog_hours(COSTS, Deployment(1000, 1, 1), 3.6) == pytest.approx(1)
