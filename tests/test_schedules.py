"""schedules.py: noise and coefficient are inverse to each other, and the noise reading holds; the ramp in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jacreg_jax as jr
from jacreg_jax import penalties, schedules, training
from jacreg_jax.models import MLP, initialize, train_mode


def test_noise_and_lambda_are_inverse():
    assert schedules.suggest_lambda(schedules.equivalent_noise(0.01, std=0.3081), std=0.3081) == pytest.approx(0.01)
    assert schedules.equivalent_noise(0.01, std=0.3081) == pytest.approx(0.03081)


def test_the_noise_reading(small_mlp, key):
    """E ||f(x + s u) - f(x)||^2 / 2, the least-squares loss that noise adds, is (s^2 / 2) ||J||_F^2."""
    f, x = small_mlp
    noise = 0.05
    u = jax.random.normal(key, (20_000, *x.shape))
    added = 0.5 * jax.vmap(lambda u: jnp.sum((f(x + noise * u) - f(x)) ** 2, axis=1))(u).mean(0)
    penalty = 0.5 * schedules.suggest_lambda(noise) * jr.exact_frobenius_sq(f, x)
    np.testing.assert_allclose(added, penalty, rtol=0.05)


def test_ramp_in_a_train_step(key):
    image = jax.random.normal(key, (12, 6))
    module = MLP((8, 4))
    params, _ = initialize(module, key, image)
    ramp = schedules.lambda_ramp(0.1, num_steps=4, start=2)
    np.testing.assert_allclose([ramp(t) for t in (0, 2, 4, 6, 9)], [0, 0, 0.05, 0.1, 0.1], atol=1e-7)
    optimizer = training.sgd(0.0, momentum=0.0)
    loss = training.classification_loss(train_mode(module), lambda_jr=ramp, penalty=penalties.exact())
    state = training.init_state(params, optimizer, key)
    data = {"image": image, "label": jnp.arange(12) % 4}
    _, metrics = training.make_train_steps(loss, optimizer)(state, data, jnp.broadcast_to(jnp.arange(12), (8, 12)))
    share = (metrics["loss"] - metrics["cross_entropy"]) / metrics["penalty"]
    np.testing.assert_allclose(share, [0.5 * float(ramp(t)) for t in range(8)], atol=1e-6)
    np.testing.assert_allclose(metrics["lambda_jr"], [ramp(t) for t in range(8)], rtol=1e-6)


def test_errors():
    for call, message in (
        (lambda: schedules.equivalent_noise(-1), "lambda_jr must be at least 0, got -1"),
        (lambda: schedules.suggest_lambda(0.1, std=0), "std must be above 0, got 0"),
        (lambda: schedules.suggest_lambda(float("nan")), "noise must be at least 0, got nan"),
        (lambda: schedules.lambda_ramp(0.1, num_steps=0), "num_steps must be an integer of at least 1, got 0"),
        (lambda: schedules.lambda_ramp(-0.1, num_steps=1), "final must be at least 0, got -0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
