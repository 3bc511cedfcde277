"""Kafka as a backbone."""

from brokers.kafka.broker import KafkaBroker, KafkaConfig

__all__ = ["KafkaBroker", "KafkaConfig"]
