"""Weights in and out: the published files, our own file, the Hugging Face hub.

Our file is one safetensors file: weights, and as metadata the configuration with its modality
records, the statistics, the provenance and the licence. Nothing is ever unpickled beyond tensors.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import anysat
from anysat.errors import MissingFileError, RecordError, StatisticsError, UnknownNameError, WeightsError, WriteError
from anysat.model.config import SIZES, ModelConfig
from anysat.model.encoder import AnySat
from anysat.normalise import PRESETS, Normaliser, write_text

PUBLISHED_REPO = "g-astruc/AnySat"
PUBLISHED_FILE = "models/AnySat.pth"
PUBLISHED_LICENCE = "MIT"
UNKNOWN_LICENCE = "unknown"
OWN_FILE = "model.safetensors"
FORMAT = "anysat-1"
FROM_DATA = "from-data"
TEACHER = "target_encoder."
SHIPPED = {"nano": Path(__file__).with_name("weights") / "nano.safetensors"}
"""Weights that are part of the package, by name; their card lies beside them. Add others here."""
TASK_FORMAT = "anysat-task-1"
"""Of a predictor's file, encoder and head in one, which `anysat.tasks.predictor` reads."""
_PICKLED = (".pth", ".pt", ".ckpt", ".bin")

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
    """The published state dict's name of one of our tensors.

    Examples:
        >>> published_name("fusion.pooling.attention.query", depth=6)
        'blocks.6.attn.q_learned'
    """
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name.format(depth=depth)


@dataclass(frozen=True)
class WeightFile:
    """What a weight file holds, read but not yet put into a model."""

    source: str
    """Path or hub id, for messages."""
    tensors: Mapping[str, Tensor]
    """By our names or by the published ones."""
    published: bool
    """Whether the tensors carry the published names."""
    config: ModelConfig | None = None
    """Kept in our own files only."""
    normaliser: Normaliser | None = None
    provenance: Mapping[str, str] | None = None


def load(
    source: str | Path,
    *,
    config: ModelConfig | None = None,
    statistics: Normaliser | str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    token: str | None = None,
) -> AnySat:
    """Load an encoder, in eval mode, on the device and in the type asked for.

    Args:
        source: `nano`, which ships with the package, a hub id (`g-astruc/AnySat`), a published `.pth` or
            training checkpoint, our `.safetensors`, or a folder that holds one.
        config: shape and modalities, needed where the file does not keep them and is not the
            published base size with its 11 modalities.
        statistics: what `encode` standardises with: a `Normaliser`, a JSON file, a preset name, or
            `"from-data"` (computed from each batch, with a warning). None takes those in the file,
            else `"from-data"`.
        device: where the weights go.
        dtype: type of the weights; bfloat16 halves memory.
        revision: branch, tag or commit of a hub id.
        token: for private hub repositories; None takes the one the hub's client knows.

    Raises:
        MissingFileError, WeightsError: no such source; tensors missing, extra or misshapen; a pickle
            with more than tensors (it is not run).
    """
    file = read_weights(source, revision=revision, token=token)
    model = AnySat(config or file.config or ModelConfig.base(), normaliser=file.normaliser)
    if file.published:
        load_published(model, file.tensors, source=file.source)
    else:
        _load_strict(model, file.tensors, file.source)
    model.provenance = dict(file.provenance or {"weights": file.source, "licence": UNKNOWN_LICENCE})
    if statistics is not None:
        model.normaliser = find_statistics(statistics)
    return model.to(device=device, dtype=dtype).eval()


def address_of(weights: str) -> str:
    """Where others find weights: of those that ship, their place in this package, the same everywhere; else as given.

    >>> address_of("nano")
    'pkg:generic/anysat#model/weights/nano.safetensors'
    """
    return f"pkg:generic/anysat#model/weights/{SHIPPED[weights].name}" if weights in SHIPPED else weights


def find_statistics(statistics: Normaliser | str | Path) -> Normaliser | None:
    """A normaliser given as itself, a file or a preset name; None for `from-data`."""
    if isinstance(statistics, Normaliser):
        return statistics
    if str(statistics) == FROM_DATA:
        return None
    if str(statistics) in PRESETS:
        return PRESETS[str(statistics)]
    if Path(statistics).suffix != ".json" and not Path(statistics).exists():
        raise UnknownNameError("statistics", str(statistics), [*PRESETS, FROM_DATA], "Or give a JSON file")
    return Normaliser.read(statistics)


def save(model: AnySat, path: str | Path) -> None:
    """Write our own file; it appears whole or not at all."""
    path = Path(path)
    meta = {
        "format": FORMAT,
        "anysat": anysat.__version__,
        "config": model.config.to_dict(),
        "normaliser": None if model.normaliser is None else model.normaliser.to_dict(),
        "provenance": model.provenance,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            partial = Path(folder) / path.name
            save_file(tensors, partial, metadata={"anysat": json.dumps(meta)})
            partial.chmod(path.stat().st_mode if path.exists() else 0o666 & ~_umask())
            partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise WriteError(path, error) from error


def save_folder(model: AnySat, folder: Path) -> None:
    """Write weights, shape and card, as hubs and `load` take them.

    Raises:
        WriteError: they cannot be written.
    """
    save(model, folder / OWN_FILE)
    write_text(folder / "config.json", json.dumps(model.config.to_dict(), indent=1))
    write_text(folder / "README.md", model_card(model))


def push(model: AnySat, repo_id: str, *, private: bool | None = None, token: str | None = None, **upload: Any) -> str:
    """Upload a model to a repository of the hub, which is made where there is none.

    Args:
        model: what is uploaded.
        repo_id: `me/my-model`.
        private: of a new repository; None for the owner's default.
        token: None takes the one the hub's client knows.
        upload: options of `HfApi.upload_folder`, as `commit_message`, `revision` and `create_pr`.

    Returns:
        Its address.
    """
    from huggingface_hub import HfApi  # imports much that only a hub needs

    hub = HfApi(token=token)
    repo = hub.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_folder(model, Path(folder))
        return str(hub.upload_folder(repo_id=repo.repo_id, folder_path=folder, **upload))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def model_card(model: AnySat) -> str:
    """The page a hub shows beside the weights: what they are, their licence, how to load them."""
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
    """Find and read a weight file without building a model."""
    name = str(source)
    path = SHIPPED.get(name, Path(source))
    if path.is_dir():
        path = path / OWN_FILE
        if not path.is_file():
            raise MissingFileError(path, f"a folder with {OWN_FILE}")
    if not path.is_file():
        if name in SIZES:
            raise WeightsError(
                repr(name), "this is a size, not weights, and only base has published weights",
                f"load {PUBLISHED_REPO!r}, or make an untrained one with AnySat(ModelConfig.{name}())",
            )  # fmt: skip
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and path.suffix not in (*_PICKLED, ".safetensors"):
            file = replace(_read_file(download(name, revision, token)), source=name)
            licence = PUBLISHED_LICENCE if name == PUBLISHED_REPO else UNKNOWN_LICENCE
            return replace(file, provenance=file.provenance or {"weights": name, "licence": licence})
        shipped = ", ".join(SHIPPED)
        raise MissingFileError(
            name, f"a weight file, a folder that holds one, {shipped}, or a hub id such as g-astruc/AnySat"
        )
    return _read_file(path)


def download(repo: str, revision: str | None = None, token: str | None = None) -> Path:
    """Fetch a repository's weight file through the hub's cache: ours if it is there, else the published one."""
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
        "check the name and the connection, or give a local file",
    ) from problem  # fmt: skip


def _read_file(path: Path) -> WeightFile:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _PICKLED:
        tensors = _teacher(_read_pickle(path))
        return WeightFile(str(path), tensors, published=True)
    raise WeightsError(
        path, f"unknown suffix {path.suffix!r}", f"expected .safetensors or one of {', '.join(_PICKLED)}"
    )


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="pt") as file:
            meta: Any = json.loads((file.metadata() or {}).get("anysat", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(path, f"not a readable safetensors file ({error})") from error
    if meta is None:
        return WeightFile(str(path), tensors, published=True)
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
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # a refusal follows where it matters
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "global" in str(error).lower():
            raise WeightsError(
                path, f"holds more than tensors and was refused, nothing of it was run ({_first_line(error)})",
                "save its state dict alone where you trust the file",
            ) from error  # fmt: skip
        raise WeightsError(path, f"not a readable checkpoint ({_first_line(error)})") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(path, f"not a readable checkpoint ({_first_line(error)})") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise WeightsError(path, f"holds no state dict but {type(content).__name__}")
    return dict(content)


def _teacher(tensors: dict[str, Any]) -> dict[str, Any]:
    """The averaged teacher's encoder if this is a whole training checkpoint, else the tensors as they are."""
    teacher = {name.removeprefix(TEACHER): t for name, t in tensors.items() if name.startswith(TEACHER)}
    return teacher or tensors


def _first_line(error: Exception) -> str:
    line = str(error).strip().split("\n")[0].split(" Re-running")[0].split(" In PyTorch 2.6")[0]
    return line or type(error).__name__


def load_published(model: AnySat, tensors: Mapping[str, Tensor], source: object = "state dict") -> None:
    """Put published tensors into a model: strict, exact names.

    Raises:
        WeightsError: naming what is missing, extra or misshapen.
    """
    ours = {published_name(name, model.config.depth): name for name in model.state_dict()}
    _load_strict(model, tensors, source, ours)


def published(model: AnySat) -> dict[str, Tensor]:
    """A model's state dict under the published names."""
    return {published_name(name, model.config.depth): tensor for name, tensor in model.state_dict().items()}


def _load_strict(
    model: AnySat, tensors: Mapping[str, Tensor], source: object, ours: Mapping[str, str] | None = None
) -> None:
    own = model.state_dict()
    ours = ours or {name: name for name in own}
    missing = [name for name in ours if name not in tensors]
    extra = [name for name in tensors if name not in ours]
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[ours[name]].shape)}"
        for name in ours
        if name in tensors and tensors[name].shape != own[ours[name]].shape
    ]
    if missing or extra or misshapen:
        raise WeightsError.mismatch(source, missing, extra, misshapen)
    if broken := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise WeightsError(source, f"NaN or infinity in {len(broken)} tensors ({', '.join(broken[:4])})")
    model.load_state_dict({ours[name]: tensor for name, tensor in tensors.items()})
