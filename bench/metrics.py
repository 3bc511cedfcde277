"""What metrics cost: CPU of a gateway for each operation, with them and without; ``python -m bench.metrics``.

The two take turns, and the best of the rounds counts: what else the machine does makes one only slower.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp

from bench.processes import Gateway, Stage

OPERATIONS = 2000
AT_ONCE = 8
ROUNDS = 12


async def _spent(session: aiohttp.ClientSession, gateway: Gateway, method: str, path: str) -> float:
    """Give the microseconds of CPU for one operation."""
    left = iter(range(OPERATIONS))

    async def work() -> None:
        for _ in left:
            data = b'{"a":1}' if method == "POST" else None
            url, headers = f"http://127.0.0.1:{gateway.http_port}{path}", {"Content-Type": "application/json"}
            async with session.request(method, url, data=data, headers=headers) as answer:
                await answer.read()
                answer.raise_for_status()

    before = _cpu(gateway)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(work())
    return (_cpu(gateway) - before) / OPERATIONS / 1000


def _cpu(gateway: Gateway) -> int:
    """Give the CPU time of the event loop's thread, in nanoseconds as the kernel measures it."""
    return int(Path(f"/proc/{gateway.pid}/schedstat").read_text(encoding="ascii").split()[0])


async def main() -> None:
    """Measure, and print a table."""
    async with Stage() as stage, aiohttp.ClientSession() as session:
        app = await stage.peer("app")
        gateways = {
            "with": await stage.gateway("with", app.http_port, further=("--metrics-port", "0")),
            "without": await stage.gateway("without", app.http_port, further=("--enable-metrics=false",)),
        }
        for what, method, path in (
            ("publish", "POST", "/v1.0/publish/pubsub/t"),
            ("invoke", "GET", "/v1.0/invoke/{}/method/echo"),
            ("state", "GET", "/v1.0/state/statestore/k"),
        ):
            found: dict[str, list[float]] = {name: [] for name in gateways}
            for number in range(ROUNDS + 1):
                for name, gateway in sorted(gateways.items(), reverse=number % 2 == 0):
                    spent = await _spent(session, gateway, method, path.format(name))
                    found[name] += [spent] * (number > 0)  # The first warms up.
            on, off = (min(found[name]) for name in ("with", "without"))
            line = f"{what}: {on:.1f} us with metrics, {off:.1f} us without, {(on / off - 1) * 100:+.1f} %"
            sys.stdout.write(line + "\n")


if __name__ == "__main__":
    asyncio.run(main())
