"""Ground without end for tests of areas: sources whose pixels are functions of their coordinates, and jobs on them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

import anysat
from anysat.areas.job import Job
from anysat.areas.maps import MapJob
from anysat.areas.units import UnitFiles
from anysat.areas.windows import Windowing
from anysat.data.base import Target
from anysat.errors import SourceError
from anysat.geo.area import Area
from anysat.geo.grid import Footprint
from anysat.geo.stores.layout import Layout
from anysat.geo.stores.store import AreaStore
from anysat.modalities import MODALITIES, Modality
from anysat.normalise import BandStatistics, Normaliser
from anysat.observation import Observation
from anysat.tasks.base import make_task
from anysat.tasks.predictor import Predictor, View, load_task

LEFT, TOP, CRS = 600_000.0, 5_600_000.0, "EPSG:32631"
PERIOD = (np.datetime64("2020-01-01"), np.datetime64("2020-12-31"))


@dataclass(eq=False)
class Waves:
    """A source of one modality: each band and date a wave over the ground, with a hole where nothing was seen."""

    modality: Modality
    num_dates: int = 3
    hole: tuple[float, float, float] | None = None
    """Centre x, y and half side in metres, in which no date is valid."""
    only: tuple[float, float, float] | None = None
    """Centre x, y and half side in metres, outside which no date is valid."""
    fails: int = 0
    """How often reading raises before it works; negative for ever."""
    reads: list = field(default_factory=list)
    name: str = "waves"

    def __post_init__(self):
        self._lock = threading.Lock()
        self.units = dict(enumerate(band.unit for band in self.modality.bands))
        self.bands = self.modality.band_names
        self.dates = np.arange("2020-01-10", "2020-12-10", 300 // max(self.num_dates, 1), dtype="datetime64[D]")
        self.dates = self.dates[: self.num_dates] if self.modality.is_temporal else None

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def footprint(self):
        side = round(100_000 / self.modality.gsd_m)
        grid = GeoBox((side, side), Affine(self.modality.gsd_m, 0, LEFT, 0, -self.modality.gsd_m, TOP), CRS)
        return Footprint(name=self.name, modality=self.modality, geoboxes=(grid,))

    def touching(self, geobox, between=None):
        """One layer with all dates in the range, everywhere."""
        is_in = [
            between is None or between[0] <= day <= between[1] for day in ([] if self.dates is None else self.dates)
        ]
        return [SimpleNamespace(steps=(-1,) if self.dates is None else tuple(np.flatnonzero(is_in).tolist()))]

    def observe(self, geobox, *, between=None, attempt=lambda read: read()):
        return self._observed(geobox, between, attempt(lambda: self._read(geobox)) is not None), "waves"

    def _read(self, geobox):
        with self._lock:
            self.reads.append(geobox)
            if self.fails:
                self.fails -= 1
                raise SourceError(self.name, "the disk said no")
        return True

    def _observed(self, geobox, between, is_read):
        x = geobox.affine.c + geobox.affine.a * (np.arange(geobox.width) + 0.5)
        y = geobox.affine.f + geobox.affine.e * (np.arange(geobox.height) + 0.5)
        dates = self.dates
        if dates is not None and between is not None:
            dates = dates[(dates >= between[0]) & (dates <= between[1])]
        days = np.zeros(1) if dates is None else (dates - np.datetime64("2020-01-01")).astype(float)
        days = days if len(days) else np.zeros(1)
        band = np.arange(len(self.modality.bands))
        phase = x[None, :] / 170 + y[:, None] / 230
        values = np.sin(phase + band[:, None, None] * 0.7 + days[:, None, None, None] / 50)
        values = values + 0.3 * np.sin(x[None, :] / 13 * (1 + band[:, None, None] / 5) + y[:, None] / 29)
        values = values if is_read else np.full_like(values, np.nan)
        for square, is_empty_inside in ((self.hole, True), (self.only, False)):
            if square is not None:
                inside = (np.abs(x[None, :] - square[0]) < square[2]) & (np.abs(y[:, None] - square[1]) < square[2])
                values = np.where(inside == is_empty_inside, np.nan, values)
        if self.modality.is_temporal:
            if dates is not None and not len(dates):
                values, dates = np.full_like(values, np.nan), np.array([between[0]])
            return Observation.of(self.modality, values, dates=dates)
        return Observation.of(self.modality, values[0])


def small_model(*keys):
    """The encoder that ships, with statistics of mean 0 and deviation 1."""
    model = anysat.load("nano")
    tables = {}
    for key in keys:
        bands = MODALITIES[key].bands
        tables[key] = BandStatistics(
            bands=MODALITIES[key].band_names, mean=(0.0,) * len(bands), std=(1.0,) * len(bands),
            units=tuple(band.unit for band in bands),
        )  # fmt: skip
    model.normaliser = Normaliser(statistics={"waves": tables}, source="by hand")
    return model


def waves(*keys, **options):
    """Sources by key."""
    return {key: Waves(MODALITIES[key], name=key, **options) for key in keys}


def area(rows, cols, *, patch_size_m=20.0, shard=8, wanted=None, first=(0, 0)):
    """Patches counted from the corner of the waves' ground."""
    affine = Affine(patch_size_m, 0, LEFT + first[1] * patch_size_m, 0, -patch_size_m, TOP - first[0] * patch_size_m)
    return Area(
        geobox=GeoBox((rows, cols), affine, CRS),
        patch_size_m=patch_size_m,
        shard=shard,
        crs_reason="a test",
        wanted=wanted,
    )


def job(model, sources, ground, folder, *, side=8, overlap=0.5, block=4, dense=None, periods=(PERIOD,)):
    """A job whose tokens lie in a folder."""
    Path(folder).mkdir(exist_ok=True)
    return Job(
        model=model,
        sources=sources,
        area=ground,
        periods=periods,
        windowing=Windowing(side=side, overlap=overlap),
        dense=dense,
        block=block,
        kept=UnitFiles(Path(folder)),
    )


def store_of(work, final, **options):
    """A store for a job, and the job with its tokens inside."""
    ground, dim = work.area, work.model.config.dim
    layouts = [Layout(name="patch", geobox=ground.geobox, shard_px=ground.shard, dim=dim, chunk_px=ground.shard)]
    if work.dense is not None:
        sub_m = MODALITIES[work.dense].subpatch_m
        side = round(ground.patch_size_m / sub_m)
        layouts.append(
            Layout(
                name="dense",
                geobox=ground.pixels(ground.span, sub_m),
                shard_px=ground.shard * side,
                dim=2 * dim,
                chunk_px=ground.shard,
            )
        )
    days = [tuple(day.astype(object) for day in period) for period in work.periods]
    store = AreaStore.open(final, layouts, days, {"weights": "test"}, **options)
    return store, replace(work, kept=UnitFiles(store.partial / "tokens"))


def arrays_of(path, group="patch"):
    """Values (time row col dim) and validity of a finished store."""
    import zarr

    found = zarr.open_group(path, mode="r")[group]
    return np.moveaxis(found["embedding"][:], 1, -1), found["valid"][:]


CROPS = Target(name="crop", level="pixel", kind="class", classes=("maize", "wheat", "grass"), gsd_m=10.0)
KIND = Target(name="kind", level="tile", kind="class", classes=("town", "field"))
LABELS = Target(name="trees", level="tile", kind="labels", classes=("oak", "pine"))
HEIGHT = Target(name="height", level="pixel", kind="value", gsd_m=10.0, unit="m")


def predictor(target, keys=("s2", "s1")):
    torch.manual_seed(1)
    dense = keys[0] if target.level == "pixel" else None
    view = View(patch_sizes_m=(20.0,), modalities=keys, dense=dense)
    options = {"mean": 20.0, "deviation": 5.0} if target.kind == "value" else None  # as training values have them
    made = Predictor(small_model(*keys), make_task(target, options), view, "dense" if dense else "both").eval()
    for parameter in made.head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def map_job(made, sources, ground, folder, *, side=8, overlap=0.5, **options):
    """A predictor over ground, whose answers lie in a folder."""
    target = made.task.target
    return MapJob(
        model=made, load_model=load_task, sources=sources, area=ground, periods=(PERIOD,), kept=UnitFiles(folder),
        windowing=Windowing(side=side, overlap=overlap), target=target,
        per_patch=2 if target.level == "pixel" else 0, **options,
    )  # fmt: skip


def map_store(work, final):
    """A store for a job of maps."""
    ground, side = work.area, work.side
    options = {"class": {"kind": "uint8"}, "probability": {"dim": work.num_outputs}}
    names = {"class": ["class"], "value": ["value"], "labels": []}[work.target.kind]
    names += ["probability"] * (work.probabilities or work.target.kind == "labels") + ["uncertainty"] * bool(
        work.variants
    )
    layouts = [
        Layout(name=name, geobox=ground.pixels(ground.span, ground.patch_size_m / side), shard_px=ground.shard * side,
               chunk_px=ground.shard * side, variable=name, **options.get(name, {}))
        for name in names
    ]  # fmt: skip
    days = [tuple(day.astype(object) for day in PERIOD)]
    return AreaStore.open(final, layouts, days, {"weights": "test"})
