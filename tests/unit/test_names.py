"""What is a name of a queue, what stands for all others, and which name comes next."""

from __future__ import annotations

import random
from typing import Any

import pytest
from bson import Code

from streamqueue.names import INVALID, is_name, label_of, name_after
from streamqueue.protocol import operations

NO_NAMES = [
    *("", " ", "a b", "-a", ".a", "_a", "a\n", "a\x00", "a\x1b[31m", "ä", "a\ufffd", "\ufffd"),
    *("x" * 65, "x" * 1_000_000, "a/b", "{a}", 'a",state="ready', INVALID),
    *(None, 7, True, b"emails", ["emails"], {"a": 1}),
]


@pytest.mark.parametrize("name", ["a", "0", "a.b-c_d", "x" * 64, "A9"])
def test_a_valid_name_is_its_own_label(name: str) -> None:
    assert label_of(name) == name


@pytest.mark.parametrize("value", NO_NAMES, ids=lambda value: repr(value)[:20])
def test_all_that_is_no_name_has_one_label(value: Any) -> None:
    assert not is_name(value)
    assert label_of(value) == INVALID


def test_a_label_is_a_plain_string() -> None:
    assert type(label_of(Code("emails"))) is str


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("", "0"),
        (" ", "0"),
        ("a b", "a-"),
        ("a-\x00", "a--"),
        ("a/b", "a0"),
        ("a\ufffd", "b"),
        ("az{", "b"),
        ("z\ufffd", None),
        ("zzz~", None),
        ("\ufffd", None),
        ("x" * 65, "x" * 63 + "y"),
        ("z" * 1_000_000, None),
        ("a[", "a_"),
    ],
)
def test_the_next_name_is_found(text: str, after: str | None) -> None:
    assert name_after(text) == after


def test_no_name_is_jumped_over() -> None:
    chance = random.Random(7)
    letters = "-0Aaz_\x00 {\ufffd"
    for _ in range(3000):
        text = "".join(chance.choices(letters, k=chance.randint(1, 4)))
        other = "".join(chance.choices("-0Aaz_", k=chance.randint(1, 5)))
        if is_name(text) or not is_name(other) or other <= text:
            continue
        after = name_after(text)
        assert after is not None
        assert is_name(after)
        assert text < after <= other


@pytest.mark.parametrize("queue", NO_NAMES[:-6], ids=lambda value: repr(value)[:20])
def test_what_is_reaped_of_no_queue_is_counted_and_logged_as_one(queue: str) -> None:
    found = [{"_id": 1, "queue": queue}, {"_id": 2, "queue": ["emails"]}]

    assert operations.group_expired(found, lambda name: 3) == {(INVALID, "requeued"): [1, 2]}
