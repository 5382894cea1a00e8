"""Train one network: sharded, resumable, with the Jacobian penalty or without; a script to start from.

Command:    python -m experiments train --problem cifar10_resnet18 --lambda-jr 0.01
            python -m experiments train --problem my_package.problems:MINE     a Problem of your own: lab/problems.py
Stops:      SIGTERM or Ctrl-C saves and exits; the same command goes on, on any number of devices and hosts.
Time:       two CPU cores: 10 to 30 minutes for LeNet' on MNIST at the paper's length; ResNet-18 wants a GPU.
Leaves:     FOLDER/metrics.jsonl, checkpoints, best.npz and last.npz with json beside them, and tensorboard/ where
            tensorboardX is installed.
"""

import contextlib
import dataclasses
import importlib
import resource
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import RUNS
from experiments.lab import measure, record, runner, world
from experiments.lab.problems import PROBLEMS, Problem
from experiments.lab.programs import Execution, initial_state, module_of
from experiments.lab.recipes import Penalised, Recipe, plain
from experiments.lab.zoo import Model, prepared
from jacreg_jax import models, sharding


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, how, and where; None: the problem's own value, which is the paper's."""

    problem: str = "mnist_lenet"
    """mnist_lenet, cifar10_ddnet, cifar10_resnet18, imagenet_resnet18, or MODULE:NAME of a Problem of your own."""
    lambda_jr: float | None = None
    """Coefficient of the Jacobian penalty; 0: none."""
    num_projections: int | Literal["exact"] = 1
    probe: str = "sphere"
    sample_fraction: float = 1.0
    """Share of each batch that is penalised."""
    lazy: int = 1
    """Penalise every so many steps."""
    penalised: Penalised | None = None
    """None: with BatchNorm, the network at the statistics of the batch; without, the network as it is trained."""
    weight_decay: float | None = None
    dropout_rate: float | None = None
    max_epsilon: float = 0.0
    """Adversarial training by FGSM with epsilon ~ U[0, max_epsilon], raw pixels."""
    num_steps: int | None = None
    """The learning rate is quenched at the same shares of them."""
    batch_size: int | None = None
    """Of all devices and hosts together."""
    part_size: int | None = None
    """Samples of a device that are differentiated at once: the gradient is accumulated over parts. None: all."""
    learning_rate: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which the network computes; parameters, loss and penalty are in float32."""
    seed: int = 0
    devices: int | None = None
    """None: one, and all where several processes take part. JAX_NUM_CPU_DEVICES=8 makes a CPU look like 8."""
    backend: sharding.Backend = "jit"
    hosts: world.Hosts = world.Hosts()  # noqa: RUF009  frozen
    """The other processes of the same command."""
    workers: int = 4
    """Processes that read, decode and crop the images of data that do not fit into memory."""
    data_dir: str | None = None
    """Prepared tensorflow-datasets folder; default TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    folder: Path | None = None
    """Where all is kept; None: runs/train/PROBLEM-DIGEST."""
    dispatch: int = 50
    """Steps between two lines of the log."""
    checkpoint_every: int = 1000
    evaluate_every: int = 1000
    trace: Path | None = None
    """Folder of a profile of the whole run, for TensorBoard or Perfetto: with --num-steps 100, say; the products of the
    penalty are named jacobian_penalty."""
    norms: int = 200
    """Test samples whose exact ||J||_F is measured in every evaluation; 0: none."""


QUICK = {"num_steps": 40, "dispatch": 10, "checkpoint_every": 20, "evaluate_every": 20, "norms": 20}
QUICK |= {"folder": Path("runs/quick/train")}


def problem_of(name: str) -> Problem:
    """One of the paper's problems, or one of the user's by module and name.

    Raises:
        ValueError: there is none of this name.
    """
    module, _, attribute = name.partition(":")
    if not attribute:
        if name not in PROBLEMS:
            raise ValueError(f"problem must be one of {', '.join(PROBLEMS)}, or MODULE:NAME, got {name!r}")
        return PROBLEMS[name]
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"problem {name!r} cannot be found: {error}") from None
    if not isinstance(found, Problem):
        raise ValueError(f"problem {name!r} must be a Problem of experiments.lab.problems, got {type(found).__name__}")
    return found


def recipe_of(config: Config) -> Recipe:
    """The problem's protocol with what the options change."""
    problem = problem_of(config.problem)
    given = {name: getattr(config, name) for name in ("learning_rate", "batch_size", "weight_decay", "dropout_rate")}
    given |= {name: getattr(config, name) for name in ("num_projections", "probe", "sample_fraction", "lazy")}
    given |= {"max_epsilon": config.max_epsilon, "lambda_jr": config.lambda_jr}
    usual = {"weight_decay": problem.weight_decay, "dropout_rate": problem.dropout_rate or 0.0}
    usual |= {"lambda_jr": problem.lambda_jr}
    values = {name: usual.get(name) if value is None else value for name, value in given.items()}
    recipe = dataclasses.replace(plain(problem), **{k: v for k, v in values.items() if v is not None})
    penalised = config.penalised or ("batch statistics" if _has_statistics(recipe) else "as trained")
    if not recipe.lambda_jr:
        penalised = "as trained"
    return dataclasses.replace(recipe.shortened(config.num_steps), penalised=penalised)


def run(config: Config) -> list[dict]:
    """Train, or go on; returns the log."""
    recipe = recipe_of(config)
    problem, mesh = recipe.problem, world.mesh_of(config.devices)
    how = Execution(config.part_size, mesh, config.backend, config.dtype)
    facts = {"recipe": recipe.config(), "seed": config.seed, "dtype": config.dtype, "part_size": config.part_size}
    folder = Path(config.folder or RUNS / "train" / f"{problem.name}-{record.digest(facts)}").absolute()
    steps, optimizer, data, (rows,), feed = prepared([(recipe, config.seed)], config.data_dir, config.workers, how)
    state = initial_state(recipe, config.seed, optimizer)
    with record.run_folder(folder, facts, "--folder"), contextlib.ExitStack() as hold:
        if config.trace:
            hold.enter_context(jax.profiler.trace(str(config.trace)))
        keep = Keeper(config, recipe, folder)
        hold.callback(keep.close)
        hold.enter_context(feed)
        state, history = runner.train(
            steps,
            state if mesh is None else sharding.replicate(state, mesh),
            data,
            rows,
            num_steps=recipe.num_steps,
            dispatch=config.dispatch,
            label=recipe.describe(),
            folder=folder,
            checkpoint_every=config.checkpoint_every,
            observe=keep.observe,
            observe_every=config.evaluate_every,
            watch=keep.watch,
        )
        keep.write("last", keep.model(state), history[-1])
    best = record.read_json(folder / "best.json")["row"] if world.is_first() else {}
    if world.is_first():
        print(f"{folder}: {_brief(history[-1])}; best at step {best['step']}: {_brief(best)}")
    return history


class Keeper:
    """What is measured and kept on the way: the test set, the best model, TensorBoard, and the bar's own figures."""

    def __init__(self, config: Config, recipe: Recipe, folder: Path):
        self.config, self.recipe, self.folder = config, recipe, folder
        self.board = _tensorboard(folder / "tensorboard") if world.is_first() else None
        self.since, self.best = (time.perf_counter(), 0), -1.0
        if (folder / "best.json").exists():
            self.best = record.read_json(folder / "best.json")["row"]["test_accuracy"]

    def model(self, state) -> Model:
        """The model of a state, in this process alone."""
        return Model(self.recipe.problem, *world.here((state.params, state.model_state)))

    def observe(self, state) -> dict:
        """Accuracy and ||J||_F of the test set; the model is kept if there was none better."""
        model, config = self.model(state), self.config
        own = {"norms": config.norms, "data_dir": config.data_dir}
        found = measure.clean(model, config.seed, **own, workers=config.workers, batch_size=self.recipe.batch_size)
        found |= {f"jacobian_norm_{name}": value for name, value in found.pop("jacobian_norm", {}).items()}
        row = {"step": int(np.max(state.step))} | {f"test_{name}": value for name, value in found.items()}
        if row["test_accuracy"] > self.best:
            self.best = row["test_accuracy"]
            self.write("best", model, row)
        return row

    def write(self, name: str, model: Model, row: dict) -> None:
        """NAME.npz and NAME.json."""
        facts = {"weights": model.weights, "row": row, "environment": record.environment()}
        record.write_arrays(self.folder / f"{name}.npz", model.arrays())
        record.write_json(self.folder / f"{name}.json", facts)

    def watch(self, row: dict) -> dict:
        """Rows to TensorBoard; of the bar: loss, accuracy, images a second, memory."""
        (then, before), now = self.since, time.perf_counter()
        self.since = now, row["step"]
        rate = (row["step"] - before) * self.recipe.batch_size / (now - then) if before else 0.0
        if self.board is not None:
            for name, value in row.items():
                if name != "step":
                    self.board.add_scalar(name, value, row["step"])
            if before:
                self.board.add_scalar("images_per_second", rate, row["step"])
        shown = ("loss", "accuracy", "penalty", "test_accuracy", "waiting")
        shown = {name: f"{row[name]:.3g}" for name in shown if name in row}
        return shown | ({"img/s": f"{rate:.0f}"} if before else {}) | {"GB": f"{_gigabytes():.1f}"}

    def close(self) -> None:
        """Write what TensorBoard has not written yet."""
        if self.board is not None:
            self.board.close()


def _has_statistics(recipe: Recipe) -> bool:
    key, image = jax.random.key(0), jax.ShapeDtypeStruct((1, *recipe.problem.shape), jnp.float32)
    _, model_state = jax.eval_shape(lambda key, x: models.initialize(module_of(recipe), key, x), key, image)
    return bool(jax.tree.leaves(model_state))


def _gigabytes() -> float:
    """Most memory that was in use: of the first device, or on CPU of this process."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    peak = statistics.get("peak_bytes_in_use") or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9


def _tensorboard(folder: Path):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def _brief(row: dict) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name.startswith("test_"))
