"""Write STAC documents for a finished store: a static catalog that describes its files and what they are made from.

`OUT.stac/catalog.json` links a collection and an item for each group, and an item of the model. Embeddings have `emb:`
fields, the model has `mlm:` fields.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from anysat.errors import RecordError
from anysat.geo.outline import outline
from anysat.geo.stores.conventions import uri
from anysat.geo.stores.stored import StoredGroup, open_stored, provenance_of
from anysat.geo.write.outputs import OUTPUTS, STORE
from anysat.geo.write.tables import times_of
from anysat.geo.write.writers import staged
from anysat.modalities import Modality

if TYPE_CHECKING:
    import pystac

EMB = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
MLM = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"
"""What pystac's extension writes as 1.4.0 is valid as 1.5.2."""
EO = "https://stac-extensions.github.io/eo/v1.1.0/schema.json"
"""For `eo:bands`, to which inputs of the model refer; STAC 1.1 itself has bands in assets only."""
_DATA_TYPES = {"float32": "float32", "float16": "float16", "int8": "int8", "uint8": "uint8"}


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The model that made a store."""

    name: str
    """Hub id, path or address of the weights, or the name under which they ship."""
    digest: str
    """Digest of the weights: `sha256:…`."""
    num_parameters: int
    dim: int
    """Length of a patch embedding."""
    modalities: Sequence[Modality]
    licence: str = ""
    """SPDX name, if known."""
    statistics: str = ""
    """Statistics that values are standardised with."""
    tasks: Sequence[str] = ("similarity-search",)
    """Tasks from the list of the mlm extension."""
    address: str = ""
    """Address of the weights, if it is not their name."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Measured energy use, never an estimate."""

    device: str
    """cpu or gpu."""
    energy_kwh: float
    duration_s: float
    max_power_w: float | None = None
    name: str = ""
    """Name of the device."""

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "gpu"):
            raise RecordError("energy: device", self.device, "cpu or gpu")
        if not (self.energy_kwh >= 0 and self.duration_s >= 0):
            raise RecordError("energy", (self.energy_kwh, self.duration_s), "kWh and seconds, both 0 or more")

    def to_dict(self) -> dict[str, Any]:
        """Return the `emb:energy` object."""
        found: dict[str, Any] = {
            "device_type": self.device,
            "energy_kwh": self.energy_kwh,
            "inference_duration_s": self.duration_s,
        }
        if self.duration_s:
            found["avg_power_w"] = self.energy_kwh * 3.6e6 / self.duration_s
        if self.max_power_w is not None:
            found["max_power_w"] = self.max_power_w
        return found | ({"name": self.name} if self.name else {})


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """How a store was made."""

    model: ModelFacts
    inputs: Mapping[str, Mapping[str, Any]]
    """`path` or `paths`, and `dates`, by modality."""
    options: Mapping[str, Any]
    """Anything that can be written as JSON: patch size, periods …"""
    version: str
    """Version of this package."""
    finished: datetime
    seconds: float | None = None
    energy: Energy | None = None

    @classmethod
    def of(
        cls, store: Path, model: ModelFacts, *, energy: Energy | None = None, finished: datetime | None = None
    ) -> Self:
        """Collect the facts from a finished store (`inputs`, `options`, `version`, `last_run`) and the arguments.

        Args:
            store: NAME.zarr.
            model: The model that made it.
            energy: Measured energy use; None for that in the store (`joules`), if any.
            finished: When the run finished; None for now.
        """
        told = provenance_of(store)
        made_from, run = told.get("made_from", {}), told.get("summary", {}).get("last_run", {})
        if energy is None and run.get("joules") is not None:
            energy = Energy(device="cpu", energy_kwh=run["joules"] / 3.6e6, duration_s=run["wall"])
        return cls(
            model=model, inputs=made_from.get("inputs", {}), options=made_from.get("options", {}),
            version=str(made_from.get("version") or told.get("version", "")), finished=finished or datetime.now(UTC),
            seconds=run.get("wall"), energy=energy,
        )  # fmt: skip


def catalog_of(store: Path) -> Path:
    """Return the folder of a store's documents."""
    return store.with_suffix(".stac")


def write_catalog(
    store: Path, run: RunFacts, *, exports: Mapping[str, Sequence[Path]] | None = None, overwrite: bool = False
) -> Path:
    """Write the documents beside a finished store, and return the path of `catalog.json`.

    Args:
        store: NAME.zarr.
        run: How it was made.
        exports: Further files of each group.
        overwrite: Replace existing documents.

    Raises:
        SourceError, MissingFileError: There is no such store.
        WriteError: Documents exist or cannot be written. Nothing is left behind.
    """
    import pystac

    groups, final = open_stored(store), catalog_of(store.absolute())
    root = pystac.Catalog(id=store.stem, description=f"What {store.name} holds and is made from", title=store.stem)
    model = model_item(run)
    root.add_item(model)
    for name, group in groups.items():
        item = product_item(store, group, run)
        for path in (exports or {}).get(name, ()):
            item.add_asset(_asset_key(path), _asset(path, final / name / item.id))
        collection = product_collection(store, group, run, item)
        root.add_child(collection)
        collection.add_item(item)
    with staged([final], overwrite=overwrite) as folder:
        _save(root, model, groups, store, final, folder / final.name)
    return final / "catalog.json"


def recorded_files(store: Path) -> list[Path]:
    """Return the files beside a store that its documents list as made from it."""
    found: dict[Path, None] = {}
    for document in sorted(catalog_of(store.absolute()).glob("*/item.json")):
        try:
            assets = json.loads(document.read_text())["assets"].values()
            paths = [(document.parent / asset["href"]).resolve() for asset in assets]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged
            continue
        found |= {store.with_name(path.name): None for path in paths if path.parent == store.parent.resolve()}
    return [path for path in found if path.is_file()]


def product_item(store: Path, group: StoredGroup, run: RunFacts) -> pystac.Item:
    """Return the item of one group, with place, time and processing. The store is added as its asset later."""
    import pystac
    from pystac.extensions.processing import ProcessingExtension
    from pystac.extensions.projection import ProjectionExtension

    footprint, bbox = outline(group.geobox)
    start, end = _interval(group, run)
    item = pystac.Item(
        id=f"{store.stem}-{group.name}", geometry=footprint, bbox=bbox, datetime=None, properties={},
        start_datetime=start, end_datetime=end,
    )  # fmt: skip
    item.common_metadata.gsd = abs(group.geobox.resolution.x)
    item.common_metadata.created = run.finished
    code = group.attributes.get("proj:code")
    crs = {"code": code} if code else {"wkt2": group.geobox.crs.to_wkt() if group.geobox.crs else None}
    bounds = group.geobox.boundingbox
    ProjectionExtension.ext(item, add_if_missing=True).apply(
        **crs, shape=list(group.geobox.shape), transform=list(group.geobox.affine)[:6],
        bbox=[bounds.left, bounds.bottom, bounds.right, bounds.top],
    )  # fmt: skip
    ProcessingExtension.ext(item, add_if_missing=True).apply(
        software={"anysat": run.version}, version=run.version, processing_datetime=run.finished,
        lineage=f"{group.variable} of {', '.join(run.inputs)} by {run.model.name} ({run.model.digest})",
    )  # fmt: skip
    item.properties.update(_provenance(group, run))
    if group.is_embedding:
        item.stac_extensions.append(EMB)
        item.properties.update(_emb_item(group, run))
    _link_sources(item, run)
    return item


def _provenance(group: StoredGroup, run: RunFacts) -> dict[str, Any]:
    found: dict[str, Any] = {
        "anysat:inputs": {key: dict(given) for key, given in run.inputs.items()},
        "anysat:weights": run.model.digest,
        "anysat:periods": [[str(first), str(last)] for first, last in group.periods],
    }
    return found if run.seconds is None else found | {"anysat:seconds": run.seconds}


def _emb_item(group: StoredGroup, run: RunFacts) -> dict[str, Any]:
    found: dict[str, Any] = {
        "emb:runtime_parameters": dict(run.options),
        "emb:preprocessing": {"format": "anysat", "expression": "standardise"},
    }
    quantisation = group.attributes.get("geoemb:quantization")
    if quantisation:
        told = {key: quantisation[key] for key in ("method", "original_dtype", "quantized_dtype")}
        scale = group.scale
        found["emb:quantization"] = told | ({} if scale is None else {"scale": [float(step) for step in scale]})
    if run.energy is not None:
        found["emb:energy"] = run.energy.to_dict()
    return found


def product_collection(store: Path, group: StoredGroup, run: RunFacts, item: pystac.Item) -> pystac.Collection:
    """Return the collection of one group, with `emb:` fields if it holds embeddings."""
    import pystac

    start, end = _interval(group, run)
    extent = pystac.Extent(pystac.SpatialExtent([item.bbox or []]), pystac.TemporalExtent([[start, end]]))
    facts = group.attributes
    what = "Embeddings" if group.is_embedding else "Map"
    found = pystac.Collection(
        id=f"{store.stem}-{group.name}-collection", extent=extent, license="other",
        title=f"{store.stem}: {group.name}",
        description=f"{what} ({group.name}, {group.variable}) by {run.model.name}, written by anysat {run.version}",
    )  # fmt: skip
    if group.is_embedding:
        found.stac_extensions.append(EMB)
        fields = {"emb:type": facts["geoemb:type"], "emb:dimensions": facts["geoemb:dimensions"],
                  "data_type": _DATA_TYPES[group.array.dtype.name], "gsd": facts["geoemb:gsd"]}  # fmt: skip
        if "geoemb:chip_layout" in facts:
            fields["emb:chip_layout"] = facts["geoemb:chip_layout"]
        if len(group.periods) > 1:
            fields["emb:temporal_resolution"] = f"{len(group.periods)} periods"
        found.extra_fields.update(fields)
    _link_sources(found, run)
    return found


def model_item(run: RunFacts) -> pystac.Item:
    """Return the MLM item of the model."""
    import pystac
    from pystac.extensions.mlm import (
        AssetGeneralMLMExtension,
        MLMExtension,
        ModelOutput,
        ResultStructure,
        TaskType,
    )

    model = run.model
    whole = {"type": "Polygon", "coordinates": [[[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]]}
    item = pystac.Item(
        id="model", geometry=whole, bbox=[-180.0, -90.0, 180.0, 90.0], datetime=run.finished,
        properties={"anysat:weights": model.digest, "anysat:statistics": model.statistics},
    )  # fmt: skip
    names = {f"{modality.key}.{band}" for modality in model.modalities for band in modality.band_names}
    item.properties["eo:bands"] = [{"name": name} for name in sorted(names)]
    inputs = [_model_input(modality) for modality in model.modalities]
    patches = ResultStructure.create([-1, -1, -1, model.dim], ["batch", "height", "width", "dim"], "float32")  # type: ignore[arg-type]
    output = ModelOutput.create(name="patch", tasks=[TaskType(task) for task in model.tasks], result=patches)
    MLMExtension.ext(item, add_if_missing=True).apply(
        name=_model_name(model.name), architecture="AnySat", tasks=[TaskType(task) for task in model.tasks],
        framework="PyTorch", total_parameters=model.num_parameters, pretrained=True, input=inputs, output=[output],
    )  # fmt: skip
    href = uri(model.address or model.name)
    asset = pystac.Asset(href=href, roles=["mlm:model"], title="weights", media_type="application/octet-stream")
    item.add_asset("weights", asset)
    AssetGeneralMLMExtension.ext(asset).apply(artifact_type="safetensors.torch.save_file")
    item.properties = {key: value for key, value in item.properties.items() if value not in (None, "")}
    item.stac_extensions = [EO, *(MLM if "/mlm/" in name else name for name in item.stac_extensions)]
    if model.licence:
        item.properties["license"] = model.licence
    return item


def _model_input(modality: Modality) -> Any:
    from pystac.extensions.mlm import InputStructure, ModelBand, ModelInput

    shape: Any = [-1, -1, len(modality.band_names), -1, -1]
    return ModelInput.create(
        name=modality.key, bands=[ModelBand.create(f"{modality.key}.{band}") for band in modality.band_names],
        input=InputStructure.create(shape, ["batch", "time", "bands", "height", "width"], "float32"),  # type: ignore[arg-type]
        description=f"{modality.sensor}, {modality.gsd_m:g} m, in the units of the statistics",
    )  # fmt: skip


def _save(
    root: pystac.Catalog, model: pystac.Item, groups: Iterable[str], store: Path, final: Path, folder: Path
) -> None:
    """Write the documents with relative links that will be right in the final place."""
    import pystac
    from pystac.layout import CustomLayoutStrategy

    def place(name: str) -> str:
        return str(folder / name)

    of_item = {f"{store.stem}-{name}": f"{name}/item.json" for name in groups} | {model.id: "model.json"}
    of_collection = {f"{store.stem}-{name}-collection": f"{name}/collection.json" for name in groups}
    layout = CustomLayoutStrategy(
        catalog_func=lambda *_: place("catalog.json"),
        collection_func=lambda collection, *_: place(of_collection[collection.id]),
        item_func=lambda item, *_: place(of_item[item.id]),
    )
    for collection in root.get_collections():
        name = Path(of_collection[collection.id]).parent
        for item in collection.get_items():
            key = "embeddings" if any(link == EMB for link in item.stac_extensions) else "map"
            href = os.path.relpath(store.absolute(), final / name)
            media_type = OUTPUTS[STORE].media_type
            item.add_asset(key, pystac.Asset(href=href, media_type=media_type, roles=["data"], title=store.name))
        title = "Model as a STAC MLM item"
        for owner in (collection, *collection.get_items()):
            owner.add_link(pystac.Link("emb:model", model, media_type="application/geo+json", title=title))
    root.normalize_hrefs(str(folder), strategy=layout)
    folder.mkdir(parents=True)
    root.save(catalog_type=pystac.CatalogType.SELF_CONTAINED)


def _link_sources(owner: pystac.Item | pystac.Collection, run: RunFacts) -> None:
    import pystac

    for key, found in run.inputs.items():
        paths = found.get("paths") or [found.get("path", key)]
        for path in paths:
            owner.add_link(pystac.Link("emb:source-data", uri(str(path)), title=key))


def _interval(group: StoredGroup, run: RunFacts) -> tuple[datetime, datetime]:
    """Return first and last second of all periods, else of the inputs' dates, else the time of the run."""
    days = [day for period in group.periods for day in period]
    if not days:
        days = [date.fromisoformat(str(day)[:10]) for found in run.inputs.values() for day in found.get("dates", ())]
    if not days:
        return run.finished, run.finished
    columns = times_of((min(days), max(days)), 1)
    start, end = columns["start_datetime"][0], columns["end_datetime"][0]
    assert start is not None
    assert end is not None
    return start, end


def _asset_key(path: Path) -> str:
    return re.sub(r"[^\w-]+", "_", path.name)


def _asset(path: Path, item_folder: Path) -> pystac.Asset:
    import pystac

    href = os.path.relpath(path.absolute(), item_folder.parent)
    media_type = OUTPUTS[path.suffix].media_type if path.suffix in OUTPUTS else None  # such as NAME.tif.aux.xml
    return pystac.Asset(href=href, media_type=media_type, roles=["data"], title=path.name)


def _model_name(name: str) -> str:
    """Convert a name to the form that the extension requires: letters first, no slash."""
    found = re.sub(r"[^a-zA-Z0-9_.\-\s]+", "-", name).strip("-_. ")
    found = re.sub(r"^[^a-zA-Z]+", "", found)
    return found if len(found) > 2 else f"model-{found or 0}"
