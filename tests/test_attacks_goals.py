"""What counts as a success: criteria, targets, few logits, tokens, regression, random models, inputs that are trees."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacreg_jax import attacks, evaluation
from jacreg_jax.attacks import criteria
from jacreg_jax.attacks.criteria import error_above, misclassified, moved, of_margin, top_k, wrong_share
from tests.conftest import mlp, mlp_params

KEY = jax.random.key(0)
DISTANCES = {
    "carlini_wagner": partial(
        attacks.carlini_wagner, num_steps=300, binary_search_steps=5, initial_const=1.0, learning_rate=0.02
    ),
    "ddn": partial(attacks.ddn, key=KEY, num_steps=300),
    "fab": partial(attacks.fab, num_steps=30),
    "fab_linf": partial(attacks.fab, num_steps=30, norm="linf"),
    "fab_l1": partial(attacks.fab, num_steps=30, norm="l1"),
    "fgsm_distance": partial(attacks.fgsm_distance, num_steps=1000, step_size=0.001),
    "pgd_distance": partial(attacks.pgd_distance, num_steps=600, step_size=0.002, epsilon=1.0),
}
BALLS = {
    "fgsm": attacks.fgsm,
    "pgd": lambda *a, epsilon, **o: attacks.pgd(*a, epsilon=epsilon, step_size=epsilon / 4, num_steps=20, **o),
    "pgd_l2": lambda *a, epsilon, **o: attacks.pgd(
        *a, epsilon=epsilon, step_size=epsilon / 4, num_steps=20, norm="l2", **o
    ),
    "pgd_l1": lambda *a, epsilon, **o: attacks.pgd(
        *a, epsilon=epsilon, step_size=epsilon / 4, num_steps=40, norm="l1", **o
    ),
    "apgd": partial(attacks.apgd, key=KEY, num_steps=20),
    "apgd_l1": partial(attacks.apgd, key=KEY, num_steps=40, norm="l1"),
    "square": partial(attacks.square, key=KEY, num_queries=300),
}


@pytest.fixture(scope="module")
def problem():
    """(f, x, y): 8 vectors of 6 features, a perceptron of five classes, y the labels that it gives."""
    params = mlp_params(jax.random.key(1), (6, 16, 5))
    f = lambda x: 8 * (mlp(params, x) - mlp(params, jnp.full((1, 6), 0.5)))  # every class is near
    x = jax.random.uniform(jax.random.key(2), (8, 6), minval=0.3, maxval=0.7)
    return f, x, jnp.argmax(f(x), 1).astype(jnp.int32)


# criteria by themselves


@pytest.mark.parametrize(
    ("criterion", "y"),
    [
        (misclassified, "labels"),
        (top_k(2), "labels"),
        (moved(2.5), "clean"),
        (error_above(2.5), "clean"),
        (of_margin(lambda z, y: z[:, 0] - 0.3), "labels"),
    ],
)
def test_a_margin_is_above_zero_where_the_goal_is_reached(criterion, y):
    z, clean = jax.random.normal(KEY, (2, 200, 4))
    y = jnp.arange(200) % 4 if y == "labels" else clean
    reached, margin = criterion.reached(z, y), criterion.margin(z, y)
    np.testing.assert_array_equal(reached, margin > 0)
    assert 0.1 < reached.mean() < 0.95
    slope = jax.grad(lambda z: criterion.margin(z, y).sum())(z)
    assert np.isfinite(slope).all()
    assert (jnp.abs(slope).sum(1) > 0).all()
    nan = z.at[:, 1].set(jnp.nan).at[:, 0].set(jnp.nan)
    assert not criterion.reached(nan, y).any()


def test_top_k_by_hand():
    z = jnp.array([[5.0, 4.0, 3.0, 1.0]] * 4)
    y = jnp.arange(4)
    np.testing.assert_array_equal(top_k(1).reached(z, y), [False, True, True, True])
    np.testing.assert_array_equal(top_k(2).reached(z, y), [False, False, True, True])
    np.testing.assert_allclose(top_k(2).margin(z, y), [3 - 5, 3 - 4, 4 - 3, 4 - 1])


def test_shares_of_tokens_by_hand():
    """Margins -1, 2, -3, 4 of four tokens: two are wrong."""
    z = jnp.stack([jnp.zeros((1, 4)), jnp.array([[-1.0, 2.0, -3.0, 4.0]])], axis=2)
    y = jnp.zeros((1, 4), jnp.int32)
    for share, margin in ((0.0, 4), (0.25, 2), (0.49, 2), (0.5, -1), (0.75, -3), (0.99, -3)):
        found = wrong_share(share)
        assert found.margin(z, y)[0] == margin, share
        assert bool(found.reached(z, y)[0]) == (share < 0.5), share
    assert not wrong_share(0.0).reached(z.at[0, 2].set(jnp.nan), y)[0]


# one logit


@pytest.mark.filterwarnings("ignore:apgd-t is left out")
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_one_logit_is_two_classes(problem, shape):
    """Class 1 above 0: the same results as of the logits (0, z), for every attack and around them."""
    _, x, _ = problem
    w = jax.random.normal(KEY, (6,))
    z = lambda x: 3 * jnp.tanh((x - 0.5) @ w)
    one, two = (lambda x: z(x).reshape(-1, *shape)), (lambda x: jnp.stack([jnp.zeros(len(x)), z(x)], 1))
    y = (z(x) > 0).astype(jnp.int32)
    assert set(y.tolist()) == {0, 1}
    for name, attack in DISTANCES.items() if not shape else ():
        found, expected = attack(one, x, y), attack(two, x, y)
        np.testing.assert_array_equal(found.success, expected.success)
        np.testing.assert_allclose(found.distance, expected.distance, rtol=1e-4, err_msg=name)
    ensemble = attacks.standard_ensemble(num_queries=20)
    found, robust = evaluation.worst_case(ensemble, one, x, y, KEY, epsilon=0.05)
    assert found.success.any()
    assert not found.success.all()
    assert robust == evaluation.worst_case(ensemble, two, x, y, KEY, epsilon=0.05)[1]
    assert evaluation.accuracy(one, x, y) == 1
    assert evaluation.accuracy(one, x, 1 - y) == 0


# targets


def exact(w, x, y, order, target=None):
    """Distances of z = W x: to the nearest other class, or to the target, whose region is cut out by C - 1 planes."""
    z = np.asarray(x) @ w.T
    rows = []
    for a, k in enumerate(np.asarray(y)):
        others = range(len(w)) if target is None else [int(target[a])]
        rows.append(min((z[a, k] - z[a, c]) / np.linalg.norm(w[k] - w[c], order) for c in others if c != k))
    return np.array(rows)


DUAL = {"fab_linf": 1, "fab_l1": np.inf, "fgsm_distance": 1}


@pytest.mark.parametrize("name", DISTANCES)
def test_targets_of_a_linear_model(name):
    """Two classes that matter: the distance to the target is that of the plane between them."""
    w = 5 * np.asarray(jax.random.normal(KEY, (3, 6)))
    w[2] = 0
    f = lambda x: x @ jnp.asarray(w).T + jnp.array([[0.0, 0.0, -99.0]])
    x = 0.5 + 0.02 * jax.random.normal(KEY, (8, 6))
    y = jnp.argmax(f(x), 1).astype(jnp.int32)
    result = DISTANCES[name](f, x, y, target=1 - y)
    assert result.success.all()
    np.testing.assert_array_equal(jnp.argmax(f(result.x_adv), 1), 1 - y)
    if name in ("fgsm_distance", "pgd_distance"):
        return
    ratio = np.asarray(result.distance) / exact(w, x, y, DUAL.get(name, 2), 1 - y)
    assert ratio.min() > 1 - 1e-4
    assert ratio.max() < 1.01, ratio


@pytest.mark.parametrize("name", BALLS)
def test_targets_in_a_ball(name, problem):
    """Success is the target and no other class; a sample that is there already is said to be."""
    f, x, y = problem
    target = jnp.where(jnp.arange(8) == 3, y, (y + 1) % 5)
    epsilon = {"l1": 3.0, "l2": 1.0}.get(name[-2:], 0.5)
    result = BALLS[name](f, x, y, epsilon=epsilon, target=target)
    at = jnp.argmax(f(result.x_adv), 1)
    np.testing.assert_array_equal(result.success, at == target)
    assert result.outcomes()[3] == "from the start"
    assert result.distance[3] == 0
    np.testing.assert_array_equal(result.clean_correct, target != y)
    assert result.success.sum() >= 3, result.outcomes()
    np.testing.assert_array_equal(result.x_adv[3], x[3])


def test_one_target_for_all_and_through_the_wrappers(problem):
    f, x, y = problem
    attack = partial(attacks.pgd, step_size=0.1, num_steps=20)
    alone = attack(f, x, y, epsilon=0.5, target=2)
    np.testing.assert_array_equal(alone.success, jnp.argmax(f(alone.x_adv), 1) == 2)
    for target in (np.full(8, 2), jnp.full(8, 2, jnp.int32)):
        run = evaluation.run_attack(attack, f, x, y, KEY, epsilon=0.5, target=target, batch_size=3)
        np.testing.assert_array_equal(run.success, alone.success)
        np.testing.assert_allclose(run.x_adv, alone.x_adv, atol=1e-5)
    run, robust = evaluation.worst_case(
        attacks.standard_ensemble(num_queries=20), f, x, y, KEY, epsilon=0.5, target=np.full(8, 2)
    )
    np.testing.assert_array_equal(run.success, jnp.argmax(f(run.x_adv), 1) == 2)
    assert robust["square"] == 1 - run.success.mean()
    assert (run.success >= alone.success).all()


@pytest.mark.parametrize("loss", ["dlr", "targeted"])
def test_ratios_towards_a_target(loss, problem):
    f, x, y = problem
    target = (y + 1) % 5
    result = attacks.apgd(f, x, y, KEY, epsilon=0.6, num_steps=40, loss=loss, target=target)
    np.testing.assert_array_equal(result.success, jnp.argmax(f(result.x_adv), 1) == target)
    assert result.success.sum() >= 3
    assert int(result.backward.max()) <= 42  # one run, towards the target alone, and the gradient at the clean point


# other criteria


@pytest.mark.parametrize("name", ["carlini_wagner", "ddn", "fab", "fab_linf", "fab_l1", "fgsm_distance"])
def test_a_regressor_is_moved_by_its_slope(name):
    """F = w . x: the output moves by delta within delta / ||w||_dual, and no earlier."""
    w = np.array([1.0, -2.0, 0.5, 3.0, 0.1, -1.0], np.float32)
    f = lambda x: x @ jnp.asarray(w)
    x = 0.5 + 0.1 * jax.random.normal(KEY, (4, 6))
    result = DISTANCES[name](f, x, None, criterion=moved(0.4))
    assert result.success.all()
    assert (jnp.abs(f(result.x_adv) - f(x)) > 0.4).all()
    if name != "fgsm_distance":
        ratio = np.asarray(result.distance) * np.linalg.norm(w, DUAL.get(name, 2)) / 0.4
        assert ratio.min() > 1 - 1e-4
        assert ratio.max() < 1.01, ratio


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("name", BALLS)
def test_regression_in_a_ball(name, outputs):
    """Outputs [B, 1] and [B, 3]; targets y from which the error grows; half of them are too far from the start."""
    w = jax.random.normal(KEY, (6, outputs))
    f = lambda x: jnp.sin((x - 0.5) @ w)
    x = 0.5 + 0.1 * jax.random.normal(KEY, (6, 6))
    y = f(x) + jnp.where(jnp.arange(6) < 3, 0.0, 0.5)[:, None]
    epsilon = 1.0 if name.endswith(("l1", "l2")) else 0.3
    result = BALLS[name](f, x, y, epsilon=epsilon, criterion=error_above(0.3))
    np.testing.assert_array_equal(result.clean_correct, jnp.arange(6) < 3)
    np.testing.assert_array_equal(result.success, jnp.linalg.norm(f(result.x_adv) - y, axis=1) > 0.3)
    assert result.success[:3].any()
    if name == "fgsm":
        run = evaluation.run_attack(
            partial(attacks.fgsm, criterion=error_above(0.3)), f, x, y, KEY, epsilon=epsilon, batch_size=4
        )
        np.testing.assert_array_equal(run.success, result.success)


def test_an_output_goes_either_way():
    """F falls steeply to the left and rises slowly to the right: FAB finds the nearer side."""
    f = lambda x: jnp.where(x[:, 0] < 0.5, 4 * (x[:, 0] - 0.5), x[:, 0] - 0.5)
    result = attacks.fab(f, jnp.array([[0.5], [0.52]]), None, criterion=moved(0.2), num_steps=50)
    np.testing.assert_allclose(result.distance, [0.05, 0.02 + 0.18 / 4], rtol=0.01)


def test_top_k_of_a_linear_model():
    """Two classes must pass the label: further than the nearest boundary."""
    w = 5 * np.eye(3, 6, dtype=np.float32)
    f = lambda x: x @ jnp.asarray(w).T
    x = jnp.array([[0.6, 0.5, 0.4, 0, 0, 0]])
    y = jnp.zeros(1, jnp.int32)
    near, far = (attacks.ddn(f, x, y, KEY, num_steps=500, criterion=top_k(k)) for k in (1, 2))
    np.testing.assert_allclose(near.distance, 0.1 / np.sqrt(2), rtol=0.01)
    np.testing.assert_allclose(far.distance, np.sqrt(2 * 0.1**2), rtol=0.02)  # all three at their mean, 0.5


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("name", ["pgd", "apgd", "square", "ddn", "fab", "carlini_wagner"])
def test_tokens(name, share):
    """Logits [B, T, V] of embeddings [B, T, E] with labels [B, T]."""
    w, v = jax.random.normal(KEY, (4, 8)), jax.random.normal(jax.random.key(1), (8, 5))
    f = lambda x: jnp.tanh(x @ w) @ v
    x = jax.random.normal(jax.random.key(2), (4, 6, 4))
    y = jnp.argmax(f(x), -1)
    attack = DISTANCES.get(name) or partial(BALLS[name], epsilon=0.5)
    result = attack(f, x, y, criterion=wrong_share(share), bounds=None)
    wrong = (jnp.argmax(f(result.x_adv), -1) != y).mean(1)
    assert result.clean_correct.all()
    np.testing.assert_array_equal(result.success, wrong > share)
    assert result.success.sum() >= (1 if name == "square" else 3)


@pytest.mark.filterwarnings("ignore:apgd-t is left out")
def test_tokens_are_wrong_where_any_is_by_default():
    w = jax.random.normal(KEY, (4, 5))
    f = lambda x: x @ w
    x = jax.random.normal(jax.random.key(2), (4, 6, 4))
    y = jnp.argmax(f(x), -1)
    run = evaluation.run_attack(partial(attacks.fgsm, bounds=None), f, x, y, KEY, epsilon=0.1)
    np.testing.assert_array_equal(run.success, (jnp.argmax(f(run.x_adv), -1) != y).any(1))
    found = attacks.auto_attack(f, x, y, KEY, epsilon=0.2, num_queries=5, bounds=None)
    assert found.success.any()


def test_a_criterion_of_ones_own(problem):
    """The sum of two logits passes a bound; a plain function is welcome, compiled once, and y comes as it is."""
    f, x, _ = problem
    bound = f(x)[:, :2].sum(1) + 1.0
    own = lambda z, y: z[:, :2].sum(1) - y
    for name in ("ddn", "fab", "carlini_wagner"):
        result = DISTANCES[name](f, x, bound, criterion=own)
        np.testing.assert_array_equal(result.success, own(f(result.x_adv), bound) > 0)
        assert result.success.any(), name
    result = evaluation.run_attack(partial(attacks.ddn, criterion=own), f, x, bound, KEY, batch_size=4)
    np.testing.assert_array_equal(result.success, own(f(result.x_adv), bound) > 0)


def test_wrong_criteria(problem):
    f, x, y = problem
    attack = partial(attacks.pgd, f, x, y, epsilon=0.1, step_size=0.1, num_steps=2)
    for options, error, words in (
        ({"criterion": moved}, TypeError, r"criterion must be a criterion, such as criteria.moved\(...\)"),
        ({"criterion": "top_k"}, TypeError, "criterion must be callable"),
        ({"criterion": lambda z: z}, TypeError, r"criterion must be callable as \(z, y\)"),
        (
            {"criterion": lambda z, y: z},
            ValueError,
            r"criterion must give one margin for each sample, \[8\], got \(8, 5",
        ),
        ({"criterion": top_k(5)}, ValueError, r"f\(x\) must be logits \[B, C\] of more than k = 5 classes"),
        ({"criterion": top_k(2), "target": 1}, ValueError, "target must be None with a criterion of your own"),
        ({"criterion": error_above(0.1)}, ValueError, r"y must have the shape of f\(x\)"),
        ({"target": y.at[0].set(5)}, ValueError, "target must hold labels from 0 to 4"),
        ({"target": y[:3]}, ValueError, r"target must have shape \(8,\)"),
        ({"target": y + 0.5}, TypeError, "target must be integer labels"),
    ):
        with pytest.raises(error, match=words):
            attack(**options)
    with pytest.raises(ValueError, match="target must hold labels from 0 to 4"):
        evaluation.run_attack(
            partial(attacks.pgd, step_size=0.1, num_steps=2), f, x, y, KEY, epsilon=0.1, target=np.full(8, 5)
        )
    with pytest.raises(ValueError, match="loss 'dlr' is for logits"):
        attacks.apgd(f, x, y, KEY, epsilon=0.1, loss="dlr", criterion=moved(0.1))
    for make, words in ((moved, "delta"), (error_above, "delta"), (top_k, "k"), (wrong_share, "share")):
        with pytest.raises((ValueError, TypeError), match=f"{words} must"):
            make(-1)
    assert criteria.moved(0.1) == criteria.moved(0.1)
    assert hash(top_k(2)) == hash(top_k(2))


@pytest.mark.parametrize("positions", [7, 10, 25, 100])
def test_margins_and_shares_agree_on_how_many(positions):
    """Also where the share times the positions is a whole number but for rounding, such as 0.29 of 100."""
    wrong = np.arange(positions + 1)
    z = jnp.where(jnp.arange(positions)[None] < wrong[:, None], 1.0, -1.0)
    z, y = jnp.stack([jnp.zeros_like(z), z], -1), jnp.zeros(z.shape, int)
    for share in np.arange(1, positions) / positions:
        criterion = wrong_share(float(share))
        reached = criterion.reached(z, y)
        np.testing.assert_array_equal(reached, criterion.margin(z, y) > 0)
        np.testing.assert_array_equal(reached, wrong > round(share * positions))


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("positions", [10, 20])
def test_fab_moves_a_share_of_tokens_of_unequal_slopes(positions, norm):
    """Each token is wrong from 0.3 on, and the logits of some rise faster than those of others."""
    slopes = 1 + 0.5 * jnp.arange(positions)[None] / positions
    f = lambda x: jnp.stack([0 * x, (x - 0.5) * slopes], -1)
    x, y, must = jnp.full((1, positions), 0.2), jnp.zeros((1, positions), int), positions // 2 + 1
    result = attacks.fab(f, x, y, norm=norm, num_steps=60, criterion=wrong_share(0.5))
    nearest = 0.3 * {"l2": must**0.5, "linf": 1, "l1": must}[norm]
    assert 0.999 * nearest <= float(result.distance[0]) <= 1.08 * nearest
