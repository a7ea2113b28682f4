"""Fine-tuning in two processes ends as in one: a predictor, scores of all tiles, a report."""

import json
import os
import subprocess
import sys

from anysat.tasks.predictor import load_task

WORLD = {"tiles": 16, "seed": 7, "modalities": ["s1"], "extent_m": 60}


def test_two_processes_train_together_and_one_tells_what_came_of_it(tmp_path):
    out = tmp_path / "run"
    words = ["--data.dataset=world", f"--data.world={json.dumps(WORLD)}", "--data.target=land_cover",
             "--data.modalities=[s1]", "--weights=null", "--model.dim=64", "--model.depth=1", "--model.num_heads=2",
             "--model.modalities=[s1]", "--patch_sizes_m=[20]", "--epochs=1", "--batch_size=2", "--engine.devices=2",
             "--engine.threads=1", "--engine.accelerator=cpu"]  # fmt: skip
    own = ("PYTEST_CURRENT_TEST", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        [sys.executable, "-m", "anysat", "finetune", *words, "--out", str(out)],
        capture_output=True, text=True, timeout=280, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("test") >= 1
    assert "stopped at step" not in done.stdout
    found = json.loads((out / "scores.json").read_text())
    tiles = {split: one["tiles"] for split, one in found["data"].items()}
    assert {split: found["scores"][split]["num_tiles"] for split in tiles} == tiles
    assert (out / "report.html").exists()
    assert load_task(out).task.target.name == "land_cover"
