"""RabbitMQ."""

from brokers.rabbitmq._config import RabbitMQConfig, TLSFiles
from brokers.rabbitmq.broker import RabbitMQBroker

__all__ = ["RabbitMQBroker", "RabbitMQConfig", "TLSFiles"]
