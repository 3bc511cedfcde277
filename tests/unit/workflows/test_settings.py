"""Limits and times of a Configuration: how they are shared out and looked up, and what is refused.

Source: reference/dapr-surface.md 3.2.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.errors import ConfigError
from mesh.resources.configuration import ConcurrencyLimit, RetentionPolicy, WorkflowSpec
from mesh.resources.loader import load_configuration_file
from mesh.workflows.settings import Limits, WorkflowSettings, settings_of
from mesh.workflows.state import Status


@pytest.mark.parametrize(
    ("limits", "gateways", "total"),
    [
        (Limits(), 1, None),
        (Limits(own=5), 3, 5),
        (Limits(shared=7), 3, 2),
        (Limits(shared=2), 3, 1),
        (Limits(shared=7), 0, 7),  # None is ready yet, but this one asks.
        (Limits(own=1, shared=8), 2, 1),
        (Limits(own=9, shared=8), 2, 4),
    ],
)
def test_limits(limits: Limits, gateways: int, total: int | None) -> None:
    """That of each gateway is exact; that of all is shared out, and none gets nothing."""
    assert limits.total(gateways) == total


def test_settings() -> None:
    spec = WorkflowSpec(
        1,
        2,
        3,
        4,
        (ConcurrencyLimit("w", 10),),
        (ConcurrencyLimit("a", 6),),
        RetentionPolicy(any_terminal=60.0, failed=0.0),
    )
    found = settings_of(spec)
    assert found.turns == Limits(1, 3, {"w": 10})
    assert found.tasks == Limits(2, 4, {"a": 6})
    assert (found.turns.of_name("w", 4), found.turns.of_name("v", 4), found.tasks.of_name("a", 7)) == (2, None, 1)
    assert found.kept == {Status.COMPLETED: 60.0, Status.FAILED: 0.0, Status.TERMINATED: 60.0, Status.CANCELED: 60.0}
    assert settings_of(None) == settings_of(WorkflowSpec()) == WorkflowSettings()


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("maxConcurrentWorkflowInvocations: 0", "at least 1, got the number 0"),
        ("globalMaxConcurrentActivityInvocations: -1", "at least 1"),
        ("workflowConcurrencyLimits: [{name: '', maxConcurrent: 1}]", r"workflowConcurrencyLimits\[0\]\.name"),
        ("activityConcurrencyLimits: [{name: a, maxConcurrent: 0}]", r"\[0\]\.maxConcurrent: expected a whole number"),
        (
            "activityConcurrencyLimits: [{name: a, maxConcurrent: 1}, {name: a, maxConcurrent: 2}]",
            r"4:\d+: spec\.workflow\.activityConcurrencyLimits\[1\]: there is a limit of a before",
        ),
        ("stateRetentionPolicy: {failed: -1s}", r"stateRetentionPolicy\.failed: "),
        ("stateRetentionPolicy: {failed: soon}", r"stateRetentionPolicy\.failed: "),
    ],
)
def test_what_is_refused(tmp_path: Path, section: str, problem: str) -> None:
    """With its place."""
    file = tmp_path / "c.yaml"
    head = "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\n"
    file.write_text(f"{head}spec: {{workflow: {{{section}}}}}\n")
    with pytest.raises(ConfigError, match=problem):
        load_configuration_file(file, {}, [])
