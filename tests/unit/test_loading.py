"""What is loaded in threads is loaded one after the other."""

from __future__ import annotations

import asyncio
import threading

from gateway.http.loading import loaded


async def test_two_that_import_do_not_do_so_at_once() -> None:
    began, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> str:
        order.append("first begins")
        began.set()
        go_on.wait(10.0)
        order.append("first ends")
        return "first"

    def second() -> str:
        order.append("second")
        return "second"

    async with asyncio.TaskGroup() as tasks:
        one = tasks.create_task(loaded(first))
        await asyncio.to_thread(began.wait, 10.0)
        two = tasks.create_task(loaded(second))
        await asyncio.to_thread(lambda: None)  # Whoever came after the second has had its turn in a thread.
        go_on.set()
    assert (one.result(), two.result()) == ("first", "second")
    assert order == ["first begins", "first ends", "second"]
