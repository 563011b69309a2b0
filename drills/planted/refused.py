"""Faults about jobs that the server refuses to change."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

FOREIGN = "worker/test_worker_foreign_documents.py"

FAULTS: tuple[PlantedFault, ...] = (
    # jobs that the server refuses to change
    PlantedFault(
        "a job that cannot be promoted is tried again at once",
        13,
        "worker/test_worker_stuck.py"
        "::test_a_job_that_cannot_be_changed_is_tried_at_intervals_that_grow[scheduled]",
        Edit(
            "store.refused:StuckJobs.hold",
            "        if not self.full:\n            self._held[name] = job_id\n",
            "",
        ),
    ),
    PlantedFault(
        "a job that cannot be changed is left out for ever",
        3,
        "worker/test_worker_stuck.py"
        "::test_a_job_that_could_not_be_changed_is_run_once_it_can_be[scheduled]",
        Edit(
            "store.refused:StuckJobs.sift",
            "        if self._again_at <= monotonic():\n",
            "        if False:\n",
        ),
    ),
    PlantedFault(
        "a look ahead that sees only the first of the jobs that are due",
        13,
        "worker/test_worker_stuck.py"
        "::test_a_job_that_cannot_be_promoted_does_not_delay_the_one_behind_it",
        Edit(
            "store.flows.timers:_seconds_to",
            "Read(look(1 + len(stuck)))",
            "Read(look(1))",
        ),
    ),
    PlantedFault(
        "a claim that does not look past the jobs that cannot be claimed",
        13,
        "contract/test_queue_stuck.py::test_a_job_that_is_known_to_be_stuck_does_not_hide_the_next",
        Edit(
            "store.flows.head:_head",
            "many = limit + len(stuck) + len(left)",
            "many = limit + len(left)",
        ),
    ),
    PlantedFault(
        "a repair that leaves out what was refused before",
        3,
        "contract/test_queue_stuck.py::test_a_repair_tries_what_was_stuck_at_once",
        Edit("queue.consumer:Consumer.repair", "        self._store.try_stuck_again()\n", ""),
    ),
    PlantedFault(
        "a job that cannot be claimed counts as not announced",
        4,
        "worker/test_worker_stuck.py::test_a_job_that_cannot_be_claimed_is_no_missed_wakeup",
        Edit("worker.scheduler:Sweep._sift", ' and job["_id"] not in stuck', ""),
    ),
    PlantedFault(
        "a claim that goes on when more jobs are stuck than can be left out",
        13,
        "worker/test_worker_stuck.py"
        "::test_more_stuck_jobs_than_can_be_remembered_keep_no_worker_busy",
        Edit(
            "worker.claims:Claims._note_lost",
            "if not won and self._store.unclaimable.full:",
            "if False:",
        ),
    ),
    PlantedFault(
        "expired jobs read with a codec that one of them can fail",
        13,
        "worker/test_worker_poison.py::test_a_field_that_cannot_be_decoded_stops_nobody",
        Edit(
            "store.asynchronous:AsyncStore.find",
            "jobs = self._safe if committed else self._raw if command.bare else self.jobs",
            "jobs, command = self.jobs, command._replace(bare=False)",
        ),
    ),
    PlantedFault(
        "an odd document whose burial is refused ends the claim",
        13,
        "worker/test_worker_stuck.py::test_an_odd_document_that_cannot_be_buried_stops_nobody",
        Edit(
            "store.flows.head:_bury_odd",
            "yield from change_each(store, ids, bury, store.unclaimable, operations.quarantine)",
            "yield from change(store, bury(ids))",
        ),
    ),
    PlantedFault(
        "a worker that takes jobs whatever their ids are",
        13,
        f"{FOREIGN}::test_a_job_with_any_id_at_all_that_a_worker_finds_stops_nobody",
        Edit(
            "protocol.foreign:is_plain_id",
            "if kind not in PLAIN_IDS or job_id != job_id:",
            "if job_id != job_id:",
        ),
    ),
    PlantedFault(
        "a dispatcher that hands out what nobody can run",
        13,
        f"{FOREIGN}::test_a_job_with_any_id_at_all_stops_no_dispatcher",
        Edit(
            "store.flows.head:candidates",
            "odd = [job for job in found if store.oddness_of(job)] if foreigners else []",
            "odd = []",
        ),
    ),
    PlantedFault(
        "a next() that takes what nobody can run",
        13,
        "contract/test_queue_foreign_documents.py"
        "::test_a_job_with_any_id_at_all_stops_nobody_who_takes_jobs",
        Edit(
            "store.flows.head:candidates",
            "odd = [job for job in found if store.oddness_of(job)] if foreigners else []",
            "odd = []",
        ),
    ),
    PlantedFault(
        "a job named by what its id was decoded to",
        13,
        f"{FOREIGN}::test_a_due_job_with_an_id_that_cannot_be_written_keeps_no_timer_busy",
        Edit(
            "protocol.foreign:read",
            'document["_id"] = strange',
            "pass",
        ),
    ),
    PlantedFault(
        "a reaper that takes code for the name of a consumer",
        13,
        "contract/test_queue_foreign_documents.py"
        "::test_a_stale_job_with_any_value_in_a_field_stops_no_repair",
        Edit(
            "store.flows.timers:reap",
            "holders.update(name for name in names if type(name) is str)",
            "holders.update(name for name in names if isinstance(name, str))",
        ),
    ),
    PlantedFault(
        "a reaper that takes code for the name of a queue",
        13,
        f"{FOREIGN}::test_a_job_with_any_value_in_any_field_stops_nobody",
        Edit(
            "protocol.stored:text_in",
            "return value if type(value) is str else None",
            "return value if isinstance(value, str) else None",
        ),
        Edit("names:label_of", "return str(value) if", "return value if"),
    ),
    PlantedFault(
        "a hand-over that ends with the trouble of one job",
        13,
        f"{FOREIGN}::test_a_job_that_cannot_be_handed_over_is_buried_and_those_beside_it_are_run",
        Edit(
            "worker.delivery:Delivery.deliver",
            "except Exception as error:  # whatever",
            "except ZeroDivisionError as error:  # whatever",
        ),
    ),
    PlantedFault(
        "a job that is claimed and given back for ever",
        13,
        f"{FOREIGN}::test_a_job_that_has_two_queues_is_buried_when_it_comes_again",
        Edit(
            "worker.delivery:Delivery._is_stray",
            "        if name in self._strays:",
            "        if False:",
        ),
    ),
    PlantedFault(
        "a stream that breaks at an event that cannot be decoded",
        13,
        f"{FOREIGN}::test_an_event_that_cannot_be_decoded_breaks_no_stream",
        Edit(
            "worker.parts:Parts.__init__",
            "store.jobs.with_options(codec_options=BARE_CODEC),",
            "store.jobs,",
        ),
    ),
)
