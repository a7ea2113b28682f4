"""The run of `anysat classify`: labels to samples of stores, a model scored over blocks of ground, and its map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.errors import RecordError
from anysat.geo.claims import alone_at
from anysat.geo.write.maps import class_attributes
from anysat.geo.write.outputs import Result, suffixes
from anysat.picture_samples import class_colours
from anysat.tasks.shallow import NUM_FOLDS, Checked, check, fit, told
from anysat.workflows.classify import ClassifyConfig
from anysat.workflows.classify.labels import Labelled, read_labelled
from anysat.workflows.ground_blocks import unit_of
from anysat.workflows.store_maps.options import check_map
from anysat.workflows.store_maps.run import Bar, Mapped, MapPlan, Stores, no_bar, write_maps
from anysat.workflows.supervised.config import BLOCK_KM
from anysat.workflows.supervised.parts import described
from anysat.workflows.supervised.text import FIGURES, intervals_told, with_interval

_SHOWN = ("balanced_accuracy", "accuracy", "f1_macro", "rmse", "mae", "bias", "r2")
_MOST_SHOWN = 12
"""Most classes of a confusion that is shown as a table."""
_MISTAKES = 5


def classify(
    store: Path | str | Sequence[Path | str], samples: Any, column: str, out: Path | str, **options: Any
) -> Mapped:
    """Fit a simple model to labelled points or polygons on a store, score it over blocks of ground, and write a map.

    The model is standardisation and logistic regression, in which all classes have the same total weight, or ridge
    regression for values. Scores are of blocks of ground that the model was not fitted to, because neighbouring patches
    are alike.

    Args:
        store: NAME.zarr, written by `anysat embed`; the NAME given to an area in several UTM zones; or several stores
            of one kind. For several stores, there is a map for each, whose name ends in that of the zone or store.
        samples: A vector file or GeoDataFrame of points and polygons, in any reference system. A point takes the patch
            in which it lies, a polygon the patches mostly inside it, weighted by their share in it.
        column: Its column with the class, or the value.
        out: NAME.tif, NAME.zarr, NAME.parquet or, for classes, NAME.gpkg.
        **options: Other options of `anysat classify`: `values`, `probabilities`, `dates`, `together`, `block_km`,
            `group`, `also`, `overwrite`.

    Returns:
        The files and the report. Its facts are classes, penalty, block size, and scores with intervals; None if there
        is only one block.

    Raises:
        MissingFileError, SourceError, UnknownNameError, InputError, RecordError: A store or the samples cannot be used.
        WriteError: An output exists or cannot be written. Nothing is left behind.
    """
    stores = [str(store)] if isinstance(store, str | Path) else [str(one) for one in store]
    config = ClassifyConfig(store=stores, samples="samples", column=column, out=str(out), **options)
    return fit_and_map(config, samples)


def fit_and_map(config: ClassifyConfig, samples: Any, *, bar: Bar = no_bar) -> Mapped:
    """Do the work of `classify`, with the samples as a file or a table."""
    out, formats = Path(config.out), check_map(config.out, config.also, config.made)
    if config.values:
        _check_values(config, formats)
    with alone_at(out):
        stores = Stores.open(config.store, config.group, together=config.together)
        _plan(config, stores, formats, ()).check([samples], overwrite=config.overwrite)
        labelled = read_labelled(stores, samples, config.column, values=config.values, dates=config.dates,
                                 block_km=config.block_km)  # fmt: skip
        plan = _plan(config, stores, formats, labelled.classes)
        checked = check(labelled.samples)
        model = fit(labelled.samples, checked.penalty)
        scores = None if checked.scores is None else described(checked.scores, unit_of(labelled.block_km))
        name = str(samples) if isinstance(samples, str | Path) else "samples"
        facts = {"samples": name, "column": config.column, "classes": list(labelled.classes),
                 "num_samples": len(labelled.samples.truth), "penalty": checked.penalty,
                 "block_km": labelled.block_km, "scores": scores}  # fmt: skip
        counts = np.zeros(max(1, len(labelled.classes)), np.int64)
        compute = _compute(model, counts, probabilities=config.probabilities, is_values=config.values)
        files = write_maps(plan, compute, facts, overwrite=config.overwrite, bar=bar)
    lines = [
        f"{stores.groups[0].name} of {stores.name}: {labelled.lines[0]}", *labelled.lines[1:],
        *_score_lines(checked, scores, labelled), *_map_lines(counts, labelled.classes),
        *(f"wrote {file}" for file in files),
    ]  # fmt: skip
    return Mapped(files=files, report="\n".join(lines), facts=facts)


def _check_values(config: ClassifyConfig, formats: Sequence[str]) -> None:
    """Refuse options that only classes have."""
    if config.probabilities:
        raise RecordError("--probabilities", True, "false, because values have none")
    for suffix in formats:
        if suffix not in suffixes(Result.AREA):
            raise RecordError("--out, --also", suffix, f"one of {', '.join(suffixes(Result.AREA))}, for values")


def _plan(config: ClassifyConfig, stores: Stores, formats: Sequence[str], classes: Sequence[str]) -> MapPlan:
    """Return what to write. The names of the files do not depend on the classes."""
    if config.values:
        layers: dict[str, dict[str, Any]] = {"value": {"variable_attributes": {"long_name": config.column}}}
    else:
        attributes = class_attributes(classes, class_colours(len(classes)))
        layers = {"class": {"kind": "uint8", "variable_attributes": attributes}}
        if config.probabilities:
            layers["probability"] = {"dim": len(classes) or 1, "bands": classes}
    return MapPlan(stores=stores, out=Path(config.out), formats=formats, layers=layers)


def _compute(
    model: Any, counts: NDArray[np.int64], *, probabilities: bool, is_values: bool
) -> Callable[[int, NDArray[np.float32]], Mapping[str, NDArray[Any]]]:
    """Return what computes the layers; it counts the patches of each class."""

    def compute(_: int, vectors: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        if not len(vectors):
            return {}
        found = told(model, vectors, 0 if is_values else len(counts))
        if is_values:
            counts[0] += len(found)
            return {"value": found}
        best = found.argmax(1)
        counts[:] += np.bincount(best, minlength=len(counts))
        return {"class": best, "probability": found} if probabilities else {"class": best}

    return compute


def _score_lines(checked: Checked, scores: Mapping[str, Any] | None, labelled: Labelled) -> list[str]:
    """Return how the model was scored, its scores, and the confusion."""
    kind = "logistic regression" if labelled.classes else "ridge regression"
    if checked.scores is None or scores is None:
        return [f"{kind}; not scored, because all samples lie in one block of {labelled.block_km:g} km: give a smaller "
                "--block-km, or add samples elsewhere"]  # fmt: skip
    chosen = "chosen on them" if checked.is_chosen else f"not chosen, because that needs 3 blocks (best {NUM_FOLDS})"
    lines = [f"{kind}, scored on {checked.num_folds} folds over {intervals_told(scores)} (penalty "
             f"{checked.penalty:g}, {chosen}); 95 % intervals:"]  # fmt: skip
    lines += [f"  {FIGURES[name]:18} {with_interval(scores, name)}" for name in _SHOWN if name in scores["figures"]]
    if labelled.block_km < BLOCK_KM:
        lines.append(f"blocks of {labelled.block_km:g} km are small, because labels lie close together: further away, "
                     "scores may be lower")  # fmt: skip
    return lines + _confusion_lines(checked, labelled.classes)


def _confusion_lines(checked: Checked, names: Sequence[str]) -> list[str]:
    """Return the confusion as a table or, if there are many classes, its largest mistakes."""
    if checked.scores is None or checked.scores.confusion is None:
        return []
    table = checked.scores.confusion[:, :-1]
    if len(names) > _MOST_SHOWN:
        wrong = table - np.diag(np.diag(table))
        places = np.argsort(-wrong, axis=None, kind="stable")[:_MISTAKES]
        pairs = [np.unravel_index(place, wrong.shape) for place in places]
        worst = [f"{names[a]} as {names[b]} ({wrong[a, b]} of {table[a].sum()})" for a, b in pairs if wrong[a, b]]
        return [f"most frequent mistakes: {', '.join(worst) or 'none'}"]
    width = max(len(name) for name in names)
    sides = [max(len(name), len(str(table.max()))) for name in names]
    head = " ".join(f"{name:>{side}}" for name, side in zip(names, sides, strict=True))
    rows = [f"  {name:{width}} " + " ".join(f"{count:{side}d}" for count, side in zip(row, sides, strict=True))
            for name, row in zip(names, table, strict=True)]  # fmt: skip
    return ["confusion in samples, a row per true class, a column per predicted one:", f"  {'':{width}} {head}", *rows]


def _map_lines(counts: NDArray[np.int64], names: Sequence[str]) -> list[str]:
    total = int(counts.sum())
    shares = "" if not names or not total else ": " + ", ".join(
        f"{name} {100 * count / total:.3g} %" for name, count in zip(names, counts, strict=True)
    )  # fmt: skip
    return [f"map: {total} patches{shares}"]
