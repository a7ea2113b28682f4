"""The command that lists the modalities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anysat.modalities import MODALITIES, RELEASED, read_modalities

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class SensorsConfig:
    """List the sensors: bands in the model's order, pixel and sub-patch sizes."""

    sensors: str | None = None
    """YAML file with your own modality records, which are listed after the built-in ones."""


def sensors(config: SensorsConfig) -> Table:
    """Return a table with one row per modality."""
    from rich.table import Column, Table

    columns = ("sensor", "bands, in order", "pixel", "sub-patch", "kind", "published weights")
    table = Table(Column("key", no_wrap=True), *(Column(name, overflow="fold") for name in columns))
    own = read_modalities(config.sensors) if config.sensors else ()
    for modality in (*MODALITIES.values(), *own):
        kind = f"{'radar' if modality.is_radar else 'optical'} {'series' if modality.is_temporal else 'image'}"
        table.add_row(
            modality.key,
            modality.sensor,
            " ".join(modality.band_names),
            f"{modality.gsd_m:g} m",
            f"{modality.subpatch_m:g} m",
            kind + (", context of the whole tile" if modality.covers_tile else ""),
            "yes" if modality in RELEASED else "no",
        )
    return table
