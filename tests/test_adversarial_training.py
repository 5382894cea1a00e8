"""adversarial_training.py: what is climbed is the loss that is trained, of every objective, of marked positions."""

import itertools
from functools import partial, wraps

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jacreg_jax import objectives, penalties, relatives, sharding, training
from jacreg_jax.adversarial_training import pgd, random_fgsm, trades
from jacreg_jax.supervised import JointLoss

KEY = jax.random.key(3)
KEYS = jax.random.split(KEY, 5)
TABLE = jax.random.normal(KEY, (4, 6))
X = jax.random.uniform(jax.random.fold_in(KEY, 1), (5, 3, 4), minval=0.3, maxval=0.7)  # 5 rows of 3 tokens
STEP = 0.01
ONE_STEP = pgd(STEP, step_size=STEP, num_steps=1, random_start=False)


def apply(params, state, x, key):
    """Of every token the logits [B, T, 6]; tokens see the mean of their row."""
    return (x + x.mean(1, keepdims=True) ** 2) @ params, state


def f(x):
    return apply(TABLE, {}, x, None)[0]


def moved_by_hand(losses, x):
    """X + eps sign(grad of each sample's loss)."""
    return x + STEP * jnp.sign(jax.grad(lambda x: losses(x).sum())(x))


def loss_of(make, batch, **options):
    """(loss, metrics) of a loss at the batch."""
    state = training.init_state(TABLE, training.sgd(0.1), KEY)
    value, (_, metrics) = make(apply, **options)(TABLE, state, batch, KEYS)
    return value, metrics


def test_tokens_are_climbed_by_their_mean():
    """By a call on labels alone and by the loss: every token moves, as FGSM on the mean cross-entropy."""
    y = f(X).argmax(-1).at[:, 1].add(1) % 6  # one of three is wrong
    mean = lambda x: optax.softmax_cross_entropy_with_integer_labels(f(x), y).mean(1)
    by_hand = moved_by_hand(mean, X)
    np.testing.assert_allclose(ONE_STEP(f, X, y, KEYS), by_hand, atol=1e-6)
    far = random_fgsm(0.1)(f, X, y, KEYS) - X
    np.testing.assert_array_equal(jnp.sign(far), jnp.sign(by_hand - X))
    value, _ = loss_of(training.classification_loss, {"image": X, "label": y}, perturb=ONE_STEP)
    np.testing.assert_allclose(value, mean(by_hand).mean(), rtol=1e-6)


def test_tokens_of_their_own_are_rows():
    """Where tokens do not see one another, rows of tokens and single tokens are perturbed alike."""
    alone, y = lambda x: x @ TABLE, jax.random.randint(KEY, (5, 3), 0, 6)
    perturb = pgd(0.1, num_steps=5, random_start=False)
    together = perturb(alone, X, y, KEYS)
    rows = perturb(alone, X.reshape(15, 4), y.reshape(15), jax.random.split(KEY, 15))
    np.testing.assert_allclose(together.reshape(15, 4), rows, atol=1e-6)


def test_confident_tokens_are_climbed_too():
    """At margins of 60 cross-entropy has no gradient left in float32; the log odds of the same direction have."""
    sure = lambda x: 100 * jax.nn.one_hot(jnp.zeros((5, 3), int), 6) + f(x)
    y = jnp.zeros((5, 3), int)
    plain = jax.grad(lambda x: optax.softmax_cross_entropy_with_integer_labels(sure(x), y).sum())(X)
    assert not plain.any()
    odds = lambda x: jax.nn.logsumexp(f(x)[..., 1:], -1) - f(x)[..., 0]
    weighted = lambda x: jax.nn.logsumexp(odds(x), axis=1)  # softplus(o - 100) is e^(o - 100)
    np.testing.assert_allclose(ONE_STEP(sure, X, y, KEYS), moved_by_hand(weighted, X), atol=1e-6)


@pytest.mark.parametrize("perturb", [ONE_STEP, random_fgsm(0.1), pgd(0.5, norm="l2", random_start=False)])
@pytest.mark.parametrize("traced", [False, True])
def test_masked_labels_may_be_anything(perturb, traced):
    """The perturbation, and a penalty that looks at labels, are those of the marked positions alone."""
    y, mask = jax.random.randint(KEY, (5, 3), 0, 6), jnp.ones((5, 3)).at[:, 2].set(0)
    losses = []
    for label in (0, 4, -1, 77):
        batch = {"image": X, "label": y.at[:, 2].set(label), "mask": mask}
        options = {"perturb": perturb, "penalty": penalties.of(relatives.input_gradient_penalty), "lambda_jr": 0.5}
        run = lambda batch, options=options: loss_of(training.classification_loss, batch, **options)
        losses.append(jax.tree.leaves(jax.jit(run)(batch) if traced else run(batch)))
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-6)


def test_the_mask_in_the_perturbation_by_hand():
    """A row of which nothing is marked stays where it is."""
    y, mask = jax.random.randint(KEY, (5, 3), 0, 6), jnp.ones((5, 3), bool).at[:, 2].set(False).at[4].set(False)
    marked = lambda x: (optax.softmax_cross_entropy_with_integer_labels(f(x), y) * mask).sum(1)
    seen = []

    def perturb(f, image, label, keys, losses=None):
        seen.append((label, ONE_STEP(f, image, label, keys, losses), ONE_STEP(f, image, label, keys)))
        return seen[0][1]

    loss_of(training.classification_loss, {"image": X, "label": y, "mask": mask}, perturb=perturb)
    ((label, by_loss, by_label),) = seen
    np.testing.assert_array_equal(label, jnp.where(mask, y, -1))
    for found in (by_loss, by_label):
        np.testing.assert_allclose(found, moved_by_hand(marked, X), atol=1e-6)
        np.testing.assert_array_equal(found[4], X[4])


def huber(z, batch):
    """An objective of one's own, a value for each token."""
    return optax.huber_loss(z[..., 0], batch["label"]), {}


SOFT = jax.nn.softmax(jax.random.normal(KEY, (5, 3, 6)))
OBJECTIVES = {  # loss, head of the logits, labels, losses by hand
    "multi-label": (training.multi_label_loss, lambda z: z, 1.0 * (SOFT > 0.2), objectives.binary_cross_entropy),
    "one logit [B, 1]": (
        *(training.multi_label_loss, lambda z: z[:, 0, :1], jnp.arange(5)[:, None] % 2),
        objectives.binary_cross_entropy,
    ),
    "one logit [B]": (
        *(training.multi_label_loss, lambda z: z[:, 0, 0], jnp.arange(5) % 2.0),
        objectives.binary_cross_entropy,
    ),
    "regression": (training.regression_loss, lambda z: z, 1 + SOFT, objectives.squared_error),
    "soft labels": (training.classification_loss, lambda z: z, SOFT, objectives.cross_entropy),
    "an objective": (
        lambda apply, **options: training.supervised_loss(apply, lambda z, b: (huber(z, b)[0].mean(1), {}), **options),
        *(lambda z: z, SOFT[..., 0], huber),
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_climbed(name):
    make, head, label, objective = OBJECTIVES[name]
    loss = make(lambda params, state, x, key: (head(apply(params, state, x, key)[0]), state), perturb=ONE_STEP)
    state = training.init_state(TABLE, training.sgd(0.1), KEY)
    value, _ = loss(TABLE, state, {"image": X, "label": label}, KEYS)
    of = lambda x: objective(head(f(x)), {"label": label})[0].reshape(5, -1).mean(1)
    np.testing.assert_allclose(value, of(moved_by_hand(of, X)).mean(), rtol=1e-5)
    assert value > of(X).mean() + 1e-4


def test_label_smoothing_is_not_climbed():
    """Past the smoothed optimum its gradient leads into ever more confidence."""
    batch = {"image": X, "label": jax.random.randint(KEY, (5, 3), 0, 6)}
    seen = []

    def perturb(f, image, label, keys, losses=None):
        seen.append(ONE_STEP(f, image, label, keys, losses))
        return image

    for smoothing in (0.0, 0.5):
        loss_of(training.classification_loss, batch, perturb=perturb, label_smoothing=smoothing)
    np.testing.assert_array_equal(*seen)


def test_a_perturbation_of_ones_own_needs_no_losses():
    """(f, image, label, keys) as ever."""
    batch = {"image": X, "label": jnp.zeros((5, 3), int)}
    value, _ = loss_of(training.classification_loss, batch, perturb=lambda f, image, label, keys: image + STEP)
    expected, _ = loss_of(training.classification_loss, batch | {"image": X + STEP})
    np.testing.assert_allclose(value, expected)
    assert isinstance(training.classification_loss(apply), JointLoss)


def test_who_wraps_a_perturbation_decides_what_it_takes():
    """With `functools.wraps` a wrapper looks as if it took what the wrapped one takes."""
    inner = pgd(STEP, step_size=STEP, num_steps=1, random_start=False)
    narrow = wraps(inner)(lambda f, image, label, keys: inner(f, image, label, keys))
    wide = wraps(inner)(lambda *args, **named: inner(*args, **named))
    batch = {"image": X, "label": jnp.zeros((5, 3), int)}
    values = [loss_of(training.classification_loss, batch, perturb=p)[0] for p in (inner, narrow, wide)]
    np.testing.assert_array_equal(values, values[:1] * 3)
    soft = {"image": X, "label": SOFT}
    values = [loss_of(training.classification_loss, soft, perturb=p)[0] for p in (inner, wide, partial(inner))]
    np.testing.assert_array_equal(values, values[:1] * 3)


def test_gradients_of_log_cross_entropy():
    """In float64 it is log T + the log of the loss, and so is its gradient; masked entries have none, nor NaNs."""
    y, mask = jax.random.randint(KEY, (5, 3), 0, 6), jnp.ones((5, 3)).at[:, 2].set(0).at[0].set(0)
    with jax.enable_x64(True):
        z = 8 * jax.random.normal(KEY, (5, 3, 6), jnp.float64)
        for batch in ({"label": y}, {"label": y, "mask": mask}):
            rows = slice(1, None) if "mask" in batch else slice(None)
            log = lambda z, batch=batch, rows=rows: jnp.log(objectives.cross_entropy(z, batch)[0][rows])
            found, expected = objectives.log_cross_entropy(z, batch)[rows], log(z)
            np.testing.assert_allclose(found - expected, np.log(2 if "mask" in batch else 3), rtol=1e-9)
            by_hand = jax.grad(lambda z, log=log: log(z).sum())(z)
            gradient = jax.grad(lambda z, batch=batch: objectives.log_cross_entropy(z, batch).sum())(z)
            np.testing.assert_allclose(gradient[rows], by_hand[rows], rtol=1e-6, atol=1e-12)
            assert not gradient[: rows.start or 0].any()


def test_positions_that_do_not_count_have_no_input_gradient():
    y = jax.random.randint(KEY, (5, 3), 0, 6).at[:, 2].set(-1)
    two = lambda x: optax.softmax_cross_entropy_with_integer_labels(f(x)[:, :2], y[:, :2]).sum()
    by_hand = (jax.grad(two)(X) ** 2).reshape(5, -1).sum(1)
    np.testing.assert_allclose(relatives.input_gradient_penalty(f, X, y), by_hand, rtol=1e-5)
    with pytest.raises(ValueError, match="y must hold labels from 0 to 5"):
        relatives.input_gradient_penalty(lambda x: f(x)[:, 0], X, y[:, 2])
    with pytest.raises(ValueError, match="y must hold labels from -1 to 5"):
        relatives.input_gradient_penalty(f, X, y - 1)


def test_trades_of_positions():
    """Tokens that do not see one another are rows of their own: the mean over those that the mask marks."""
    table, x = TABLE[:1], X[..., :1]  # of one feature: x' is at an end of a short interval
    alone, y, mask = lambda x: x @ table, jax.random.randint(KEY, (5, 3), 0, 6), jnp.ones((5, 3)).at[:, 2].set(0)
    options = {"epsilon": 0.01, "num_steps": 5, "step_size": 0.01}
    rows = trades(alone, x.reshape(15, 1), KEY, **options).reshape(5, 3)
    assert rows.max() > 1.2 * rows.min()
    np.testing.assert_allclose(trades(alone, x, KEY, **options), rows.mean(1), rtol=0.02)
    for padded in (x, x.at[:, 2].set(0.0)):
        loss = training.classification_loss(
            lambda params, state, x, key: (x @ params, state), penalty=penalties.of(trades, **options), lambda_jr=0.5
        )
        state = training.init_state(table, training.sgd(0.1), KEY)
        _, (_, metrics) = loss(table, state, {"image": padded, "label": y, "mask": mask}, KEYS)
        np.testing.assert_allclose(metrics["penalty"], rows[:, :2].mean(), rtol=0.02)
    with pytest.raises(ValueError, match=r"y must have shape \(5, 3\)"):
        trades(alone, x, KEY, y=y[:, :2], **options)
    with pytest.raises(TypeError, match="y must be an array of labels"):
        trades(alone, x, KEY, y=[0, 1], **options)


@pytest.mark.parametrize(("devices", "backend"), [(4, "jit"), (4, "shard_map"), (2, "pmap")])
@pytest.mark.parametrize("penalty", [None, penalties.of(trades, epsilon=0.1, num_steps=2)])
def test_masks_over_devices(penalty, devices, backend):
    """Also of rows of which nothing is marked."""
    image, mask = jnp.concatenate([X, X[:3] + 0.1]), np.ones((8, 3), np.float32)
    mask[:, 2] = mask[3] = 0
    batch = {"image": np.asarray(image), "label": np.where(mask > 0, np.arange(3), -1), "mask": mask}
    loss = training.classification_loss(apply, perturb=pgd(0.1, num_steps=2), penalty=penalty, lambda_jr=0.5)
    optimizer = training.sgd(0.1)

    def stepped(mesh):
        state = training.init_state(TABLE, optimizer, KEY)
        step = training.make_train_step(loss, optimizer, mesh=mesh, backend=backend if mesh else "jit")
        if mesh is None:
            return step(state, batch)
        return step(sharding.replicate(state, mesh), sharding.shard_batch(batch, mesh))

    whole, shared = (jax.device_get(stepped(mesh)) for mesh in (None, sharding.data_mesh(jax.devices()[:devices])))
    chex.assert_trees_all_close((shared[0].params, shared[1]), (whole[0].params, whole[1]), rtol=1e-4, atol=1e-4)
    chex.assert_tree_all_finite(whole[0].params)


SURE = 60 * jax.random.normal(jax.random.fold_in(KEY, 7), (4, 6))  # a linear model, margins of dozens
ROWS = jax.random.uniform(jax.random.fold_in(KEY, 8), (40, 4), minval=0.3, maxval=0.7)
LABELS = (ROWS @ SURE).argmax(-1)


def perturbed(make, label, perturb=ONE_STEP):
    """What the loss trains on."""
    seen = []

    def keep(f, image, label, keys, losses=None):
        seen.append(perturb(f, image, label, keys, losses))
        return seen[0]

    loss = make(lambda params, state, x, key: (x @ params, state), perturb=keep)
    state = training.init_state(SURE, training.sgd(0.1), KEY)
    loss(SURE, state, {"image": ROWS, "label": label}, jax.random.split(KEY, 40))
    return seen[0]


@pytest.mark.parametrize(
    "make",
    [
        training.classification_loss,
        partial(training.supervised_loss, objective=objectives.cross_entropy),
        partial(training.supervised_loss, objective=partial(objectives.cross_entropy, label_smoothing=0.1)),
    ],
    ids=["classification_loss", "supervised_loss", "supervised_loss, smoothed"],
)
def test_labels_of_any_form_lead_the_same_way(make):
    """One-hot as integers, of confident models as well: float32's softmax - y is zero from a margin of 17 on."""
    z = np.sort(np.asarray(ROWS @ SURE), 1)
    assert np.median(z[:, -1] - z[:, -2]) > 17
    with jax.enable_x64(True):
        w, x = (jnp.asarray(np.asarray(a), jnp.float64) for a in (SURE, ROWS))
        loss = lambda x: optax.softmax_cross_entropy(x @ w, jax.nn.one_hot(LABELS, 6)).sum()
        exact = lambda x: jax.nn.logsumexp(jnp.where(jax.nn.one_hot(LABELS, 6) > 0, -jnp.inf, x @ w), -1).sum()
        own = lambda x: jnp.take_along_axis(x @ w, LABELS[:, None], 1).sum()
        by_hand = np.sign(jax.grad(exact)(x) - jax.grad(own)(x))
        assert (np.sign(jax.grad(loss)(x)) == by_hand).mean() > 0.9
    for label in (LABELS, jax.nn.one_hot(LABELS, 6)):
        np.testing.assert_array_equal(np.sign(perturbed(make, label) - ROWS), by_hand)


def test_trades_of_a_confident_model():
    """As in float64, and never below 0."""
    options = {"epsilon": 0.02, "num_steps": 5, "bounds": None}
    found = trades(lambda x: x @ SURE, ROWS, KEY, **options)
    assert (found >= 0).all()
    with jax.enable_x64(True):
        w, x = (jnp.asarray(np.asarray(a), jnp.float64) for a in (SURE, ROWS))
        corners = x[:, None] + 0.02 * jnp.asarray(list(itertools.product((-1.0, 1.0), repeat=4)))[None]
        p, q = jax.nn.log_softmax(x @ w)[:, None], jax.nn.log_softmax(corners @ w)
        largest = np.asarray((jnp.exp(p) * (p - q)).sum(-1).max(1))  # right to 1e-16
    rare = (largest > 1e-14) & (largest < 1e-7)
    assert rare.sum() > 5
    assert np.median(found / largest) > 0.9
    assert np.median((found / largest)[rare]) > 0.5
    assert (found <= 1.001 * largest + 1e-15).all()


def test_trades_knows_the_mask_of_distributions():
    alone, soft = lambda params, state, x, key: (x @ params, state), jax.nn.one_hot(jnp.zeros((5, 3), int), 6)
    mask = jnp.ones((5, 3)).at[:, 2].set(0)
    of = penalties.of(trades, epsilon=0.1, num_steps=2)
    loss = training.classification_loss(alone, penalty=of, lambda_jr=1.0)
    state = training.init_state(TABLE, training.sgd(0.1), KEY)
    both = [
        loss(TABLE, state, {"image": X, "label": label, "mask": mask}, KEYS)[1][1]["penalty"]
        for label in (soft, jnp.zeros((5, 3), int))
    ]
    np.testing.assert_allclose(*both, rtol=1e-5)


def test_marked_labels_are_looked_at():
    """In a loss and in a compiled step: an ignored label of -1 must lie where the mask leaves it out."""
    mask = np.ones((5, 3))
    mask[:, 2] = 0
    step = training.make_train_step(training.classification_loss(apply), training.sgd(0.1))
    for label, words in ((-1, "from -1 to"), (6, "to 6"), (255, "to 255")):
        y = np.zeros((5, 3), np.int32)
        y[:, 2] = label
        batch = {"image": np.asarray(X), "label": y, "mask": mask}
        step(training.init_state(TABLE, training.sgd(0.1), KEY), batch)
        loss_of(training.classification_loss, batch)
        y[0, 0] = label
        with pytest.raises(ValueError, match=f"label must hold labels from 0 to 5.*{words}"):
            step(training.init_state(TABLE, training.sgd(0.1), KEY), batch)
        with pytest.raises(ValueError, match=f"label must hold labels from 0 to 5.*{words}"):
            loss_of(training.classification_loss, batch)


@pytest.mark.parametrize("perturb", [None, ONE_STEP])
def test_what_is_no_objective_says_so(perturb):
    batch = {"image": X, "label": jnp.zeros((5, 3), int)}
    for objective, error, words in (
        (lambda z, batch: (z.mean(), {}), ValueError, "objective must give losses"),
        (lambda z, batch: z.mean((1, 2)), TypeError, "objective must give"),
        (lambda z, batch: {}, TypeError, "objective must give"),
    ):
        with pytest.raises(error, match=words):
            loss_of(partial(training.supervised_loss, objective=objective), batch, perturb=perturb)
    with pytest.raises(TypeError, match="losses must be callable"):
        ONE_STEP(f, X, None, KEYS, 3)
    with pytest.raises(ValueError, match=r"losses must give \[B, ...\] of 5 samples, got shape \(\)"):
        ONE_STEP(f, X, None, KEYS, lambda z: z.mean())


def test_a_mask_of_ones_own_objective_is_its_own():
    """Labels of floats, and a mask that marks padding: perturbations and penalties see what came."""
    batch = {"image": X, "label": 0.5 + SOFT[..., 0], "mask": jnp.zeros((5, 3))}
    seen = []

    def perturb(f, image, label, keys):
        seen.append(label)
        return image

    def penalty(f, x, y, keys):
        seen.append(y)
        return f(x), jnp.float32(0), jnp.zeros(5)

    own = partial(training.supervised_loss, objective=lambda z, b: (huber(z, b)[0].mean(1), {}))
    loss_of(own, batch, perturb=perturb, penalty=penalty, lambda_jr=1.0)
    for label in seen:
        np.testing.assert_array_equal(label, batch["label"])
    assert len(seen) == 2
