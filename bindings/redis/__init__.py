"""Components on Redis: ``state.redis``, ``lock.redis`` and ``configuration.redis``."""
