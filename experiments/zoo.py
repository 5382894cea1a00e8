"""The models of the experiments: trained once by recipe and seed, kept in runs/models, shared by all experiments."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from functools import partial
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
    """Models trained in one compiled program, vmapped over seeds and regularizers; None: 25, and 1 on CPU, where more
    are no faster."""
    dispatch: int = 50
    """Training steps compiled into one call."""
    checkpoint_every: int = 5000
    part_size: int | None = None
    """Samples differentiated at once: on CPU 25 are faster than the full batches of few-shot cells, being in the cache.
    The same numbers up to rounding, but dropout draws a mask for each part. None: the whole batch."""

    @property
    def recipes(self) -> dict:
        """What the experiment trains, by name; models of one `Recipe.program` may train together."""
        return {}

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


def problem(recipe: Recipe, *, lambda_jr, weight_decay, part_size: int | None = None):
    """(loss, optimizer) of a recipe, whose two coefficients may be traced."""
    loss = training.classification_loss(
        train_mode(module(recipe)),
        lambda_jr=lambda_jr,
        num_projections=recipe.num_projections,
        probe=recipe.probe,
        sample_fraction=recipe.sample_fraction,
        lazy=recipe.lazy,
        part_size=part_size,
        preprocess=PREPROCESSING.normalize,
        perturb=adversarial_training.random_fgsm(recipe.max_epsilon) if recipe.max_epsilon else None,
        penalty_apply=recipe.penalty_apply(module(recipe)),
    )
    quenches = range(recipe.quench_every, recipe.num_steps, recipe.quench_every) if recipe.quench_every else ()
    schedule = training.quench(recipe.learning_rate, list(quenches)) if quenches else recipe.learning_rate
    return loss, training.sgd(schedule, weight_decay=weight_decay)


def make_steps(recipes: list[Recipe], part_size: int | None = None):
    """The compiled training program and its optimizer: for one model, or several of one `Recipe.program` under vmap."""
    recipe, *others = recipes
    if not others:
        own = {"lambda_jr": recipe.lambda_jr, "weight_decay": recipe.weight_decay}
        loss, optimizer = problem(recipe, **own, part_size=part_size)
        return training.make_train_steps(loss, optimizer), optimizer
    own = {"weight_decay": jnp.asarray([r.weight_decay for r in recipes])}
    if recipe.lambda_jr:
        own["lambda_jr"] = jnp.asarray([r.lambda_jr for r in recipes])

    def steps(own, state, data, indices):
        loss, optimizer = problem(recipe, **{"lambda_jr": 0.0} | own, part_size=part_size)
        return training.make_train_steps(loss, optimizer)(state, data, indices)

    together = jax.jit(jax.vmap(steps, in_axes=(0, 0, None, 0)), donate_argnums=1)
    _, optimizer = problem(recipe, lambda_jr=0.0, weight_decay=own["weight_decay"][0])
    return partial(together, own), optimizer


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

    Where models train together, so do those of the experiment's other recipes that are of one program with this one.

    Args:
        recipe: of the models.
        seeds: their seeds.
        options: see Options.
        observe: params -> metrics, logged every `observe_every` steps; only for models that train alone.
        **intervals: observe_every.
    """
    seeds, size = list(seeds), 1 if observe else options.group_size
    beside = [r for r in options.recipes.values() if r.program() == recipe.program()] if size > 1 else []
    wanted = [(r, seed) for r in dict.fromkeys([recipe, *beside]) for seed in seeds]
    for seed in seeds:
        if not _model(recipe, seed, options).exists():
            missing = [member for member in wanted if not _model(*member, options).exists()]
            _train_group(missing[:size], options, observe, **intervals)
        yield seed, _load(_model(recipe, seed, options))


def _model(recipe: Recipe, seed: int, options: Options) -> Path:
    return Path(options.runs) / "models" / recipe.digest() / f"seed-{seed}.npz"


def _train_group(members: list[tuple[Recipe, int]], options: Options, observe=None, **intervals):
    (recipe, seed), together = members[0], len(members) > 1
    data = images(recipe.dataset, "train", options.data_dir)
    steps, optimizer = make_steps([recipe for recipe, _ in members], options.part_size)
    states = [initial_state(*member, optimizer) for member in members]
    rows = [rows_of(*member, np.asarray(data["label"])) for member in members]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if together else states[0]
    indices = (lambda first, count: np.stack([r(first, count) for r in rows])) if together else rows[0]
    config = {"members": [{"recipe": dataclasses.asdict(recipe), "seed": seed} for recipe, seed in members]}
    models = Path(options.runs) / "models"
    run = models / f"together-{record.digest(config)}" if together else _model(recipe, seed, options).with_suffix("")
    if not record.is_done(run / "config.json", config):
        record.write_json(run / "config.json", {"config": config, "environment": record.environment()})
    state, history = runner.train(
        steps,
        state,
        data,
        indices,
        num_steps=recipe.num_steps,
        dispatch=options.dispatch,
        label="; ".join(
            f"{describe(r)}, seed {', '.join(str(s) for q, s in members if q == r)}" for r in dict(members)
        ),
        folder=run,
        checkpoint_every=options.checkpoint_every,
        observe=observe and (lambda state: observe(state.params)),
        **intervals,
    )
    for i, (recipe, seed) in enumerate(members):
        params = jax.tree.map(lambda leaf, i=i: leaf[i], state.params) if together else state.params
        last = {k: v[i] if together and k not in ("step", "ms_per_step") else v for k, v in history[-1].items()}
        facts = {"config": config["members"][i], "last": last, "run": str(run.relative_to(models))}
        path = _model(recipe, seed, options)
        record.write_json(path.with_suffix(".json"), facts | {"environment": record.environment()})
        record.write_arrays(path, traverse_util.flatten_dict(params, sep="/"))


def history(recipe: Recipe, seed: int, options: Options) -> list[dict]:
    """The metrics of a model's run; lists by member where it was trained with others."""
    run = json.loads(_model(recipe, seed, options).with_suffix(".json").read_text())["run"]
    lines = (Path(options.runs) / "models" / run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def milliseconds(recipe: Recipe, seed: int, options: Options) -> float:
    """Median time of a training step for one model; worth little where other work ran beside."""
    rows = history(recipe, seed, options)
    return round(float(np.median([row["ms_per_step"] for row in rows])) / np.size(rows[-1]["loss"]), 3)


def _load(path: Path):
    with np.load(path) as arrays:
        return traverse_util.unflatten_dict({name: jnp.asarray(a) for name, a in arrays.items()}, sep="/")


def describe(recipe: Recipe) -> str:
    """What sets the recipe apart, for a progress bar."""
    plain = Recipe()
    parts = [f"{k}={v}" for k, v in dataclasses.asdict(recipe).items() if v != getattr(plain, k, None)]
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
