"""Loading and saving weights: the published files, our own file format, and the Hugging Face hub.

Our format is one safetensors file with the weights and, as metadata, the configuration with its modality records, the
statistics, the provenance and the licence. Nothing but tensors is ever unpickled.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

import anysat
from anysat.errors import InputError, MissingFileError, UnknownNameError, WeightsError, WriteError
from anysat.model.config import SIZES, ModelConfig, find_config
from anysat.model.precision import find_device
from anysat.model.weight_files import FORMAT, SUFFIXES, WeightFile, read_file
from anysat.normalise import PRESETS, Normaliser
from anysat.whole_files import appearing, write_output

PUBLISHED_REPO = "g-astruc/AnySat"
PUBLISHED_FILE = "models/AnySat.pth"
PUBLISHED_LICENCE = "MIT"
UNKNOWN_LICENCE = "unknown"
OWN_FILE = "model.safetensors"
FROM_DATA = "from-data"
_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHIPPED = {"nano": Path(__file__).with_name("weights") / "nano.safetensors"}
"""Weights that ship with the package, by name. Their model cards lie beside them. Add others here."""

_RENAMES = (  # ours -> published, applied in turn
    (r"^fusion\.tile_token$", "cls_token"),
    (r"^projectors\.([^.]+)\.embed\.", r"projector_\1.patch_embed."),
    (r"^projectors\.([^.]+)\.mlp\.", r"projector_\1.mlp."),
    (r"^projectors\.([^.]+)\.fill$", r"projector_\1.pad_parameter"),
    (r"^projectors\.([^.]+)\.pixel_mlp\.", r"projector_\1.patch_embed.inconv."),
    (r"^projectors\.([^.]+)\.date_norm\.", r"projector_\1.patch_embed.in_norm."),
    (r"^projectors\.([^.]+)\.pooling\.query$", r"projector_\1.patch_embed.attention_heads.Q"),
    (r"^projectors\.([^.]+)\.pooling\.key\.", r"projector_\1.patch_embed.attention_heads.fc1_k."),
    (r"^projectors\.([^.]+)\.out_mlp\.", r"projector_\1.patch_embed.mlp."),
    (r"^projectors\.([^.]+)\.out_norm\.", r"projector_\1.patch_embed.out_norm."),
    (r"^spatial\.cls_token$", "spatial_encoder.cls_token"),
    (r"^spatial\.norm\.", "spatial_encoder.predictor_norm."),
    (r"^spatial\.blocks\.", "spatial_encoder.predictor_blocks."),
    (r"^fusion\.blocks\.", "blocks."),
    (r"^fusion\.pooling\.", "blocks.{depth}."),
    (r"(blocks\.[^.]+)\.attention\.query$", r"\1.attn.q_learned"),
    (r"(blocks\.[^.]+)\.attention\.key\.", r"\1.attn.wk."),
    (r"(blocks\.[^.]+)\.attention\.value\.", r"\1.attn.wv."),
    (r"(blocks\.[^.]+)\.attention\.out\.", r"\1.attn.proj."),
    (r"(blocks\.[^.]+)\.attention\.qkv\.", r"\1.attn.qkv."),
    (r"(blocks\.[^.]+)\.attention\.relative\.weight$", r"\1.attn.rpe_k.lookup_table_weight"),
)


def published_name(name: str, depth: int) -> str:
    """Return the name that one of our tensors has in the published state dict.

    Examples:
        >>> published_name("fusion.pooling.attention.query", depth=6)
        'blocks.6.attn.q_learned'
    """
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name.format(depth=depth)


class Pretrained(nn.Module):
    """A model with its configuration, statistics and provenance, whose weights can be loaded, saved and shared."""

    def __init__(
        self, config: ModelConfig | str | None = None, *, normaliser: Normaliser | str | Path | None = None
    ) -> None:
        super().__init__()
        self.config = find_config(config)
        self.normaliser = normaliser
        self.provenance: dict[str, str] = {"weights": "untrained"}
        """Where the weights come from, and their licence. Stored in every file that the model is saved to."""

    @property
    def normaliser(self) -> Normaliser | None:
        """Statistics that `encode` standardises with, set as in `anysat.load`. None: those of each batch."""
        return self._normaliser

    @normaliser.setter
    def normaliser(self, statistics: Normaliser | str | Path | None) -> None:
        self._normaliser = None if statistics is None else find_statistics(statistics)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: ModelConfig | str | None = None,
        statistics: Normaliser | str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Load a model from a hub id, a folder or a file; see `anysat.load`."""
        device, dtype = find_device(device, "device"), find_dtype(dtype)
        normaliser = None if statistics is None else find_statistics(statistics)
        config = None if config is None else find_config(config)
        file = read_weights(pretrained_model_name_or_path, revision=revision, token=token)
        model = cls(config or file.config, normaliser=file.normaliser)
        model.to(dtype=dtype)  # before the tensors are loaded, which may be wider than float32
        if file.published:
            load_published(model, file.tensors, source=file.source)
        else:
            _load_strict(model, file.tensors, file.source)
        model.provenance = dict(file.provenance or {"weights": file.source, "licence": UNKNOWN_LICENCE})
        if statistics is not None:
            model.normaliser = normaliser
        return model.to(device=device).eval()

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write a folder that `from_pretrained` loads: weights, configuration, and a model card with the licence."""
        save_folder(self, Path(save_directory))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the folder of `save_pretrained` to the hub; see `anysat.model.checkpoint.push`. Return its address."""
        return push(self, repo_id, **options)

    def load_published_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load a state dict with the published names. Names and shapes must match exactly.

        Raises:
            WeightsError: Tensors are missing, extra or of another shape. The message names them.
        """
        load_published(self, state_dict)

    def published_state_dict(self) -> dict[str, Tensor]:
        """Return the model's tensors under the published names; the base size has 418."""
        return published(self)


def address_of(weights: str) -> str:
    """Return an address of weights that is the same on every machine.

    For weights that ship with the package it is their place in it; others are returned as given.

    >>> address_of("nano")
    'pkg:generic/anysat#model/weights/nano.safetensors'
    """
    return f"pkg:generic/anysat#model/weights/{SHIPPED[weights].name}" if weights in SHIPPED else weights


def find_statistics(statistics: Normaliser | str | Path) -> Normaliser | None:
    """Return the normaliser given as itself, a JSON file or the name of a preset; None for `from-data`.

    Raises:
        InputError: They are given as something else.
        UnknownNameError, MissingFileError, StatisticsError: There is no such preset or file, or it is not valid.
    """
    if isinstance(statistics, Normaliser):
        return statistics
    if not isinstance(statistics, str | os.PathLike):
        raise InputError(
            "statistics", f"a Normaliser, a JSON file, the name of a preset or {FROM_DATA!r}",
            type(statistics).__name__, "`Normaliser.from_dict` makes one of plain values",
        )  # fmt: skip
    if str(statistics) == FROM_DATA:
        return None
    if str(statistics) in PRESETS:
        return Normaliser.preset(str(statistics))
    if Path(statistics).suffix != ".json" and not Path(statistics).exists():
        raise UnknownNameError("statistics", str(statistics), [*PRESETS, FROM_DATA], "Or give a JSON file")
    return Normaliser.read(statistics)


def save(model: Pretrained, path: str | Path) -> None:
    """Write a model in our file format. A failed write leaves no partial file.

    Raises:
        WriteError: The file cannot be written.
        WeightsError: What would not load again: a name with another suffix, weights that are not finite, or two weights
            that share one tensor, which safetensors files cannot store.
    """
    path = _expanded(path)
    if path.suffix not in SUFFIXES:
        raise WeightsError(path, f"unknown suffix {path.suffix!r}", "give a name that ends in .safetensors")
    meta = {
        "format": FORMAT,
        "anysat": anysat.__version__,
        "config": model.config.to_dict(),
        "normaliser": None if model.normaliser is None else model.normaliser.to_dict(),
        "provenance": model.provenance,
    }
    tensors = {  # compiled parts add a word to the names
        name.replace("_orig_mod.", ""): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    _check_finite("of the model", tensors)
    names_of: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names_of.setdefault(tensor.data_ptr(), []).append(name)
    if tied := [", ".join(names) for names in names_of.values() if len(names) > 1]:
        raise WeightsError(
            "of the model", f"these are one tensor: {'; '.join(tied[:4])}",
            "give each its own, as in `layer.weight = nn.Parameter(layer.weight.detach().clone())`",
        )  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing(path) as new:
            save_file(tensors, new, metadata={"anysat": json.dumps(meta)})
    except (OSError, SafetensorError) as error:
        raise WriteError(path, error) from error


def save_folder(model: Pretrained, folder: Path) -> None:
    """Write a folder with weights, configuration and model card, in the form that the hub and `load` expect.

    Raises:
        WriteError, WeightsError: It cannot be written, see `save`.
    """
    folder = _expanded(folder)
    save(model, folder / OWN_FILE)
    write_output(folder / "config.json", json.dumps(model.config.to_dict(), indent=1))
    write_output(folder / "README.md", model_card(model))


def push(
    model: Pretrained, repo_id: str, *, private: bool | None = None, token: str | None = None, **upload: Any
) -> str:
    """Upload a model to a repository of the hub, which is created if it does not exist.

    Args:
        repo_id: The repository, such as `me/my-model`.
        private: Whether a new repository is private. None for the owner's default.
        token: Token of the hub. None uses the one that the hub's client knows.
        upload: Options of `HfApi.upload_folder`, such as `commit_message`, `revision` and `create_pr`.

    Returns:
        The address of the upload.
    """
    from huggingface_hub import HfApi  # a large import that only this needs

    hub = HfApi(token=token)
    repo = hub.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_folder(model, Path(folder))
        return str(hub.upload_folder(repo_id=repo.repo_id, folder_path=folder, **upload))


def _expanded(path: str | Path) -> Path:
    """Replace `~` by the user's home; that of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises


def model_card(model: Pretrained) -> str:
    """Return the page that a hub shows beside the weights: what they are, their licence, how to load them."""
    licence = model.provenance.get("licence", UNKNOWN_LICENCE).lower()
    keys = ", ".join(modality.key for modality in model.config.modalities)
    return f"""---
license: {licence}
library_name: anysat
tags: [earth-observation, remote-sensing]
---
# AnySat encoder

Weights: {model.provenance.get("weights", "unknown")}.
Width {model.config.dim}, depth {model.config.depth}. Modalities: {keys}.

    import anysat
    model = anysat.load("<this repository>")

Paper: [arXiv 2412.14123](https://arxiv.org/abs/2412.14123).
"""


def read_weights(source: str | Path, *, revision: str | None = None, token: str | None = None) -> WeightFile:
    """Find and read a weight file without building a model. For arguments and errors see `load`."""
    if not isinstance(source, str | os.PathLike):
        raise InputError("weights", "a name, a path or a hub id, such as 'nano'", type(source).__name__)
    name = str(source)
    path = SHIPPED.get(name) or _expanded(source)
    if name and path.is_dir():
        path = path / OWN_FILE
        if not path.is_file():
            raise MissingFileError(path, f"a folder with {OWN_FILE}")
    if not name or not path.is_file():
        if name in SIZES:
            raise WeightsError(
                repr(name), "this is a size, not weights, and only base has published weights",
                f"load {PUBLISHED_REPO!r}, or make an untrained one with AnySat({name!r})",
            )  # fmt: skip
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and path.suffix not in SUFFIXES:
            file = replace(read_file(download(name, revision, token)), source=name)
            licence = PUBLISHED_LICENCE if name == PUBLISHED_REPO else UNKNOWN_LICENCE
            return replace(file, provenance=file.provenance or {"weights": name, "licence": licence})
        shipped = ", ".join(SHIPPED)
        raise MissingFileError(
            name or "''", f"a weight file, a folder that holds one, {shipped}, or a hub id such as g-astruc/AnySat"
        )
    return read_file(path)


def download(repo: str, revision: str | None = None, token: str | None = None) -> Path:
    """Fetch the weight file of a repository through the hub's cache: in our format if it is there, else published.

    Raises:
        WeightsError: It cannot be fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in (OWN_FILE, PUBLISHED_FILE) if repo != PUBLISHED_REPO else (PUBLISHED_FILE,):
        try:
            return Path(hf_hub_download(repo, name, revision=revision, token=token))
        except LocalEntryNotFoundError as error:
            problem: Exception = error  # no connection and not in the cache
            break
        except EntryNotFoundError as error:
            problem = error
        except Exception as error:  # noqa: BLE001 - the hub client raises its own and its HTTP library's errors
            problem = error
            break
    raise WeightsError(
        repo, f"could not be fetched from the hub ({type(problem).__name__}: {problem})",
        "check the name and the connection, or give a local file; for a trial without the hub, take the weights that "
        "ship with the package (`--weights nano`)",
    ) from problem  # fmt: skip


def load_published(model: Pretrained, tensors: Mapping[str, Tensor], source: object = "state dict") -> None:
    """Load tensors with the published names into a model. Names and shapes must match exactly.

    Raises:
        WeightsError: Tensors are missing, extra or of another shape. The message names them.
    """
    ours = {published_name(name, model.config.depth): name for name in model.state_dict()}
    _load_strict(model, tensors, source, ours)


def published(model: Pretrained) -> dict[str, Tensor]:
    """Return a model's state dict under the published names."""
    return {published_name(name, model.config.depth): tensor for name, tensor in model.state_dict().items()}


def check_fitting(source: object, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Check that tensors have the names and shapes of a model's own.

    Raises:
        WeightsError: Tensors are missing, extra or of another shape. The message names them.
    """
    missing = [name for name in own if name not in tensors]
    extra = [name for name in tensors if name not in own]
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if missing or extra or misshapen:
        raise WeightsError.mismatch(source, missing, extra, misshapen)


def _load_strict(
    model: Pretrained, tensors: Mapping[str, Tensor], source: object, ours: Mapping[str, str] | None = None
) -> None:
    own = model.state_dict()
    ours = ours or {name: name for name in own}
    check_fitting(source, tensors, {name: own[our] for name, our in ours.items()})
    if odd := [f"{name} {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype not in _TYPES]:
        raise WeightsError(
            source, f"{len(odd)} tensors of a type that is not computed with ({', '.join(odd[:4])})",
            f"save them in one of {', '.join(map(str, _TYPES))}",
        )  # fmt: skip
    _check_finite(source, tensors)
    model.load_state_dict({ours[name]: tensor for name, tensor in tensors.items()})


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the data type of weights for itself or its name.

    Raises:
        UnknownNameError: Weights have no such type.
    """
    known = {str(one).removeprefix("torch."): one for one in _TYPES}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise UnknownNameError("dtype", name, known)
    return known[name]


def _check_finite(source: object, tensors: Mapping[str, Tensor]) -> None:
    if broken := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise WeightsError(source, f"NaN or infinity in {len(broken)} tensors ({', '.join(broken[:4])})")
