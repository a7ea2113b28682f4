"""`engine.compile` on the real objective: slow, for it compiles; in a process of its own, without checks of shapes."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from anysat.train.config import EngineConfig
from tiny_pretraining import STEPS, tiny
from toy_training import losses_of

COMMAND = """
import sys, torch
from anysat.cli import main
status = main(sys.argv[1:])
print("graphs:", torch._dynamo.utils.counters["stats"]["unique_graphs"])
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_train_as_they_do_uncompiled(tmp_path):
    home = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    for name, is_compiled in (("plain", False), ("compiled", True)):
        config = tiny(tmp_path / name, engine=EngineConfig(accelerator="cpu", threads=1, compile=is_compiled))
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config.to_dict() | {"out": None}))
        words = [sys.executable, "-c", COMMAND, "pretrain", "--config", str(file), "--out", str(tmp_path / name)]
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | home, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (int(re.search(r"graphs: (\d+)", done.stdout).group(1)) > 0) == is_compiled
    ours, theirs = (dict(losses_of(tmp_path / name)) for name in ("compiled", "plain"))
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, rel=1e-5)
