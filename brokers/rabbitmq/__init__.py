"""RabbitMQ: quorum queues for what is stored, a direct exchange for frames.

=============  ====================================================================================
ours           on RabbitMQ
=============  ====================================================================================
space          topic exchange ``<space>``, bound to ``<space>:groups``, whose alternate exchange leads
               to the queue ``<space>:unclaimed``; ``<space>:dead`` for what expired
topic          routing key ``<lane>.<topic>``; the lane is ``_``, or 0 to 15 from the key's hash
group          a quorum queue per (group, topic), which refuses when it is full
ordered group  a queue more for each keyed lane, with a single active consumer that has one delivery
               at a time; lanes are shared out among the members (``_balance.py``)
new group      moves what fits out of ``unclaimed`` (``_unclaimed.py``)
ephemeral      bound before ``:groups``, so that it claims nothing; ``x-expires``
attempt        ``x-delivery-count`` and our own field ``=attempt``: an upper bound, since RabbitMQ
               before 4.3 counts releases too
ack            ``basic.ack``; a lost one leads to redelivery
nack           ``basic.reject`` with requeue; release: ``basic.nack`` with requeue
nack(delay)    stored anew in a queue whose messages expire back into the group's, then acked;
               kept by the member where order counts
reject         ``basic.ack`` (dead-lettering is the mesh's, before it)
extend         a timer of the member's own: RabbitMQ waits 30 minutes for an ack, and can not be told more
dedup          none
confirmation   publisher confirm, ``mandatory``; on a reconnect what waits for one is sent again
frames         direct exchange ``mesh.frames``; what is returned says that nobody serves. Confirmed,
               though nobody waits for it: aiormq tells of returns only where it awaits a confirm
key/value      none
=============  ====================================================================================

Two connections: the server stops reading from one that publishes when it is short of memory or
disk, and acks must get through. aiormq speaks AMQP 0-9-1; ``_connection.py`` and ``_channel.py``
add what it lacks (docs/adr/0014-rabbitmq-client.md).

Sources: www.rabbitmq.com/docs (quorum-queues, confirms, dlx, ttl, ae, consumers); the AMQP 0-9-1
specification; what else is said of 3.10 was seen with 3.10.8, and of aiormq with 7.2.4.
"""

from brokers.rabbitmq._config import RabbitMQConfig
from brokers.rabbitmq.broker import RabbitMQBroker

__all__ = ["RabbitMQBroker", "RabbitMQConfig"]
