"""Measures the process."""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["measure_process"]


async def measure_process() -> Mapping[str, float]:
    """Measure this process."""
    import psutil  # Takes some milliseconds, when somebody asks.

    process = psutil.Process()
    with process.oneshot():
        spent, memory = process.cpu_times(), process.memory_info()
        return {
            "process_cpu_seconds_total": spent.user + spent.system,
            "process_resident_memory_bytes": memory.rss,
            "process_virtual_memory_bytes": memory.vms,
            "process_start_time_seconds": process.create_time(),
            "process_open_fds": process.num_fds() if os.name == "posix" else 0,
        }
