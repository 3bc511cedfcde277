"""Kafka as a backbone: one topic per mesh topic, a consumer group per group and topic, frames over one shared topic.

=============  ====================================================================================
ours           on Kafka
=============  ====================================================================================
space          a topic of its name without messages, whose settings say how it was declared
topic          a topic ``<space>.<topic>`` of 8 partitions, made by the first who needs it
message        a record; ``Message.key`` is its key, without one a node stays on a partition for a while
confirmation   acks=all, idempotent: what was under way when a connection broke is sent again, stored once
group          a consumer group per (group, topic), our own assignor, classic protocol
ack            low-watermark commits per partition, at most 50 ms later; what is done beyond the
               watermark stands in the commit's metadata, so a hand-over repeats nothing (``_partition.py``)
attempt        in the same metadata; after a crash an upper bound, for at most 512 messages a partition
nack(delay)    held by the owner of the partition; the time stands in the metadata, too
hand-over      what a member still works on is skipped by the next owner until the former tells it how
               that ended, or is silent for ``ack_wait``
silence        handed out again after ``ack_wait``; a member full of silent handlers leaves the group
order          by key within a partition: later ones of a key wait for the earlier, others go on
ephemeral      no group: every partition from its end on
max_bytes      measured (DescribeLogDirs) once a second; a soft limit with several publishers
frames         topic ``mesh.frames``: partition 0 for all (presence, broadcasts), 32 inboxes shared by
               hash; acks=0, written straight to the connection; at most once
nobody serves  presence: who serves what is announced in partition 0 and acknowledged by every live
               node; a sender reads to its end before it says that nobody serves
=============  ====================================================================================

Connections, wire protocol and record batches are aiokafka's; its producer and consumer are not used:
they cannot carry metadata with commits, hand over in the middle, or end in time without a broker.
Needs Kafka 2.1 or later; tested with 3.9 (KRaft).

Sources: kafka.apache.org/protocol; KIP-98, KIP-345, KIP-394; CloudEvents Kafka protocol binding 1.0.
"""

from brokers.kafka._config import KafkaConfig
from brokers.kafka.broker import KafkaBroker

__all__ = ["KafkaBroker", "KafkaConfig"]
