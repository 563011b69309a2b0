"""What is said of a key, checked before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from streamqueue import ConfigurationError
from streamqueue.protocol.put import check_put

PLAIN = dict.fromkeys(("priority", "delay", "run_at", "max_attempts"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"on_conflict": "skip"}, "on_conflict says what holds for a key"),
        ({"key_until": "end"}, "key_until says .* give key= too"),
        ({"unique_for": 5}, "unique_for says .* give key= too"),
        ({"max_delay": 5}, "max_delay says .* give key= too"),
        ({"key": "k", "max_delay": 5, "delay": 1}, 'on_conflict="replace"'),
        ({"key": "k", "max_delay": 5, "on_conflict": "earlier"}, 'on_conflict="replace"'),
        ({"key": "k", "on_conflict": "ignore"}, "on_conflict is 'raise', 'skip'"),
        ({"key": "k", "on_conflict": ["skip"]}, "on_conflict is"),
        ({"key": "k", "key_until": "done"}, "key_until is 'start' or 'end'"),
        ({"key": "k", "unique_for": -1}, "unique_for must be from 0 seconds"),
        ({"key": "k", "on_conflict": "replace", "max_delay": "5"}, "max_delay must be a number"),
        ({"key": "", "on_conflict": "skip"}, "1 to 256 bytes"),
        ({"key": "ä" * 129}, "1 to 256 bytes"),
        ({"key": b"k"}, "1 to 256 bytes"),
        ({"key": 5}, "1 to 256 bytes"),
        ({"key": {"$ne": 1}}, "1 to 256 bytes"),
        ({"key": ["k"]}, "1 to 256 bytes"),
        ({"key": "\ud800"}, "valid Unicode"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_in_a_sentence(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_put({}, **{**PLAIN, **settings})
