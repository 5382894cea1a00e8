"""How much arithmetic a training step is, by XLA's own count."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.lab.programs import initial_state, module_of, penalty_of
from experiments.lab.recipes import Recipe
from jacreg_jax import training
from jacreg_jax.models import train_mode
from jacreg_jax.pooled_convolution import lax_conv_max_pool

LAX = {
    "conv_general_dilated": jax.lax.conv_general_dilated,
    "max_pool": nn.max_pool,
    "conv_max_pool": lax_conv_max_pool,
}


def operations(recipe: Recipe) -> float:
    """Floating-point operations of one compiled step, as XLA counts them, with plain convolutions."""
    network = recipe.problem.network
    own = lambda module: module.clone(**{k: v for k, v in LAX.items() if hasattr(module, k)})
    problem = dataclasses.replace(recipe.problem, network=lambda *settings: own(network(*settings)))
    recipe, optimizer = dataclasses.replace(recipe, problem=problem), training.sgd(recipe.learning_rate)
    loss = training.classification_loss(
        train_mode(module_of(recipe)),
        penalty=penalty_of(recipe, chunk_size=10),  # XLA counts the body of a loop once
        lambda_jr=recipe.lambda_jr,
        preprocess=problem.preprocessing.normalize,
    )
    shapes = {"image": (recipe.batch_size, *problem.shape), "label": (recipe.batch_size,)}
    batch = {k: jax.ShapeDtypeStruct(s, jnp.float32 if k == "image" else jnp.int32) for k, s in shapes.items()}
    state = jax.eval_shape(lambda: initial_state(recipe, 0, optimizer))
    step = training.make_train_step(loss, optimizer)
    return float(step.lower(state, batch).compile().cost_analysis()["flops"])
