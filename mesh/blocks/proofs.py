"""Who has published an event: its gateway signs it, and who delivers it checks that (``mesh/trust/kept.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.address import Address
from mesh.broker import Delivery, Message
from mesh.operation import Caller
from mesh.trust.identity import Identity

if TYPE_CHECKING:
    from mesh.blocks.topic_scopes import TopicScopes
    from mesh.trust.kept import Kept

__all__ = ["PROVEN_BY", "UNKNOWN", "Proofs"]

PROVEN_BY = "mesh-proven-by"
UNKNOWN = "none"


@dataclass(frozen=True, slots=True)
class Proofs:
    """What a pub/sub component proves and asks for.

    Attributes:
        kept: Does so.
        own: This node's application.
        on_backbone: Whether the topics are of this namespace alone. On another broker others may share them, and give
            the component a name of their own: then a topic is known by its own name.
        space: Of the component's topics.
        prefix: Stands before their names.
        scopes: Who may publish what, as this node's component says.
    """

    kept: Kept
    own: Caller
    on_backbone: bool
    space: str
    prefix: str
    scopes: TopicScopes

    def _where(self, address: Address) -> str:
        return f"{address.space} {address.label}" if self.on_backbone else f"topic {address.label}"

    def _may(self, identity: Identity) -> bool:
        return not self.on_backbone or identity.namespace == self.own.namespace

    def _in_scope(self, identity: Identity, where: str) -> bool:
        """Tell whether somebody may publish there; it names a topic of this component, or nobody may."""
        before = f"{self.space if self.on_backbone else 'topic'} {self.prefix}"
        return where.startswith(before) and self.scopes.may_publish(identity.app_id, where.removeprefix(before))

    def prove(self, address: Address, message: Message) -> Message:
        """Sign an event that is about to be published."""
        return self.kept.prove(self._where(address), message)

    def move(self, address: Address, message: Message) -> Message:
        """Sign that a dead letter is where it is by this node."""
        return self.kept.move(self._where(address), message)

    def _is_neighbour(self, identity: Identity) -> bool:
        return identity.namespace == self.own.namespace

    def publisher(self, delivery: Delivery, *, lenient: bool, letters: bool) -> str:
        """Give the SPIFFE id of who has published an event and may do so, or ``none``.

        Args:
            delivery: Of the event.
            lenient: Whether it is delivered in any case.
            letters: Whether its topic holds dead letters; they are moved by nodes of this namespace.

        Raises:
            UnprovenError: It is not to be delivered.
        """
        where, message = self._where(delivery.address), delivery.message
        may_move = self._is_neighbour if letters else None
        found = self.kept.checked(
            "event", where, message, self._may, lenient=lenient, letters=may_move, scope=self._in_scope
        )
        return UNKNOWN if found is None else str(found)

    def check_own(self, delivery: Delivery) -> None:
        """Refuse what is by no node of this application, where only its own nodes publish.

        Raises:
            UnprovenError: It is so.
        """
        own = self.own

        def is_own(identity: Identity) -> bool:
            return (identity.namespace, identity.app_id) == (own.namespace, own.app_id)

        self.kept.checked("event", self._where(delivery.address), delivery.message, is_own)
