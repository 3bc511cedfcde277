"""Python imports this before all else where this folder is on PYTHONPATH: the clock of the process is what a file says.

The file CLOCK has the seconds by which it is ahead, as a float of eight bytes; it is mapped, so that a jump is seen at
once. Only ``time.time`` and ``time.time_ns`` jump, which is what the product reads; what measures durations goes on, as
in a real process.
"""

import mmap
import os
import struct
import time

_file = os.open(os.environ["CLOCK"], os.O_RDONLY)
_ahead = mmap.mmap(_file, 8, prot=mmap.PROT_READ)
_time, _time_ns = time.time, time.time_ns


def _seconds() -> float:
    (ahead,) = struct.unpack("d", _ahead)
    return float(ahead)


def _jumping_time() -> float:
    return _time() + _seconds()


def _jumping_time_ns() -> int:
    return _time_ns() + int(_seconds() * 1e9)


time.time, time.time_ns = _jumping_time, _jumping_time_ns
