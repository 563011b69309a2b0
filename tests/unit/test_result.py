"""What a job may return: refused before anything is sent, or stored as it is."""

from __future__ import annotations

from typing import Any

import pytest

from streamqueue import PayloadError
from streamqueue.protocol.result import (
    MAX_RESULT_BYTES,
    decode_result,
    encode_result,
    encode_step,
)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({1}, "this result cannot be stored as BSON: it holds a builtins.set, at result$"),
        ({"a": [object()]}, r"builtins.object, at result\['a'\]\[0\]"),
        (nested(100), "this result is nested more than 100 levels deep"),
        ([None] * 400_000, "this result has more than 1,048,576 bytes as BSON"),
        ({"$ref": "c", "$id": 1}, "would come back as a DBRef"),
        (
            "x" * MAX_RESULT_BYTES,
            r"this result has 1,048,\d+ bytes as BSON; the limit is 1,048,576",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_a_result_that_cannot_be_stored_is_refused_with_the_reason(result: Any, said: str) -> None:
    with pytest.raises(PayloadError, match=said):
        encode_result(result)


def test_of_the_result_of_a_step_its_name_is_said() -> None:
    with pytest.raises(PayloadError, match="this result of step 'charge' is nested more than"):
        encode_step("charge", nested(100))


@pytest.mark.parametrize("result", [0, "", [], nested(90), {"a": [1, None]}], ids=ascii)
def test_a_result_comes_back_as_it_was(result: Any) -> None:
    encoded = encode_result(result)

    assert encoded is not None
    assert decode_result(bytes(encoded.raw)) == result


def test_none_is_no_result_and_is_one_of_a_step() -> None:
    assert encode_result(None) is None
    assert decode_result(bytes(encode_step("charge", None).raw)) is None
