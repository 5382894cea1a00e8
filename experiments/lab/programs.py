"""A recipe as a compiled training program: loss, optimizer, initial state, and steps for one model or several."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from experiments.lab import world
from experiments.lab.recipes import Recipe
from jacreg_jax import adversarial_training, penalties, relatives, sharding, training
from jacreg_jax.models import batch_statistics_mode, eval_mode, held_statistics_mode, initialize, train_mode
from jacreg_jax.precision import computed_in

RELATIVES = {
    "input gradient": lambda f, x, y, key: relatives.input_gradient_penalty(f, x, y),
    "input gradient, L1": lambda f, x, y, key: relatives.input_gradient_penalty(f, x, y, norm="l1"),
    "noise consistency": lambda f, x, key: relatives.noise_consistency(f, x, key, sigma=0.3),
    "spectral norm": lambda f, x, key: relatives.spectral_norm_sq(f, x, key, num_iterations=1),
}


def module_of(recipe: Recipe) -> nn.Module:
    """The untrained network."""
    return recipe.problem.network(recipe.dropout_rate, recipe.initialization)


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a program runs; the numbers are the same but for rounding, and for part_size with dropout or BatchNorm."""

    part_size: int | None = None
    """Samples differentiated at once; None: all of a device's."""
    mesh: jax.sharding.Mesh | None = None
    """Over which each batch is spread, or the models, in equal shares, where there are several."""
    backend: sharding.Backend = "jit"
    dtype: str = "float32"
    """In which the model computes; parameters, loss and penalty are in float32."""


def loss_and_optimizer(recipe: Recipe, *, lambda_jr, weight_decay, how: Execution = Execution()):
    """(loss, optimizer) of a recipe, whose two coefficients may be traced."""
    module, part_size = module_of(recipe), how.part_size
    computed = (lambda apply: apply) if how.dtype == "float32" else partial(computed_in, how.dtype)
    loss = training.classification_loss(
        computed(train_mode(module)),
        penalty=penalty_of(recipe, computed),
        lambda_jr=lambda_jr,
        preprocess=recipe.problem.preprocessing.normalize,
        perturb=perturbation(recipe),
    )
    loss = loss if part_size is None else training.in_parts(part_size, loss)
    loss = training.lazily(recipe.lazy, loss) if recipe.lazy > 1 else loss
    quenches = range(recipe.quench_every, recipe.num_steps, recipe.quench_every) if recipe.quench_every else ()
    schedule = training.quench(recipe.learning_rate, list(quenches)) if quenches else recipe.learning_rate
    return loss, training.sgd(schedule, weight_decay=weight_decay)


def penalty_of(recipe: Recipe, computed: Callable = lambda apply: apply, chunk_size: int | None = None) -> Callable:
    """The penalty of a recipe, see `jacreg_jax.penalties`.

    Args:
        recipe: of the model.
        computed: what another form of the model is wrapped in.
        chunk_size: vector-Jacobian products at once; None: the library's own choice.
    """
    if recipe.relative:
        return penalties.of(RELATIVES[recipe.relative])
    exact = recipe.num_projections == "exact"
    projected = lambda: penalties.projected(recipe.num_projections, recipe.probe, chunk_size)
    penalty = penalties.exact(chunk_size) if exact else projected()
    if recipe.sample_fraction < 1:
        penalty = penalties.on_part(recipe.sample_fraction, penalty)
    # without dropout the same numbers, for a forward pass less
    at_batch = batch_statistics_mode if recipe.dropout_rate else held_statistics_mode
    other = {"eval mode": eval_mode, "batch statistics": at_batch}.get(recipe.penalised)
    return penalty if other is None else penalties.of_model(computed(other(module_of(recipe))), penalty)


def perturbation(recipe: Recipe) -> Callable | None:
    """(f, image, label, keys) -> image: the problem's augmentation, then adversarial training."""
    augment = recipe.problem.augment
    fgsm = adversarial_training.random_fgsm(recipe.max_epsilon) if recipe.max_epsilon else None
    if recipe.pgd_steps:
        fgsm = adversarial_training.pgd(recipe.max_epsilon, num_steps=recipe.pgd_steps, random_epsilon=True)
    if augment is None:
        return fgsm

    def perturb(f, image, label, keys):
        moved = jax.vmap(augment)(image, jax.vmap(partial(jax.random.fold_in, data=0))(keys))
        return moved if fgsm is None else fgsm(f, moved, label, keys)

    return perturb


def make_steps(recipes: list[Recipe], how: Execution = Execution()):
    """The compiled training program and its optimizer: for one model, or several of one `Recipe.program` under vmap."""
    (recipe, *others), mesh, backend = recipes, how.mesh, how.backend
    if not others:
        own = {"lambda_jr": recipe.lambda_jr, "weight_decay": recipe.weight_decay}
        loss, optimizer = loss_and_optimizer(recipe, **own, how=how)
        if recipe.problem.resident:
            steps = training.make_train_steps(loss, optimizer, mesh=mesh, backend=backend)
            split = PartitionSpec(None, sharding.AXIS)
            return (lambda state, data, rows: steps(state, data, world.placed(rows, mesh, split))), optimizer
        return batch_by_batch(training.make_train_step(loss, optimizer, mesh=mesh, backend=backend), mesh), optimizer
    own = {"weight_decay": jnp.asarray([r.weight_decay for r in recipes])}
    if recipe.lambda_jr:
        own["lambda_jr"] = jnp.asarray([r.lambda_jr for r in recipes])

    def one(own_and_state, data, indices):
        own, state = own_and_state
        loss, optimizer = loss_and_optimizer(recipe, **{"lambda_jr": 0.0} | own, how=how)
        state, metrics = training.make_train_steps(loss, optimizer)(state, data, indices)
        return (own, state), metrics

    train = lambda state, data, indices: jax.vmap(one, in_axes=(0, None, 0))(state, data, indices)
    together, left = sharding.map_over_members(train, mesh), own

    def steps(state, data, indices):
        nonlocal left  # handed on from call to call, since it is donated with the state
        (left, state), metrics = together((left, state), data, world.placed(indices, mesh, sharding.ON_ROWS))
        return state, metrics

    _, optimizer = loss_and_optimizer(recipe, lambda_jr=0.0, weight_decay=own["weight_decay"][0])
    return steps, optimizer


def batch_by_batch(step: Callable, mesh) -> Callable:
    """As `training.make_train_steps`, a dispatch a step: batches come from where the data lie, spread over the mesh."""

    def steps(state, data, indices):
        rows = []
        for index in indices:
            batch = jax.tree.map(lambda leaf, index=index: leaf[index], data)
            state, metrics = step(state, world.placed(batch, mesh, sharding.ON_ROWS))
            rows.append(metrics)
        return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

    return steps


def initial_state(recipe: Recipe, seed: int, optimizer) -> training.TrainState:
    """Initial parameters and key of a seed; other initial parameters for another draw, and the same key."""
    init, draws = jax.random.split(jax.random.key(seed))
    init = jax.random.fold_in(init, recipe.draw) if recipe.draw else init
    params, model_state = initialize(module_of(recipe), init, jnp.zeros((1, *recipe.problem.shape)))
    return training.init_state(params, optimizer, draws, model_state)
