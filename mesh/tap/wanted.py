"""What somebody wants to be told, and what it is compared with; checked where it is asked for, and at each node."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mesh.errors import BadArgumentError, ExpressionError
from mesh.expressions import Match, compile_match
from mesh.globs import Glob
from mesh.passing import Passing

__all__ = ["MAX_BODY_BYTES", "Names", "Wanted", "compiled"]

MAX_BODY_BYTES = 1024 * 1024
MAX_NAMES = 100
MAX_NAME = 512
MAX_EXPRESSION = 4096
MIN_RATES_SECONDS = 1.0
MAX_LOOPS = 2
_LOOPS = re.compile(r"\b(?:all|exists|exists_one|filter|map)\b")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a tap asks all nodes for. A list without entries takes everything; ``*`` in one stands for any text.

    Attributes:
        apps: App ids: of who asks or sends, of who is called, or of the node that sees it.
        topics: Topics, each as ``component/topic`` or without the component; then only what is about topics passes.
        blocks: Building blocks (``pubsub``).
        where: A CEL expression over ``event``, the CloudEvent as it is told (`mesh.tap.wire`); "" = all.
        sample: The share of sights that are told, 0 to 1; rates count all of them.
        values: Whether headers and bodies are told, where that is allowed.
        max_body: Bytes that are told of a body.
        sights: Whether each single thing is told.
        rates: Seconds after which it is told again how much passed; 0 = never, else at least 1.
    """

    apps: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    where: str = ""
    sample: float = 1.0
    values: bool = False
    max_body: int = 64 * 1024
    sights: bool = True
    rates: float = 0.0

    def check(self) -> None:
        """Say what makes no sense.

        Raises:
            BadArgumentError: It does not; the text names the field.
        """
        for name in ("apps", "topics", "blocks"):
            _names(name, getattr(self, name))
        if not 0.0 <= self.sample <= 1.0:
            raise BadArgumentError(f"sample is {self.sample:g}; a share from 0 to 1 is wanted")
        if not 0 <= self.max_body <= MAX_BODY_BYTES:
            raise BadArgumentError(f"maxBody is {self.max_body}; 0 to {MAX_BODY_BYTES} bytes of a body can be told")
        if self.rates != 0 and not MIN_RATES_SECONDS <= self.rates <= 3600:
            raise BadArgumentError(f"rates is {self.rates:g}; 0 for none, or 1 to 3600 seconds are wanted")
        if not self.sights and not self.rates:
            raise BadArgumentError("sights and rates are both switched off, so nothing would be told")
        if len(self.where) > MAX_EXPRESSION:
            raise BadArgumentError(f"where is longer than {MAX_EXPRESSION} characters")


def compiled(where: str) -> Match | None:
    """Compile an expression, which takes some 70 ms for the first one of a process; None = it takes everything.

    Raises:
        BadArgumentError: It does not compile.
    """
    if not where.strip():
        return None
    if (
        count := len(_LOOPS.findall(where))
    ) > MAX_LOOPS:  # One within the other, each multiplies the work of all nodes.
        text = f"where: {count} of all, exists, exists_one, filter and map; at most {MAX_LOOPS} are taken"
        raise BadArgumentError(text)
    try:
        return compile_match(where)
    except ExpressionError as error:
        raise BadArgumentError(f"where: {error}") from None


def _names(name: str, given: Sequence[str]) -> tuple[Callable[[str], bool], ...]:
    if len(given) > MAX_NAMES:
        raise BadArgumentError(f"{name} has more than {MAX_NAMES} entries")
    made: list[Callable[[str], bool]] = []
    for each in given:
        if not 0 < len(each) <= MAX_NAME:
            raise BadArgumentError(f"{name}: an entry has 1 to {MAX_NAME} characters, not {len(each)}")
        try:
            made.append(Glob(each).fits)
        except ValueError as error:
            raise BadArgumentError(f"{name}: {error}") from None
    return tuple(made)


class Names:
    """The lists of a `Wanted` at work."""

    def __init__(self, wanted: Wanted, app: str) -> None:
        """Read them; raises ``BadArgumentError``.

        Args:
            wanted: What is asked for.
            app: The app id of this node.
        """
        self._apps = _names("apps", wanted.apps)
        self._topics = _names("topics", wanted.topics)
        self._blocks = _names("blocks", wanted.blocks)
        self._own = not self._apps or any(fits(app) for fits in self._apps)

    def block(self, name: str) -> bool:
        """Tell whether anything of a building block is."""
        return not self._blocks or any(fits(name) for fits in self._blocks)

    def take(self, passing: Passing) -> bool:
        """Tell whether something is among what is wanted."""
        if not self.block(passing.block):
            return False
        if not self._own and not any(
            fits(passing.source) or (passing.block == "invocation" and fits(passing.target.partition(".")[0]))
            for fits in self._apps
        ):
            return False
        return not self._topics or (passing.block == "pubsub" and self._about(passing))

    def _about(self, passing: Passing) -> bool:
        topic = passing.target.partition("/")[2]
        return any(fits(passing.target) or fits(topic) for fits in self._topics)
