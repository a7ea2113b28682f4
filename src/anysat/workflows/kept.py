"""Options and descriptions of files that a run keeps for later commands, and a check for options without effect.

Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from anysat.errors import InputError, RecordError

CONFIG_FILE, FOLDS_FILE = "config.yaml", "folds.json"
_OF_A_SESSION = ("out", "resume", "max_steps")


def kept_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in the run folder `out` if `resume` is set. Empty if there is no run."""
    path = Path(given["out"]) / CONFIG_FILE if given.get("out") and given.get("resume") else None
    if path is None or not path.is_file():
        return {}
    import yaml

    found = yaml.safe_load(path.read_text("utf-8"))
    return {k: v for k, v in found.items() if k not in _OF_A_SESSION} if isinstance(found, Mapping) else {}


def kept_sources(weights: object) -> dict[str, dict[str, Any]]:
    """Return the description of the training files, by modality key, if the weights are those of a finished run.

    The weights may be the run's folder or the encoder file in it. The result is empty for other weights, for a
    pretraining run and for a model in memory. See `Predictor.sources`.

    Raises:
        WeightsError: The run's predictor file is damaged.
    """
    path = Path(weights) if isinstance(weights, str | Path) else None
    if path is None or not path.exists():
        return {}
    from anysat.model.checkpoint import OWN_FILE
    from anysat.model.weight_files import PREDICTOR_FILE, read_meta

    file = (path.parent if path.name == OWN_FILE else path) / PREDICTOR_FILE
    meta = read_meta(file) if file.is_file() else None
    said = meta.get("sources", {}) if isinstance(meta, Mapping) else {}
    return {str(key): dict(one) for key, one in said.items()}


def check_alone(run: Path) -> None:
    """Check that a run has a predictor of its own.

    Raises:
        InputError: The run is over folds or repeats, each of which has its own predictor.
    """
    if (run / FOLDS_FILE).is_file():
        parts = ", ".join(str(run / name) for name in json.loads((run / FOLDS_FILE).read_text())["folds"])
        raise InputError("RUN", "the folder of one fold", run, f"give one of {parts}")


def check_heard(config: Any, names: Collection[str], why: str, preset: Any = None, prefix: str = "") -> None:
    """Check that options without effect have their default values, or those of the preset.

    Args:
        config: The options, a dataclass.
        names: Fields that have no effect.
        why: The reason that they have none, for the message.
        preset: Config of the preset; None allows only defaults.
        prefix: Prefix of the options' names.

    Raises:
        RecordError: One of them was given. The message names the first.
    """
    usual = {
        one.name: one.default if one.default_factory is MISSING else one.default_factory()
        for one in fields(config) if one.name in names
    }  # fmt: skip
    for name in names:
        value = getattr(config, name)
        if value != usual[name] and (preset is None or value != getattr(preset, name)):
            raise RecordError(f"--{prefix}{name.replace('_', '-')}", value, f"the default, {why}")
