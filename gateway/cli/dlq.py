"""``mesh dlq``: dead letters of pub/sub components, without their applications."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from gateway.cli.opening import Looked, add_options
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.terminal import Progress, complain, note, show, show_document, show_members, show_records
from mesh.errors import ConfigError, ExpressionError, MeshError
from mesh.inspection import Inspectable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from gateway.dead_letters import Chosen, Outcome
    from mesh.address import Address
    from mesh.blocks.topics import PubSubComponent

__all__ = ["parser", "run"]

COUNT_WITHIN = 60.0
PAGE, MAX_PAGE = 20, 1000
MAX_TOLD = 5
_PILES = {"pubsub": "PUBSUB", "topic": "TOPIC", "letters": "LETTERS", "of": "DEAD LETTERS OF"}
_LETTERS = {
    "id": "ID",
    "stored": "STORED",
    "topic": "FROM",
    "attempts": "ATTEMPTS",
    "size": "BYTES",
    "reason": "REASON",
}


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh dlq",
        description="Look at dead letters, send them back to the topics they are from, or delete them.",
        epilog="mesh dlq list -d resources                             how many there are, by topic\n"
        "mesh dlq show orders-pubsub failed -d resources        the oldest of one topic\n"
        "mesh dlq show orders-pubsub failed --id 17-0 -d resources\n"
        "mesh dlq replay orders-pubsub failed --where 'event.data.total > 100' -d resources\n"
        "mesh dlq purge orders-pubsub failed --all -d resources",
    )
    made.add_argument("what", choices=("list", "show", "replay", "purge"), metavar="list|show|replay|purge")
    made.add_argument("pubsub", nargs="?", metavar="PUBSUB", help="the component")
    made.add_argument("topic", nargs="?", metavar="TOPIC", help="the dead letter topic")
    made.add_argument("--all", action="store_true", help="replay, purge: all of them")
    made.add_argument("--id", action="append", default=[], metavar="ID", help="this one; may be given several times")
    made.add_argument("--where", metavar="CEL", help="those whose event fits, as in a subscription's rules")
    made.add_argument("--topic", dest="given", metavar="TOPIC", help="replay: where those go that do not say it")
    made.add_argument("-n", "--limit", type=int, default=PAGE, metavar="N", help=f"show: how many ({PAGE})")
    made.add_argument(
        "--undeclared", action="store_true", help="replay, purge: although no subscription here has its letters there"
    )
    made.add_argument("-y", "--yes", action="store_true", help="purge: without a question")
    add_options(made)
    made.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table", help="how it is written")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    _check(found)
    looked = Looked.read(found)
    return asyncio.run(_list(looked, found) if found.what == "list" else _one(looked, found))


def _check(found: argparse.Namespace) -> None:
    def wrong(text: str) -> UsageError:
        return UsageError(text, "mesh dlq")

    what = found.what
    ways = [name for name, given in (("--all", found.all), ("--id", found.id), ("--where", found.where)) if given]
    if what != "list" and found.topic is None:
        raise wrong(f"{what} needs a component and its dead letter topic")
    if what in ("replay", "purge") and len(ways) != 1:
        raise wrong(f"{what} needs one of --all, --id and --where")
    if ways and (what == "list" or (what == "show" and (found.all or len(ways) > 1))):
        raise wrong(f"{what} does not go with {' and '.join(ways)}")
    if found.given is not None and what != "replay":
        raise wrong("--topic belongs to: mesh dlq replay")
    if found.yes and what != "purge":
        raise wrong("--yes belongs to: mesh dlq purge")
    if not 1 <= found.limit <= MAX_PAGE:
        raise wrong(f"--limit is from 1 to {MAX_PAGE}")
    if what == "purge" and not found.yes and not sys.stdin.isatty():
        raise wrong("purge asks before it deletes; where nobody can answer, --yes says so")


async def _list(looked: Looked, found: argparse.Namespace) -> int:
    from gateway.dead_letters import put_away

    piles: dict[tuple[str, str], list[str]] = {}
    for each in looked.subscriptions:
        if each.dead_letter_topic is not None and found.pubsub in (None, each.pubsub):
            piles.setdefault((each.pubsub, each.dead_letter_topic), []).append(each.topic)
    if found.topic is not None:
        wanted = found.pubsub, found.topic
        piles = {wanted: piles.get(wanted, [])}
    await looked.read_secrets()
    records: list[dict[str, Any]] = []
    unknown = False
    if found.topic is None:
        for name in dict.fromkeys(each.pubsub for each in looked.subscriptions if found.pubsub in (None, each.pubsub)):
            try:
                async with asyncio.timeout(COUNT_WITHIN), looked.pubsub(_component(looked, name)) as component:
                    away = await put_away(component, looked.subscriptions)
                    piles |= {(name, topic): of for topic, of in away.items()}
            except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to count nothing else
                unknown = True  # Where it has letters that files name, their count says why as well.
                if not any(pubsub == name for pubsub, _ in piles):
                    complain(f"{name}: {_told_of(error)}")
    for (pubsub, topic), of in piles.items():
        count = None
        try:
            async with asyncio.timeout(COUNT_WITHIN):
                count = await _counted(looked, pubsub, topic)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to count nothing else
            complain(f"{pubsub}/{topic}: {_told_of(error)}")
        records.append({"pubsub": pubsub, "topic": topic, "letters": count, "of": list(dict.fromkeys(of))})
    if found.output == "table":
        if not records:
            note("no subscription here has a dead letter topic; to look at any: mesh dlq show PUBSUB TOPIC")
            return int(unknown)
        records = [{**each, "of": ", ".join(each["of"])} for each in records]
    show_records(records, found.output, _PILES)
    return int(unknown or any(each["letters"] is None for each in records))


def _told_of(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return str(error) or f"it did not answer within {COUNT_WITHIN:g} s"
    return str(error) if isinstance(error, MeshError) else f"its adapter failed: {type(error).__name__}: {error}"


async def _counted(looked: Looked, pubsub: str, topic: str) -> int:
    from gateway.dead_letters import letters_of

    async with looked.pubsub(_component(looked, pubsub)) as component:
        where = component.address(topic)
        if isinstance(component.broker, Inspectable) and await _is_missing(component.broker, where):
            return 0
        async with letters_of(component).letters(where) as pile:
            return await pile.count()


async def _is_missing(broker: Inspectable, where: Address) -> bool:
    found = await broker.inspect(where, None)
    return not found.exists and not found.refused


def _component(looked: Looked, name: str) -> Any:
    found = next((each for each in looked.components if each.name == name and each.block == "pubsub"), None)
    if found is None:
        names = ", ".join(each.name for each in looked.components if each.block == "pubsub") or "none"
        raise ConfigError(
            f"there is no pub/sub component {name!r} here (there are: {names}); --resources-path names files"
        )
    return found


async def _one(looked: Looked, found: argparse.Namespace) -> int:
    from gateway.dead_letters import Chosen
    from mesh.expressions import compile_match

    try:
        where = None if found.where is None else compile_match(found.where)
        if where is not None and "event" not in found.where:  # It is the same for every letter.
            where.matches({})
    except ExpressionError as error:
        raise UsageError(f"--where: {error}", "mesh dlq") from None
    chosen = Chosen(frozenset(found.id), where)
    work = {"show": _show, "replay": _replay, "purge": _purge}[found.what]
    await looked.read_secrets()
    async with looked.pubsub(_component(looked, found.pubsub)) as component:
        await _check_declared(looked, component, found)
        return await work(looked, component, chosen, found)


async def _check_declared(looked: Looked, component: PubSubComponent, found: argparse.Namespace) -> None:
    """See that the topic is one of dead letters: of another one, all that is alive would be moved or deleted."""
    from gateway.dead_letters import put_away

    name, topic = found.pubsub, found.topic
    ours = [each for each in looked.subscriptions if each.pubsub == name]
    known = sorted({each.dead_letter_topic for each in ours if each.dead_letter_topic is not None})
    if topic in known or found.undeclared or topic in await put_away(component, looked.subscriptions):
        return
    live = "it is subscribed to, and " if any(each.topic == topic for each in ours) else ""
    told = (
        f"{name}/{topic}: {live}no subscription here has its dead letters there; they are in: {', '.join(known) or '?'}"
    )
    if found.what == "show":
        note(told)
        return
    raise ConfigError(f"{told}. If it holds dead letters, --undeclared says so")


async def _show(looked: Looked, component: PubSubComponent, chosen: Chosen, found: argparse.Namespace) -> int:
    from gateway.dead_letters import described, letters_of

    records: list[dict[str, Any]] = []
    async with letters_of(component).letters(component.address(found.topic)) as pile:
        async for letter in chosen.among(pile, component, found.topic):
            records.append(described(component, letter, found.topic))
            if len(records) >= found.limit:
                break
    if found.id and len(records) < len(set(found.id)):
        raise ConfigError(f"{component.name}/{found.topic} has no letter {' or '.join(found.id)}")
    unjudged = _tell_unjudged(chosen)
    if found.output == "table" and found.id:
        for each in records:
            show_members({**each, "stored": _time(each["stored"])}, "table")
        return 0
    if found.output == "table":
        records = [{**each, "stored": _time(each["stored"])} for each in records]
    show_records(records, found.output, _LETTERS)
    return int(unjudged and not records)


def _time(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


async def _replay(looked: Looked, component: PubSubComponent, chosen: Chosen, found: argparse.Namespace) -> int:
    from gateway.dead_letters import replay

    wildcard = component.broker.features.wildcard
    declared = [
        component.address(each.topic, pattern=wildcard)
        for each in looked.subscriptions
        if each.pubsub == component.name and each.dead_letter_topic == found.topic
    ]
    with Progress() as tell:
        done = partial(_count, tell, "sent back")
        outcome = await replay(component, found.topic, chosen, found.given or "", declared, done)
    if found.given is not None and not outcome.to[found.given]:
        note(f"nothing went to {found.given}: --topic is for letters that do not say where they are from")
    return _told(outcome, chosen, found, "replayed", "sent back")


async def _purge(looked: Looked, component: PubSubComponent, chosen: Chosen, found: argparse.Namespace) -> int:
    from gateway.dead_letters import Chosen, letters_of, purge

    if not found.yes:
        async with letters_of(component).letters(component.address(found.topic)) as pile:
            seen = frozenset([each.id async for each in chosen.among(pile, component, found.topic)])
        chosen, most = Chosen(seen), len(seen)  # What comes while the question stands is not what it is about.
        question = f"delete {most} dead letter{'' if most == 1 else 's'} of {component.name}/{found.topic}? [y/N] "
        if not most or (await asyncio.to_thread(input, question)).strip().lower() not in ("y", "yes"):
            note("nothing is deleted")
            return int(bool(most))
    with Progress() as tell:
        outcome = await purge(component, found.topic, chosen, partial(_count, tell, "deleted"))
    return _told(outcome, chosen, found, "purged", "deleted")


def _count(tell: Progress, said: str, done: int) -> None:
    tell(f"{done} {said}")


def _tell_unjudged(chosen: Chosen) -> bool:
    for why, count in chosen.unjudged.most_common(MAX_TOLD):
        note(f"{count} letter{' does' if count == 1 else 's do'} not fit: {why}")
    return bool(chosen.unjudged)


def _told(outcome: Outcome, chosen: Chosen, found: argparse.Namespace, name: str, said: str) -> int:
    left = sum(outcome.left.values())
    complete = not found.id or outcome.done + left >= len(set(found.id))
    if not complete:
        complain(f"{found.pubsub}/{found.topic} has not all of the letters {', '.join(found.id)}")
    unjudged = _tell_unjudged(chosen)
    document = {name: outcome.done, "left": left, "why": outcome.left}
    if not show_document({**document, "to": dict(outcome.to)} if found.what == "replay" else document, found.output):
        show(f"{outcome.done} {said}")
        for topic, count in outcome.to.items():
            show(f"  {count} to {topic}")
        for why, count in outcome.left.items():
            note(f"{count} left: {why}")
    return int(bool(left) or not complete or (unjudged and not outcome.done))
