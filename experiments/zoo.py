"""The models of the experiments: trained once by recipe and seed, kept in runs/models, shared by all experiments."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from experiments import record, runner
from experiments.recipes import Recipe
from jacreg_jax import adversarial_training, datasets, evaluation, exact_frobenius_sq, training
from jacreg_jax.models import LeNet, initialize, predictor, train_mode

PREPROCESSING = datasets.MNIST


@dataclasses.dataclass(frozen=True)
class Options:
    """Where things lie, and how training is cut into pieces; no number depends on them, but for what is said."""

    data_dir: str | None = None
    """Prepared tensorflow-datasets folder; default TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    out: Path = record.RESULTS
    """Folder of the results."""
    runs: Path = record.RUNS
    """Folder of checkpoints, logs and trained models."""
    together: int | None = None
    """Models trained in one compiled program, vmapped over seeds; None: 1 on CPU, where it is no faster, else 25."""
    dispatch: int = 50
    """Training steps compiled into one call."""
    checkpoint_every: int = 5000
    part_size: int | None = None
    """Samples differentiated at once: on CPU 25 are faster than the full batches of few-shot cells, being in the cache.
    The same numbers up to rounding, but dropout draws a mask for each part. None: the whole batch."""

    @property
    def group_size(self) -> int:
        """Models trained in one program."""
        return self.together or (1 if jax.default_backend() == "cpu" else 25)


@functools.lru_cache(maxsize=4)
def images(name: str, split: str, data_dir: str | None = None) -> dict[str, jax.Array]:
    """{"image": raw [N, 28, 28, 1] in [0, 1], "label": [N]} on the device."""
    pixels, labels = datasets.load(name, split, data_dir=data_dir)
    return {
        "image": jnp.asarray(datasets.from_uint8(datasets.resize_bilinear(pixels, 28))),
        "label": jnp.asarray(labels),
    }


def module(recipe: Recipe) -> LeNet:
    """The untrained network."""
    return LeNet(dropout_rate=recipe.dropout_rate, initialization=recipe.initialization)


def make_steps(recipe: Recipe, *, together: bool, part_size: int | None = None):
    """The compiled training program and its optimizer."""
    loss = training.classification_loss(
        train_mode(module(recipe)),
        lambda_jr=recipe.lambda_jr,
        num_projections=recipe.num_projections,
        probe=recipe.probe,
        sample_fraction=recipe.sample_fraction,
        lazy=recipe.lazy,
        part_size=part_size,
        preprocess=PREPROCESSING.normalize,
        perturb=adversarial_training.random_fgsm(recipe.max_epsilon) if recipe.max_epsilon else None,
    )
    quenches = range(recipe.quench_every, recipe.num_steps, recipe.quench_every) if recipe.quench_every else ()
    schedule = training.quench(recipe.learning_rate, list(quenches)) if quenches else recipe.learning_rate
    optimizer = training.sgd(schedule, weight_decay=recipe.weight_decay)
    return training.make_train_steps(loss, optimizer, together=together), optimizer


def initial_state(recipe: Recipe, seed: int, optimizer):
    """Initial parameters and key of a seed."""
    init, draws = jax.random.split(jax.random.key(seed))
    params, model_state = initialize(module(recipe), init, jnp.zeros((1, 28, 28, 1)))
    return training.init_state(params, optimizer, draws, model_state)


def rows_of(recipe: Recipe, seed: int, labels: np.ndarray) -> Callable:
    """(first_step, count) -> rows of the training set [T, B]; the few-shot subset depends on the seed too."""
    if recipe.samples_per_class is None:
        return lambda first, count: runner.batch_indices(seed, first, count, recipe.batch_size, len(labels))
    subset = datasets.few_shot(labels, recipe.samples_per_class, seed).astype(np.int32)
    return lambda first, count: np.broadcast_to(subset, (count, len(subset)))


def train(recipe: Recipe, seeds: Iterable[int], options: Options, observe: Callable | None = None, **intervals):
    """Pairs (seed, parameters); what is not in the zoo yet is trained, or goes on from its last checkpoint.

    Args:
        recipe: of the models.
        seeds: their seeds.
        options: see Options.
        observe: params -> metrics, logged every `observe_every` steps; only for models that train alone.
        **intervals: observe_every.
    """
    folder = Path(options.runs) / "models" / recipe.digest()
    size = 1 if observe else options.group_size
    seeds = list(seeds)
    for group in (seeds[start : start + size] for start in range(0, len(seeds), size)):
        missing = [seed for seed in group if not (folder / f"seed-{seed}.npz").exists()]
        if missing:
            _train_group(recipe, missing, options, folder, observe, **intervals)
        for seed in group:
            yield seed, _load(folder / f"seed-{seed}.npz")


def _train_group(recipe, seeds, options, folder, observe, **intervals):
    data = images(recipe.dataset, "train", options.data_dir)
    together = len(seeds) > 1
    steps, optimizer = make_steps(recipe, together=together, part_size=options.part_size)
    states = [initial_state(recipe, seed, optimizer) for seed in seeds]
    rows = [rows_of(recipe, seed, np.asarray(data["label"])) for seed in seeds]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if together else states[0]
    indices = (lambda first, count: np.stack([r(first, count) for r in rows])) if together else rows[0]
    run = folder / ("seeds-" + "-".join(map(str, seeds)))
    config = {"recipe": dataclasses.asdict(recipe), "seeds": list(seeds)}
    if not record.is_done(run / "config.json", config):
        record.write_json(run / "config.json", {"config": config, "environment": record.environment()})
    state, history = runner.train(
        steps,
        state,
        data,
        indices,
        num_steps=recipe.num_steps,
        dispatch=options.dispatch,
        label=f"{describe(recipe)}, seed{'s' * together} {', '.join(map(str, seeds))}",
        folder=run,
        checkpoint_every=options.checkpoint_every,
        observe=observe and (lambda state: observe(state.params)),
        **intervals,
    )
    for i, seed in enumerate(seeds):
        params = jax.tree.map(lambda leaf, i=i: leaf[i], state.params) if together else state.params
        last = {k: v[i] if together and k not in ("step", "ms_per_step") else v for k, v in history[-1].items()}
        facts = {"config": config, "last": last}
        record.write_json(folder / f"seed-{seed}.json", facts | {"environment": record.environment()})
        record.write_arrays(folder / f"seed-{seed}.npz", traverse_util.flatten_dict(params, sep="/"))


def history(recipe: Recipe, seed: int, options: Options) -> list[dict]:
    """The metrics of a model that was trained alone."""
    path = Path(options.runs) / "models" / recipe.digest() / f"seeds-{seed}" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def milliseconds(recipe: Recipe, seed: int, options: Options) -> float:
    """Median time of a training step, of those dispatches that were full; worth little where other work ran beside."""
    folder = Path(options.runs) / "models" / recipe.digest()
    seeds = json.loads((folder / f"seed-{seed}.json").read_text())["config"]["seeds"]
    run = folder / ("seeds-" + "-".join(map(str, seeds)))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return round(float(np.median([row["ms_per_step"] for row in rows])) / len(seeds), 3)


def _load(path: Path):
    with np.load(path) as arrays:
        return traverse_util.unflatten_dict({name: jnp.asarray(a) for name, a in arrays.items()}, sep="/")


def describe(recipe: Recipe) -> str:
    """What sets the recipe apart, for a progress bar."""
    plain = Recipe()
    parts = [f"{k}={v}" for k, v in dataclasses.asdict(recipe).items() if v != getattr(plain, k)]
    return " ".join(parts) or "no regularizer"


def raw_predictor(params):
    """f: raw pixels -> logits, in eval mode; one compiled program for all recipes."""
    return predictor(LeNet(), params, preprocess=PREPROCESSING.normalize)


def clean(params, test: dict, *, norms: int | None = None) -> dict:
    """Test accuracy, and both means of the exact ||J||_F over the first `norms` test samples (None: all; 0: none)."""
    result = {"accuracy": evaluation.accuracy(raw_predictor(params), test["image"], test["label"])}
    if norms == 0:
        return result
    x = PREPROCESSING.normalize(test["image"][:norms])
    found = evaluation.jacobian_norms(exact_frobenius_sq, predictor(LeNet(), params), x)
    return result | {"jacobian_norm": evaluation.norm_summary(found)}


def fill(path: Path, config: dict, seeds: Iterable[int], compute: Callable) -> dict:
    """The result at path, with what it lacks of the seeds computed, and written after every group.

    Args:
        path: json of {"config", "models": {seed: ...}, "environment"}.
        config: what the numbers depend on, but for the seed.
        seeds: wanted.
        compute: seeds -> iterator of (seed, metrics).

    Raises:
        ValueError: path holds the result of another configuration.
    """
    result = {"config": config, "models": {}}
    if record.is_done(path, config):
        result = json.loads(path.read_text())
    missing = [seed for seed in seeds if str(seed) not in result["models"]]
    for seed, metrics in compute(missing) if missing else ():
        result["models"][str(seed)] = metrics
        result["environment"] = record.environment()
        record.write_json(path, result)
    return result
