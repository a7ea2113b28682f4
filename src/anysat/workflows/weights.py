"""Weight files: convert to our own format, and look inside one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from anysat.errors import RecordError

if TYPE_CHECKING:
    from rich.table import Table

    from anysat.model.encoder import AnySat


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Write weights as one safetensors file with configuration, statistics and licence."""

    source: str = field(
        metadata={
            "positional": "SOURCE",
            "help": "Published .pth, training checkpoint, .safetensors, folder or hub id.",
        }
    )
    out: str
    """File to write, ending in .safetensors."""
    statistics: str | None = None
    """Statistics to keep with the weights: a JSON file or a preset such as treesatai_ts."""
    fusion_attention: str | None = None
    """Set to within_token or tokens to fix how the fusion transformer attends; see `weights inspect`."""

    def __post_init__(self) -> None:
        if Path(self.out).suffix != ".safetensors":
            raise RecordError("--out", self.out, "a file ending in .safetensors")


def convert(config: ConvertConfig) -> str:
    """Load, check and write; returns what was done."""
    from dataclasses import replace

    from anysat.model.checkpoint import load, save
    from anysat.model.config import ModelConfig

    wanted = None
    if config.fusion_attention is not None:
        from anysat.model.checkpoint import read_weights

        kept = read_weights(config.source).config or ModelConfig.base()
        wanted = replace(kept, fusion_attention=config.fusion_attention)  # type: ignore[arg-type]  # checked there
    model = load(config.source, config=wanted, statistics=config.statistics)
    save(model, config.out)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"wrote {config.out}: {num_parameters:,} parameters, {len(model.state_dict())} tensors"


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Tell what a weight file holds, and whether it is what it should be."""

    source: str = field(
        metadata={
            "positional": "SOURCE",
            "help": "Published .pth, training checkpoint, .safetensors, folder or hub id.",
        }
    )


def inspect(config: InspectConfig) -> Table:
    """A table of facts about one file; a file whose tensors do not fit is an error."""
    from rich.table import Table

    from anysat.model.checkpoint import load

    table = Table("fact", "value", show_header=False, title=config.source)
    for fact, value in _facts(load(config.source)).items():
        table.add_row(fact, value)
    return table


def _facts(model: AnySat) -> dict[str, str]:
    """What weights are, and two traits that tell how they were trained."""
    c = model.config
    tables = [p.detach() for name, p in model.named_parameters() if name.endswith("relative.weight")]
    never_used, used = (
        sum(float(t[..., part].std()) for t in tables) / len(tables) for part in (slice(3), slice(3, 8))
    )
    fills = {name.split(".")[1]: p.item() for name, p in model.named_parameters() if name.endswith(".fill")}
    learned = ", ".join(f"{key} {value:.3g}" for key, value in fills.items() if value != 0)
    return {
        **model.provenance,
        "size": f"dim {c.dim}, depth {c.depth}, {c.num_heads} heads",
        "tensors": f"{len(model.state_dict()):,}",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "modalities": ", ".join(m.key for m in c.modalities),
        "conventions": f"subpatch_order {c.subpatch_order}, rpe_heads {c.rpe_heads}, "
        f"fusion_attention {c.fusion_attention}, {c.day_convention}",
        "statistics": "none"
        if model.normaliser is None
        else f"{', '.join(model.normaliser.statistics)} ({model.normaliser.source})",
        "fill of missing values": learned or "0 for every series, as when it was never trained",
        "relative-position tables": f"spread {used:.3g} where used, {never_used:.3g} where no distance leads",
    }
