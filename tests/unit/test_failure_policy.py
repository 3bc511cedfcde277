"""The failure policy of jobs and reminders: JSON and messages say the same."""

from __future__ import annotations

import pytest

from gateway.errors import APIError
from gateway.grpc.messages import message
from gateway.routes.failure_policy import policy_of, read_policy
from mesh.blocks.job_record import Policed, check_policy
from mesh.errors import BadArgumentError

DEFAULT = Policed(1.0, 3)


@pytest.mark.parametrize(
    ("written", "told", "policy"),
    [
        (None, None, DEFAULT),
        ({}, {}, DEFAULT),
        ({"drop": {}}, {"drop": {}}, Policed(drop=True)),
        ({"constant": {}}, {"constant": {}}, Policed(1.0, None)),
        ({"constant": {"interval": "0s"}}, {"constant": {"interval": {}}}, Policed(0.0, None)),
        ({"constant": {"maxRetries": 0}}, {"constant": {"max_retries": 0}}, Policed(1.0, 0)),
        ({"constant": {"max_retries": "5"}}, {"constant": {"max_retries": 5}}, Policed(1.0, 5)),
        (
            {"constant": {"interval": "2.5s", "maxRetries": 2**32 - 1}},
            {"constant": {"interval": {"seconds": 2, "nanos": 500_000_000}, "max_retries": 2**32 - 1}},
            Policed(2.5, 2**32 - 1),
        ),
    ],
)
def test_both_readings_agree(written: object, told: object, policy: Policed) -> None:
    """Of a job's message and of a reminder's; what is not said is the default."""
    fields = {} if told is None else {"failure_policy": told}
    assert read_policy(written) == policy
    assert policy_of(message("Job")(**fields)) == policy
    assert policy_of(message("RegisterActorReminderRequest")(**fields)) == policy
    check_policy(policy)


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("drop", "failurePolicy"),
        ({"drop": {}, "constant": {}}, "failurePolicy"),
        ({"drop": 1}, "failurePolicy.drop"),
        ({"constant": 1}, "failurePolicy.constant"),
        ({"constant": {"interval": 1}}, "failurePolicy.constant.interval"),
        ({"constant": {"interval": "1m"}}, "failurePolicy.constant.interval"),
        ({"constant": {"interval": "-1s"}}, "failurePolicy.constant.interval"),
        ({"constant": {"maxRetries": -1}}, "failurePolicy.constant.maxRetries"),
        ({"constant": {"maxRetries": 2**32}}, "failurePolicy.constant.maxRetries"),
        ({"constant": {"maxRetries": True}}, "failurePolicy.constant.maxRetries"),
    ],
)
def test_what_is_no_policy(written: object, named: str) -> None:
    """The error names the member."""
    with pytest.raises(APIError) as caught:
        read_policy(written)
    assert (caught.value.status, named in caught.value.message) == (400, True)


@pytest.mark.parametrize("policy", [Policed(-1.0), Policed(1e10), Policed(float("nan")), Policed(1.0, -1)])
def test_limits(policy: Policed) -> None:
    """What a message, or another node, may say and nobody can mean."""
    with pytest.raises(BadArgumentError, match=r"failurePolicy\.constant"):
        check_policy(policy)
