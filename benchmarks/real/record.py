"""The command line of a figure that is measured once, kept beside the other records, and printed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits


def measure_or_print(
    about: str, record: Path, measured: Callable[[Path], dict[str, Any]], table: Callable[[dict[str, Any]], str]
) -> None:
    """`run --data DATA` measures and keeps the record; both commands print its table."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="all lines")
    one.add_argument("--data", type=Path, required=True, help="folder of the real data")
    commands.add_parser("print", help="the table")
    options = parser.parse_args()
    if options.command == "run":
        with threadpool_limits(1):
            record.write_text(json.dumps(measured(options.data), indent=1) + "\n")
    print(table(json.loads(record.read_text())))
