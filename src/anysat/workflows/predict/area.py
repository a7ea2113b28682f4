"""The run of `anysat predict` for ground larger than a tile: a map, predicted in windows."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anysat.areas.job import TOKENS_AT_ONCE
from anysat.areas.maps import MapJob, layers_of
from anysat.areas.sizes import Load, Sizes, choose_sizes
from anysat.areas.units import UnitFiles
from anysat.areas.windows import SIDE, Windowing
from anysat.errors import InputError, MisfitWarning, RecordError
from anysat.geo.area import Area, plan_areas
from anysat.geo.ground import area_files
from anysat.geo.read.descriptions import describe_sources
from anysat.geo.stores.classes import counted_lines
from anysat.geo.stores.layout import Layout
from anysat.geo.write.maps import class_layer
from anysat.geo.write.outputs import STORE, Result, named, suffixes
from anysat.geo.write.writers import check_apart
from anysat.model.digest import bytes_of, made_by
from anysat.model.precision import find_precision
from anysat.picture_samples import colours_of
from anysat.tasks.base import options_of
from anysat.tasks.predictor import Predictor, load_task
from anysat.workflows.answer import Answer
from anysat.workflows.areas.inputs import AreaInputs, open_inputs
from anysat.workflows.areas.options import AreaOptions
from anysat.workflows.areas.run import Part, check_scheduler, model_facts, output_of, run_parts
from anysat.workflows.embed.area import layout_of, statistics_facts
from anysat.workflows.predict import PredictConfig, check_answered, check_probabilities, told_not_given


@dataclass(frozen=True, eq=False, kw_only=True)
class Prepared:
    """Everything that is known of a map before anything is computed."""

    config: PredictConfig
    predictor: Predictor
    inputs: AreaInputs
    windowing: Windowing
    areas: Sequence[Area]
    """The parts of the ground; usually one."""
    sizes: Sizes
    load: Load
    """The load of the fullest period."""

    @property
    def across(self) -> int:
        """Number of windows along a side of a block."""
        return self.sizes.block // self.windowing.side

    def work(self, area: Area, folder: Path) -> MapJob:
        """Return the work for a part, with a folder for intermediate results."""
        config, predictor = self.config, self.predictor
        return MapJob(
            model=predictor, load_model=load_task, sources=self.inputs.sources, area=area, periods=self.inputs.days,
            windowing=self.windowing, target=predictor.task.target, per_patch=_per_patch(predictor, area),
            precision=find_precision(config.precision, predictor.device), kept=UnitFiles(folder),
            across=self.across, probabilities=config.probabilities, variants=config.variants,
        )  # fmt: skip

    def layouts(self, area: Area) -> list[Layout]:
        """Return the layout of the answers of a part first, then those of other products."""
        return _layouts(self.config, self.predictor, area, max(_per_patch(self.predictor, area), 1))

    def told(self) -> list[str]:
        """Return lines about inputs, windows, classes and statistics; warn of windows unlike the training tiles."""
        encoder, view, target = self.predictor.encoder, self.predictor.view, self.predictor.task.target
        said = [*self.inputs.told(), *told_not_given(view.modalities, self.inputs.sources)]
        said += told_windows(self.config, self.windowing, self.predictor, self.areas)
        said += counted_lines(target.classes, target.codes) if target.is_multiclass else []
        return said + ([] if encoder.normaliser is None else [f"statistics: {encoder.normaliser.source}"])


def predict_area(config: PredictConfig, predictor: Predictor, why: str) -> Answer:
    """Predict an area, see `anysat.workflows.predict.predict`. The line `why` says why it is one."""
    given = [*(source.file for source in describe_sources(config.inputs).values()), *area_files(config.area)]
    check_apart([Path(config.out)], [*given, config.run])
    check_scheduler(config)
    prepared = prepare(config, predictor)
    parts = [_part(prepared, area) for area in prepared.areas]
    return run_parts(parts, config, [why, *prepared.told()], overwrite=config.overwrite, inputs=[*given, config.run])


def prepare(config: PredictConfig, predictor: Predictor) -> Prepared:
    """Open the inputs, cut the area and choose how much is held in memory at once."""
    encoder, view, target = predictor.encoder, predictor.view, predictor.task.target
    check_probabilities(config.probabilities, target)
    unfit = [suffix for suffix in config.formats if suffix not in suffixes(Result.AREA)]
    if unfit and not target.is_multiclass:
        allowed = named(Result.AREA, besides=STORE, name="")
        raise RecordError("--also", unfit[0], f"{allowed}, because {target.name!r} has not one class per place")
    records = {key: encoder.config.modality(key) for key in view.modalities}
    inputs = open_inputs(config, config.inputs, config.units, records, trained=predictor.sources)
    check_answered(view.dense, view.modalities, inputs.sources)
    patch_size_m, windowing = max(view.patch_sizes_m), windowing_of(config, predictor)
    loads = [Load.of(inputs.sources, patch_size_m, encoder.config.dim, None, days) for days in inputs.days]
    heaviest = max(loads, key=lambda one: one.values)
    sizes = choose_sizes(heaviest, windowing, encoder.config, memory_gb=config.memory_gb, readers=config.readers,
                         blocks=_blocks(predictor, windowing, heaviest))  # fmt: skip
    areas = plan_areas(
        [source.footprint for source in inputs.sources.values()], patch_size_m, encoder.config.subpatch_order,
        shard=sizes.shard, wanted=inputs.ground,
    )  # fmt: skip
    return Prepared(config=config, predictor=predictor, inputs=inputs, windowing=windowing, areas=areas, sizes=sizes,
                    load=heaviest)  # fmt: skip


def _blocks(predictor: Predictor, windowing: Windowing, load: Load) -> list[int]:
    """Return the sides, in patches, of windows side by side: at most `TOKENS_AT_ONCE` tokens, or a single window."""
    view, side_m = predictor.view, windowing.side * max(predictor.view.patch_sizes_m)
    if predictor.encoder.normaliser is None:  # a batch is standardised with its own statistics
        return [windowing.side]
    tokens = load.modalities * (side_m / min(view.patch_sizes_m)) ** 2
    if view.dense is not None:
        tokens += (side_m / predictor.encoder.config.modality(view.dense).subpatch_m) ** 2
    most = math.isqrt(int(TOKENS_AT_ONCE / max(tokens, 1)))
    return [windowing.side * across for across in range(max(most, 1), 0, -1)]


def windowing_of(config: AreaOptions, predictor: Predictor) -> Windowing:
    """Return the windows asked for. For a target per tile, they are otherwise as large as the training tiles."""
    side, tile_m = SIDE, predictor.tile_m
    if predictor.task.target.level == "tile" and tile_m is not None:
        side = max(1, round(tile_m / max(predictor.view.patch_sizes_m)))
    return Windowing(side=side if config.window is None else config.window, overlap=config.overlap)


def told_windows(
    config: AreaOptions, windowing: Windowing, predictor: Predictor, areas: Sequence[Area]
) -> list[str]:  # fmt: skip
    """Return a line about the ground of each answer of a target per tile; warn if training tiles had another size."""
    if predictor.task.target.level != "tile":
        return []
    patch_m, tile_m = max(predictor.view.patch_sizes_m), predictor.tile_m
    side_m, step_m = windowing.side * patch_m, windowing.step * patch_m
    told, misfits = f"one answer per {side_m:g} m window", []
    if tile_m is None:
        told += "; the run does not say how large its training tiles were"
        misfits += [f"{told}: give --window N, for windows of N x {patch_m:g} m"] if config.window is None else []
    elif abs(side_m - tile_m) > 0.01:
        advice = "" if config.window is None else "; leave out --window for windows as in training"
        misfits.append(f"{told}, though the run was trained on tiles of {tile_m:g} m{advice}")
    else:
        told += ", as in training"
    for rows, cols in (windowing.shape(area) for area in areas):
        if min(rows, cols) < windowing.side:
            misfits.append(f"the ground is smaller than the {side_m:g} m of a window: one answer for "
                           f"{rows * patch_m:g} x {cols * patch_m:g} m of it")  # fmt: skip
    for misfit in misfits:
        warnings.warn(misfit, MisfitWarning, stacklevel=2)
    overlapping = windowing.step < windowing.side
    return [told + (f"; one every {step_m:g} m, averaged where windows overlap" if overlapping else "")]


def _part(prepared: Prepared, area: Area) -> Part:
    config, predictor, inputs, windowing = prepared.config, prepared.predictor, prepared.inputs, prepared.windowing
    target, precision = predictor.task.target, find_precision(config.precision, predictor.device)
    made_from = {
        **made_by(predictor.encoder), "target": target.name, "classes": list(target.classes),
        "trained_on_tiles_m": predictor.tile_m, "head": _head_digest(predictor),
        "statistics": statistics_facts(predictor.encoder.normaliser), "run": str(config.run),
        "inputs": inputs.facts(),
        "options": {
            "patch_size_m": area.patch_size_m, "window": windowing.side, "overlap": windowing.overlap,
            "variants": config.variants, "precision": precision, "area": config.area, "ground": inputs.ground_digest,
        },
    } | ({} if target.classes else {"unit": target.unit})  # fmt: skip
    task = "classification" if target.classes else "regression"  # in the words of the mlm extension
    return Part(area=area, output=output_of(config.out, area, ".tif"), periods=inputs.periods, made_from=made_from,
                layouts=prepared.layouts(area), work=lambda folder: prepared.work(area, folder),
                model=model_facts(str(config.run), predictor.encoder, task))  # fmt: skip


def _head_digest(predictor: Predictor) -> str:
    """Return a digest of head, task, view and descriptions of the training files."""
    facts = [asdict(predictor.head_config), asdict(predictor.view), options_of(predictor.task)]
    facts += [predictor.sources] if predictor.sources else []
    total = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for _, tensor in sorted(predictor.head.state_dict().items()):
        total.update(bytes_of(tensor))
    return total.hexdigest()[:16]


def _layouts(config: PredictConfig, predictor: Predictor, area: Area, side: int) -> list[Layout]:
    target, pixel_m = predictor.task.target, area.patch_size_m / side
    doubt = {"units": "nat" if target.classes else target.unit, "long_name": "disagreement of variants"}
    facts: dict[str, Callable[[], dict[str, Any]]] = {
        "class": lambda: class_layer(target.classes, colours_of(target), target.codes),
        "value": lambda: {"variable_attributes": {"long_name": target.name, "units": target.unit}},
        "probability": lambda: {"dim": len(target.classes), "bands": target.classes},
        "uncertainty": lambda: {"variable_attributes": doubt},
    }
    layers = layers_of(target, config.probabilities, config.variants)
    return [layout_of(area, name, pixel_m, variable=name, **facts[name]()) for name in layers]


def _per_patch(predictor: Predictor, area: Area) -> int:
    """Return the number of answers along a side of a patch, or 0 if there is one for a whole window."""
    target = predictor.task.target
    if target.gsd_m is None:
        return 0
    side = area.patch_size_m / target.gsd_m
    if abs(side - round(side)) > 1e-6:
        raise InputError("run", f"a target whose pixels divide a patch of {area.patch_size_m:g} m", target.gsd_m)
    return round(side)
