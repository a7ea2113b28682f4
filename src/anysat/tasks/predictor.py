"""Predictors, the results of supervised runs: an encoder, a head and a task in one file.

It is a safetensors file with the tensors of encoder and head and, as metadata, everything else that is needed to create
them again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

import anysat
from anysat.batch import Batch, Embeddings
from anysat.data.base import Target
from anysat.errors import AnySatError, InputError, MissingFileError, WeightsError
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.model.modes import evaluating
from anysat.model.precision import Precision, multiplying
from anysat.model.ready import keeping_ready
from anysat.model.weight_files import PREDICTOR_FILE, TASK_FORMAT, read_tensors
from anysat.normalise import Normaliser
from anysat.tasks.base import TASKS, Task, make_task, options_of
from anysat.tasks.heads import HEADS, Head, HeadConfig, head_config, make_head
from anysat.whole_files import write_output


@dataclass(frozen=True, kw_only=True)
class View:
    """What an encoder uses of a tile for a task.

    Raises:
        InputError: There is no patch size, or `dense` is not one of the modalities.
    """

    patch_sizes_m: tuple[float, ...]
    """Patch sizes in metres. The outputs for several sizes are averaged."""
    modalities: tuple[str, ...]
    """Keys of the modalities to use."""
    dense: str | None = None
    """Modality whose dense embeddings a head for pixels takes; None for other heads."""

    def __post_init__(self) -> None:
        if not self.patch_sizes_m:
            raise InputError("patch_sizes_m", "at least one patch size", "none")
        if self.dense is not None and self.dense not in self.modalities:
            raise InputError("dense", f"one of the modalities {', '.join(self.modalities)}", self.dense)


class Prediction(NamedTuple):
    """Predictions for the tiles of a batch."""

    answer: Tensor
    """Class numbers (tile) or (tile row col), -1 where nothing was observed; labels (tile label); or values."""
    probabilities: Tensor | None
    """(tile … class), None for values."""
    outputs: Tensor
    """(tile … output), the outputs of the head from which the answers were made."""


class Predictor(nn.Module):
    """An encoder with its statistics and a head for one task.

    Args:
        encoder: The encoder. Its normaliser standardises the input and has the statistics of at most one dataset.
        task: What is predicted.
        view: What the encoder uses of a tile.
        head: Name of the head, or its configuration.
        width: Number of hidden channels of the head `conv`, if it is given by name.

    Raises:
        InputError, RecordError, UnknownNameError: The parts do not fit together.
    """

    def __init__(self, encoder: AnySat, task: Task, view: View, head: str | HeadConfig, *, width: int = 64) -> None:
        super().__init__()
        sets = [] if encoder.normaliser is None else list(encoder.normaliser.statistics)
        if len(sets) > 1:
            raise InputError("predictor", "an encoder with the statistics of one dataset", ", ".join(sets))
        self.encoder, self.task, self.view = encoder, task, view
        self.head_config = head if isinstance(head, HeadConfig) else head_of(encoder, task, view, head, width=width)
        self.head: Head = make_head(self.head_config)
        self.provenance: dict[str, Any] = {}
        """How it was trained and selected; stored in the file."""
        self.sources: dict[str, Mapping[str, Any]] = {}
        """The user's description of the files it was trained on, by modality key; see `DatasetRecord.sources`."""
        self.tile_m: float | None = None
        """Side of the training tiles in metres; None if it is not known, or if they had several."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.encoder.device

    def forward(self, batch: Batch) -> Tensor:
        """Compute the outputs of a batch of source values, (tile … output); for several patch sizes, their mean.

        The head multiplies in the type of its weights, as it was trained, even if the encoder does not.
        """
        seen = [self.see(batch, size) for size in self.view.patch_sizes_m]
        with torch.autocast(self.device.type, enabled=False):
            outputs = [self.head(one) for one in seen]
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)

    def see(self, batch: Batch, patch_size_m: float) -> Embeddings:
        """Embed the modalities of the view; the embeddings of a tile without a valid value are NaN.

        Raises:
            InputError: The batch has none of the modalities, or not that of the dense embeddings.
        """
        return self.encoder.encode(look(batch, self.view), patch_size_m, dense=self.view.dense, refuse_empty=False)

    def of_dataset(self, batch: Batch) -> Batch:
        """Add the modality of a dense head to a batch that lacks it, all of it invalid."""
        return batch if self.view.dense is None else batch.having(self.encoder.config.modality(self.view.dense))

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Prediction:
        """Predict the target of a batch of source values.

        Runs in eval mode on the encoder's device, without gradients.
        """
        with evaluating(self):
            outputs = self(batch)
        return Prediction(self.task.answer(outputs), self.task.probabilities(outputs), outputs)

    def save(self, path: str | Path) -> None:
        """Write the predictor to a file, which `load_task` loads. A failed write leaves no partial file.

        Raises:
            WriteError: The file cannot be written.
        """
        encoder = self.encoder
        meta = {
            "format": TASK_FORMAT,
            "anysat": anysat.__version__,
            "encoder": encoder.config.to_dict(),
            "normaliser": None if encoder.normaliser is None else encoder.normaliser.to_dict(),
            "encoder_provenance": encoder.provenance,
            "target": asdict(self.task.target),
            "task": options_of(self.task),
            "task_module": type(self.task).__module__,
            "view": asdict(self.view),
            "head": asdict(self.head_config),
            "head_module": type(self.head).__module__,
            "provenance": self.provenance,
            "sources": self.sources,
            "tile_m": self.tile_m,
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_output(Path(path), save(tensors, metadata={"anysat": json.dumps(meta)}))

    def extra_repr(self) -> str:
        """Name the target and the view in the text of the module."""
        return f"{self.task.target.name!r}, {self.view}"


def head_of(encoder: AnySat, task: Task, view: View, head: str, *, width: int = 64) -> HeadConfig:
    """Return the configuration that a head of this name needs for a task.

    Raises:
        UnknownNameError, RecordError: See `head_config`.
        InputError: See `head_config`; or the head's shape depends on the patch size, and there are several.
    """
    dense = None if view.dense is None else encoder.config.modality(view.dense)
    configs = {
        head_config(head, task.target, task.num_outputs, encoder.config.dim, patch_size_m=size, dense=dense,
                    width=width)
        for size in view.patch_sizes_m
    }  # fmt: skip
    if len(configs) > 1:
        raise InputError(f"head {head!r}", "one patch size: its shape depends on it", list(view.patch_sizes_m))
    return configs.pop()


def look(batch: Batch, view: View) -> Batch:
    """Return a batch with only the modalities of the view, in the view's order.

    The batch names no dataset, because a predictor has only the statistics of its training.

    Raises:
        InputError: The batch has none of the modalities, or not that of the dense embeddings.
    """
    kept = {key: batch.observations[key] for key in view.modalities if key in batch.observations}
    if not kept or (view.dense is not None and view.dense not in kept):
        needed = view.dense if kept else " or ".join(view.modalities)
        raise InputError("batch", f"the modality {needed}", ", ".join(batch.observations))
    return Batch(observations=kept, ids=batch.ids, targets=batch.targets)


def each_batch(
    predictor: Predictor, batches: Iterable[Batch], take: Callable[[Batch, Tensor], object],
    precision: Precision = "float32",
) -> None:  # fmt: skip
    """Compute the outputs of many batches, in eval mode and without gradients.

    Args:
        predictor: The predictor; its mode stays as it was.
        batches: Batches of a dataset, in source values. Tiles may lack the modality of the dense embeddings.
        take: Called with each batch, on the predictor's device, and its outputs (tile … output).
        precision: Type of the encoder's matrix products.
    """
    with keeping_ready(), evaluating(predictor), multiplying(precision, predictor.device):
        for batch in batches:  # read outside inference mode, in which a loader cannot take its memory back
            with torch.inference_mode():
                moved = batch.to(predictor.device)
                take(moved, predictor(predictor.of_dataset(moved)))


def names_of_empty(batch: Batch, outputs: Tensor) -> list[str]:
    """Return the names of tiles that have no output because nothing was observed."""
    empty = outputs.flatten(1).isnan().all(1).tolist()
    return [name for name, nothing in zip(batch.ids, empty, strict=True) if nothing]


def load_task(source: str | Path, *, device: str | torch.device = "cpu") -> Predictor:
    """Load the predictor of a finished probe or fine-tuning run.

    Args:
        source: The run folder, or its file `predictor.safetensors`.
        device: Device of the weights.

    Returns:
        The predictor, in eval mode.

    Raises:
        MissingFileError: There is no such file.
        WeightsError: The file is not a predictor, has a format that this version cannot read, or has a head or task
            of your own whose module has not been imported.
    """
    if not isinstance(source, str | os.PathLike):
        raise InputError("run", "the folder of a run, or its predictor file", type(source).__name__)
    path = Path(source)
    path = path / PREDICTOR_FILE if path.is_dir() else path
    if not path.is_file():
        raise MissingFileError(path, "the folder of a finished probe or fine-tuning run, or its predictor file")
    meta, tensors = read_tensors(path)
    meta = meta if isinstance(meta, dict) else {}
    if meta.get("format") != TASK_FORMAT:
        raise WeightsError(
            path, f"format {meta.get('format')!r}, written by anysat {meta.get('anysat')}",
            f"this is anysat {anysat.__version__}, which reads {TASK_FORMAT!r}; load encoders with `anysat.load`",
        )  # fmt: skip
    _check_imported(path, "head", (meta.get("head") or {}).get("name"), HEADS, meta.get("head_module"))
    _check_imported(path, "kind of target", (meta.get("target") or {}).get("kind"), TASKS, meta.get("task_module"))
    try:
        predictor = _made(meta)
        predictor.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AnySatError) as error:
        raise WeightsError(path, f"unreadable content ({error})") from error
    return predictor.to(device).eval()


def _check_imported(path: Path, what: str, name: str | None, table: Mapping[str, Any], module: str | None) -> None:
    """Refuse a user's own part whose module is not imported: code is never imported because a file names it."""
    if name is not None and name not in table:
        raise WeightsError(
            path, f"unreadable content: its {what} {name!r} is not registered",
            f"`import {module or 'the module that has it'}` first, which must register it; for the command line see "
            "docs/howto/tasks.md",
        )  # fmt: skip


def _made(meta: Mapping[str, Any]) -> Predictor:
    normaliser = None if meta["normaliser"] is None else Normaliser.from_dict(meta["normaliser"])
    encoder = AnySat(ModelConfig.from_dict(meta["encoder"]), normaliser=normaliser)
    encoder.provenance = {str(name): str(value) for name, value in meta["encoder_provenance"].items()}
    task = make_task(Target(**_tuples(meta["target"])), _tuples(meta["task"]))
    predictor = Predictor(encoder, task, View(**_tuples(meta["view"])), HeadConfig(**_tuples(meta["head"])))
    predictor.provenance = dict(meta["provenance"])
    predictor.sources = {str(key): dict(said) for key, said in meta["sources"].items()}
    predictor.tile_m = None if meta["tile_m"] is None else float(meta["tile_m"])
    return predictor


def _tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields from JSON with its lists as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
