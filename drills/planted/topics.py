"""Faults in topics."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

TOPICS = "contract/test_topics.py"
DOUBT = "contract/test_topics_in_doubt.py"
PUBLISH = "queue.publisher:Publisher._publish"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "copies of a message that are put one after the other, with no transaction",
        1,
        f"{TOPICS}::test_with_a_key_that_one_has_nobody_gets_it",
        Edit(
            "queue.publisher:Publisher._insert",
            "document(queue, now), session)",
            "document(queue, now), None)",
        ),
    ),
    PlantedFault(
        "subscribers that are read once for every publish of an object",
        4,
        f"{TOPICS}::test_a_subscription_holds_for_a_publisher_that_has_published_before",
        Edit(
            PUBLISH,
            "queues = yield from self._subscribers(self._settings, session)",
            "queues = self.__dict__.setdefault(\n"
            '                "_known_queues", (yield from self._subscribers(self._settings, session))\n'
            "            )",
        ),
    ),
    PlantedFault(
        "subscribers read in the snapshot of a transaction that is older than their subscription",
        4,
        f"{DOUBT}::test_who_subscribes_after_a_transaction_began_gets_what_is_published_in_it_then",
        Edit(
            "queue.publisher:Publisher.publish",
            "self._subscribers(settings)",
            "self._subscribers(settings, session)",
        ),
    ),
    PlantedFault(
        "a message with other ids each time that it is sent",
        7,
        f"{TOPICS}::test_repeated_with_its_id_it_is_no_second_copy",
        Edit(
            "protocol.topics:copy_id",
            "sha256(message.binary + queue.encode())",
            "sha256(ObjectId().binary + queue.encode())",
        ),
    ),
    PlantedFault(
        "a commit of unknown outcome that is begun anew instead of asked for again",
        7,
        f"{DOUBT}::test_what_stays_unknown_is_said_to_be_and_is_there_once_when_repeated",
        Edit(
            "queue.transactions:commit",
            "if _is_over(error, ends_at):\n                raise",
            "return",
        ),
    ),
    PlantedFault(
        "a transaction that is left open by who was late",
        16,
        f"{DOUBT}"
        "::test_a_limit_of_the_caller_ends_it_and_nothing_is_left_in_the_way_of_another_try",
        Edit("queue.transactions:Transactions.run", "if session.in_transaction:", "if False:"),
    ),
    PlantedFault(
        "a subscriber whose time is over and who gets messages on",
        8,
        f"{TOPICS}::test_a_subscription_ends_when_its_time_is_over",
        Edit(
            "protocol.operations.settings.topics",
            '{"$gt": ["$$this.expires_at", "$$NOW"]}',
            '{"$gt": ["$$this.expires_at", None]}',
        ),
    ),
)
