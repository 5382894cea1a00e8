"""Keys of other generators than threefry: what each gives is its own, whatever lies beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jacreg_jax import generators, models, sharding, training
from tests.test_shares import Dropped, four_devices

IMPLS = ("rbg", "unsafe_rbg", "threefry2x32")


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return {"image": rng.normal(size=(20, 5)).astype(np.float32), "label": rng.integers(0, 3, 20).astype(np.int32)}


USES = {
    "bits": lambda key: jax.random.bits(key, (3,), jnp.uint8),
    "normal": lambda key: jax.random.normal(key, (2, 3)),
    "split": lambda key: jax.random.key_data(jax.random.split(key, (2, 2))),
    "folded": lambda key: jax.random.key_data(jax.random.fold_in(key, 7)),
    "drawn from what was split": lambda key: jax.vmap(jax.random.uniform)(jax.random.split(key, 3)),
    "in a loop": lambda key: jax.lax.scan(lambda k, _: (jax.random.fold_in(k, 1), jax.random.uniform(k)), key, None, 3)[
        1
    ],
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("impl", IMPLS)
def test_under_vmap_each_key_gives_what_it_gives_alone(impl, use):
    keys = jnp.stack([jax.random.key(seed, impl=impl) for seed in (3, 4, 5)])
    if use is USES["drawn from what was split"] and impl != "threefry2x32":
        alone = [
            use(generators.one_by_one(key)) for key in keys
        ]  # JAX's own vmap over the split keys is not one by one
    else:
        alone = [use(key) for key in keys]
    together = jax.jit(jax.vmap(use))(generators.one_by_one(keys))
    np.testing.assert_array_equal(together, np.stack(alone))


@pytest.mark.parametrize("impl", IMPLS)
def test_models_trained_together_have_the_masks_that_they_have_alone(impl, data):
    """Under vmap JAX drew the masks of all members from the first one's key."""
    params, _ = models.initialize(Dropped(), jax.random.key(1), data["image"])
    loss, optimizer = training.classification_loss(models.train_mode(Dropped()), lambda_jr=0.1), optax.sgd(0.1)
    states = [training.init_state(params, optimizer, jax.random.key(seed, impl=impl)) for seed in (3, 4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    indices = np.random.default_rng(1).integers(20, size=(2, 3, 8))
    alone = [training.make_train_steps(loss, optimizer)(s, data, i)[0] for s, i in zip(states, indices, strict=True)]
    together, _ = training.make_train_steps(loss, optimizer, together=True)(stacked, data, indices)
    assert together.key.dtype == stacked.key.dtype
    for i, one in enumerate(alone):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-6), together.params, one.params)


@pytest.mark.parametrize("backend", ["jit", "pmap"])
@pytest.mark.parametrize("impl", IMPLS)
def test_probes_are_the_same_on_any_number_of_devices(impl, backend, data):
    """Under vmap unsafe_rbg made other keys for the rows of another device."""
    loss, optimizer = (
        training.classification_loss(lambda p, s, x, key: (jnp.tanh(x @ p), s), lambda_jr=0.1),
        optax.sgd(0.1),
    )
    batch, found = jax.tree.map(lambda leaf: leaf[:16], data), []
    for mesh in ({}, {"mesh": four_devices(), "backend": backend}):
        state = training.init_state(jnp.eye(5, 3), optimizer, jax.random.key(7, impl=impl))
        found.append(float(training.make_train_step(loss, optimizer, **mesh)(state, batch)[1]["penalty"]))
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_rows_of_a_key_do_not_depend_on_how_many_there_are(impl):
    rows = lambda n: jax.random.key_data(sharding.row_keys(jax.random.key(0, impl=impl), n, None))
    np.testing.assert_array_equal(rows(5)[:2], rows(2))
    one = jax.random.fold_in(generators.folded_alike(jax.random.key(0, impl=impl)), 4)
    np.testing.assert_array_equal(rows(5)[4], jax.random.key_data(one))
