"""What adapters to Azure decide without a server."""

from __future__ import annotations

import asyncio

import pytest
from azure.servicebus.exceptions import OperationTimeoutError, ServiceBusConnectionError

from brokers.clients.azure_amqp import reason_of
from brokers.clients.azure_checkpoints import Ownership
from brokers.clients.azure_senders import MAX_KEPT, MAX_SENDERS, Senders
from brokers.clients.servicebus import no_session
from brokers.native._eventhubs_shares import share_of

CONNECTION = "Endpoint=sb://shop; SharedAccessKeyName=Root;sharedaccesskey = c2VjcmV0;AccountKey=b3RoZXI="


class Opened:
    """Senders that were made, and those of them that were closed."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.closed: list[str] = []
        self.senders = Senders(self.make, self.close, (ValueError,))

    def make(self, entity: str) -> str:
        self.made.append(f"{entity}/{len(self.made)}")
        return self.made[-1]

    async def close(self, sender: str) -> None:
        self.closed.append(sender)


async def test_senders_that_come_back() -> None:
    """One is lent again after it sent, or after what is harmless; it is closed after another error."""
    opened = Opened()
    for error in (ValueError, OSError):
        with pytest.raises(error):
            async with opened.senders.lend("a") as sender:
                raise error
        assert sender == "a/0"
    async with opened.senders.lend("a") as sender:
        pass
    async with opened.senders.lend("a", fresh=True) as another:
        assert (sender, another) == ("a/1", "a/2")
    assert opened.closed == ["a/0"]


async def test_senders_that_are_too_many() -> None:
    """The one that was idle longest is closed before anything is sent, and nobody waits for that afterwards."""
    opened = Opened()
    for number in range(MAX_KEPT + 1):
        async with opened.senders.lend(str(number)):
            before = list(opened.closed)
        assert opened.closed == before
    assert opened.closed == ["0/0"]


async def test_a_sender_that_comes_back_late() -> None:
    """It is closed, too."""
    opened = Opened()
    async with opened.senders.lend("b"):
        pass
    async with opened.senders.lend("a"):
        await opened.senders.close()
        assert opened.closed == ["b/0"]
    assert opened.closed == opened.made


async def test_senders_at_work_are_bounded() -> None:
    opened = Opened()
    done = asyncio.Event()

    async def send() -> None:
        async with opened.senders.lend("a"):
            await done.wait()

    async with asyncio.TaskGroup() as tasks:
        sending = [tasks.create_task(send()) for _ in range(MAX_SENDERS + 1)]
        await asyncio.sleep(0)
        assert len(opened.made) == MAX_SENDERS
        done.set()
        await asyncio.wait(sending)
    assert len(opened.made) == MAX_SENDERS
    assert not opened.closed


def test_a_time_without_a_session() -> None:
    """It is the service that says so; a connection that was waited for is an outage."""

    class Detached(Exception):
        condition = b"com.microsoft:timeout"

    told = OperationTimeoutError(message="no session")
    told.__cause__ = OperationTimeoutError(message="no session", error=Detached())
    assert no_session(told)
    waited = OperationTimeoutError(message="Timed out waiting for the AMQP link to open.")
    assert not no_session(waited)
    waited.__cause__ = ServiceBusConnectionError(message="lost", error=OSError())
    assert not no_session(waited)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError(f"not {CONNECTION}!"), "not ***!"),
        (ValueError("key c2VjcmV0\nand more"), "key ***"),
        (OSError("b3RoZXI=\x07 of Root"), "***  of Root"),
        (TimeoutError(), "no answer in time"),
        (KeyError(), "KeyError"),
        (ValueError("x" * 1000), "x" * 300),
    ],
)
def test_reasons(error: Exception, told: str) -> None:
    """They are short, and without secrets."""
    assert reason_of(error, CONNECTION) == told


def _had(**owners: str) -> dict[str, Ownership]:
    return {name.removeprefix("p"): Ownership(owner, "", 10.0) for name, owner in owners.items()}


@pytest.mark.parametrize(
    ("count", "owned", "gets"),
    [
        (4, {}, 4),
        (4, _had(p0="x", p1="x", p2="x", p3="x"), 1),
        (4, _had(p0="x", p1="x", p2="x", p3="me"), 2),
        (4, _had(p0="x", p1="x", p2="me", p3="me"), 2),
        (4, _had(p0="x", p1="x", p2=""), 2),
        (5, _had(p0="x", p1="x", p2="me", p3="me"), 3),
        (5, _had(p0="x", p1="x", p2="x", p3="me", p4="me"), 2),
        (1, _had(p0="x"), 0),
        (2, {"0": Ownership("x", "", 1.0), "1": Ownership("x", "", 10.0)}, 1),
    ],
)
def test_shares(count: int, owned: dict[str, Ownership], gets: int) -> None:
    """A member has its part, and keeps what it has; what nobody said for long is free."""
    names = [str(number) for number in range(count)]
    found = share_of(names, owned, "me", since=5.0)
    assert len(found) == len({*found}) == gets
    assert {*found} >= {name for name, said in owned.items() if said.owner == "me"}
