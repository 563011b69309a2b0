"""What a limit may be, and what is read of those that anybody may have stored."""

from __future__ import annotations

from typing import Any

import pytest
from bson.code import Code

from streamqueue import ConfigurationError, Limit, Rate
from streamqueue.protocol.limits import UNRULED, Rule, Rules


def test_a_limit_limits_something() -> None:
    with pytest.raises(ConfigurationError, match="needs running= or rate=, or both"):
        Limit()


@pytest.mark.parametrize(
    "settings",
    [
        *({"running": 0}, {"running": 10**7}, {"running": 1.0}, {"running": True}),
        *({"rate": "5"}, {"rate": True}, {"rate": 0}, {"rate": 1.5}),
        *({"running": 1, "per": "queues"}, {"running": 1, "per": 5}),
    ],
    ids=str,
)
def test_a_limit_of_anything_else_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"running|rate|count|per must be"):
        Limit(**settings)


def test_a_number_of_starts_is_one_for_each_second() -> None:
    assert Limit(rate=5) == Limit(rate=Rate(5, 1))


WHOLE = Rules((Rule("queue", None, 3, Rate(5, 60, 2)),), "strict", True)


def test_rules_are_read_as_they_were_stored() -> None:
    assert Rules.from_document({"declared": WHOLE.declared()}) == WHOLE


NO_RATES: list[Any] = [
    *(None, 5, "5", [], {}, {"count": 5}, {"seconds": 1}, {"count": 0, "seconds": 1}),
    *({"count": 5, "seconds": -1}, {"count": 5, "seconds": 0}, {"count": 5, "seconds": "1"}),
    *({"count": 5, "seconds": 1, "burst": 6}, {"count": 10**9, "seconds": 1}),
]


@pytest.mark.parametrize("rate", NO_RATES, ids=str)
def test_a_stored_rate_that_is_none_limits_nothing(rate: Any) -> None:
    stored = {"per": "queue", "running": 3, "rate": rate}

    assert Rules.from_document({"limits": [stored]}) == Rules((Rule("queue", None, 3),))
    assert Rules.from_document({"limits": [{"per": "queue", "rate": rate}]}) == UNRULED


@pytest.mark.parametrize("stored", [None, 5, "x", [5], [{}], [{"per": "q"}], [{"per": "task"}]])
def test_stored_limits_that_are_none_limit_nothing(stored: Any) -> None:
    assert Rules.from_document({"limits": stored, "declared": stored}) == UNRULED


def test_the_task_of_a_stored_limit_is_a_text_or_none() -> None:
    stored = {"per": "queue", "task": Code("resize"), "running": 3}

    assert Rules.from_document({"limits": [stored]}) == Rules((Rule("queue", None, 3),))
