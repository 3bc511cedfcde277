"""NATS as a backbone: JetStream for what is stored, core NATS for frames, key/value for state.

=============  ====================================================================================
ours           on NATS
=============  ====================================================================================
space          one stream, limits retention, discard new: a full stream refuses, it never forgets
topic          subject ``<space>.<lane>.<topic>``; the lane is ``_``, or 0 to 15 from the key's hash
group          one durable pull consumer per (group, topic), explicit acks, no delivery limit
ordered group  17 consumers: the lane ``_`` competes; lanes 0 to 15 have one delivery at a time each,
               over all members, so a delayed retry holds back the keys of its lane
attempt        ``num_delivered``: an upper bound, since NATS counts releases too
ack            ``+ACK``; a lost one leads to redelivery
nack(delay)    ``-NAK {"delay": …}``;  release: ``-NAK``
reject         ``+TERM`` (dead-lettering is the mesh's, before it)
extend         ``+WPI``
dedup          ``Nats-Msg-Id`` from topic and ``Message.id``, window 2 minutes (or ``max_age``, if shorter)
confirmation   PubAck; on a reconnect whatever waits for one is sent again under its id
frames         core request/reply over one wildcard inbox; status 503 says that nobody serves
key/value      stream ``KV_<name>``, one message per subject, expected-last-subject-sequence for
               compare-and-set, per-message TTL, atomic batch publish for transactions
consumed       events that every group has acked are purged once a minute (``_trim.py``)
=============  ====================================================================================

Header names that begin with ``Nats-`` are the server's: it acts on them. nats-py is overridden where it
would lose the connection, a cancellation or the order of a flush; each case stands in ``_overrides.py``.

Needs nats-server 2.12 (atomic batches); checked at connect. Its fsync is lazy by default: what is
acked survives the death of the process, not of the power; see docs/brokers/nats.md.

Sources: docs.nats.io (JetStream model deep dive, wire API); ADR-8, 13, 37, 43, 50 of nats-architecture.
"""

from brokers.nats._config import NatsConfig
from brokers.nats.broker import NatsBroker

__all__ = ["NatsBroker", "NatsConfig"]
