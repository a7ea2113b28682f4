"""Reading of weight files. Their kind is recognised by their content, and nothing but tensors is unpickled."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import anysat
from anysat.errors import RecordError, StatisticsError, UnknownNameError, WeightsError
from anysat.model.config import ModelConfig
from anysat.normalise import Normaliser

FORMAT = "anysat-1"
TASK_FORMAT = "anysat-task-1"
"""Format of a predictor's file, which holds encoder and head and is read by `anysat.tasks.predictor`."""
PREDICTOR_FILE = "predictor.safetensors"
"""Name of a predictor's file in a run folder."""
TEACHER = "target_encoder."
_OWN_TENSOR = "fusion.tile_token"
"""Our name of a tensor that every model has. The published name is another."""
_PICKLED = (".pth", ".pt", ".ckpt", ".bin")
SUFFIXES = (".safetensors", *_PICKLED)
_POINTER = b"version https://git-lfs.github.com/spec/"
"""Start of a file that Git LFS has not yet replaced by the weights."""


@dataclass(frozen=True)
class WeightFile:
    """The content of a weight file, not yet loaded into a model."""

    source: str
    """Path or hub id, for messages."""
    tensors: Mapping[str, Tensor]
    """Tensors by our names or by the published ones."""
    published: bool
    """Whether the tensors have the published names, not ours."""
    config: ModelConfig | None = None
    """Configuration of the model; stored only in our own files."""
    normaliser: Normaliser | None = None
    """Statistics of the model, if the file has any."""
    provenance: Mapping[str, str] | None = None
    """Where the weights come from, if the file says so."""


def read_file(path: Path) -> WeightFile:
    """Read a weight file with one of `SUFFIXES`. Its kind is recognised by its content.

    Raises:
        WeightsError: The file is of another kind, is damaged, holds an encoder inside a larger model, or is a pickle of
            more than tensors, which is never run.
    """
    if path.suffix not in SUFFIXES:
        raise WeightsError(
            path, f"unknown suffix {path.suffix!r}", f"expected .safetensors or one of {', '.join(_PICKLED)}"
        )
    try:
        with path.open("rb") as file:
            head = file.read(len(_POINTER))
    except OSError as error:
        raise WeightsError(path, f"not a readable file ({error})") from error
    if head == _POINTER:
        raise WeightsError(path, "a pointer of Git LFS, not the weights", "fetch them with `git lfs pull`")
    if path.suffix == ".safetensors" or head[8:9] == b"{":  # the length of a JSON header comes first
        return _read_safetensors(path)
    if not head.startswith((b"PK", b"\x80")):
        raise WeightsError(path, "not a readable checkpoint (neither of torch nor of safetensors)")
    return _without_config(path, _read_pickle(path))


def read_tensors(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """Read our metadata (None if there is none) and the tensors of a safetensors file.

    Raises:
        WeightsError: It is not a safetensors file, or is damaged.
    """
    with _opened(path) as (file, meta):
        return meta, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def read_meta(path: Path) -> Any:
    """Read the `anysat` metadata of a safetensors file, but no tensors. None if there is none.

    Raises:
        WeightsError: It is not a safetensors file, or is damaged.
    """
    with _opened(path) as (_, meta):
        return meta


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file, json.loads((file.metadata() or {}).get("anysat", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(path, f"not a readable safetensors file ({error})") from error


def _read_safetensors(path: Path) -> WeightFile:
    meta, tensors = read_tensors(path)
    if meta is None:
        return _without_config(path, tensors)
    meta = meta if isinstance(meta, dict) else {}
    if meta.get("format") == TASK_FORMAT:
        raise WeightsError(
            path, f"a predictor of a task, encoder and head in one (format {TASK_FORMAT!r})",
            "give it, or its run folder, to `anysat predict`; in Python its encoder is `anysat.load_task(...).encoder`",
        )  # fmt: skip
    if meta.get("format") != FORMAT:
        raise WeightsError(
            path, f"format {meta.get('format')!r}, written by anysat {meta.get('anysat')}",
            f"this is anysat {anysat.__version__}, which reads {FORMAT!r}: install that version",
        )  # fmt: skip
    try:
        config = ModelConfig.from_dict(meta["config"])
        normaliser = None if meta["normaliser"] is None else Normaliser.from_dict(meta["normaliser"])
        provenance = {str(key): str(value) for key, value in meta["provenance"].items()}
    except (KeyError, TypeError, AttributeError, RecordError, UnknownNameError, StatisticsError) as error:
        raise WeightsError(path, f"unreadable metadata ({error})") from error
    return WeightFile(str(path), tensors, False, config, normaliser, provenance)


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # refused below if it matters
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "global" in str(error).lower():
            raise WeightsError(
                path, f"holds more than tensors, so it was refused and none of it was run ({_first_line(error)})",
                "if you trust the file, save only its state dict",
            ) from error  # fmt: skip
        raise WeightsError(path, f"not a readable checkpoint ({_first_line(error)})") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(path, f"not a readable checkpoint ({_first_line(error)})") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise WeightsError(path, f"holds a {type(content).__name__}, not a state dict")
    return dict(content)


def _without_config(path: Path, tensors: dict[str, Any]) -> WeightFile:
    """Return the content of a file of mere tensors: the published names, or a state dict with our own."""
    tensors = _teacher(tensors)
    is_own = _OWN_TENSOR in tensors
    inside = [name.removesuffix(_OWN_TENSOR) for name in tensors if name.endswith(_OWN_TENSOR)]
    if inside and not is_own:
        raise WeightsError(
            path, f"holds a larger model, in which the names of the encoder begin with {inside[0]!r}",
            "save its encoder with `save_pretrained(folder)` and load the folder, or give the tensors, without that "
            "beginning, to `load_state_dict` of an `AnySat` of the same configuration",
        )  # fmt: skip
    return WeightFile(str(path), tensors, published=not is_own)


def _teacher(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the averaged teacher's encoder if this is a whole training checkpoint, else the tensors unchanged."""
    teacher = {name.removeprefix(TEACHER): t for name, t in tensors.items() if name.startswith(TEACHER)}
    return teacher or tensors


def _first_line(error: Exception) -> str:
    line = str(error).strip().split("\n")[0].split(" Re-running")[0].split(" In PyTorch 2.6")[0]
    return line or type(error).__name__
