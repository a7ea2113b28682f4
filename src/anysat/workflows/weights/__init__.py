"""Commands for weight files: convert to the package's own format, and inspect."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anysat.choices import check_choices
from anysat.errors import OutputExistsError
from anysat.geo.write.outputs import Result, check_output, named
from anysat.workflows.kept import check_heard, kept_sources

if TYPE_CHECKING:
    from rich.table import Table

    from anysat.model.config import ModelConfig


_SOURCE = {
    "positional": "SOURCE",
    "help": "A published .pth, a training checkpoint, a .safetensors file, a folder or a hub id.",
}
Size = Literal["base", "small", "tiny"]


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Convert weights to one safetensors file with configuration, statistics and licence."""

    source: str = field(metadata=_SOURCE)
    out: str = field(metadata={"help": f"File to write: {named(Result.WEIGHTS)}."})
    """File to write."""
    size: Size = "base"
    """Size of the model, if the file does not record it."""
    statistics: str | None = None
    """Statistics to store with the weights: a JSON file, or a preset such as treesatai_ts."""
    fusion_attention: Literal["tokens", "within_token"] | None = None
    """How the fusion transformer attends, to be stored with the weights; see `weights inspect`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type to write; bfloat16 halves the size."""
    overwrite: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_output("--out", self.out, Result.WEIGHTS)


def convert(config: ConvertConfig) -> str:
    """Load, check and write weights, and return what was done.

    Raises:
        OutputExistsError: The file exists, and `overwrite` is False.
        WeightsError: The weights cannot be read.
    """
    import torch

    from anysat.model.checkpoint import read_weights, save
    from anysat.model.load import load

    if Path(config.out).exists() and not config.overwrite:
        raise OutputExistsError([config.out])
    wanted = read_weights(config.source).config or _sized(config.size)
    if config.fusion_attention is not None:
        wanted = replace(wanted, fusion_attention=config.fusion_attention)
    model = load(config.source, config=wanted, statistics=config.statistics, dtype=getattr(torch, config.dtype))
    save(model, config.out)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"wrote {config.out}: {num_parameters:,} parameters, {len(model.state_dict())} tensors"


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Show what a weight file contains, and check that it fits the model."""

    source: str = field(metadata=_SOURCE)
    size: Size = "base"
    """Size of the model, if the file does not record it."""
    inputs: list[str] = field(default_factory=list)
    """Files of one tile, as for `anysat embed`, from two sensors or more, such as [s2=cube.nc, aerial=photo.tif]. With
    them, both variants of the fusion attention are compared: for each pair of sensors, embedded alone, how much they
    agree about patches. Compare with the figures of an untrained model: the variant whose agreement training raised is
    the one the weights were trained with."""
    patch_size_m: float = 20.0
    """Side of a patch for that comparison, in metres."""
    dataset: str | None = None
    """Name of the dataset whose statistics to use, if the file holds those of several."""

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.inputs:
            check_heard(self, ("patch_size_m", "dataset"), "without --inputs, which it is for")


def inspect(config: InspectConfig) -> Table:
    """Return a table of facts about weights.

    Raises:
        WeightsError: The tensors do not fit the model.
    """
    from rich.table import Table

    from anysat.model.checkpoint import read_weights
    from anysat.model.load import load
    from anysat.workflows.weights.facts import attention_agreement, weight_facts

    model = load(config.source, config=read_weights(config.source).config or _sized(config.size))
    facts = weight_facts(model)
    if config.inputs:
        trained = kept_sources(config.source)
        facts |= attention_agreement(model, config.inputs, config.patch_size_m, config.dataset, trained)
    table = Table("fact", "value", show_header=False, title=config.source)
    for fact, value in facts.items():
        table.add_row(fact, value)
    return table


def _sized(size: Size) -> ModelConfig:
    from anysat.model.config import SIZES

    return SIZES[size]()
