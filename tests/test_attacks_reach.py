"""Models and inputs that people have: no bounds, sizes of every entry, half precision, trees, models that draw."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacreg_jax import attacks, certify, evaluation, masking
from jacreg_jax.adversarial_training import pgd, random_fgsm, trades
from tests.conftest import mlp, mlp_params

KEY = jax.random.key(0)
W = np.asarray(5 * jax.random.normal(KEY, (2, 6)))
F = lambda x: (x - 0.5).reshape(len(x), -1) @ jnp.asarray(W, x.dtype).T
X = 0.5 + 0.1 * jax.random.normal(jax.random.key(1), (8, 6))
Y = jnp.argmax(F(X), 1).astype(jnp.int32)
MARGIN = np.abs(np.asarray(F(X)) @ np.array([1, -1]))
NEAREST = {
    "carlini_wagner": (
        partial(attacks.carlini_wagner, num_steps=300, binary_search_steps=9, learning_rate=0.01, initial_const=0.1),
        2,
    ),
    "ddn": (partial(attacks.ddn, key=KEY, num_steps=300), 2),
    "fab": (partial(attacks.fab, num_steps=20), 2),
    "fab_linf": (partial(attacks.fab, num_steps=20, norm="linf"), 1),
    "fab_l1": (partial(attacks.fab, num_steps=20, norm="l1"), np.inf),
}


slow = partial(pytest.param, marks=pytest.mark.slow)
BOUNDS = [None, (-3.0, None), slow((None, np.full(6, 4.0)))]


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("name", NEAREST)
def test_no_bounds(name, bounds):
    """Far from any bound the distance is that of the plane."""
    attack, order = NEAREST[name]
    result = attack(F, X, Y, bounds=bounds)
    ratio = np.asarray(result.distance) * np.linalg.norm(W[0] - W[1], order) / MARGIN
    assert ratio.min() > 1 - 1e-4
    assert ratio.max() < 1.01, ratio


def test_one_side_is_a_bound():
    """Entries at the bound cannot move below it, and those of others are free."""
    w = np.array([[1.0, 1.0], [-1.0, -1.0]])
    f = lambda x: (x - jnp.array([[0.0, 1.0]])) @ jnp.asarray(w).T
    x = jnp.array([[0.0, 1.5]])
    for name, (attack, _) in NEAREST.items():
        result = attack(f, x, jnp.array([0]), bounds=(0.0, None))
        assert result.success[0], name
        np.testing.assert_allclose(result.distance, 0.5, rtol=0.01)  # the second alone moves, in every norm
        assert (result.x_adv >= 0).all()
    with pytest.raises(ValueError, match=r"x must lie in bounds \(0.0, inf\), got values from -0.1"):
        attacks.fgsm(f, x - 0.1, jnp.array([0]), epsilon=0.1, bounds=(0.0, None))


EPSILON = np.array([[0.3, 0.0, 0.1, 0.02, 0.2, 0.5]], np.float32)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd_random", "apgd", "square", slow("auto_attack"), "white_noise"])
@pytest.mark.filterwarnings("ignore:apgd-t is left out")
def test_a_size_for_every_feature(name):
    """Within the box, in its corner where the attack climbs; the same through run_attack and sample by sample."""
    attack = {
        "fgsm": attacks.fgsm,
        "pgd": lambda *a, epsilon, **o: attacks.pgd(*a, epsilon=epsilon, step_size=epsilon / 2, num_steps=5, **o),
        "pgd_random": lambda *a, epsilon, **o: attacks.pgd(
            *a, epsilon=epsilon, step_size=epsilon / 2, num_steps=9, random_start=True, **o
        ),
        "apgd": partial(attacks.apgd, num_steps=10),
        "square": partial(attacks.square, num_queries=100),
        "auto_attack": partial(attacks.auto_attack, num_queries=100),
        "white_noise": lambda *a, epsilon, **o: attacks.white_noise(*a, sigma=epsilon, **o),
    }[name]
    result = attack(F, X, Y, KEY, epsilon=EPSILON, bounds=None)
    moved = np.abs(np.asarray(result.x_adv - X))
    assert (moved[:, 1] == 0).all()
    if name != "white_noise":
        assert (moved <= EPSILON + 1e-6).all()
        fooled = (EPSILON * np.abs(W[0] - W[1])).sum() > MARGIN
        assert (result.success <= fooled).all()
        assert result.success.sum() >= fooled.sum() - (3 if name == "square" else 0)
    run = evaluation.run_attack(partial(attack, bounds=None), F, X, Y, KEY, epsilon=EPSILON, batch_size=3)
    np.testing.assert_allclose(run.x_adv, result.x_adv, atol=1e-5)
    rows = attack(F, X, Y, KEY, epsilon=np.repeat(EPSILON, 8, 0), bounds=None)
    np.testing.assert_array_equal(rows.x_adv, result.x_adv)


def test_the_ensembles_fab_reaches_the_corner_of_the_box():
    """With a size for every feature it seeks the nearest point in units of them, in or out by 6 %."""
    scale = np.where(np.arange(8) % 2, 1.06, 0.94) * MARGIN / (EPSILON * np.abs(W[0] - W[1])).sum()
    epsilon = (EPSILON * scale[:, None]).astype(np.float32)
    fab = attacks.standard_ensemble(bounds=None)["fab-t"]
    result = evaluation.run_attack(fab, F, X, Y, KEY, epsilon=epsilon)
    np.testing.assert_array_equal(result.success, np.arange(8) % 2 == 1)
    moved = np.abs(np.asarray(result.x_adv - X))
    assert (moved <= epsilon + 1e-6).all()
    np.testing.assert_allclose(result.distance[1::2], moved.max(1)[1::2])
    held = evaluation.run_attack(attacks.standard_ensemble()["fab-t"], F, X, Y, KEY, epsilon=0 * epsilon)
    assert not held.success.any()


def test_sizes_that_do_not_fit():
    for epsilon in (np.ones(6), np.ones((1, 5)), np.ones((2, 6)), np.ones((1, 1, 6))):
        with pytest.raises(ValueError, match=r"epsilon must be a scalar or have shape \(8,\).*or all axes of x"):
            attacks.fgsm(F, X, Y, epsilon=epsilon)
    with pytest.raises(ValueError, match=r"epsilon must be a scalar or have shape \(8,\), one for each sample; got"):
        attacks.pgd(F, X, Y, epsilon=EPSILON, step_size=0.1, num_steps=2, norm="l2")
    with pytest.raises(ValueError, match="epsilon must be at least 0"):
        evaluation.run_attack(attacks.fgsm, F, X, Y, KEY, epsilon=-EPSILON)


# trees


TREE = {"a": X[:, :2], "kind": jnp.arange(8, dtype=jnp.int32) % 2, "b": X[:, 2:].reshape(8, 2, 2).astype(jnp.float32)}
OF_TREE = lambda t: F(jnp.concatenate([t["a"], t["b"].reshape(len(t["a"]), 4)], 1)) * (1 + t["kind"][:, None])


TREES = ["fgsm", "pgd", "fab", "square"]
TREES += [pytest.param(n, marks=pytest.mark.slow) for n in ("apgd", "ddn", "carlini_wagner", "white_noise")]


@pytest.mark.parametrize("name", TREES)
def test_trees_with_integers(name):
    """The float leaves are moved as those of one vector would be; the others come back as they are."""
    attack = {
        "fgsm": partial(attacks.fgsm, epsilon=0.1),
        "pgd": partial(attacks.pgd, epsilon=0.2, step_size=0.1, num_steps=4, norm="l2"),
        "apgd": partial(attacks.apgd, epsilon=0.1, num_steps=5),
        "square": partial(attacks.square, epsilon=0.1, num_queries=20),
        "white_noise": partial(attacks.white_noise, sigma=0.2),
        "ddn": partial(attacks.ddn, num_steps=20),
        "fab": partial(attacks.fab, num_steps=5),
        "carlini_wagner": partial(attacks.carlini_wagner, num_steps=20, binary_search_steps=2, initial_const=1.0),
    }[name]
    result, flat = attack(OF_TREE, TREE, Y, KEY), attack(F, X, Y, KEY)
    np.testing.assert_array_equal(result.x_adv["kind"], TREE["kind"])
    assert result.x_adv["b"].shape == (8, 2, 2)
    if name not in ("carlini_wagner",):  # whose constant weighs the margin, twice as large in every second sample
        np.testing.assert_array_equal(result.success, flat.success)
        np.testing.assert_allclose(result.distance, flat.distance, rtol=1e-4)
    run = evaluation.run_attack(attack, OF_TREE, TREE, Y, KEY, batch_size=3)
    np.testing.assert_array_equal(run.success, result.success)
    np.testing.assert_allclose(run.x_adv["b"], result.x_adv["b"], atol=1e-4)


def test_bounds_of_trees():
    low = {"a": np.full(2, 0.4), "kind": None, "b": None}
    tree = {**TREE, "a": jnp.clip(TREE["a"], 0.4, 0.6)}
    result = attacks.fgsm(OF_TREE, tree, Y, epsilon=0.3, bounds=(low, None))
    assert result.x_adv["a"].min() >= 0.4
    assert result.x_adv["b"].min() < 0.2
    with pytest.raises(ValueError, match="bounds must be one for all or a pytree like x, 3 leaves, got 2"):
        attacks.fgsm(OF_TREE, tree, Y, epsilon=0.3, bounds=({"a": 0.0, "b": 0.0}, None))
    with pytest.raises(ValueError, match="x must lie in bounds"):
        attacks.fgsm(OF_TREE, TREE, Y, epsilon=0.3, bounds=(0.45, None))
    with pytest.raises(ValueError, match="x must lie in bounds"):
        evaluation.run_attack(partial(attacks.fgsm, bounds=(0.45, None)), OF_TREE, TREE, Y, KEY, epsilon=0.3)
    with pytest.raises(TypeError, match="x must be floating point in one leaf at least"):
        attacks.fgsm(OF_TREE, {"kind": TREE["kind"]}, Y, epsilon=0.3)
    with pytest.raises(ValueError, match="x must be arrays of one number of samples"):
        attacks.fgsm(OF_TREE, {**TREE, "kind": jnp.arange(3)}, Y, epsilon=0.3)


# models that draw


def noisy(x, key):
    """Half of the features dropped: one key for all rows of a call."""
    kept = jax.random.bernoulli(key, 0.5, x.shape)
    return F(jnp.where(kept, x, 0.5)) * 2


@pytest.mark.parametrize(
    "name",
    ["fgsm", "pgd", "apgd", "carlini_wagner", *map(slow, ["ddn", "fab", "fgsm_distance", "pgd_distance"])],
)
def test_expectation_over_draws(name):
    """On the mean of many draws the model is linear again, with the distances and directions of F."""
    attack = {
        "fgsm": partial(attacks.fgsm, epsilon=0.2),
        "pgd": partial(attacks.pgd, epsilon=0.2, step_size=0.05, num_steps=8),
        "apgd": partial(attacks.apgd, epsilon=0.2, num_steps=10),
        "ddn": partial(attacks.ddn, num_steps=30),
        "fab": partial(attacks.fab, num_steps=10),
        "carlini_wagner": partial(attacks.carlini_wagner, num_steps=50, binary_search_steps=2, initial_const=1.0),
        "fgsm_distance": partial(attacks.fgsm_distance, step_size=0.02, num_steps=30),
        "pgd_distance": partial(attacks.pgd_distance, step_size=0.02, num_steps=30, epsilon=0.5),
    }[name]
    result = attack(noisy, X, Y, KEY, samples=32)
    at_the_boundary = name in ("fab", "carlini_wagner", "pgd_distance", "ddn", "fgsm_distance")  # which draws move
    assert result.success.sum() >= (2 if at_the_boundary else 5), result.outcomes()
    alone = evaluation.run_attack(partial(attack, samples=32), noisy, X[:4], Y[:4], KEY, batch_size=1)
    np.testing.assert_allclose(alone.x_adv, result.x_adv[:4], atol=1e-4)
    if name == "fgsm":
        sure = np.abs(W[0] - W[1]) > 2
        np.testing.assert_allclose((result.x_adv - X)[:, sure], attack(F, X, Y).x_adv[:, sure] - X[:, sure], atol=1e-6)


def test_the_ensemble_over_draws():
    """Far enough from the boundary it decides as on the mean of many draws; Square draws as well."""
    ensemble = attacks.standard_ensemble(num_queries=30, samples=32)
    ensemble = {name: ensemble[name] for name in ("fab-t", "square")}
    epsilon = np.where(np.arange(8) % 2, 6, 0.4) * MARGIN / np.abs(W[0] - W[1]).sum()
    result, robust = evaluation.worst_case(ensemble, noisy, X, Y, KEY, epsilon=epsilon.astype(np.float32))
    assert robust["square"] <= robust["fab-t"]
    assert result.success[1::2].sum() >= 3
    assert result.success[::2].sum() <= 1
    with pytest.raises(ValueError, match="samples must be None or an integer of at least 1"):
        attacks.standard_ensemble(samples=0)
    with pytest.raises(TypeError, match=r"f must be callable as \(x, key\)"):
        evaluation.worst_case(ensemble, F, X, Y, KEY, epsilon=0.1)


def test_draws_are_other_ones_at_other_points():
    seen = []
    f = lambda x, key: jnp.stack([jax.random.uniform(key, (len(x),)), 0.5 + 0 * x[:, 0]], 1)
    for shift in (0.0, 0.0, 1e-6):
        start = attacks.start.begin(f, X + shift, Y, None, key=KEY, goal=attacks.start.Goal(samples=4))
        seen.append((np.asarray(start.logits[:, :, 0]), np.asarray(start.judge(start.x)[:, :, 0])))
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    assert len(np.unique(np.concatenate([seen[0][0], seen[2][0], seen[0][1]]))) == 3 * 8 * 4
    with pytest.raises(TypeError, match=r"f must be callable as \(x, key\)"):
        attacks.fgsm(F, X, Y, KEY, epsilon=0.1, samples=2)
    with pytest.raises(TypeError, match="key must be a typed key"):
        attacks.fgsm(noisy, X, Y, epsilon=0.1, samples=2)
    with pytest.raises(ValueError, match="samples must be None or an integer of at least 1"):
        attacks.fgsm(noisy, X, Y, KEY, epsilon=0.1, samples=0)
    with pytest.raises(TypeError, match=r"f must be callable as \(x\)"):
        evaluation.run_attack(attacks.fgsm, noisy, X, Y, KEY, epsilon=0.1)


# around the attacks


NORMS = ["linf", slow("l2"), slow("l1")]


@pytest.mark.parametrize("norm", NORMS)
def test_masking_checks_of_one_logit_without_bounds(norm):
    one = lambda x: F(x) @ jnp.array([-1.0, 1.0])
    options = {"num_steps": (4, 20), "num_queries": 20, "norm": norm}
    epsilon = EPSILON if norm == "linf" else 0.3
    found = masking.checks(one, X, Y, KEY, epsilon=epsilon, bounds=None, **options)
    assert found["zero gradient"].value == found["not finite"].value == 0
    assert found["unbounded"].passed
    assert found["larger epsilon"].passed
    order = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    expected = MARGIN / np.linalg.norm(W[0] - W[1], order)
    np.testing.assert_allclose(masking.linearised_margin(one, X, Y, norm=norm), expected, rtol=1e-4)
    assert masking.zero_gradient_share(one, X, Y) == 0


def test_masking_checks_of_other_goals():
    found = masking.checks(
        lambda x: F(x)[:, 0],
        X,
        None,
        KEY,
        epsilon=0.1,
        num_steps=(2, 5),
        num_queries=10,
        criterion=attacks.criteria.moved(0.3),
    )
    assert found["unbounded"].passed
    low = {"a": -3.0, "kind": None, "b": np.full((2, 2), -4.0)}  # a target, of a tree with bounds of its own
    options = {"num_steps": (2, 5), "num_queries": 10, "target": np.asarray(1 - Y), "bounds": (low, 5.0)}
    found = masking.checks(OF_TREE, TREE, Y, KEY, epsilon=0.1, **options)
    assert found["unbounded"].passed
    assert found["more steps"].passed


def test_certificates_of_one_logit():
    one = lambda x: F(x) @ jnp.array([-1.0, 1.0])
    two = lambda x: jnp.stack([0 * one(x), one(x)], 1)
    radius = certify.interval_radius(one, X, Y, bounds=None)
    np.testing.assert_allclose(radius, certify.interval_radius(two, X, Y, bounds=None), atol=1e-6)
    assert (radius > 0.2 * MARGIN / np.abs(W[0] - W[1]).sum()).all()
    assert (radius < MARGIN / np.abs(W[0] - W[1]).sum()).all()
    counts = certify.noisy_counts(one, X, KEY, sigma=0.2, num_samples=100)
    np.testing.assert_array_equal(counts, certify.noisy_counts(two, X, KEY, sigma=0.2, num_samples=100))


# adversarial training


@pytest.mark.parametrize("norm", ["linf", slow("l2"), "l1"])
def test_pgd_training_perturbs_in_its_ball(norm):
    """Every sample moves, wrong ones too, uphill; nothing depends on the batch."""
    label = Y.at[0].set(1 - Y[0])
    keys = jax.random.split(KEY, 8)
    perturb = pgd(0.05, norm=norm)
    moved = perturb(F, X, label, keys)
    size = attacks.result.distance(moved - X, norm)
    assert (size <= 0.05 + 1e-5).all()
    assert (size > 0.02).all()
    loss = lambda x: attacks.losses.log_odds(F(x), label)
    assert (loss(moved) > loss(X)).all()
    np.testing.assert_allclose(perturb(F, X[3:4], label[3:4], keys[3:4])[0], moved[3], atol=1e-6)


def test_trades_by_hand():
    """KL between two classes at an end of the ball; its gradient is that of both points."""
    w = jnp.asarray(W[:, :1] / 5)
    f = lambda w, x: (x - 0.5) @ w.T
    x = jnp.array([[0.6]])
    found, slope = jax.value_and_grad(lambda w: trades(partial(f, w), x, KEY, epsilon=0.1, num_steps=5)[0])(w)

    def by_hand(w, end):
        p, q = (jax.nn.log_softmax(f(w, x + s)) for s in (0.0, end))
        return jnp.sum(jnp.exp(p) * (p - q))

    ends = [jax.value_and_grad(by_hand)(w, end) for end in (-0.1, 0.1)]
    expected, expected_slope = ends[int(abs(ends[1][0] - found) < abs(ends[0][0] - found))]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-2, atol=1e-6)
    one = trades(lambda x: f(w, x) @ jnp.array([-1.0, 1.0]), x, KEY, epsilon=0.1, num_steps=5)
    np.testing.assert_allclose(one[0], expected, rtol=1e-3)


def test_trainings_refuse():
    for make, words in (
        (lambda: pgd(-1.0), "epsilon must"),
        (lambda: pgd(0.1, step_size=0.0), "step_size must"),
        (lambda: pgd(0.1, num_steps=0), "num_steps must"),
        (lambda: pgd(0.1, norm="l3"), "norm must"),
        (lambda: pgd(0.1, random_start=2), "random_start must"),
        (lambda: trades(F, X, KEY, epsilon=NAN), "epsilon must"),
        (lambda: trades(F, 9 * X, KEY, epsilon=0.1), "x must lie in bounds"),
        (lambda: pgd(0.1)(F, X, Y + 2, jax.random.split(KEY, 8)), "label must hold labels"),
        (lambda: random_fgsm(0.1)(F, X, Y[:3], jax.random.split(KEY, 8)), "label must have shape"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


NAN = float("nan")


# results


def test_results_explain_themselves():
    """Every outcome once; words, rows, numbers, and what is printed."""
    f = lambda x: jnp.where(jnp.arange(8)[: len(x), None] == 5, jnp.nan, F(x))
    y = Y.at[2].set(1 - Y[2])
    epsilon = float(np.median(MARGIN) / np.abs(W[0] - W[1]).sum())
    result = attacks.pgd(f, X, y, epsilon=epsilon, step_size=epsilon / 4, num_steps=6, bounds=None)
    words = result.outcomes()
    assert words[2] == "from the start"
    assert words[5] == "not finite"
    assert set(words) == set(attacks.result.OUTCOMES)
    for word, success, distance in zip(words, result.success, result.distance, strict=True):
        assert bool(success) == (word != "never fooled")
        assert np.isinf(distance) == (word == "never fooled")
    told = result.to_dict()
    assert told["samples"] == 8
    assert sum(told[word] for word in attacks.result.OUTCOMES) == 8
    assert told["robust accuracy"] == words.count("never fooled") / 8
    rows = result.rows()
    assert [row["outcome"] for row in rows] == words
    assert rows[0]["forward"] == 2 + 7
    assert rows[0]["backward"] == 7  # six steps, and one at the clean sample for grad_zero
    assert rows[2]["forward"] == 2
    text = repr(result)
    assert text.startswith("AttackResult of 8: ")
    assert "1 not finite" in text
    assert len(text) < 250
    assert "AttackResult(" in repr(jax.eval_shape(lambda: result))


@pytest.mark.parametrize("name", ["pgd", "apgd", slow("apgd_l1"), "ddn", "carlini_wagner"])
def test_trajectories(name):
    """The last losses are those of the steps; nothing else changes; through run_attack too."""
    attack = {
        "pgd": partial(attacks.pgd, epsilon=0.1, step_size=0.05, num_steps=6),
        "apgd": partial(attacks.apgd, epsilon=0.05, num_steps=6, num_restarts=2),
        "apgd_l1": partial(attacks.apgd, epsilon=0.1, num_steps=12, norm="l1"),
        "ddn": partial(attacks.ddn, num_steps=12),
        "carlini_wagner": partial(attacks.carlini_wagner, num_steps=6, binary_search_steps=2, initial_const=1.0),
    }[name]
    plain, traced = attack(F, X, Y, KEY), attack(F, X, Y, KEY, trace=True)
    assert plain.trajectory is None
    np.testing.assert_array_equal(plain.success, traced.success)
    np.testing.assert_allclose(plain.x_adv, traced.x_adv, atol=1e-6)
    loss, distance = traced.trajectory
    assert loss.shape == distance.shape == (8, 6 if name == "pgd" else 12)
    if name == "pgd":
        np.testing.assert_allclose(loss[:, 0], attacks.losses.log_odds(F(X), Y), rtol=1e-5)
        assert (np.diff(loss, axis=1) >= -1e-5).all()
        np.testing.assert_allclose(distance[:, :3], [[0, 0.05, 0.1]] * 8, atol=1e-6)
        run = evaluation.run_attack(partial(attack, trace=True), F, X, Y, KEY, batch_size=3)
        np.testing.assert_allclose(run.trajectory.loss, loss, rtol=1e-3, atol=1e-4)


def test_passes_are_counted_on():
    """In the best of several and in the worst case, over all attacks that a sample has met."""
    two = [attacks.fgsm(F, X, Y, epsilon=e) for e in (0.01, 0.2)]
    best = attacks.best_of(*two)
    np.testing.assert_array_equal(best.forward, two[0].forward + two[1].forward)
    weak = partial(attacks.fgsm, epsilon=0.001)
    result, robust = evaluation.worst_case({"a": weak, "b": partial(attacks.fgsm, epsilon=9.0)}, F, X, Y, KEY)
    np.testing.assert_array_equal(result.forward, np.where(weak(F, X, Y).success, 3, 6))
    assert robust["b"] == 0


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_trees_and_goals_in_half_precision(dtype):
    tree = {**TREE, "b": TREE["b"].astype(dtype)}
    result = attacks.pgd(OF_TREE, tree, Y, epsilon=0.3, step_size=0.1, num_steps=5, target=1 - Y)
    assert result.x_adv["b"].dtype == dtype
    assert result.x_adv["a"].dtype == jnp.float32
    params = mlp_params(KEY, (6, 8, 1))
    f = lambda x: mlp(jax.tree.map(lambda w: w.astype(dtype), params), x.astype(dtype))
    moved = attacks.ddn(f, X.astype(dtype), None, KEY, num_steps=100, criterion=attacks.criteria.moved(0.05))
    assert moved.x_adv.dtype == dtype
    assert moved.success.all()
