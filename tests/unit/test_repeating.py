"""What leaves open whether it was done is asked again, until the deadline; what is certain is not."""

from __future__ import annotations

import time

import pytest

from mesh.errors import MeshError, StreamBrokenError
from mesh.ownership.errors import NotOwnerError, OwnerLostError
from mesh.ownership.repeating import repeated


@pytest.mark.parametrize("doubt", [OwnerLostError("moved"), StreamBrokenError("ended")])
async def test_asked_again_while_there_is_doubt(doubt: MeshError) -> None:
    answers: list[MeshError | str] = [doubt, doubt, "done"]

    async def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, MeshError):
            raise answer
        return answer

    assert await repeated(ask, time.time() + 30) == "done"
    answers[:] = [doubt, "too late"]
    with pytest.raises(type(doubt)):
        await repeated(ask, time.time())
    answers[:] = [NotOwnerError("nothing was done"), "never asked"]
    with pytest.raises(NotOwnerError):
        await repeated(ask, time.time() + 30)
    assert answers == ["never asked"]
