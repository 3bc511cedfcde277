"""Goals for every backbone, and a page for each."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.backbones import EVENT_WORKS, LARGE, NATIVE_LAYOUT, Measured
from bench.measure import Row
from bench.native import CLIENTS, client_of
from bench.report import Goal, figures, machine, verdicts
from tests.support.kafka_server import find_kafka

__all__ = ["BackboneResults", "described"]

PACKAGES = ("aiohttp", "uvloop", "orjson", "nats-py", "redis", "hiredis", "aiokafka", "aio-pika", "aiormq")
SERVERS = {
    "nats": "NATS: JetStream in files.",
    "redis": "Redis: `appendonly yes`, `appendfsync always`.",
    "kafka": "Kafka: one node (KRaft), topics of four partitions, the JVM's first compiler only.",
    "rabbitmq": "RabbitMQ: quorum queues.",
}
NATIVE = {
    "nats": """\
nats-py: JetStream publish with a message id; a durable pull consumer, fetches of 64, an ack for each message.
  *Bare loop*: the same, one message after the other.""",
    "redis": """\
redis-py: XADD, without an id by which a repetition would be known; XREADGROUP with COUNT 64 and an XACK for each
  entry, over the client's own pool of connections. *Bare loop*: one entry after the other, its headers not looked
  at, and one XACK for all that were read together.""",
    "kafka": """\
aiokafka: idempotent producer, acks=all; a consumer group, getmany of 64, and once a second a commit of the first
  offset that is not done in each partition. *Bare getmany*: one record after the other, its headers not looked at,
  positions committed once a second.""",
    "rabbitmq": """\
aio-pika: persistent messages and publisher confirms; a quorum queue, a prefetch of 64, a callback and an ack for
  each message.""",
}
HOW = """\
- **In turn.** Every variant is warmed up, then all are measured one after the other in each round, in
  another order; a figure is the median over the rounds, a ratio the median of the ratios within each round.
- **Server**: the tests' own, with a store of its own, on the same cores.
  {servers}
- **CPU** is user + system time of the named processes, divided by the messages or requests they served; servers,
  application and load generator are not in it.
- **publish, consume**: one process, one topic, 12,000 messages of 200 bytes with seven headers, as a gateway's event.
  They are published 64 at once, each awaited until the broker has confirmed it, and then consumed by a durable
  group. Time runs from the moment the subscription is active until the last handler has run. Every handler gets
  the headers as a dict of texts and runs in a task of its own, at most 64 at once, and its message is acked when it
  returns. The adapter publishes with an id, so that a repetition is stored once where the broker can do that.
{native}
- **HTTP publish**: POST of 200 bytes of JSON over 32 kept connections. **HTTP deliver**: these events, posted to
  an application that holds the first 64 until all are stored; CPU counts from the first publish on. **At 500/s**:
  latency from the call that publishes to the application. Bare: aiohttp's low-level server with the native client,
  and the native client with aiohttp's client, 64 at once. *Native layout*: gateways over NATS, whose component has this
  broker's own topics. *Per core* is events by CPU seconds of the gateway.
- **large events**: POST of JSON of that size, by 8 clients at once or by 4; time runs until the application has had
  all that was published. What does not go into a message of this broker goes in parts.
- **invoke**: GET and POST of small JSON in turn, through two gateways, over this backbone and over NATS in the same
  rounds; the clients of most brokers have no calls, so the other neighbour is the direct call. Goals count at
  500/s; at saturation, with 32 connections, latency is queueing.
- **Checks.** What was published is consumed: every message once, no other, in each round, by its id; a last round
  of a single message shows that all before it was acked. The application counts as many deliveries as there were
  204s. Answers have the expected status and body. A run where one of these fails prints no figures."""


@dataclass(frozen=True)
class BackboneResults:
    """A whole run."""

    measured: Sequence[Measured]
    machine: dict[str, str]
    idle: None = None

    def pages(self) -> dict[str, str]:
        """Write a page for each backbone."""
        return {each.name: BackboneResults([each], self.machine).markdown() for each in self.measured}

    @property
    def rows(self) -> list[Row]:
        """Give those of all backbones."""
        return [row for each in self.measured for row in each.rows]

    @property
    def goals(self) -> list[Goal]:
        """What the goals came to."""
        return [goal for each in self.measured for goal in _goals(each)]

    def as_json(self) -> dict[str, object]:
        """Give everything."""
        return {
            "machine": self.machine,
            "load_average": {each.name: {"before": each.load[0], "after": each.load[1]} for each in self.measured},
            "works": [row.as_json() for row in self.rows],
            "goals": [goal.as_json() for goal in self.goals],
        }

    def markdown(self) -> str:
        """Write one page about all."""
        names = [each.name for each in self.measured]
        loads = ", ".join(f"{each.name} {each.load[0]:.1f}, {each.load[1]:.1f}" for each in self.measured)
        how = HOW.format(
            servers=" ".join(SERVERS[name] for name in names), native="\n".join(f"  {NATIVE[name]}" for name in names)
        )
        return "\n".join(
            [
                f"# Measurements on {', '.join(names)}",
                "",
                "Written by `python -m bench --backbone`; do not edit.",
                "[RESULTS.md](RESULTS.md) has the gateway on NATS, part by part.",
                "",
                *(f"- {name}: {value}" for name, value in self.machine.items()),
                f"- load average before and after: {loads}",
                "",
                *("## Goals", "", *verdicts(self.goals), ""),
                *("## Figures", "", *figures(self.rows), ""),
                *("## How each figure is taken", "", how, ""),
            ]
        )


def _goals(measured: Measured) -> list[Goal]:
    name = measured.name
    rows = {(row.work, row.variant): row for row in measured.rows}
    native = client_of(CLIENTS[name][0]).title
    found = []
    for work in ("publish", "consume"):
        ours, theirs = rows[f"{name} {work}", "adapter"], rows[f"{name} {work}", native]
        rate = statistics.median(
            mine.per_second / other.per_second for mine, other in zip(ours.samples, theirs.samples, strict=True)
        )
        found.append(Goal(f"{name}: {work}, adapter by {native}", 80, rate * 100, "%", least=True))
    for work in EVENT_WORKS[:2]:
        ours, theirs = rows[f"{name} {work}", NATIVE_LAYOUT], rows[f"{name} {work}", "gateway"]
        rate = statistics.median(
            mine.per_second / other.per_second for mine, other in zip(ours.samples, theirs.samples, strict=True)
        )
        found.append(Goal(f"{name}: {work}, native layout by the mesh's own", 90, rate * 100, "%", least=True))
    if name != "rabbitmq":
        cost = rows[f"{name} HTTP deliver", "gateway"].cpu_sum
        found.append(Goal(f"{name}: delivered per core of gateway", 4000, 1e6 / cost, "events/s", least=True))
    if name == "nats":
        rate = rows[f"{name} large events", "1 MiB"].per_second * LARGE["1 MiB"][0] / 1e6
        found.append(Goal("nats: events of 1 MiB, from publisher to application", 60, rate, "MB/s", least=True))
    calls = rows[f"{name} invoke at 500/s", f"gateways over {name}"]
    if name == "kafka":
        found.append(Goal("kafka: p50 of an invocation at 500/s", 15, calls.latencies[0], "ms"))
    elif name != "nats":
        over_nats = rows[f"{name} invoke at 500/s", "gateways over nats"]
        times = statistics.median(
            mine.latencies[0] / other.latencies[0] for mine, other in zip(calls.samples, over_nats.samples, strict=True)
        )
        found.append(Goal(f"{name}: p50 of an invocation at 500/s, by that over NATS", 2, times, "×"))
    return found


def described(names: Sequence[str]) -> dict[str, str]:
    """Describe where and with what it ran."""
    servers = []
    if "redis" in names and (redis := shutil.which("redis-server")):
        words = subprocess.run([redis, "--version"], capture_output=True, text=True, check=False).stdout.split()
        servers += [f"redis-server {word[2:]}" for word in words if word.startswith("v=")]
    if "kafka" in names and (jars := find_kafka()):
        servers += [path.stem.replace("_", " (Scala ").replace("-", ") ") for path in jars.glob("kafka_*.jar")]
    if "rabbitmq" in names:
        servers += [
            path.name.replace("_server-", "-server ") for path in Path("/usr/lib/rabbitmq/lib").glob("*_server-*")
        ]
    return machine(*servers, packages=PACKAGES)
