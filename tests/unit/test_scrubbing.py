"""What a person could be known by is taken out of texts, and what only looks like it is not."""

from __future__ import annotations

import asyncio

import pytest

from mesh.blocks.scrubbing import AT_ONCE, scrub

MD5, SHA1, SHA256 = "deadbeef" * 4, "deadbeef" * 5, "deadbeef" * 8


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("well hello there", "well hello there"),
        ("", ""),
        ("my phone number is +2222222222", "my phone number is <PHONE_NUMBER>"),
        ("+4422222222, +49 (89) 123-4567.", "<PHONE_NUMBER>, <PHONE_NUMBER>."),
        ("(212) 555-1234 212-555-1234 1.212.555.1234", "<PHONE_NUMBER> <PHONE_NUMBER> <PHONE_NUMBER>"),
        ("2125551234", "<PHONE_NUMBER>"),
        ("order 1700000000000 of 2026-11-28, 12:30", "order 1700000000000 of 2026-11-28, 12:30"),
        ("my email is test@test.com.", "my email is <EMAIL_ADDRESS>."),
        ("<a.b+c@mail.example.org>,jörg@müller.de", "<<EMAIL_ADDRESS>>,<EMAIL_ADDRESS>"),
        ("a @ b, @name, x@host", "a @ b, @name, x@host"),
        ("from 10.8.9.1", "from <IP>"),
        ("at 10.8.9.1:80, 1.2.3.4.5, v1.2.3, 1.2.3.400", "at <IP>:80, 1.2.3.4.5, v1.2.3, 1.2.3.400"),
        ("fe80::1 2001:db8::ff00:42:8329. ::1", "<IP> <IP>. <IP>"),
        ("std::vector 10:20:30 a::b:c:d:e:f:g", "std::vector 10:20:30 a::b:c:d:e:f:g"),
        ("00:1B:44:11:3A:B7 00-1b-44-11-3a-b7", "<MAC_ADDRESS> <MAC_ADDRESS>"),
        ("card 4111111111111111 12/27", "card <CREDIT_CARD> 12/27"),
        ("12 4111 1111 1111 1111, 3782 822463 10005", "12 <CREDIT_CARD>, <CREDIT_CARD>"),
        ("4111-1111-1111-1111 but 4111-1111-1111-1112", "<CREDIT_CARD> but 4111-1111-1111-1112"),
        ("0000000000000000", "0000000000000000"),
        ("488-23-3729 and 488 23 3729", "<US_SSN> and <US_SSN>"),
        ("000-12-3456 900-12-3456 488-23-37291", "000-12-3456 900-12-3456 488-23-37291"),
        ("221b Baker Street, 10 Downing St.", "<STREET_ADDRESS>, <STREET_ADDRESS>"),
        ("5 people went this way", "5 people went this way"),
        ("978-3-16-148410-0, 0-306-40615-2, 080442957X", "<ISBN>, <ISBN>, <ISBN>"),
        ("978-3-16-148410-1", "978-3-16-148410-1"),
        (f"{MD5} {SHA1} {SHA256} {MD5}0", f"<MD5_HEX> <SHA1_HEX> <SHA_256_HEX> {MD5}0"),
    ],
)
async def test_what_is_found(text: str, scrubbed: str) -> None:
    """It is found once, and what stands in its place is left as it is."""
    assert await scrub([text]) == [scrubbed]
    assert await scrub([scrubbed]) == [scrubbed]


async def test_long_texts() -> None:
    """They are looked at in pieces, between which nothing is lost."""
    line = "a@b.cd, 10.8.9.1 or +4422222222\n"
    number = AT_ONCE // len(line) * 5
    assert await scrub([line * number]) == ["<EMAIL_ADDRESS>, <IP> or <PHONE_NUMBER>\n" * number]


async def test_many_texts() -> None:
    """Others go on while many are looked at, however short each is."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(scrub(["a@b.cd"] * AT_ONCE))
        await asyncio.sleep(0)
        assert not task.done()
    assert task.result() == ["<EMAIL_ADDRESS>"] * AT_ONCE


@pytest.mark.costly
@pytest.mark.parametrize(
    "part",
    ["a", "@", "a@", "1", "1 ", "1A ", "a@a.", ":", "f:", "+1-", "1 A1.-' ", "4111 ", "\n", "1 Aaaa ", "0.", "(1)"],
)
async def test_texts_that_are_made_to_take_long(part: str) -> None:
    """The time grows with the length alone: otherwise this would not end within the limit of a test."""
    await scrub(["x@" + part * (2**20 // len(part))])
