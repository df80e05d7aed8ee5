"""`coca train --nproc 2`: torchrun, the command line and the training, in real processes."""

import os
import subprocess
import sys

import pytest
from tests.support import rows, tiny_tokenizer, write_shards


@pytest.mark.timeout(120)
def test_two_processes_train_the_recipe_as_one_does(tmp_path):
    write_shards(tmp_path / "pairs")
    tiny_tokenizer().save(tmp_path / "tokenizer.json")
    words = ["train", "tiny", "--data", "pairs", "--set", "run.device=cpu", "optim.steps=6", "run.log_every_steps=1"]
    words += ["data.tokenizer=tokenizer.json"]
    for name, processes in (("one", []), ("two", ["--nproc", "2"])):
        command = [sys.executable, "-m", "opencoca", *words, "--run", name, *processes]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"trained 6 steps; the model is in {name}\n", "said once, by the first rank"
    one, two = (rows(tmp_path / name) for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [1, 2, 3, 4, 5, 6]
    for alone, shared in zip(one, two, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-4)
