"""Pages and tables made from the code when the documentation is built."""

import torch

from anysat.modalities import MODALITIES, NOT_RELEASED
from anysat.model.config import SIZES
from anysat.model.encoder import AnySat


def modalities_table() -> str:
    """One row per modality."""
    rows = [
        "| key | sensor | bands, in order | pixel | sub-patch | kind | published weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in MODALITIES.values():
        kind = f"{'radar' if m.is_radar else 'optical'} {'series' if m.is_temporal else 'image'}"
        context = ", context of the tile" if m.covers_tile else ""
        units = dict.fromkeys(m.units)
        bands = "; ".join(f"{' '.join(b.name for b in m.bands if b.unit == unit)} ({unit})" for unit in units)
        released = "no" if m.key in NOT_RELEASED else "yes"
        rows.append(
            f"| `{m.key}` | {m.sensor} | {bands} | {m.gsd_m:g} m | {m.subpatch_m:g} m | {kind}{context} | {released} |"
        )
    return "\n".join(rows)


def sizes_table() -> str:
    """One row per named size."""
    rows = ["| size | width | depth | heads | parameters | tensors |", "|---|---|---|---|---|---|"]
    for name, make in SIZES.items():
        config = make()
        with torch.device("meta"):
            model = AnySat(config)
        count = sum(p.numel() for p in model.parameters())
        tensors = len(model.state_dict())
        rows.append(f"| {name} | {config.dim} | {config.depth} | {config.num_heads} | {count:,} | {tensors} |")
    return "\n".join(rows)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in the tables."""
    for name, make in (("modalities", modalities_table), ("sizes", sizes_table)):
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", make())
    return markdown
