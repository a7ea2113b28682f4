"""Measurements of the encoder's speed as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FEWEST = 3
"""Smallest number of quiet turns of each of two ways that are compared."""


def table(found: Mapping[str, Any]) -> str:
    """Return a Markdown table."""
    names = ("case", "float32, 2048³", "best rate", "turns", "way", "s", "CPU s", "to plain", "quiet turns", "s, quiet",
             "to plain, quiet", "limit", "GFLOP", "floor s", "share", "peak GB", "worst error",
             "relative error")  # fmt: skip
    first = next(iter(found.values()))["machine"]
    lines = [
        f"{first['processor']}, {first['threads']} threads, torch {first['torch']}.",
        "*Float32, 2048³*: GFLOP/s of a large product, timed before the case. *Best rate*: of a product, where "
        "there are units for it in bf16, before and after the best turn. Seconds are medians of so many turns.",
        "*Limit*: what *to plain* would be if the floor were all.",
        "",
        f"| {' | '.join(names)} |",
        "|---" * len(names) + "|",
    ]
    for name, case in found.items():
        machine, plain_s = case["machine"], case["ways"].get("plain float32", {}).get("wall")
        for way, row in case["ways"].items():
            ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
            limit = f"{plain_s / row['floor_s']:.1f}" if plain_s else ""
            errors = (f"{row[key]:.1e}" if key in row else "" for key in ("worst", "relative"))
            rates = (f"{machine[key]:.0f}" if key in machine else "" for key in ("gflop_per_s", "probed_gflop_per_s"))
            cells = [name, *rates, str(machine["times"]), way, f"{row['wall']:.2f}",
                     f"{row['cpu']:.2f}", ratio, *_quiet_cells(row, case["ways"].get("plain float32")), limit,
                     f"{row['gflop']:.0f}", f"{row['floor_s']:.2f}", f"{row['share']:.2f}", f"{row['peak_gb']:.2f}",
                     *errors]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _quiet_cells(row: Mapping[str, Any], plain_row: Mapping[str, Any] | None) -> list[str]:
    """Return number, seconds and ratio of the quiet turns; empty for records without them."""
    quiet = row.get("quiet")
    if quiet is None:
        return ["", "", ""]
    of_plain = plain_row["quiet"] if plain_row else {"turns": 0}
    is_told = min(quiet["turns"], of_plain["turns"]) >= FEWEST
    ratio = f"{of_plain['wall'] / quiet['wall']:.2f}" if is_told else ""
    return [str(quiet["turns"]), f"{quiet['wall']:.2f}" if quiet["turns"] else "", ratio]
