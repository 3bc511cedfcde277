"""What an application says of its actor types, in ``GET /dapr/config`` or at the beginning of a stream.

What is wrong with it is told, and the default stands in its place: the other types work on.

Source: Dapr 1.18, actor runtime configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import orjson

from mesh.actors.errors import ActorTypeReservedError
from mesh.actors.names import check_names
from mesh.application_config import Reading, lowered, shown
from mesh.errors import BadArgumentError

__all__ = ["MAX_TYPES", "NO_ACTORS", "HostSettings", "TypeSettings", "read_settings"]

MAX_TYPES = 1000
MAX_DEPTH = 10_000
DEFAULT_DEPTH = 32
_Members = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TypeSettings:
    """How actors of a type are run.

    Attributes:
        idle_seconds: An actor that did nothing for so long is deactivated.
        drain_seconds: How long a turn may take to end when its actor moves.
        drains: Whether a turn may end at all when its actor moves.
        max_depth: How often an actor may be entered by one chain of calls; None = reentrancy is off.
    """

    idle_seconds: float = 3600.0
    drain_seconds: float = 60.0
    drains: bool = True
    max_depth: int | None = None


@dataclass(frozen=True, slots=True)
class HostSettings:
    """The types that an application hosts."""

    types: Mapping[str, TypeSettings] = field(default_factory=dict)


NO_ACTORS = HostSettings()


def read_settings(body: bytes) -> tuple[HostSettings, Sequence[str]]:
    """Read what an application answered.

    Returns:
        The types, and what is wrong: each text names the field.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        problem = f"the answer is no JSON ({error}), so no actors are hosted"
        return NO_ACTORS, [problem] if body.strip() else ()
    reading = _Reading()
    if not isinstance(document, dict):
        if document is not None:
            reading.wrong("the answer", document, "an object")
        return NO_ACTORS, reading.problems
    members = lowered(document)
    common = reading.settings(members, "", TypeSettings())
    types = dict.fromkeys(reading.types(members.get("entities"), "entities"), common)
    listed = members.get("entitiesconfig")
    if listed is not None and not isinstance(listed, list):
        reading.wrong("entitiesConfig", listed, "an array of objects")
    for index, each in enumerate(listed if isinstance(listed, list) else ()):
        at = f"entitiesConfig[{index}]"
        if not isinstance(each, dict):
            reading.wrong(at, each, "an object")
            continue
        own = lowered(each)
        settings = reading.settings(own, f"{at}.", common)
        for name in reading.types(own.get("entities"), f"{at}.entities"):
            if name in types:
                types[name] = settings
            else:
                reading.note(f"{at}.entities: '{name}' is not among entities, and is not hosted")
    return HostSettings(types), reading.problems


class _Reading(Reading):
    """Reads what is of actors."""

    def types(self, value: object, at: str) -> list[str]:
        """Read names of types."""
        if value is None:
            return []
        if not isinstance(value, list):
            self.wrong(at, value, "an array of names")
            return []
        found: list[str] = []
        for index, name in enumerate(value):
            try:
                if not isinstance(name, str):
                    raise BadArgumentError(f"a name must be a string, not {shown(name)}")
                check_names(name, "-")
            except (BadArgumentError, ActorTypeReservedError) as error:
                self.note(f"{at}[{index}]: {error}; it is not hosted")
                continue
            if len(found) >= MAX_TYPES:
                self.note(f"{at}: more than {MAX_TYPES} types; the others are not hosted")
                break
            found.append(name)
        return found

    def settings(self, members: _Members, at: str, default: TypeSettings) -> TypeSettings:
        """Read what may stand for all types, and for some."""
        reentrancy = members.get("reentrancy")
        max_depth = default.max_depth
        if isinstance(reentrancy, dict):
            max_depth = self._reentrancy(lowered(reentrancy), f"{at}reentrancy", default.max_depth)
        elif reentrancy is not None:
            self.wrong(f"{at}reentrancy", reentrancy, "an object")
        return replace(
            default,
            idle_seconds=self.seconds(members, "actorIdleTimeout", at, default.idle_seconds),
            drain_seconds=self.seconds(members, "drainOngoingCallTimeout", at, default.drain_seconds),
            drains=self.flag(members, "drainRebalancedActors", at, default=default.drains),
            max_depth=max_depth,
        )

    def _reentrancy(self, members: _Members, at: str, default: int | None) -> int | None:
        enabled = self.flag(members, "enabled", f"{at}.", default=default is not None)
        depth = members.get("maxstackdepth")
        if depth is not None and not (type(depth) is int and 1 <= depth <= MAX_DEPTH):
            self.wrong(f"{at}.maxStackDepth", depth, f"a whole number from 1 to {MAX_DEPTH}")
            depth = None
        if not enabled:
            return None
        return depth if isinstance(depth, int) else default or DEFAULT_DEPTH
