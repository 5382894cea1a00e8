"""masking.py: an honest model passes every check, a masked one fails the right ones; distillation is masked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jacreg_jax import attacks, datasets, evaluation, masking, training
from jacreg_jax.adversarial_training import at_temperature, pgd, random_fgsm, soft_labels
from jacreg_jax.attacks.losses import log_odds, margin
from jacreg_jax.models import MLP, LeNet, initialize, predictor, train_mode
from jacreg_jax.signatures import Named
from tests.conftest import mlp, mlp_params

MODULE = MLP((64, 10))


def train(image, label, key, *, steps=400, temperature=1.0, lambda_jr=0.0, rate=0.1, **options):
    params, model_state = initialize(MODULE, key, image[:1])
    optimizer = training.sgd(rate)
    apply = at_temperature(train_mode(MODULE), temperature)
    loss = training.classification_loss(apply, lambda_jr=lambda_jr, **options)
    run = training.make_train_steps(loss, optimizer)
    indices = np.random.default_rng(0).integers(0, len(image), (steps, 100))
    state, metrics = run(
        training.init_state(params, optimizer, key, model_state), {"image": image, "label": label}, indices
    )
    assert np.isfinite(metrics["loss"]).all()
    return predictor(MODULE, state.params, {})


@pytest.fixture(scope="module")
def digits():
    """Images [N, 8, 8, 1] in [0, 1] and labels, train and test."""
    train_set, test_set = (datasets.load("digits", split=split) for split in ("train", "test"))
    scaled = lambda d: (jnp.asarray(datasets.from_uint8(d[0])), jnp.asarray(d[1], jnp.int32))
    return *scaled(train_set), *scaled(test_set)


def test_an_honest_model_passes(digits):
    image, label, x, y = digits
    f = train(image, label, jax.random.key(0))
    assert evaluation.accuracy(f, x, y) > 0.9
    found = masking.checks(f, x[:100], y[:100], jax.random.key(1), epsilon=0.1, num_queries=200, tolerance=0.02)
    assert all(check.passed for check in found.values()), found
    assert set(found) == {
        *("not finite", "zero gradient", "square gains", "more steps", "larger epsilon"),
        *("unbounded", "noise", "single step"),
    }


def test_a_quantising_model_is_found_out(digits):
    """Inputs rounded to 16 levels: no gradient at all, and Square sees through it."""
    image, label, x, y = digits
    f = train(image, label, jax.random.key(0))
    masked = lambda x: f(jnp.round(x * 16) / 16)
    found = masking.checks(masked, x[:100], y[:100], jax.random.key(1), epsilon=0.15, num_queries=200)
    assert found["zero gradient"].value == 1
    assert not found["square gains"].passed
    assert not found["unbounded"].passed


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_checks_by_hand(norm, monkeypatch, key):
    """Attacks whose successes are written in the columns of x: every finding from them alone."""
    columns = {"apgd": 3, "square": 4, "noise": 5}  # 0, 1, 2: of 1, 3 and 5 steps of PGD
    whole = 1.0 if norm == "linf" else np.sqrt(8)  # 8 pixels from 0 to 1

    def written(kind, *options):
        def attack(f, x, y, key, epsilon, count=None):
            special = jnp.where(jnp.abs(epsilon - whole) < 1e-3, 7, jnp.where(jnp.abs(epsilon - 0.2) < 1e-3, 6, -1))
            place = columns[kind] if kind != "pgd" else jnp.where((special < 0) | (count != 5), count // 2, special)
            place = jnp.broadcast_to(place, len(x))
            return masking._Noise(jnp.take_along_axis(x, place[:, None], axis=1)[:, 0] > 0.5)

        return attack

    monkeypatch.setattr(masking, "_attack", written)
    x = np.random.default_rng(0).integers(0, 2, (40, 8)).astype(np.float32)
    one, three, five, strong, searched, noise, wider, everything = 1 - x.T
    f = lambda x: jnp.stack([x[:, 0] - x[:, 1], jnp.where(x[:, 2] > 0.5, jnp.nan, x[:, 3])], axis=1)
    run = lambda steps: masking.checks(f, x, np.zeros(40, int), key, epsilon=0.1, norm=norm, num_steps=steps)
    found, shortly = run((1, 3, 5)), run((5,))
    expected = {
        "not finite": x[:, 2].mean(),
        "square gains": (strong * five * (1 - searched)).mean(),
        "more steps": max(three.mean() - one.mean(), five.mean() - three.mean()),
        "larger epsilon": wider.mean() - five.mean(),
        "unbounded": everything.mean(),
        "noise": one.mean() - noise.mean(),
        "single step": five.mean() - one.mean(),
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-6), name
        limit = 0 if name in ("not finite", "unbounded") else 0.002
        assert found[name].limit == limit, name
        assert found[name].passed == (value <= limit)
    assert shortly["more steps"].value == 0
    assert found["zero gradient"].limit == 0


def test_steps_of_the_checks(key):
    """One step is a whole epsilon; n steps are 2.5 epsilon / n each."""
    f = lambda x: x @ jnp.array([[3.0, -1.0], [-2.0, 0.5]])
    x, y = jnp.full((4, 2), 0.5), jnp.array([0, 1, 0, 1])
    for count, step_size in ((1, 0.1), (4, 0.0625)):
        pgd = masking._attack("pgd", "linf", 10, attacks.criteria.misclassified, Named((0.0, 1.0)))
        found = pgd(f, x, y, key, epsilon=jnp.asarray(0.1), count=jnp.full(4, count))
        alike = attacks.pgd(f, x, y, key, epsilon=0.1, step_size=step_size, num_steps=count)
        np.testing.assert_array_equal(found.x_adv, alike.x_adv)
    l2 = masking._attack("noise", "l2", 10, attacks.criteria.misclassified, Named((0.0, 1.0)))
    just = lambda size: lambda x: jnp.stack([x[:, 0] * 0, jnp.linalg.norm(x - 0.5, axis=1) - size], axis=1)
    assert l2(just(0.0999), x, jnp.zeros(4, int), key, epsilon=jnp.asarray(0.1)).success.all()
    assert not l2(just(0.1001), x, jnp.zeros(4, int), key, epsilon=jnp.asarray(0.1)).success.any()


def test_linearised_margin_of_a_linear_model_is_exact(key):
    w = jax.random.normal(key, (4, 6))
    f = lambda x: x.reshape(len(x), -1) @ w.T
    x = 0.5 + 0.01 * jax.random.normal(key, (5, 2, 3))
    y = jnp.argmax(f(x), 1)
    z = np.asarray(f(x))
    for norm, order in (("l2", 2), ("linf", 1)):
        expected = [
            min((z[a, k] - z[a, c]) / np.linalg.norm(w[k] - w[c], order) for c in range(4) if c != k)
            for a, k in enumerate(np.asarray(y))
        ]
        np.testing.assert_allclose(masking.linearised_margin(f, x, y, norm=norm), expected, rtol=1e-4)
    assert np.isinf(masking.linearised_margin(lambda x: 0 * f(x) + jnp.eye(4)[:1], x, 0 * y)).all()


def test_linearised_margin_against_found_distance(digits, key):
    """Near the truth for a nearly linear model."""
    image, label, x, y = digits
    f = train(image, label, jax.random.key(0))
    promised = masking.linearised_margin(f, x[:64], y[:64])
    found = attacks.ddn(f, x[:64], y[:64], key)
    ratio = np.asarray(promised / found.distance)[np.asarray(found.clean_correct)]
    assert 0.5 < np.median(ratio) < 2


def test_random_fgsm_against_the_step_by_hand(key):
    params = mlp_params(key, (4, 8, 3))
    f = lambda x: mlp(params, x)
    x, y = jax.random.uniform(key, (20, 4)), jnp.arange(20) % 3
    keys = jax.random.split(key, 20)
    moved = random_fgsm(0.05)(f, x, y, keys)
    gradient = jax.grad(lambda x: optax.softmax_cross_entropy_with_integer_labels(f(x), y).sum())(x)
    step = moved - x
    inside = (moved > 0) & (moved < 1)
    assert (jnp.sign(step) == jnp.sign(gradient))[inside].all()
    sizes = jnp.abs(step).max(1)
    assert (sizes <= 0.05 + 1e-6).all()
    assert sizes.std() > 0.005  # one epsilon a sample
    with pytest.raises(ValueError, match="max_epsilon must be at least 0"):
        random_fgsm(-1.0)


def test_adversarial_training_helps_against_fgsm(digits):
    image, label, x, y = digits
    plain = train(image, label, jax.random.key(0))
    hard = train(image, label, jax.random.key(0), perturb=random_fgsm(0.2))
    both = train(image, label, jax.random.key(0), perturb=random_fgsm(0.2), lambda_jr=0.01)
    survive = lambda f: 1 - float(attacks.fgsm(f, x, y, epsilon=0.1).success.mean())
    assert survive(hard) > survive(plain) + 0.1
    assert survive(both) > survive(plain) + 0.1


@pytest.mark.slow
def test_a_small_network_learns_at_a_large_radius_only_where_radii_are_drawn(tfds_dir):
    """LeNet' on MNIST at 0.3, the radius of others: constant outputs, or a network that resists."""
    load = lambda split: datasets.load("mnist", split, data_dir=tfds_dir)
    image, label = (jnp.asarray(array) for array in load("train"))
    x, y = (jnp.asarray(array[:300]) for array in load("test"))
    data, x = {"image": jnp.asarray(datasets.from_uint8(image)), "label": label}, jnp.asarray(datasets.from_uint8(x))
    params, model_state = initialize(LeNet(), jax.random.key(0), x[:1])
    indices, optimizer = np.random.default_rng(0).integers(0, len(label), (600, 100)), training.sgd(0.1)
    clean, robust = {}, {}
    for drawn in (False, True):
        perturb = pgd(0.3, num_steps=1, random_epsilon=drawn)
        loss = training.classification_loss(train_mode(LeNet()), perturb=perturb, preprocess=datasets.MNIST.normalize)
        state = training.init_state(params, optimizer, jax.random.key(1), model_state)
        state, _ = training.make_train_steps(loss, optimizer)(state, data, indices)
        f = predictor(LeNet(), state.params, {}, preprocess=datasets.MNIST.normalize)
        clean[drawn] = evaluation.accuracy(f, x, y)
        found = attacks.pgd(f, x, y, jax.random.key(2), epsilon=0.3, step_size=0.04, num_steps=20)
        robust[drawn] = 1 - float(found.success.mean())
    assert clean[False] < 0.2
    assert clean[True] > 0.9
    assert robust[True] > 0.4


def test_distillation_masks_gradients(digits):
    """T = 100 as in the paper's footnote: at T = 1 naive FGSM finds little, at T = 100 much more."""
    image, label, x, y = digits
    teacher = train(image, label, jax.random.key(0), temperature=100.0, rate=50.0)
    taught = soft_labels(teacher, image, temperature=100.0)
    np.testing.assert_allclose(taught.sum(1), 1, rtol=1e-5)
    student = train(image, taught, jax.random.key(1), temperature=100.0, rate=50.0)
    assert evaluation.accuracy(student, x, y) > 0.9
    naive = lambda z, y: optax.softmax_cross_entropy_with_integer_labels(z, y)
    survive = lambda f, loss: 1 - float(attacks.fgsm(f, x, y, epsilon=0.15, loss=loss).success.mean())
    warm = lambda x: student(x) / 100
    masked, seen = survive(student, naive), survive(warm, naive)
    assert masked > seen + 0.15  # looks robust at T = 1, and is not
    np.testing.assert_allclose(survive(student, log_odds), seen, atol=0.03)
    assert survive(student, margin) < masked - 0.15
    with pytest.raises(ValueError, match="temperature must be above 0"):
        at_temperature(train_mode(MODULE), 0.0)
