"""The models of the experiments: trained once by recipe and seed, kept in runs/models, shared by all experiments."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from experiments.lab import record, runner, world
from experiments.lab.batches import rows_of
from experiments.lab.options import Options
from experiments.lab.problems import Problem, images
from experiments.lab.programs import Execution, initial_state, make_steps, module_of
from experiments.lab.recipes import Recipe, from_config, plain
from jacreg_jax import sharding, training
from jacreg_jax.models import predictor

STATE = "model_state/"  # in front of the names of BatchNorm's statistics and the like in a model file


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained network of a problem."""

    problem: Problem
    params: Any
    model_state: Any

    @property
    def f(self) -> Callable:
        """Preprocessed input -> logits, in eval mode; one compiled program for all recipes of a problem."""
        return predictor(module_of(plain(self.problem)), self.params, self.model_state)

    @property
    def image_f(self) -> Callable:
        """The same of the data's raw pixels."""
        module, normalize = module_of(plain(self.problem)), self.problem.preprocessing.normalize
        return predictor(module, self.params, self.model_state, preprocess=normalize)

    @property
    def raw_f(self) -> Callable:
        """The same of those raw pixels that attacks move (see `Problem.attack_space`)."""
        preprocessing = self.problem.attack_preprocessing or self.problem.preprocessing
        module = module_of(plain(self.problem))
        return predictor(module, self.params, self.model_state, preprocess=preprocessing.normalize)

    def arrays(self) -> dict[str, np.ndarray]:
        """Parameters and model state by name, as they lie in a file."""
        flat = traverse_util.flatten_dict(self.params, sep="/")
        flat |= {STATE + k: v for k, v in traverse_util.flatten_dict(self.model_state, sep="/").items()}
        return {name: np.asarray(array) for name, array in flat.items()}

    @cached_property
    def weights(self) -> str:
        """Ten characters that differ between other weights, were it in one bit."""
        found = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:10]


class Watch(NamedTuple):
    """Metrics of the test set during training; such models train alone, and are kept apart from others."""

    observe: Callable[[Model], dict]
    every: int  # steps
    name: str  # what sets these metrics apart from others


def train(
    recipe: Recipe, seeds: Iterable[int], options: Options, beside: Iterable[Recipe] = (), watch: Watch | None = None
) -> Iterator[tuple[int, Model]]:
    """Pairs (seed, model); what is not in the zoo yet is trained, or goes on from its last checkpoint.

    Args:
        recipe: of the models.
        seeds: their seeds.
        options: see Options.
        beside: other recipes that are wanted; where models train together, those of one program with this one join.
        watch: see Watch.
    """
    seeds = list(seeds)
    for seed in seeds:
        yield seed, trained(recipe, seed, seeds, options, beside, watch)


def trained(
    recipe: Recipe, seed: int, seeds: Sequence[int], options: Options, beside: Iterable[Recipe], watch: Watch | None
) -> Model:
    """The model of one seed, of the zoo or trained now, together with those of other seeds and recipes that are wanted.

    Raises:
        NonFiniteError: its training diverged, now or before.
    """
    path = model_path(recipe, seed, options, watch)
    if not world.agreed(_is_done(path)):
        # watched models and lazy ones train alone: under vmap both branches of a lazy step would run, every time
        alone = watch or recipe.lazy > 1 or not recipe.problem.resident
        members = [(recipe, seed)]
        if not alone and group_size(options, recipe.problem) > 1:
            beside = [r for r in beside if r.program() == recipe.program()]
            wanted = [(r, s) for r in dict.fromkeys([recipe, *beside]) for s in seeds]
            missing = [member for member in wanted if not _is_done(model_path(*member, options))]
            members = _unfinished(recipe, seed, options) or missing[: group_size(options, recipe.problem)]
        _train_group(members, options, watch)
        world.meet("models are written")
    if diverged := _diverged(path):
        error = training.NonFiniteError(diverged["step"], diverged)
        error.args = (f"{recipe.describe()}, seed {seed}: {error}",)
        raise error
    return _as_written(path, load(path, recipe.problem))


def group_size(options: Options, problem: Problem) -> int:
    """Models trained in one program. Several processes train one at a time, each batch spread over all of them."""
    if jax.process_count() > 1:
        return 1
    return options.together or (1 if jax.default_backend() == "cpu" else problem.together)


def model_path(recipe: Recipe, seed: int, options: Options, watch: Watch | None = None) -> Path:
    """Where the trained model lies; beside it in a folder of its name the run, where it was trained alone."""
    return Path(options.runs) / "models" / (recipe.digest() + (watch.name if watch else "")) / f"seed-{seed}.npz"


def _is_done(path: Path) -> bool:
    return path.exists() or _diverged(path) is not None


def _diverged(path: Path) -> dict | None:
    """The step at which the model of a path diverged, and its metrics; None where none is known to."""
    facts = path.with_suffix(".json")
    return record.read_json(facts).get("diverged") if facts.exists() and not path.exists() else None


def load(path: Path, problem: Problem) -> Model:
    """The model of a file.

    Raises:
        ValueError: it is damaged.
    """
    arrays = {name: jnp.asarray(array) for name, array in record.read_arrays(path).items()}
    params = {name: array for name, array in arrays.items() if not name.startswith(STATE)}
    state = {name.removeprefix(STATE): array for name, array in arrays.items() if name.startswith(STATE)}
    return Model(problem, *(traverse_util.unflatten_dict(part, sep="/") for part in (params, state)))


def _as_written(path: Path, model: Model) -> Model:
    """The model of a file, if its weights are those that were written with it.

    Raises:
        ValueError: they are others; with the path and the remedy.
    """
    facts = path.with_suffix(".json")
    remedy = f"remove {path}, and the same command makes both anew, from the last checkpoint where there is one"
    written = record.read_json(facts, remedy).get("weights") if facts.exists() else None  # old ones do not say
    if written is not None and written != model.weights:
        raise ValueError(f"{path} is damaged (its weights are not those of {facts}); {remedy}")
    return model


def _run_folder(members: Sequence[tuple[Recipe, int]], options: Options, watch: Watch | None) -> Path:
    if len(members) == 1:
        return model_path(*members[0], options, watch).with_suffix("")
    return Path(options.runs) / "models" / f"together-{record.digest(_config(members, options))}"


def _config(members: Sequence[tuple[Recipe, int]], options: Options) -> dict:
    """What the numbers of a run depend on; of a group, who trains together.

    draws, where a model draws more than probes: 2 since dropout and the penalised part have a key of their own, 3 where
    the part is drawn from groups of rows, 4 where the rows beside it have a mask of their own. A run without it was
    begun when they shared the key of the first probe, and is not gone on with.
    """
    config = {"members": [{"recipe": recipe.config(), "seed": seed} for recipe, seed in members]}
    if any(recipe.dropout_rate for recipe, _ in members):
        config["part_size"] = options.part_size
    if any(recipe.dropout_rate or recipe.sample_fraction < 1 for recipe, _ in members):
        in_part = [recipe for recipe, _ in members if recipe.sample_fraction < 1]
        config["draws"] = 4 if any(recipe.dropout_rate for recipe in in_part) else 3 if in_part else 2
    return config


def _unfinished(recipe: Recipe, seed: int, options: Options) -> list[tuple[Recipe, int]]:
    """The members of a group that was interrupted with this model among them; empty where there is none."""
    for path in sorted((Path(options.runs) / "models").glob("together-*/config.json")):
        written = record.read_json(path)["config"]["members"]
        if any(m["seed"] == seed and record.digest(m["recipe"]) == recipe.digest() for m in written):
            return [(from_config(m["recipe"]), m["seed"]) for m in written]
    return []


def _train_group(members: Sequence[tuple[Recipe, int]], options: Options, watch: Watch | None):
    """Train the members in their folder, and write what of their models is not there yet."""
    together, (recipe, _) = len(members) > 1, members[0]
    run = _run_folder(members, options, watch)
    mesh = _mesh(options, len(members))
    how = Execution(options.part_size, mesh, options.backend)
    steps, optimizer, data, rows, feed = prepared(members, options.data_dir, options.workers, how)
    states = [initial_state(*member, optimizer) for member in members]
    names = [f"{recipe.describe()}, seed {seed}" for recipe, seed in members]
    model_of = lambda state: Model(recipe.problem, *world.here((state.params, state.model_state)))
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if together else states[0]
    if mesh is not None and not together:
        state = sharding.replicate(state, mesh)
    with record.run_folder(run, _config(members, options)), feed:
        try:
            state, history = runner.train(
                steps,
                state,
                data,
                (lambda first, count: np.stack([r(first, count) for r in rows])) if together else rows[0],
                num_steps=recipe.num_steps,
                dispatch=options.dispatch,
                label=names[0] + f" and {len(names) - 1} more" * together,
                names=names,
                folder=run,
                checkpoint_every=options.checkpoint_every,
                observe=watch and (lambda state: watch.observe(model_of(state))),
                observe_every=watch.every if watch else 5000,
            )
            last = history[-1]
        except training.NonFiniteError as error:
            state, last = error.state, error.last
    diverged = last.pop("diverged", [None] * len(members))
    for i, member in enumerate(members):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], state) if together else state
        own_last = {k: v[i] if together and k not in ("step", "ms_per_step") else v for k, v in last.items()}
        facts = {"config": _config([member], options)["members"][0], "last": own_last, "run": run.name}
        _write(model_path(*member, options, watch), None if diverged[i] else model_of(own), facts, diverged[i])


def prepared(members: Sequence[tuple[Recipe, int]], data_dir: str | None, workers: int, how: Execution):
    """(steps, optimizer, data, rows, feed): the program, its data, the rows of each member's batches, what is to leave.

    Data that do not fit into memory come with the steps, of one member, whose rows are the numbers of its batches.
    """
    (recipe, seed), *others = members
    if not recipe.problem.resident:
        from experiments.lab import streams  # Grain, an extra

        assert not others, "models whose data are streamed train alone"
        steps, optimizer, feed = streams.make_steps(recipe, seed, how, workers=workers, data_dir=data_dir)
        return steps, optimizer, None, [lambda first, count: np.arange(first, first + count)], feed
    steps, optimizer = make_steps([recipe for recipe, _ in members], how)
    data = images(recipe.problem, "train", data_dir)
    rows = [rows_of(*member, np.asarray(data["label"])) for member in members]
    return steps, optimizer, world.placed(data, how.mesh), rows, contextlib.nullcontext()


def _mesh(options: Options, members: int):
    """The mesh of the options; of several models, over as many of its devices as divide them."""
    mesh = world.mesh_of(options.devices)
    if mesh is None or members == 1:
        return mesh
    return world.mesh_of(max(n for n in range(1, mesh.size + 1) if members % n == 0))


def _write(path: Path, model: Model | None, facts: dict, diverged: dict | None):
    """The model and beside it what is to be known of it; of one that diverged the step and its metrics alone."""
    facts |= {"environment": record.environment()}
    if diverged:
        record.write_json(path.with_suffix(".json"), facts | {"diverged": diverged})
    elif not path.exists():
        record.write_json(path.with_suffix(".json"), facts | {"weights": model.weights})
        record.write_arrays(path, model.arrays(), record.PIECE)


def history(path: Path) -> list[dict]:
    """The metrics of the run that trained, alone, the model at path."""
    return runner.read_history(path.with_suffix("") / "metrics.jsonl")
