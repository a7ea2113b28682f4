"""Records of a probe's sweep: every setting at every epoch, as a table and for TensorBoard."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

from anysat.tasks.probe import TrainedHead
from anysat.whole_files import write_whole

SWEEP = "sweep.csv"
TENSORBOARD = "tensorboard"


def write_sweep(run: Path, trained: TrainedHead, primary: str) -> None:
    """Write `sweep.csv`, with a row for each setting and epoch, and the same curves for TensorBoard.

    Args:
        run: The run folder. Files of an earlier session are replaced.
        trained: The sweep.
        primary: Name of the validation score.
    """
    shutil.rmtree(run / TENSORBOARD, ignore_errors=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["learning_rate", "weight_decay", "epoch", "train_loss", f"val_{primary}", "is_chosen"])
    for (setting, _, _), curve in zip(trained.tried, trained.curves, strict=True):
        for epoch, point in enumerate(curve, start=1):
            is_chosen = setting == trained.setting and epoch == trained.epoch
            row = [setting.learning_rate, setting.weight_decay, epoch, point["loss"], point[primary], int(is_chosen)]
            table.writerow(row)
    write_whole(run / SWEEP, text.getvalue().encode())
    _write_events(run / TENSORBOARD, trained, primary)


def _write_events(folder: Path, trained: TrainedHead, primary: str) -> None:
    """Write a TensorBoard run for each setting, with epochs as steps."""
    from torch.utils.tensorboard import SummaryWriter

    for (setting, _, _), curve in zip(trained.tried, trained.curves, strict=True):
        name = f"learning_rate={setting.learning_rate:g},weight_decay={setting.weight_decay:g}"
        with SummaryWriter(str(folder / name)) as writer:
            for epoch, point in enumerate(curve, start=1):
                writer.add_scalar("train/loss", point["loss"], epoch)
                writer.add_scalar(f"val/{primary}", point[primary], epoch)
