"""XLA's own count of the arithmetic of one training step, with plain lax convolutions, against the derivation.

(3 + 3 n s - f1) F / ((3 - f1) F), F one forward pass and f1 the first layer's share of it, reads 2.1 for LeNet' at
n = 1 and 12.0 for the exact norm; XLA also counts tanh, pooling and the optimizer.
"""

import jax
import jax.numpy as jnp
import pytest

from jacreg_jax import training
from jacreg_jax.models import LeNet, initialize, train_mode
from jacreg_jax.penalties import exact, on_part, projected
from jacreg_jax.pooled_convolution import lax_conv_max_pool


@pytest.fixture(scope="module")
def flops():
    """FLOPs of one LeNet' step, batch 100, by option."""
    module = LeNet(conv_max_pool=lax_conv_max_pool)
    batch = {"image": jnp.zeros((100, 28, 28, 1)), "label": jnp.zeros(100, int)}
    params, _ = initialize(module, jax.random.key(0), batch["image"][:1])
    optimizer = training.sgd(0.1)

    def count(**options):
        loss = training.classification_loss(train_mode(module), **options)
        step = training.make_train_step(loss, optimizer)
        state = training.init_state(params, optimizer, jax.random.key(1))
        return step.lower(state, batch).compile().cost_analysis()["flops"]

    return count


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        (projected(), 2.13),
        (on_part(0.25), 1.28),
        # all products at once: XLA counts the body of a loop over them once
        (exact(chunk_size=10), 12.3),
    ],
)
def test_cost_of_a_step(flops, penalty, expected):
    ratio = flops(lambda_jr=0.01, penalty=penalty) / flops()
    assert ratio == pytest.approx(expected, rel=0.03)
