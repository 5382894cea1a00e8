"""The models of the experiments: trained once by recipe and seed, kept in runs/models, shared by all experiments."""

import dataclasses
import functools
import json
import time
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


# what every experiment's own QUICK starts from
QUICK = {"dispatch": 10, "checkpoint_every": 10, "out": Path("runs/quick"), "runs": Path("runs/quick")}


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
        return lambda first, count: recipe.batches(seed, first, count, len(labels))
    subset = datasets.few_shot(labels, recipe.samples_per_class, seed).astype(np.int32)
    return lambda first, count: np.broadcast_to(subset, (count, len(subset)))


def train(
    recipe: Recipe,
    seeds: Iterable[int],
    options: Options,
    observe: Callable | None = None,
    observe_every: int = 5000,
    observed: str = "",
):
    """Pairs (seed, parameters); what is not in the zoo yet is trained, or goes on from its last checkpoint.

    Where models train together, so do those of the experiment's other recipes that are of one program with this one.

    Args:
        recipe: of the models.
        seeds: their seeds.
        options: see Options.
        observe: params -> metrics, logged every `observe_every` steps; such models train alone, and are kept apart.
        observe_every: steps.
        observed: what sets these metrics apart from others.
    """
    if observe:
        for seed in seeds:
            path = model_path(recipe, seed, options, observed)
            if not path.exists():
                _train_group([(recipe, seed)], options, path.with_suffix(""), observe, observe_every)
            yield seed, _load(path)
        return
    # under vmap both branches of a lazy step would run, every time
    size, seeds = 1 if recipe.lazy > 1 else options.group_size, list(seeds)
    beside = [r for r in options.recipes.values() if r.program() == recipe.program()] if size > 1 else []
    wanted = [(r, seed) for r in dict.fromkeys([recipe, *beside]) for seed in seeds]
    for seed in seeds:
        if not model_path(recipe, seed, options).exists():
            members = _unfinished(recipe, seed, options)
            if not members or size == 1:
                missing = [member for member in wanted if not model_path(*member, options).exists()]
                members = missing[:size]
            _train_group(members, options, _run_folder(members, options))
        yield seed, _load(model_path(recipe, seed, options))


def model_path(recipe: Recipe, seed: int, options: Options, observed: str = "") -> Path:
    """Where the trained parameters lie."""
    return Path(options.runs) / "models" / (recipe.digest() + observed) / f"seed-{seed}.npz"


def _run_folder(members, options: Options) -> Path:
    if len(members) == 1:
        return model_path(*members[0], options).with_suffix("")
    return Path(options.runs) / "models" / f"together-{record.digest(_config(members, options))}"


def _config(members, options: Options) -> dict:
    """What the numbers of a run depend on."""
    config = {"members": [{"recipe": dataclasses.asdict(recipe), "seed": seed} for recipe, seed in members]}
    drops = any(recipe.dropout_rate for recipe, _ in members)
    return config | ({"part_size": options.part_size} if drops else {})


def _unfinished(recipe: Recipe, seed: int, options: Options) -> list[tuple[Recipe, int]]:
    """The members of a group that was interrupted with this model among them; empty where there is none."""
    known = {r.digest(): r for r in (recipe, *options.recipes.values())}
    for path in sorted((Path(options.runs) / "models").glob("together-*/config.json")):
        members = [(record.digest(m["recipe"]), m["seed"]) for m in json.loads(path.read_text())["config"]["members"]]
        if (recipe.digest(), seed) in members and all(digest in known for digest, _ in members):
            return [(known[digest], seed) for digest, seed in members]
    return []


def _train_group(members, options: Options, run: Path, observe=None, observe_every: int = 5000):
    """Train the members in the folder `run`, and write what of their models is not there yet."""
    together = len(members) > 1
    recipe = members[0][0]
    data = images(recipe.dataset, "train", options.data_dir)
    steps, optimizer = make_steps([recipe for recipe, _ in members], options.part_size)
    states = [initial_state(*member, optimizer) for member in members]
    rows = [rows_of(*member, np.asarray(data["label"])) for member in members]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if together else states[0]
    indices = (lambda first, count: np.stack([r(first, count) for r in rows])) if together else rows[0]
    config = _config(members, options)
    names = [f"{describe(recipe)}, seed {seed}" for recipe, seed in members]
    with record.run_folder(run, config):
        state, history = runner.train(
            steps,
            state,
            data,
            indices,
            num_steps=recipe.num_steps,
            dispatch=options.dispatch,
            label=names[0] + f" and {len(names) - 1} more" * together,
            names=names,
            folder=run,
            checkpoint_every=options.checkpoint_every,
            observe=observe and (lambda state: observe(state.params)),
            observe_every=observe_every,
        )
    for i, (recipe, seed) in enumerate(members):
        path = model_path(recipe, seed, options) if together else run.with_suffix(".npz")
        if path.exists():
            continue
        params = jax.tree.map(lambda leaf, i=i: leaf[i], state.params) if together else state.params
        last = {k: v[i] if together and k not in ("step", "ms_per_step") else v for k, v in history[-1].items()}
        facts = {"config": config["members"][i], "last": last, "run": run.name}
        record.write_json(path.with_suffix(".json"), facts | {"environment": record.environment()})
        record.write_arrays(path, traverse_util.flatten_dict(params, sep="/"))


def history(path: Path) -> list[dict]:
    """The metrics of the run that trained, alone, the model at path."""
    return [json.loads(line) for line in (path.with_suffix("") / "metrics.jsonl").read_text().splitlines()]


def milliseconds(recipes: dict[str, Recipe], options: Options, rounds: int = 5) -> dict[str, float]:
    """Median time of a training step by recipe: fresh steps, one recipe after the other in every round."""
    data = images(next(iter(recipes.values())).dataset, "train", options.data_dir)
    runs, times = {}, {name: [] for name in recipes}
    for name, recipe in recipes.items():
        steps, optimizer = make_steps([recipe], options.part_size)
        rows = rows_of(recipe, 0, np.asarray(data["label"]))(0, options.dispatch)
        runs[name] = [steps, initial_state(recipe, 0, optimizer), rows]
    for _ in range(1 + rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run[1], _ = jax.block_until_ready(run[0](run[1], data, run[2]))
            times[name].append(1e3 * (time.perf_counter() - start) / options.dispatch)
    return {name: round(float(np.median(found[1:])), 3) for name, found in times.items()}  # the first one compiles


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


def fill_clean(path: Path, recipe: Recipe, test: dict, seeds: Iterable[int], options: Options, norms: int | None):
    """The result at path of `clean` on a recipe's models, by seed; what is missing is trained."""

    def compute(seeds):
        for seed, params in train(recipe, seeds, options):
            yield seed, clean(params, test, norms=norms)

    settings = {"recipe": dataclasses.asdict(recipe)} | ({} if norms == 0 else {"norms": norms})
    return record.fill(path, settings, seeds, compute)["models"]
