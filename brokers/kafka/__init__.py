"""Kafka as a backbone."""

from brokers.kafka._config import KafkaConfig
from brokers.kafka.broker import KafkaBroker

__all__ = ["KafkaBroker", "KafkaConfig"]
