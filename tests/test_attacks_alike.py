"""One result for a sample: alone, in a batch of 64, padded, by run_attack, inside shard_map; near it in bfloat16."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacreg_jax import attacks, evaluation
from tests.test_attacks_transformations import ATTACKS, over_a_mesh

N = 64
MORE = {
    "pgd_l1": partial(attacks.pgd, epsilon=1.0, step_size=0.3, num_steps=4, norm="l1"),
    "square_l1": partial(attacks.square, epsilon=4.0, num_queries=10, norm="l1"),
    "pgd_targeted": partial(attacks.pgd, epsilon=0.15, step_size=0.05, num_steps=4, target=2),
    "cw_unbounded": partial(ATTACKS["cw"], bounds=None),
    "ddn_moved": partial(attacks.ddn, num_steps=10, criterion=attacks.criteria.moved(0.5)),
}
EVERY = {name: a for name, a in (ATTACKS | MORE).items() if name not in ("auto_attack", "white_noise")}
SEARCHES = ("square", "square_l2", "square_l1", "pgd_random", "apgd_l1")  # whose every choice hangs on a rounding


@pytest.fixture(scope="module")
def problem():
    """(f, x, y, keys): 64 images 5x5, five classes, y the labels given."""
    w, v = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(25, 12), (12, 5)]))
    f = lambda x: jnp.tanh(x.reshape(len(x), -1) @ w.astype(x.dtype) / 5) @ v.astype(x.dtype)
    x = jnp.clip(jax.random.uniform(jax.random.key(3), (N, 5, 5, 1), minval=-0.2, maxval=1.2), 0, 1)
    return f, x, jnp.argmax(f(x), 1).astype(jnp.int32), jax.random.split(jax.random.key(9), N)


def assert_alike(found, expected, rows):
    for leaf in ("success", "clean_correct", "outcome", "backward", "steps"):
        same = np.asarray(getattr(found, leaf)) == np.asarray(getattr(expected, leaf))[rows]
        assert same.mean() >= 0.98, leaf  # a rounding at the boundary
    np.testing.assert_array_equal(found.success, np.asarray(expected.success)[rows])
    np.testing.assert_allclose(found.distance, np.asarray(expected.distance)[rows], rtol=2e-3, atol=1e-5)


SLOW = ("square_l2", "square_l1", "apgd_l1", "white_noise_distance", "pgd_random", "ddn_moved")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in EVERY])
def test_one_result_everywhere(name, problem):
    f, x, y, keys = problem
    attack = EVERY[name]
    run = partial(evaluation.run_attack, batch_size=N)
    whole = run(attack, f, x, y, keys)
    assert whole.success.mean() > 0.1
    assert_alike(run(attack, f, x[:40], y[:40], keys[:40]), whole, slice(40))  # padded to 64
    assert_alike(attack(f, x[9:10], y[9:10], keys[9:10]), whole, slice(9, 10))
    assert_alike(over_a_mesh(attack, f, x, y, keys), whole, slice(None))
    half = run(attack, lambda u: f(u.astype(jnp.bfloat16)), x, y, keys)
    assert half.x_adv.dtype == jnp.float32
    assert np.mean(half.clean_correct == whole.clean_correct) > 0.9  # some logits are equal in bfloat16
    right = half.clean_correct & whole.clean_correct
    assert np.mean(half.success[right] == whole.success[right]) >= (0.8 if name in SEARCHES else 0.9)
    both = right & half.success & whole.success
    near = np.abs(half.distance[both] / whole.distance[both] - 1) < 0.15
    assert near.mean() > 0.85, np.sort(half.distance[both] / whole.distance[both])
