"""Redis as a backbone."""

from brokers.redis.broker import RedisBroker, RedisConfig

__all__ = ["RedisBroker", "RedisConfig"]
