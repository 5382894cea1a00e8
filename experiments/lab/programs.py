"""A recipe as a compiled training program: loss, optimizer, initial state, and steps for one model or several."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.lab.recipes import Recipe
from jacreg_jax import adversarial_training, penalties, sharding, training
from jacreg_jax.models import eval_mode, initialize, train_mode


def module_of(recipe: Recipe) -> nn.Module:
    """The untrained network."""
    return recipe.problem.network(recipe.dropout_rate, recipe.initialization)


def loss_and_optimizer(recipe: Recipe, *, lambda_jr, weight_decay, part_size: int | None = None):
    """(loss, optimizer) of a recipe, whose two coefficients may be traced."""
    module = module_of(recipe)
    loss = training.classification_loss(
        train_mode(module),
        penalty=penalty_of(recipe),
        lambda_jr=lambda_jr,
        preprocess=recipe.problem.preprocessing.normalize,
        perturb=perturbation(recipe),
    )
    loss = loss if part_size is None else training.in_parts(part_size, loss)
    loss = training.lazily(recipe.lazy, loss) if recipe.lazy > 1 else loss
    quenches = range(recipe.quench_every, recipe.num_steps, recipe.quench_every) if recipe.quench_every else ()
    schedule = training.quench(recipe.learning_rate, list(quenches)) if quenches else recipe.learning_rate
    return loss, training.sgd(schedule, weight_decay=weight_decay)


def penalty_of(recipe: Recipe) -> Callable:
    """The penalty of a recipe, see `jacreg_jax.penalties`."""
    exact = recipe.num_projections == "exact"
    penalty = penalties.exact() if exact else penalties.projected(recipe.num_projections, recipe.probe)
    if recipe.sample_fraction < 1:
        penalty = penalties.on_part(recipe.sample_fraction, penalty)
    if recipe.penalised == "eval mode":
        penalty = penalties.of_model(eval_mode(module_of(recipe)), penalty)
    return penalty


def perturbation(recipe: Recipe) -> Callable | None:
    """(f, image, label, keys) -> image: the problem's augmentation, then adversarial training."""
    augment = recipe.problem.augment
    fgsm = adversarial_training.random_fgsm(recipe.max_epsilon) if recipe.max_epsilon else None
    if augment is None:
        return fgsm

    def perturb(f, image, label, keys):
        moved = jax.vmap(augment)(image, jax.vmap(partial(jax.random.fold_in, data=0))(keys))
        return moved if fgsm is None else fgsm(f, moved, label, keys)

    return perturb


def make_steps(recipes: list[Recipe], part_size: int | None = None, devices: int = 1):
    """The compiled training program and its optimizer: for one model, or several of one `Recipe.program` under vmap."""
    recipe, *others = recipes
    if not others:
        own = {"lambda_jr": recipe.lambda_jr, "weight_decay": recipe.weight_decay}
        loss, optimizer = loss_and_optimizer(recipe, **own, part_size=part_size)
        if devices == 1 and recipe.problem.resident:
            return training.make_train_steps(loss, optimizer), optimizer
        return batch_by_batch(loss, optimizer, devices), optimizer
    own = {"weight_decay": jnp.asarray([r.weight_decay for r in recipes])}
    if recipe.lambda_jr:
        own["lambda_jr"] = jnp.asarray([r.lambda_jr for r in recipes])

    def steps(own, state, data, indices):
        loss, optimizer = loss_and_optimizer(recipe, **{"lambda_jr": 0.0} | own, part_size=part_size)
        return training.make_train_steps(loss, optimizer)(state, data, indices)

    together = jax.jit(jax.vmap(steps, in_axes=(0, 0, None, 0)), donate_argnums=1)
    _, optimizer = loss_and_optimizer(recipe, lambda_jr=0.0, weight_decay=own["weight_decay"][0])
    return partial(together, own), optimizer


def batch_by_batch(loss: Callable, optimizer, devices: int) -> Callable:
    """As `training.make_train_steps`, a dispatch a step: batches come from where the data lie, spread over devices.

    Raises:
        ValueError: more devices than there are.
    """
    if not 1 <= devices <= jax.device_count():
        raise ValueError(f"devices must be from 1 to {jax.device_count()}, which are here; got {devices}")
    mesh = sharding.data_mesh(jax.devices()[:devices]) if devices > 1 else None
    step = training.make_train_step(loss, optimizer, mesh=mesh)

    def steps(state, data, indices):
        rows = []
        for index in indices:
            state, metrics = step(state, jax.tree.map(lambda leaf, index=index: leaf[index], data))
            rows.append(metrics)
        return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

    return steps


def initial_state(recipe: Recipe, seed: int, optimizer) -> training.TrainState:
    """Initial parameters and key of a seed; other initial parameters for another draw, and the same key."""
    init, draws = jax.random.split(jax.random.key(seed))
    init = jax.random.fold_in(init, recipe.draw) if recipe.draw else init
    params, model_state = initialize(module_of(recipe), init, jnp.zeros((1, *recipe.problem.shape)))
    return training.init_state(params, optimizer, draws, model_state)
