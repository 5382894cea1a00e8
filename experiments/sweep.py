"""Train one network for each value of lambda_jr and each seed: here one after the other, elsewhere by submitit.

Command:    python -m experiments sweep --train.problem mnist_lenet --lambdas 0 0.01 0.1 --seeds 3
            python -m experiments sweep --cluster slurm --partition gpu --lambdas 0 0.01 0.1
Time:       as many times that of `python -m experiments train`, divided by the jobs that run at once.
Leaves:     a folder of the train script for each, and FOLDER/sweep.json: what each ended with. A job that is preempted
            saves and is queued again; the same command gathers what is there and submits what is missing.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments import RUNS, train as script
from experiments.lab import record
from experiments.lab.process import prepare_process


@dataclasses.dataclass(frozen=True)
class Config:
    """What is swept, and where it runs."""

    train: script.Config = script.Config()  # noqa: RUF009  frozen
    """Options of every training; its lambda_jr, seed and folder are the sweep's."""
    lambdas: tuple[float, ...] = (0.0, 0.001, 0.01, 0.1)
    seeds: int = 1
    cluster: Literal["none", "local", "slurm"] = "none"
    """none: one after the other, here. local: processes of this machine, by submitit. slurm: an array of jobs."""
    partition: str | None = None
    """Of SLURM."""
    gpus: int = 0
    """Of each job."""
    minutes: int = 24 * 60
    """Limit of a job; it saves before, and is queued again."""
    at_once: int = 8
    """Jobs that run at the same time."""
    folder: Path = RUNS / "sweep"


QUICK = {
    "train": dataclasses.replace(script.Config(), **script.QUICK),
    "lambdas": (0.01,),
    "folder": Path("runs/quick/sweep"),
}


class Job:
    """One training; submitit calls it, and asks for its checkpoint when it is to be queued again."""

    def __init__(self, config: script.Config):
        self.config = config

    def __call__(self) -> dict:
        """The last line of its log."""
        prepare_process()
        return script.run(self.config)[-1]

    def checkpoint(self):
        """The same again: it goes on from its last checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(Job(self.config))


def jobs(config: Config) -> dict[str, script.Config]:
    """{name: options} of every training."""
    found = {}
    for value in config.lambdas:
        for seed in range(config.seeds):
            name = f"lambda-{value:g}-seed-{seed}"
            own = {"lambda_jr": value, "seed": seed, "folder": Path(config.folder).absolute() / name}
            found[name] = dataclasses.replace(config.train, **own)
    return found


def run(config: Config) -> dict[str, dict]:
    """Train what is missing; the last line of each log."""
    wanted = jobs(config)
    missing = {name: own for name, own in wanted.items() if not (own.folder / "last.json").exists()}
    if config.cluster == "none":
        for own in missing.values():
            script.run(own)
    elif missing:
        _submit(config, list(missing.values()))
    found = {name: record.read_json(own.folder / "last.json")["row"] for name, own in wanted.items()}
    record.write_json(Path(config.folder) / "sweep.json", found)
    for name, row in found.items():
        norm = row.get("test_jacobian_norm_mean", float("nan"))
        print(f"{name}: accuracy {row['test_accuracy']:.4f}, ||J||_F {norm:.3f}")
    return found


def _submit(config: Config, missing: list[script.Config]):
    """As an array of jobs, and wait for them."""
    import submitit

    executor = submitit.AutoExecutor(Path(config.folder) / "submitit", cluster=config.cluster)
    executor.update_parameters(timeout_min=config.minutes, gpus_per_node=config.gpus, name="jacreg")
    size = config.at_once if config.cluster == "local" else len(missing)  # SLURM limits an array by itself
    if config.cluster == "slurm":
        executor.update_parameters(slurm_partition=config.partition, slurm_array_parallelism=config.at_once)
    for first in range(0, len(missing), size):
        with executor.batch():
            running = [executor.submit(Job(own)) for own in missing[first : first + size]]
        for job in running:
            job.result()
