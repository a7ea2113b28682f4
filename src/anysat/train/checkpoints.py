"""Checkpoints of a training: folders that are written atomically, verified when read, and never unpickled.

Each holds `training.safetensors` (weights and moments), `model.safetensors` (the encoder, for `anysat.load`) and
`state.json` (the step, other small state, and the digests of both files).
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from anysat.data.work import to_json
from anysat.model.checkpoint import OWN_FILE, save
from anysat.model.encoder import AnySat
from anysat.model.weight_files import WeightFile, read_file
from anysat.whole_files import appearing, sha256_of, sync, take_over, write_whole

FORMAT = "anysat-training-1"
TRAINING, STATE = "training.safetensors", "state.json"
_NAME = re.compile(r"step-(\d{8,})")
_PARTIAL = ".tmp"
_DAMAGED = "damaged-"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files have been verified."""

    path: Path
    step: int
    """Number of steps done."""
    state: Mapping[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return load_file(self.path / TRAINING)

    def encoder(self) -> WeightFile:
        """Return the contents of the encoder's file."""
        return read_file(self.path / OWN_FILE)


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], encoder: AnySat, state: Mapping[str, Any]
) -> Path:
    """Write the checkpoint after `step` steps.

    Raises:
        OSError: It could not be written, for example because the disk is full. Nothing is left behind.
    """
    path = folder / f"step-{step:08d}"
    partial = folder / f"{path.name}{_PARTIAL}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with appearing(partial / TRAINING) as new:
            save_file(dict(tensors), new)
        save(encoder, partial / OWN_FILE)
        files = {name: sha256_of(partial / name) for name in (TRAINING, OWN_FILE)}
        write_whole(partial / STATE, to_json({"format": FORMAT, "step": step, "sha256": files, **state}))
        sync(partial)
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    return path


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint, and warn about damaged ones."""
    for step in reversed(checkpoint_steps(folder)):
        path = folder / f"step-{step:08d}"
        try:
            return _opened(path, step)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(f"checkpoint {path} is damaged ({error}) and is not used", stacklevel=2)
    return None


def checkpoint_at(folder: Path, step: int) -> Checkpoint | None:
    """Return the checkpoint after `step` steps, or None if there is no intact one."""
    try:
        return _opened(folder / f"step-{step:08d}", step)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of all checkpoints, in ascending order."""
    names = [child.name for child in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def clear_away(folder: Path, newest: int) -> None:
    """Delete unfinished checkpoints of killed processes, and rename those after step `newest`, which are damaged."""
    for partial in folder.glob(f"*{_PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)
    for step in checkpoint_steps(folder):
        if step > newest:
            path = folder / f"step-{step:08d}"
            shutil.rmtree(path.with_name(_DAMAGED + path.name), ignore_errors=True)
            path.rename(path.with_name(_DAMAGED + path.name))


def keep_only(folder: Path, num_last: int, best: int | None) -> None:
    """Delete all checkpoints except the last `num_last` and the best."""
    for step in checkpoint_steps(folder)[:-num_last]:
        if step != best:
            shutil.rmtree(folder / f"step-{step:08d}", ignore_errors=True)


def publish(checkpoint: Path, target: Path) -> None:
    """Replace the published encoder by that of a checkpoint, atomically."""
    take_over(target, checkpoint / OWN_FILE)
    sync(target.parent)


def _opened(path: Path, step: int) -> Checkpoint:
    state = json.loads((path / STATE).read_text("utf-8"))
    if state["format"] != FORMAT or state["step"] != step:
        raise ValueError(f"format {state['format']!r} and step {state['step']}, expected {FORMAT!r} and {step}")
    for name, digest in state["sha256"].items():
        if sha256_of(path / name) != digest:
            raise ValueError(f"{name} differs from what was written")
    return Checkpoint(path=path, step=step, state=state)
