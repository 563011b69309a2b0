"""Faults in looking at jobs, and in waiting for what becomes of them."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

LOOKS = "contract/test_queue_looks.py"
ENDS = "contract/test_queue_ends.py"
ANSWERS = "drills/server/test_drills.py::test_no_job_is_lost_doubled_or_held_by_two[answers-kills]"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "a list of jobs that reads their payloads",
        15,
        f"{LOOKS}::test_a_list_of_large_jobs_moves_no_payloads",
        Edit(
            "protocol.operations.looks:_shown",
            "NOT_SHOWN if data else NOT_SHOWN + _LARGE",
            "NOT_SHOWN",
        ),
    ),
    PlantedFault(
        "pages that rely on the order of jobs that ended together",
        1,
        f"{LOOKS}::test_pages_have_every_job_once_of_those_that_one_write_ended",
        Edit(
            "queue.looking:Looking._ordered",
            "if not ties or len(found) <= limit:\n            return found\n",
            "if not ties or len(found) <= limit:\n            return found\n"
            "        return found[:limit]\n",
        ),
    ),
    PlantedFault(
        "pages that compare a missing field as an index does not",
        1,
        f"{LOOKS}::test_without_a_state_the_states_are_listed_one_after_the_other",
        Edit(
            "protocol.operations.looks:next_page",
            "if place[equal] is None:",
            "if place[equal] is ...:",
        ),
    ),
    PlantedFault(
        "counts of all queues that read the jobs",
        15,
        f"{LOOKS}::test_all_queues_are_counted_from_indexes_alone",
        Edit("protocol.operations.looks:counts", '{**part, "queue": {"$gte": ""}}', "part"),
    ),
    PlantedFault(
        "counts whose parts are of different moments",
        1,
        f"{LOOKS}::test_a_job_that_comes_and_goes_is_counted_once",
        Edit("queue.looking:Looking._at_one_moment", '"snapshot"', '"local"'),
    ),
    PlantedFault(
        "a stream of ends that begins when it is opened",
        4,
        f"{ENDS}::test_no_end_is_missed_between_the_first_look_and_the_opening_of_the_stream",
        Edit("stream.ends:StreamState._begins", '{"start_at_operation_time": since}', "{}"),
    ),
    PlantedFault(
        "an end that is told to nobody, in the midst of kills",
        4,
        ANSWERS,
        Edit(
            "protocol.operations.transitions:answered",
            '"$cond": [waits, False, "$awaited"]',
            '"$cond": [waits, True, "$awaited"]',
        ),
    ),
    PlantedFault(
        "a job that is removed though somebody waits for it, in the midst of kills",
        1,
        ANSWERS,
        Edit(
            "protocol.operations.keys.holding:removable",
            '"awaited": {"$ne": True}, ',
            "",
        ),
    ),
    PlantedFault(
        "a first look that is taken for as late as its reply",
        4,
        f"{ENDS}::test_no_end_is_missed_when_the_first_look_is_sent_twice",
        Edit(
            "queue.answers.waits:Waits.found",
            "wait.seen_at = wait.since or Timestamp(0, 0)",
            "wait.seen_at = at or wait.since or Timestamp(0, 0)",
        ),
    ),
    PlantedFault(
        "a stream of ends that has lost its place, and nobody looks",
        4,
        f"{ENDS}::test_no_end_is_missed_when_the_stream_has_lost_its_place",
        Edit("queue.answers.waiting:Waiting._read_once", "waits.look_at_all()", "pass"),
    ),
    PlantedFault(
        "a reader of the stream that goes and leaves it to nobody",
        3,
        f"{ENDS}::test_a_wait_that_is_over_lets_another_read_the_stream",
        Edit("queue.answers.waiting:Waiting.leave", "self._wake_another()", "pass"),
        Edit("queue.answers.waiting:Waiting._follow", "self._wake_another()", "pass"),
    ),
    PlantedFault(
        "a stream that is left to who does not sleep",
        3,
        f"{ENDS}::test_who_watches_and_takes_its_time_keeps_no_other_waiting[async]",
        Edit("queue.answers.waiting:Waiting._follow", "                self._wake_another()\n", ""),
    ),
    PlantedFault(
        "a strange id that is sent as it was read",
        13,
        f"{ENDS}::test_an_id_that_no_program_uses_keeps_no_other_waiting[async]",
        Edit(
            "protocol.operations.awaited:ends_pipeline", "one_of_ids(watched)", '{"$in": watched}'
        ),
    ),
    PlantedFault(
        "a call that comes back after it has left",
        15,
        "unit/test_waits.py::test_a_call_that_has_left_stays_away",
        Edit(
            "queue.answers.waits:Waits.found",
            "            if wait not in self._all:\n                return",
            "            if False:\n                return",
        ),
    ),
    PlantedFault(
        "a wait that believes what happened before its first look",
        4,
        "unit/test_waits.py::test_what_happened_before_the_first_look_is_old_news",
        Edit(
            "queue.answers.waits:Waits._take_in",
            "if wait.seen_at is not None and",
            "if False and",
        ),
    ),
    PlantedFault(
        "a wait that trusts the stream to tell of every removal",
        3,
        f"{ENDS}::test_a_job_that_is_deleted_by_hand_leaves_nobody_waiting",
        Edit("queue.answers.waits:Waits.to_look_at", "if self._next_look <= now:", "if False:"),
    ),
    PlantedFault(
        "a stream of ends that has every changed document looked up",
        6,
        f"{ENDS}::test_the_server_looks_up_only_what_somebody_waits_for",
        Edit(
            "protocol.operations.awaited:ends_pipeline",
            '[ended, {"operationType": "replace"}, *own]',
            "[ended, replaced, *own]",
        ),
    ),
    PlantedFault(
        "a request that is not marked as waited for",
        4,
        f"{ENDS}::test_every_request_of_many_returns_its_own_value",
        Edit("protocol.put:Put.document", "self.awaited or self.needed or None", "None"),
    ),
)
