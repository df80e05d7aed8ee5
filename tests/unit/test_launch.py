"""Scripts that start a run elsewhere: they parse, and what they run is `coca train` with the same words."""

import os
import shutil
import subprocess
import sys
import types

import pytest

from opencoca.cli.main import main

WORDS = ["train", "tiny", "--run", "a run", "--data", "pairs", "--set", "run.device=cpu"]


def script(capsys, *more):
    assert main([*WORDS, *more]) == 0
    return capsys.readouterr().out


bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

FAKE = """#!/bin/bash
# srun: notes its words, and runs until it gets SIGTERM, or ends at once
echo "$@" >> srun.log
if [ "$FAKE_RUN" = wait ]; then
    trap 'exit 143' TERM
    touch started
    while true; do sleep 0.05; done
fi
exit "$FAKE_RUN"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder with the script and stand-ins for SLURM's commands."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text(FAKE)
    (tools / "scontrol").write_text(
        '#!/bin/bash\nif [ "$1" = show ]; then echo node7; else echo "$@" >> scontrol.log; fi\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"SLURM_JOB_ID": "123456", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@bash
def test_the_slurm_script_parses_and_names_its_nodes(capsys, tmp_path):
    assert main([*WORDS, "--launch", "slurm", "--nodes", "2", "--nproc", "4", "--out", str(tmp_path / "run.sh")]) == 0
    assert f"sbatch {tmp_path / 'run.sh'}" in capsys.readouterr().out
    text = (tmp_path / "run.sh").read_text()
    subprocess.run(["bash", "-n", "run.sh"], cwd=tmp_path, check=True, timeout=20)
    for line in ("--nodes=2", "--gpus-per-node=4", "--requeue", "--signal=B:USR1@300"):
        assert f"#SBATCH {line}\n" in text
    assert "tiny --run 'a run' --data pairs --set run.device=cpu" in text


@bash
@pytest.mark.parametrize("code", [0, 3])
def test_a_job_that_ends_by_itself_ends_with_its_exit_code(capsys, cluster, monkeypatch, code):
    (cluster / "run.sh").write_text(script(capsys, "--launch", "slurm", "--nproc", "4", "--nodes", "2"))
    monkeypatch.setenv("FAKE_RUN", str(code))
    assert subprocess.run(["bash", "run.sh"], cwd=cluster, timeout=20).returncode == code
    said = (cluster / "srun.log").read_text()
    assert "--rdzv-endpoint=node7:23456" in said and "--nnodes=2 --nproc-per-node=4" in said
    assert said.endswith("-m -- opencoca train tiny --run a run --data pairs --set run.device=cpu\n")
    assert not (cluster / "scontrol.log").exists()


@bash
@pytest.mark.parametrize("sent", ["USR1", "TERM"])
def test_a_job_that_must_stop_stops_the_ranks_and_waits_in_line_again(capsys, cluster, monkeypatch, sent):
    (cluster / "run.sh").write_text(script(capsys, "--launch", "slurm", "--nproc", "4", "--nodes", "2"))
    monkeypatch.setenv("FAKE_RUN", "wait")
    signalled = f"bash run.sh & job=$!; while [ ! -e started ]; do sleep 0.05; done; kill -{sent} $job; wait $job"
    assert subprocess.run(["bash", "-c", signalled], cwd=cluster, timeout=20).returncode == 143
    assert (cluster / "scontrol.log").read_text() == "requeue 123456\n"


def test_the_ray_script_starts_one_worker_per_gpu_and_trains_there(capsys, monkeypatch):
    seen = {}

    def record(name):
        def call(*args, **kwargs):
            seen[name] = kwargs
            seen.setdefault("order", []).append(name)
            return types.SimpleNamespace(fit=lambda: "fitted", type="cpu")

        return call

    train = types.SimpleNamespace(**{name: record(name) for name in ("FailureConfig", "RunConfig", "ScalingConfig")})
    torch = types.SimpleNamespace(TorchTrainer=record("TorchTrainer"), get_device=record("get_device"))
    ray = types.SimpleNamespace(init=record("init"), train=train)
    for name, module in {"ray": ray, "ray.train": train, "ray.train.torch": torch}.items():
        monkeypatch.setitem(sys.modules, name, module)
    text = script(capsys, "--launch", "ray", "--nodes", "2", "--nproc", "4")
    names = {"__name__": "launched"}
    exec(compile(text, "launch.py", "exec"), names)
    assert names["launch"]() == "fitted"
    assert seen["ScalingConfig"]["num_workers"] == 8 and seen["FailureConfig"]["max_failures"] > 0
    settings = seen["TorchTrainer"]["train_loop_config"]
    assert settings["words"] == WORDS[1:]
    with pytest.raises(RuntimeError, match="exit code 2"):
        names["work"]({"words": ["no-recipe", "--run", "r"]})
    assert "no recipe is called 'no-recipe'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["slurm", "ray"])
def test_a_batch_that_the_cluster_cannot_share_writes_no_script(kind, capsys, tmp_path):
    out = tmp_path / "script"
    assert main([*WORDS, "--launch", kind, "--nodes", "3", "--out", str(out)]) == 2
    assert "8 can't be shared by 24 devices" in capsys.readouterr().err and not out.exists()
