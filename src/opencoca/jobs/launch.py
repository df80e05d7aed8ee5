"""How a training run is started on several devices: torchrun on one machine, and scripts for SLURM and for Ray Train.

A run goes on from its latest checkpoint when the same command is given again. So all that a scheduler has to do is to
pass on SIGTERM, after which the run saves and ends, and to start the same command once more.

The `--` before `opencoca` ends torchrun's own options; without it, torchrun takes our `--run` for one of them.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

SAVE_S = 300  # seconds before the time limit in which the run saves and ends
RESTARTS = 3  # of one job, by torchrun or Ray, when a rank dies

SLURM = """\
#!/bin/bash
# Written by `coca train --launch slurm`. Start it with `sbatch FILE`; options of sbatch come before what stands here.
# RUN must be on a file system that all nodes share. Partition, account and time limit are yours to set.
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={nproc}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
#SBATCH --signal=B:USR1@{save_s}
set -uo pipefail

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={shutdown_s}  # seconds for saving; older torch leaves 30
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
stopping=""

# USR1 comes before the time limit, TERM when the job is preempted: the ranks save, and the job waits in line again.
stop() {{
    stopping=yes
    kill -TERM "$step"
}}
trap stop USR1 TERM

srun --kill-on-bad-exit=1 {python} -m torch.distributed.run \\
    --nnodes="$SLURM_NNODES" --nproc-per-node={nproc} --max-restarts={restarts} \\
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:$port" \\
    -m -- opencoca train {words} &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do  # a signal has ended the wait and not the run
    wait "$step"
    code=$?
done
if [ -n "$stopping" ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""

RAY = '''\
"""Written by `coca train --launch ray`. Start it with `python FILE` on a machine of the Ray cluster.

RUN must be on a file system that all machines share: there the checkpoints are that a restart goes on from.
"""

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

WORDS = {words}


def work(settings):
    """One rank: Ray has made the process group, and `coca train` takes it as it is."""
    import torch

    from opencoca.cli.main import main

    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    code = main(["train", *settings["words"]])
    if code:
        raise RuntimeError(f"coca train ended with exit code {{code}}")


def launch():
    """Starts the ranks, and starts them again when one of them is lost."""
    ray.init()
    trainer = TorchTrainer(
        work,
        train_loop_config={{"words": WORDS}},
        scaling_config=ScalingConfig(
            num_workers={workers}, use_gpu=True, resources_per_worker={{"CPU": {cpus}, "GPU": 1}}
        ),
        run_config=RunConfig(name={name!r}, failure_config=FailureConfig(max_failures={restarts})),
    )
    return trainer.fit()


if __name__ == "__main__":
    launch()
'''


def torchrun(words: Sequence[str], nproc: int) -> list[str]:
    """The command that runs `coca train WORDS` in `nproc` processes on this machine."""
    own = ["--standalone", f"--nproc-per-node={nproc}"]
    return [sys.executable, "-m", "torch.distributed.run", *own, "-m", "--", "opencoca", "train", *words]


def slurm_script(words: Sequence[str], name: str, nodes: int, nproc: int, cpus: int = 8) -> str:
    """An sbatch script that runs `coca train WORDS` on `nodes` machines of `nproc` GPUs, with `cpus` cores each."""
    return SLURM.format(
        name=f"coca-{name}",
        nodes=nodes,
        nproc=nproc,
        cpus=cpus * nproc,
        save_s=SAVE_S,
        shutdown_s=SAVE_S - 60,
        restarts=RESTARTS,
        python="python",
        words=shlex.join(words),
    )


def ray_script(words: Sequence[str], name: str, nodes: int, nproc: int, cpus: int = 8) -> str:
    """A Python script that runs `coca train WORDS` as `nodes` x `nproc` workers of Ray Train, each with one GPU."""
    return RAY.format(words=list(words), name=f"coca-{name}", workers=nodes * nproc, cpus=cpus, restarts=RESTARTS)
