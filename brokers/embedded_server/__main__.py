"""The supervisor's process: ``python -m brokers.embedded_server supervise …``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from brokers.embedded_server.supervisor import supervise


def main(arguments: list[str]) -> None:
    """Fork away and supervise."""
    match arguments:
        case ["supervise", root, binary, "normal" | "strict" as durability, report, start]:
            if os.fork() == 0:
                supervise(Path(root), binary, durability, int(report), int(start))
        case _:
            sys.exit("usage: python -m brokers.embedded_server supervise ROOT BINARY DURABILITY REPORT_FD LOCK_FD")


if __name__ == "__main__":
    main(sys.argv[1:])
