"""The run of `anysat predict` for a tile: read, predict, write, report."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anysat.batch import Batch, Tile
from anysat.data.transforms import extent_m
from anysat.data.work import to_json
from anysat.errors import MisfitWarning, RecordError, UnknownNameError
from anysat.geo.read.addresses import unsigned
from anysat.geo.read.descriptions import describe_sources
from anysat.geo.stores.classes import counted_lines
from anysat.geo.write.maps import class_attributes, class_document, write_values
from anysat.geo.write.outputs import Result, check_output, named
from anysat.geo.write.writers import check_apart, staged
from anysat.model.digest import made_by
from anysat.model.precision import find_precision, multiplying
from anysat.picture_samples import colours_of, sample_figure
from anysat.pictures import picture_of, save_picture
from anysat.tasks.crops import predict_crops
from anysat.tasks.predictor import Prediction, Predictor
from anysat.workflows.answer import Answer
from anysat.workflows.embed import EmbedConfig
from anysat.workflows.embed.tile import absent_line, read_tile
from anysat.workflows.predict import PredictConfig, check_answered, check_probabilities, told_not_given
from anysat.workflows.tile_tables.answers import write_answers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def predict_tile(config: PredictConfig, predictor: Predictor) -> Answer:
    """Predict a tile, see `predict`."""
    target, out = predictor.task.target, Path(config.out)
    check_probabilities(config.probabilities, target)
    result = Result.MAP if target.level == "pixel" else Result.ANSWER
    check_output("--out", out, result, because=f": {target.name!r} is per {target.level}")
    if config.probabilities and target.level == "tile":
        raise RecordError("--probabilities", True, f"false, because {target.name!r} is per tile: {out.name} has them")
    finals, picture = [out], picture_of(out)
    if target.level == "pixel":
        finals.append(picture)
        finals += [_probability(out)] if config.probabilities else []
        finals += [_categories(out)] if target.classes else []
    given, size = describe_sources(config.inputs), max(predictor.view.patch_sizes_m)
    check_apart(finals, [*(source.file for source in given.values()), config.run])
    for key in given:
        if key not in predictor.view.modalities:
            raise UnknownNameError("modality", key, predictor.view.modalities, "The run uses no others")
    check_answered(predictor.view.dense, predictor.view.modalities, given)
    reading = EmbedConfig(
        inputs=config.inputs, out="tile", patch_size_m=size, units=config.units, dense=None, overwrite=config.overwrite
    )
    tile, said = read_tile(reading, predictor.encoder, finals, predictor.sources)
    said += [*told_not_given(predictor.view.modalities, given), absent_line(tile)]
    _warn_of_side(predictor, extent_m(tile) if config.crop_m is None else (config.crop_m, config.crop_m))
    precision = find_precision(config.precision, predictor.device)
    with multiplying(precision, predictor.device):
        if config.crop_m is None:
            found = predictor.predict(Batch.of([tile]).to(predictor.device))
        else:
            found = predict_crops(predictor, tile, config.crop_m)
    tags = {
        **made_by(predictor.encoder), "run": str(config.run), "target": target.name, "unit": target.unit,
        "classes": list(target.classes), "inputs": [unsigned(word) for word in config.inputs],
    }  # fmt: skip
    with staged(finals, overwrite=config.overwrite) as folder:
        if target.level == "tile":
            (folder / out.name).write_bytes(to_json(_tile_answer(predictor, found) | tags))
        else:
            _write_map(predictor, tile, found, folder / out.name, tags, with_probabilities=config.probabilities)
            save_picture(_figure(predictor, tile, found), folder / picture.name, out.name)
    said += counted_lines(target.classes, target.codes) if target.level == "pixel" else []
    answered = f"{_told(predictor, found)}, computed in {precision}"
    return Answer("\n".join([*said, answered, *(f"wrote {path}" for path in finals)]))


def _warn_of_side(predictor: Predictor, sides_m: tuple[float, float]) -> None:
    """Warn if one answer is given for other ground than the tiles that the predictor was trained on have."""
    target, tile_m = predictor.task.target, predictor.tile_m
    if target.level == "tile" and tile_m is not None and any(abs(side - tile_m) > 0.01 for side in sides_m):
        warnings.warn(
            f"one answer for {sides_m[0]:g} x {sides_m[1]:g} m, though the run was trained on tiles of {tile_m:g} m; "
            f"for an answer per {tile_m:g} m, give --out {named(Result.AREA)}",
            MisfitWarning,
            stacklevel=2,
        )


def _probability(out: Path) -> Path:
    return out.with_name(f"{out.stem}_probability.tif")


def _categories(out: Path) -> Path:
    return out.with_name(f"{out.name}.aux.xml")


def _write_map(
    predictor: Predictor, tile: Tile, found: Prediction, path: Path, tags: dict[str, Any], *, with_probabilities: bool
) -> None:
    target, answer = predictor.task.target, found.answer[0].cpu().numpy()
    geobox = tile.geobox.zoom_to(answer.shape[:2])
    write_answers(path, answer, geobox, target, tags)
    if target.classes:
        told = class_attributes(target.classes, colours_of(target), target.codes)
        _categories(path).write_text(class_document(told))
    if with_probabilities and found.probabilities is not None:
        shares = np.moveaxis(found.probabilities[0].cpu().numpy(), -1, 0)
        write_values(_probability(path), shares, geobox, list(target.classes), tags)


def _figure(predictor: Predictor, tile: Tile, found: Prediction) -> Figure:
    target = predictor.task.target
    answer = {target.name: found.answer[0].cpu().numpy()}
    shown = Tile(observations=tile.observations, id=tile.id, geobox=tile.geobox, targets=answer)
    return sample_figure(shown, [target], "prediction", "answer")


def _tile_answer(predictor: Predictor, found: Prediction) -> dict[str, Any]:
    target, shares = predictor.task.target, found.probabilities
    told = {"answer": target.plain(found.answer[0].cpu())}
    if shares is None:
        return told
    return told | {"probabilities": dict(zip(target.classes, shares[0].cpu().tolist(), strict=True))}


def _told(predictor: Predictor, found: Prediction) -> str:
    """Describe the answer in a line."""
    target, answer = predictor.task.target, found.answer[0].cpu()
    if target.level == "tile":
        return f"{target.name}: {target.plain(answer)} {target.unit}".rstrip()
    rows, cols = answer.shape[:2]
    head = f"{target.name}: {rows} x {cols} pixels of {target.gsd_m:g} m"
    if not target.classes:
        return f"{head}, mean {float(answer.nanmean()):.4g} {target.unit}".rstrip()
    shares = [(float((answer == number).float().mean()), name) for number, name in enumerate(target.classes)]
    told = ", ".join(f"{name} {share:.0%}" for share, name in sorted(shares, reverse=True) if share > 0)
    return f"{head}: {told or 'no data'}"
