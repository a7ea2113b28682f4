"""Results of probes and fine-tuning as a few lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anysat.errors import some
from anysat.workflows.supervised.config import SupervisedConfig
from anysat.workflows.supervised.experiments import PAPER, RECOMMENDED
from anysat.workflows.supervised.sheets import CLASS_SCORES, SCORES

FIGURES = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "f1_macro": "macro F1",
    "f1_weighted": "weighted F1", "f1_micro": "micro F1", "map_macro": "mean AP", "miou": "mean IoU",
    "calibration_error": "calibration error", "kappa": "kappa", "rmse": "RMSE", "mae": "MAE", "bias": "bias",
    "r2": "R²",
}  # fmt: skip
"""Names of scores for readers."""
NOTHING = "nothing"
"""Value of `selected_on` if there was nothing to choose."""


def summary(found: Mapping[str, Any], run: Path, kind: type[SupervisedConfig]) -> str:
    """Return the test scores with intervals, what settings were chosen on, and the paper's score if there is one.

    Args:
        found: Content of `scores.json`.
        run: The run folder.
        kind: Kind of options of the run.
    """
    test = found["scores"]["test"]
    lines = score_lines(test, kind, found["config"])
    chosen = f"chosen on {found['selected_on']}"
    if "val" in found["scores"] and found["selected_on"] != NOTHING:
        title = FIGURES.get(found["primary"], found["primary"])
        chosen += f": {title} {with_interval(found['scores']['val'], found['primary'])}"
    tiles = tiles_told(test, "test tiles")
    head = f"{found['head']} head, {found['head_parameters']:,} parameters"
    beside = f"; of each class: {run / CLASS_SCORES}" if test["per_class"] else ""
    return "\n".join(
        [f"{found['target']} in {tiles} ({head}; {chosen})", *lines, *_patch_lines(found), *_dense_lines(found),
         *_unseen_lines(found), *_edge_lines(found), *_start_lines(found), f"scores: {run / SCORES}{beside}"]
    )  # fmt: skip


def patches_told(found: Mapping[str, Any]) -> str:
    """Return the patch sizes of a run, empty for runs of earlier versions."""
    sizes = found.get("patch_sizes_m", ())
    return f"{' and '.join(f'{size:g}' for size in sizes)} m" if sizes else ""


def _patch_lines(found: Mapping[str, Any]) -> list[str]:
    told = patches_told(found)
    return [f"  patches: {told}"] if told else []


def _dense_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the dense modality, and how many labelled test pixels have no prediction because it lacks values there."""
    if found.get("dense") is None:
        return []
    test = found["scores"]["test"]
    told = f"  dense: {found['dense']}"
    if unanswered := test.get("num_unanswered", 0):
        share = 100 * unanswered / test["num_samples"]
        told += (
            f"; {share:.1f} % of the labelled test pixels are not predicted, because it has no valid value there: "
            f"{_CLASSES_UNANSWERED if test['confusion'] else 'they are scored as the mean of the training data'}; "
            "--dense selects another modality"
        )
    return [told]


_CLASSES_UNANSWERED = (
    "they count as mistakes in accuracy and recall but not in precision, so accuracy is below micro F1"
)


def _unseen_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the tiles without a valid value, of the dense modality if there is one."""
    of = "" if found.get("dense") is None else f" of {found['dense']}"
    return [
        f"  {len(names)} tiles of {split} without valid values{of}, not trained on and scored as not predicted: "
        + some(names, 3)
        for split, names in found.get("unseen", {}).items() if names
    ]  # fmt: skip


def _edge_lines(found: Mapping[str, Any]) -> list[str]:
    """Return a hint if the best learning rate is the largest or smallest one tried."""
    tried = [one for one in found.get("selection", {}).get("tried", []) if "learning_rate" in one]
    rates = sorted({one["learning_rate"] for one in tried})
    best = {one["learning_rate"] for one in tried if one[found["primary"]] == found["selection"][found["primary"]]}
    if len(rates) < 2 or best not in ({rates[0]}, {rates[-1]}):
        return []
    edge, other = ("largest", "larger") if best == {rates[-1]} else ("smallest", "smaller")
    return [f"  the best learning rate is the {edge} one tried, {best.pop():g}: try {other} ones (--learning-rates)"]


def _start_lines(found: Mapping[str, Any]) -> list[str]:
    """Return a hint if no epoch of a fine-tuning was as good as the start."""
    selection, title = found.get("selection", {}), FIGURES.get(found["primary"], found["primary"])
    if not selection.get("start_was_better"):
        return []
    return [f"  {title} on {found['selected_on']} was better before training, {selection['start']:.3f}: "
            "try a lower --optimiser.learning-rate or more --epochs"]  # fmt: skip


def score_lines(
    scores: Mapping[str, Any], kind: type[SupervisedConfig], config: Mapping[str, Any], split: str | None = None,
    crop_m: float | None = None,
) -> list[str]:  # fmt: skip
    """Return a line for each score, with intervals, and the paper's; see `paper_line`."""
    lines = [
        f"  {title:18} {with_interval(scores, name)}" for name, title in FIGURES.items() if name in scores["figures"]
    ]
    return lines + _interval_lines(scores) + paper_line(kind, config, split, crop_m)


FEWEST = 10
"""Number of tiles or blocks below which an interval looks more precise than it is, because draws differ little."""


def _interval_lines(scores: Mapping[str, Any]) -> list[str]:
    """Return what intervals are over, if that is blocks of ground or too few tiles."""
    told, is_few = intervals_told(scores), scores.get("num_intervals_over", FEWEST) < FEWEST
    return [f"  intervals over {told}"] if is_few or scores.get("intervals_over", "tiles") != "tiles" else []


def intervals_told(scores: Mapping[str, Any]) -> str:
    """Return how many tiles or blocks intervals are over, if recorded, and whether these are too few."""
    unit, count = str(scores.get("intervals_over", "tiles")), scores.get("num_intervals_over")
    if count is None:
        return unit
    unit = unit.replace("blocks", "block", 1).replace("tiles", "tile", 1) if count == 1 else unit
    return f"{count:,} {unit}" + (", too few for a reliable interval" if count < FEWEST else "")


def paper_line(
    kind: type[SupervisedConfig], config: Mapping[str, Any], split: str | None = None, crop_m: float | None = None
) -> list[str]:
    """Return the paper's score for the preset of a run, if there is one, and why the run's is not comparable.

    Args:
        kind: Kind of options of the run.
        config: Options of the run, as plain values.
        split: Split that was scored; None for the run's test split.
        crop_m: Side of the five crops that each tile was predicted from; None for whole tiles.
    """
    preset = str(config.get("preset"))
    paper = PAPER.get((kind.COMMAND, preset.removesuffix(RECOMMENDED)))
    if paper is None:
        return []
    wanted = kind.presets()[preset]().to_dict()
    differing = [f"{name} {ours}, not {theirs}" for name, ours, theirs in _differences(config, wanted)]
    if split is not None and split != wanted["data"]["test"]:
        differing.append(f"split {split}, not {wanted['data']['test']}")
    if crop_m != paper.crop_m:
        ways = ["whole tiles" if side is None else f"five crops of {side:g} m" for side in (crop_m, paper.crop_m)]
        differing.append(f"predicted from {ways[0]}, not from {ways[1]} (anysat evaluate --crop-m)")
    told = f"  paper: {FIGURES.get(paper.score, paper.score)} {paper.value:.3f} ({paper.where})"
    return [told + (f", not comparable: {'; '.join(differing)}" if differing else "")]


_PROTOCOL = ("weights", "method", "trained", "head", "dense", "patch_sizes_m", "epochs", "folds")
"""Options, besides those of the data, that decide whether a score is comparable to the paper's."""


def _differences(config: Mapping[str, Any], preset: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the options of the protocol that differ from the preset's: name, the run's value, the preset's value."""
    pairs = [(name, config.get(name), preset[name]) for name in _PROTOCOL if name in preset]
    pairs += [(f"data.{name}", config["data"].get(name), value) for name, value in preset["data"].items()
              if name != "root"]  # fmt: skip
    return [(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs]


def tiles_told(scores: Mapping[str, Any], tiles: str) -> str:
    """Return the number of tiles scored, and of how many, if some have no label."""
    every = scores["num_tiles"]
    known = scores.get("num_labelled_tiles", every)
    return f"{every} {tiles}" if known == every else f"the {known} of {every} {tiles} that have a label"


def with_interval(scores: Mapping[str, Any], name: str) -> str:
    """Return a score with its 95 % interval, which is left out if all draws agree, as for too few or equal tiles."""
    value = scores["figures"].get(name)
    if value is None:
        return "–"
    low, high = scores["intervals"].get(name, (None, None))
    has_width = low is not None and high is not None and low < high
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if has_width else "")


def runs_told(content: Mapping[str, Any]) -> str:
    """Return the number of folds and repeats in words, from the content of `folds.json`."""
    count, repeats = len(content["folds"]), len(content.get("seeds", (0,)))
    folds = f"{count // repeats} folds"
    if repeats == 1:
        return folds
    return f"{repeats} repeats" if count == repeats else f"{repeats} repeats of {folds}"


def spread_lines(content: Mapping[str, Any]) -> list[str]:
    """Return a line for each score, from the content of `folds.json`."""
    lines = [f"{content['target']} in {runs_told(content)}, mean ± deviation (minimum to maximum), "
             "95 % interval of the mean"]  # fmt: skip
    for name, title in FIGURES.items():
        one = content["figures"].get(name)
        if one is not None:
            spread = "" if one["deviation"] is None else f" ± {one['deviation']:.3f}"
            interval = ", {:.3f} to {:.3f}".format(*content["intervals"][name]) if spread else ""
            extent = f"({one['least']:.3f} to {one['greatest']:.3f})"
            lines.append(f"  {title:18} {one['mean']:.3f}{spread} {extent}{interval}")
    return lines
