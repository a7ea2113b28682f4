"""Options that a run was begun with, for a command that goes on with it; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.yaml"
_OF_A_SESSION = ("out", "resume", "max_steps")


def kept_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Plain options in the run folder `out`, where `resume` asks to go on with it; none where there is no run."""
    path = Path(given["out"]) / CONFIG_FILE if given.get("out") and given.get("resume") else None
    if path is None or not path.is_file():
        return {}
    import yaml

    found = yaml.safe_load(path.read_text("utf-8"))
    return {k: v for k, v in found.items() if k not in _OF_A_SESSION} if isinstance(found, Mapping) else {}
