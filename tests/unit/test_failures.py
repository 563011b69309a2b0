"""What a line and a metric say of an error: what MongoDB refused, and never its words."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pymongo.errors import (
    AutoReconnect,
    DuplicateKeyError,
    OperationFailure,
    WriteError,
)

from streamqueue.failures import failure_facts, failure_label, failure_name
from streamqueue.metrics.series import Metrics
from tests.hellish import HELLISH


def refusal(code: int, name: Any = None, kind: type[OperationFailure] = OperationFailure) -> Any:
    return kind("the words quote a document: canary", code, {"codeName": name} if name else None)


@pytest.mark.parametrize(
    ("error", "name", "label"),
    [
        (refusal(18, "AuthenticationFailed"), "AuthenticationFailed (18)", "AuthenticationFailed"),
        (refusal(13, "Unauthorized"), "Unauthorized (13)", "Unauthorized"),
        (refusal(18), "AuthenticationFailed (18)", "AuthenticationFailed"),
        (refusal(112, kind=WriteError), "WriteConflict (112)", "WriteConflict"),
        (refusal(11000, kind=DuplicateKeyError), "DuplicateKey (11000)", "DuplicateKeyError"),
        (refusal(987654), "OperationFailure (987654)", "code_987654"),
        (refusal(987654, "canary of a document"), "OperationFailure (987654)", "code_987654"),
        (refusal(987654, "A" * 100), "OperationFailure (987654)", "code_987654"),
        (refusal(987654, ["A"]), "OperationFailure (987654)", "code_987654"),
        (OperationFailure("without a code"), "OperationFailure", "OperationFailure"),
        (AutoReconnect("canary"), "AutoReconnect", "AutoReconnect"),
        (KeyError("canary"), "KeyError", "KeyError"),
    ],
)
def test_of_what_mongodb_refuses_there_are_its_number_and_its_name(
    error: BaseException, name: str, label: str
) -> None:
    assert failure_name(error) == name
    assert failure_label(error) == label
    assert "canary" not in str(failure_facts(error))


def test_the_fields_are_the_class_the_number_and_the_name() -> None:
    facts = failure_facts(refusal(18, "AuthenticationFailed"))

    assert facts == {"error": "OperationFailure", "code": 18, "code_name": "AuthenticationFailed"}
    assert failure_facts(KeyError("x")) == {"error": "KeyError"}


@pytest.mark.parametrize("kind", HELLISH, ids=lambda kind: kind.__name__)
def test_an_error_that_raises_when_it_is_looked_at_is_its_class(kind: type[BaseException]) -> None:
    assert failure_name(kind()) == failure_label(kind()) == kind.__name__


def test_a_server_that_makes_up_names_makes_no_more_series_than_there_may_be() -> None:
    registry = CollectorRegistry()
    metrics = Metrics.of(registry)
    for number in range(1000):
        metrics.operation_failed("claim", refusal(number + 20_000, f"Made{number}"))

    labels = {
        sample.labels["error"]
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "streamqueue_mongodb_errors_total"
    }
    assert len(labels) == 21
    assert "other" in labels
