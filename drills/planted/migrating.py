"""Faults in taking over the jobs of mongoqueue."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

TESTS = "cli/test_migrate.py"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "a dry run that moves the jobs",
        1,
        f"{TESTS}::test_without_apply_jobs_are_counted_and_nothing_is_written",
        Edit("cli.migrate:_Move.take", "if not self.applies:", "if not ids:"),
    ),
    PlantedFault(
        "jobs of mongoqueue that are put before they are taken out, in two writes",
        1,
        f"{TESTS}::test_jobs_that_could_not_be_taken_out_of_the_old_collection_are_not_in_the_new_one",
        Edit(
            "cli.migrate:_Move._insert",
            "self._jobs.insert_many([one.document for one in taken], session=session)",
            "self._jobs.insert_many([one.document for one in taken])",
        ),
    ),
    PlantedFault(
        "jobs of mongoqueue that are taken out before they are put",
        1,
        f"{TESTS}::test_jobs_whose_move_is_not_committed_are_in_the_old_collection_alone",
        Edit(
            "cli.migrate:_Move._move",
            "self._source.delete_many(gone, session=session)",
            "self._source.delete_many(gone)",
        ),
    ),
    PlantedFault(
        "a job of mongoqueue looked at before the transaction that moves it",
        2,
        f"{TESTS}::test_a_job_that_is_locked_while_it_is_moved_stays_with_its_consumer",
        Edit(
            "cli.migrate:_Move._move",
            "found = self._look(ids, session)",
            "found = self._look(ids, None)",
        ),
    ),
    PlantedFault(
        "a job moved that a consumer of mongoqueue has locked",
        2,
        f"{TESTS}::test_what_a_consumer_has_locked_stays_with_it",
        Edit(
            "protocol.mongoqueue:Takeover._job_of",
            "if locked and not self.locked_too:",
            "if locked and self.locked_too is None:",
        ),
    ),
    PlantedFault(
        "an attempt of a stopped consumer of mongoqueue that is not counted",
        13,
        f"{TESTS}::test_locked_jobs_of_consumers_that_are_stopped_have_used_an_attempt",
        Edit(
            "protocol.mongoqueue:Takeover._job_of",
            'whole_of(found["attempts"], 0)) + locked',
            'whole_of(found["attempts"], 0))',
        ),
    ),
    PlantedFault(
        "a job run again that mongoqueue had given up",
        13,
        f"{TESTS}::test_what_mongoqueue_would_never_take_again_is_dead",
        Edit(
            "protocol.mongoqueue:Takeover._fields",
            "if attempts >= self.max_attempts:",
            "if attempts > self.max_attempts:",
        ),
    ),
    PlantedFault(
        "fields of a fork of mongoqueue that are dropped",
        1,
        f"{TESTS}::test_what_is_no_job_of_mongoqueue_stays_and_the_rest_is_moved[fields]",
        Edit(
            "protocol.mongoqueue:Takeover._job_of",
            '"payload" in found and not found.keys() <= ALL_FIELDS',
            '"payload" in found and not found.keys() >= ITS_FIELDS',
        ),
    ),
    PlantedFault(
        "one job that is there already and keeps the others from being moved",
        13,
        f"{TESTS}::test_a_job_whose_id_is_there_already_stays_and_the_rest_is_moved",
        Edit(
            "cli.migrate:_Move.take",
            "                refused.append(Left(error.job_id, error.reason))\n",
            "                return [Left(error.job_id, error.reason)]\n",
        ),
    ),
    PlantedFault(
        "documents of any size in one transaction",
        15,
        f"{TESTS}::test_large_documents_are_moved_a_few_at_a_time",
        Edit("cli.migrate:_Move.pieces", ' or size + found["size"] > PIECE_BYTES', ""),
    ),
)
