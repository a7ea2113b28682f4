"""Options that a run was begun with, for a command that goes on with it; and options nobody hears. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from anysat.errors import RecordError

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


def preset_config(command: str, name: str | None) -> Any:
    """What a preset of `probe` or `finetune` asks for; None where none is named, or there is no such one."""
    if name is None:
        return None
    from anysat.workflows.task_presets import FINETUNES, PROBES

    presets: Mapping[str, Any] = PROBES if command == "probe" else FINETUNES
    return presets[name]() if name in presets else None


def check_heard(config: Any, names: Collection[str], why: str, preset: Any = None, prefix: str = "") -> None:
    """Refuse options that have no effect beside others; those that are the default, or the preset's, nobody asked for.

    Args:
        config: what was asked for, a dataclass.
        names: its fields that nothing hears.
        why: what else is asked for, which does not hear them.
        preset: the config that was begun with; None for the defaults alone.
        prefix: of the names of options.

    Raises:
        RecordError: the first of them that was asked for.
    """
    usual = {
        one.name: one.default if one.default_factory is MISSING else one.default_factory()
        for one in fields(config) if one.name in names
    }  # fmt: skip
    for name in names:
        value = getattr(config, name)
        if value != usual[name] and (preset is None or value != getattr(preset, name)):
            raise RecordError(f"--{prefix}{name.replace('_', '-')}", value, f"the default, {why}")
