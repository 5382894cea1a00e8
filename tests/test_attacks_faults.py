"""Wrong calls of attacks and of the wrappers around them: refused, with the same words; and models that are broken."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacreg_jax import attacks, certify, decision_cells, evaluation, masking

F = lambda x: jnp.stack([x.sum(-1), 2 - x.sum(-1), 0.5 * x[:, 0]], 1)  # three classes of four pixels
KEY = jax.random.key(0)


@pytest.fixture
def data():
    x = jnp.full((5, 4), 0.7)
    return x, jnp.zeros(5, jnp.int32)


ATTACKS = {
    "white_noise": partial(attacks.white_noise, sigma=0.1),
    "fgsm": partial(attacks.fgsm, epsilon=0.1),
    "pgd": partial(attacks.pgd, epsilon=0.1, step_size=0.1, num_steps=2),
    "apgd": partial(attacks.apgd, epsilon=0.1, num_steps=2),
    "carlini_wagner": partial(attacks.carlini_wagner, num_steps=2, binary_search_steps=1),
    "ddn": partial(attacks.ddn, num_steps=2),
    "fab": partial(attacks.fab, num_steps=2),
    "square": partial(attacks.square, epsilon=0.1, num_queries=2),
    "auto_attack": partial(attacks.auto_attack, epsilon=0.1, num_queries=2),
    "white_noise_distance": partial(attacks.white_noise_distance, num_steps=2),
    "fgsm_distance": partial(attacks.fgsm_distance, num_steps=2),
    "pgd_distance": partial(attacks.pgd_distance, num_steps=2),
}
NAN = float("nan")
WRONG_DATA = {
    "list": ({"x": [[0.7] * 4] * 5}, TypeError, "x must be an array"),
    "integers": ({"x": jnp.ones((5, 4), int)}, TypeError, "x must be floating point raw pixels, got int32"),
    "empty": ({"x": jnp.ones((0, 4)), "y": jnp.zeros(0, int)}, ValueError, "x must hold at least one sample"),
    "grey levels": (
        {"x": jnp.full((5, 4), 200.0)},
        ValueError,
        r"x must lie in bounds \(0.0, 1.0\), got values from 200",
    ),
    "nan pixels": ({"x": jnp.full((5, 4), NAN)}, ValueError, "x must lie in bounds"),
    "column": ({"y": jnp.zeros((5, 1), int)}, ValueError, r"y must have shape \(5,\)"),
    "one-hot": ({"y": jnp.eye(5, 3)}, TypeError, "y must be integer labels, got float32"),
    "counted from 1": (
        {"y": jnp.full(5, 3)},
        ValueError,
        "y must hold labels from 0 to 2, f gives 3 classes; got .* 3 to 3",
    ),
    "ignored": ({"y": jnp.array([0, -1, 0, 0, 0])}, ValueError, "y must hold labels from 0 to 2"),
    "no logits": ({"f": lambda x: (x, x)}, TypeError, r"f\(x\) must be one array of logits"),
    "a scalar": ({"f": lambda x: x.sum()}, ValueError, r"f\(x\) must be logits \[B, C\]"),
    "a label too high for one logit": ({"f": lambda x: x[:, 0], "y": jnp.full(5, 2)}, ValueError, "labels from 0 to 1"),
    "reversed bounds": ({"bounds": (1.0, 0.0)}, ValueError, "bounds must be numbers with low below high"),
    "nan bounds": ({"bounds": (0.0, NAN)}, ValueError, "bounds must be numbers with low below high"),
    "one bound": ({"bounds": 0.5}, TypeError, "bounds must be a pair"),
    "bounds elsewhere": ({"bounds": (np.zeros(4), np.full(4, 0.5))}, ValueError, "x must lie in bounds"),
    "bounds of no pixel": ({"bounds": (np.zeros(3), np.ones(3))}, ValueError, r"broadcast to x of shape \(\d, 4\)"),
}


@pytest.mark.filterwarnings("ignore:apgd-t is left out")
@pytest.mark.parametrize("wrong", WRONG_DATA)
@pytest.mark.parametrize("name", ATTACKS)
def test_wrong_data(name, wrong, data):
    """Called, and through run_attack and worst_case: the same error."""
    change, error, words = WRONG_DATA[wrong]
    x, y = data
    given = {"f": F, "x": x, "y": y, **{k: v for k, v in change.items() if k != "bounds"}}
    attack = partial(ATTACKS[name], **{k: v for k, v in change.items() if k == "bounds"})
    with pytest.raises(error, match=words):
        attack(given["f"], given["x"], given["y"], KEY)
    if wrong not in ("list", "empty", "column"):  # the wrappers say the same of their own arrays
        with pytest.raises(error, match=words):
            evaluation.run_attack(attack, given["f"], given["x"], given["y"], KEY, batch_size=2)


def test_wrong_data_of_the_wrappers(data):
    x, y = data
    run = partial(evaluation.run_attack, ATTACKS["fgsm"], F, key=KEY)
    worst = partial(evaluation.worst_case, {"fgsm": ATTACKS["fgsm"]}, F, key=KEY)
    for wrapper in (run, worst):
        for bad_x, bad_y, error, words in (
            ([[0.7] * 4] * 5, y, TypeError, "x must be an array"),
            (x[:0], y[:0], ValueError, "at least one; got"),
            (x, y[:3], ValueError, "same number of samples"),
            (x, y[:, None], ValueError, r"y must have shape"),
        ):
            with pytest.raises(error, match=words):
                wrapper(x=bad_x, y=bad_y)


WEAK = {
    "white_noise": [{"sigma": -1.0}, {"sigma": NAN}, {"sigma": jnp.inf}, {"sigma": True}, {"sigma": jnp.ones(3)}],
    "fgsm": [{"epsilon": -0.1}, {"epsilon": NAN}, {"epsilon": jnp.inf}, {"epsilon": "0.1"}, {"epsilon": None}],
    "pgd": [
        {"epsilon": NAN},
        {"step_size": -1.0},
        {"step_size": 0.0},
        {"num_steps": 2.0},
        {"num_steps": True},
        {"norm": None},
        {"norm": "L2"},
        {"num_steps": 0},
        {"random_start": 2},
        {"epsilon": jnp.full(5, -1.0)},
    ],
    "apgd": [
        {"rho": NAN},
        {"rho": 0.0},
        {"rho": 1.0},
        {"rho": -1},
        {"loss": "CE"},
        {"num_restarts": 0},
        {"norm": None},
    ],
    "carlini_wagner": [
        *({"learning_rate": v} for v in (0, -1, NAN, jnp.inf)),
        {"initial_const": 0},
        {"initial_const": -1},
        {"confidence": -1},
        {"confidence": NAN},
        {"smoother": 1.0},
        {"smoother": 0.0},
        {"adam_eps": 0},
        {"binary_search_steps": 1.5},
        {"smoother": NAN},
    ],
    "ddn": [{"gamma": 2}, {"gamma": 0}, {"gamma": -0.1}, {"gamma": NAN}, {"init_epsilon": 0}, {"init_epsilon": NAN}],
    "fab": [
        {"overshoot": -1},
        {"overshoot": 0.9},
        {"overshoot": NAN},
        {"alpha_max": 2},
        {"beta": 0},
        {"norm": None},
        {"beta": 1.5},
        {"num_targets": 0},
    ],
    "square": [{"epsilon": NAN}, {"initial_share": 0}, {"initial_share": 2}, {"num_queries": 1.0}, {"norm": "l3"}],
    "auto_attack": [{"epsilon": -1}, {"norm": None}, {"num_queries": 0}],
    "white_noise_distance": [{"step_size": 0}, {"step_size": NAN}, {"num_steps": 0}],
    "fgsm_distance": [{"step_size": 0}, {"step_size": -1}, {"num_steps": True}],
    "pgd_distance": [{"step_size": 0}, {"epsilon": NAN}, {"num_steps": 1.5}],
}


@pytest.mark.filterwarnings("ignore:apgd-t is left out")
@pytest.mark.parametrize(("name", "options"), [(n, o) for n, all_of in WEAK.items() for o in all_of], ids=str)
def test_options_that_would_make_an_attack_weak(name, options, data):
    """Each names its argument; swept ones do through run_attack too."""
    x, y = data
    ((argument, value),) = options.items()
    attack = partial(ATTACKS[name], **options)
    with pytest.raises((ValueError, TypeError), match=f"{argument} must"):
        attack(F, x, y, KEY)
    with pytest.raises((ValueError, TypeError), match=f"{argument} must"):
        evaluation.run_attack(attack, F, x, y, KEY)
    if argument in ("epsilon", "sigma", "init_epsilon", "initial_const") and isinstance(value, float):
        with pytest.raises((ValueError, TypeError), match=f"{argument} must"):
            evaluation.run_attack(ATTACKS[name], F, x, y, KEY, **options)


def test_numbers_of_numpy_are_welcome(data):
    x, y = data
    sizes = {"epsilon": np.float32(0.1), "step_size": np.float64(0.05), "num_steps": np.int64(2)}
    result = attacks.pgd(F, np.asarray(x), np.asarray(y), **sizes)
    assert result.success.shape == (5,)
    with pytest.raises(ValueError, match="num_steps must be an integer"):
        attacks.pgd(F, x, y, **sizes | {"num_steps": np.float64(2)})


def test_old_names_still_work(data):
    x, y = data
    with pytest.warns(DeprecationWarning, match="binary_search_steps"):
        attacks.carlini_wagner(F, x, y, num_searches=1, num_steps=2)
    with pytest.warns(DeprecationWarning, match="init_epsilon"):
        attacks.ddn(F, x, y, KEY, initial_epsilon=0.5, num_steps=2)
    four = lambda x: jnp.concatenate([F(x), 0 * x[:, :1]], 1)
    with pytest.warns(DeprecationWarning, match=r'apgd_targeted is deprecated since 0.2, use apgd\(loss="targeted"\)'):
        old = attacks.apgd_targeted(four, x, y, KEY, epsilon=0.3, num_steps=3)
    new = attacks.apgd(four, x, y, KEY, epsilon=0.3, num_steps=3, loss="targeted")
    np.testing.assert_array_equal(old.x_adv, new.x_adv)
    by_position = lambda f, x, y, k, e: attacks.fgsm(f, x, y, epsilon=e)
    with pytest.warns(DeprecationWarning, match="by position"):
        old = evaluation.run_attack(by_position, F, x, y, KEY, 0.3)
    np.testing.assert_array_equal(old.x_adv, evaluation.run_attack(attacks.fgsm, F, x, y, KEY, epsilon=0.3).x_adv)
    with pytest.warns(DeprecationWarning, match="jacobian_norms"):
        evaluation.jacobian_norms(lambda f, x: x.sum(1), F, x)


# masking, evaluation, certify, cells


def test_masking_refuses(data):
    x, y = data
    check = partial(masking.checks, F, x, y, KEY, num_queries=2, num_steps=(1, 2))
    for options, words in (
        ({"epsilon": -8 / 255}, "epsilon must be above 0"),
        ({"epsilon": NAN}, "epsilon must be above 0"),
        ({"epsilon": 0.1, "norm": "l3"}, "norm must be 'linf', 'l2' or 'l1'"),
        ({"epsilon": 0.1, "num_steps": (3, 2)}, "num_steps must be rising"),
        ({"epsilon": 0.1, "bounds": (1, 0)}, "bounds must be numbers with low below high"),
        ({"epsilon": 0.1, "tolerance": -1.0}, r"tolerance must lie in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=words):
            check(**options)
    with pytest.raises(ValueError, match="x must lie in bounds"):
        masking.checks(F, 255 * x, y, KEY, epsilon=0.1)
    for norm in ("l3", "L2", None):
        with pytest.raises(ValueError, match="norm must be 'linf', 'l2' or 'l1'"):
            masking.linearised_margin(F, x, y, norm=norm)
    with pytest.raises(ValueError, match="y must hold labels"):
        masking.linearised_margin(F, x, y + 3)
    with pytest.raises(ValueError, match="y must hold labels"):
        masking.zero_gradient_share(F, x, y + 3)


def test_evaluation_refuses(data):
    x, y = data
    for wrong, error, words in (
        (y[:, None], ValueError, "y must have shape"),
        (y + 3, ValueError, "y must hold labels from 0 to 2"),
        (y - 1, ValueError, "y must hold labels from 0 to 2"),
        (y.astype(jnp.float32), TypeError, "y must be integer labels"),
        (list(y), TypeError, "y must be an array"),
    ):
        with pytest.raises(error, match=words):
            evaluation.accuracy(F, x, wrong)
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
            evaluation.accuracy(F, x, y, batch_size=size)
    with pytest.raises(ValueError, match="distances must be"):
        evaluation.robust_accuracy([NAN], 0.1)
    with pytest.raises(ValueError, match="distances must be"):
        evaluation.median_distance([])
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\)"):
        evaluation.median_distance([1.0], confidence=1.0)
    with pytest.raises(TypeError, match="norm must be a number"):
        evaluation.run_attack(ATTACKS["pgd"], F, x, y, KEY, norm="l2")
    with pytest.raises(ValueError, match="epsilon must be a number or hold one for each of the 5 samples"):
        evaluation.run_attack(ATTACKS["pgd"], F, x, y, KEY, epsilon=jnp.ones(3))


def test_certify_and_cells_refuse(data):
    x, y = data
    plane = decision_cells.random_plane(x[0], KEY)
    for call, words in (
        (lambda: certify.certify_smoothed(F, x, KEY, sigma=NAN), "sigma must be above 0"),
        (lambda: certify.certify_smoothed(F, x, KEY, sigma=0.1, alpha=1.0), r"alpha must lie in \(0, 1\)"),
        (lambda: certify.certify_smoothed(F, x * NAN, KEY, sigma=0.1), "x must be finite"),
        (lambda: certify.certify_smoothed(F, x[:0], KEY, sigma=0.1), "x must hold at least one sample"),
        (lambda: certify.certify_smoothed(F, x, KEY, sigma=0.1, num_samples=1.5), "num_samples must be an integer"),
        (lambda: certify.interval_radius(F, x, y, bounds=(1, 0)), "bounds must be numbers with low below high"),
        (lambda: certify.interval_radius(F, 255 * x, y), "x must lie in bounds"),
        (lambda: certify.interval_radius(F, x, y, largest=-1.0), "largest must be above 0"),
        (lambda: certify.interval_radius(F, x, y + 3), "y must hold labels"),
        (lambda: certify.interval_bounds(F, x, x - 1), "low must not lie above high"),
        (lambda: certify.interval_bounds(F, x * NAN, x), "low must not lie above high, nor be NaN"),
        (lambda: decision_cells.decision_cells(F, plane, extent=NAN), "extent must be above 0"),
        (lambda: decision_cells.decision_cells(F, plane, extent=1.0, resolution=1), "resolution must be an integer"),
        (lambda: decision_cells.decision_cells(lambda x: x[:, 0], plane, extent=1.0), "at least 2 classes"),
        (lambda: decision_cells.boundary_distance(F, plane, extent=-1.0), "extent must be above 0"),
        (lambda: decision_cells.adversarial_plane(x[0], x[0] + 0.1, x[0] + 0.2), "not parallel"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


# broken models


@pytest.mark.parametrize("value", [NAN, jnp.inf])
def test_a_broken_model_is_never_right(value, data):
    """NaN everywhere, or plus infinity at the label: wrong from the start, not certified, without a cell."""
    x, y = data
    f = lambda x: jnp.where(jnp.arange(3) == 0, value, 0.0)[None] + 0 * F(x)
    assert evaluation.accuracy(f, x, y) == 0
    assert (certify.certify_smoothed(f, x, KEY, sigma=0.25, num_samples=200).prediction == -1).all()
    assert (certify.certify_smoothed(f, x, KEY, sigma=0.25, num_samples=200).radius == 0).all()
    plane = decision_cells.random_plane(x[0], KEY)
    cells = decision_cells.decision_cells(f, plane, extent=1.0, resolution=5)
    assert (cells.classes == -1).all()
    assert (cells.confidence == 0).all()
    assert decision_cells.boundary_distance(f, plane, extent=1.0, num_rays=4, num_radii=4) == 0
    for name in ("white_noise", "fgsm", "ddn", "square"):
        result = ATTACKS[name](f, x, y, KEY)
        assert not result.clean_correct.any(), name
        assert result.success.all(), name
        np.testing.assert_array_equal(result.distance, 0)


def test_a_broken_model_does_not_pass_the_masking_checks(data):
    x, y = data
    found = masking.checks(lambda x: F(x) * NAN, x, y, KEY, epsilon=0.1, num_steps=(1, 2), num_queries=2)
    assert found["not finite"] == masking.Check(1.0, 0.0, False)


def test_a_share_of_broken_draws_counts_against_the_certificate(data):
    """NaN on half of the noise: class 0 is drawn in half of all cases, not in all that are finite."""
    x, _ = data
    f = lambda x: jnp.where((x[:, :1] > 0.7), jnp.array([[1.0, 0.0, 0.0]]), NAN)
    found = certify.certify_smoothed(f, x, KEY, sigma=0.25, num_samples=400)
    assert (found.prediction == -1).all()
    assert (found.probability < 0.55).all()


# few classes, features, no gradients


@pytest.mark.parametrize("classes", [2, 3])
def test_ensembles_of_few_classes(classes, data):
    x, y = data
    f = lambda x: F(x)[:, :classes]
    told = f"apgd-t is left out: it needs at least 4 classes, f gives {classes}"
    if classes == 3:
        with pytest.warns(UserWarning, match=told):
            result = attacks.auto_attack(f, x, y, KEY, epsilon=0.5, num_queries=5)
        assert result.success.all()
    ensemble = attacks.standard_ensemble(num_queries=5)
    with pytest.warns(UserWarning, match=told):
        _, robust = evaluation.worst_case(ensemble, f, x, y, KEY, epsilon=0.01)
    assert robust == {"apgd-ce": 1, "fab-t": 1, "square": 1}  # what did not run is not in it


def test_square_needs_no_gradient(data):
    """Through a callback, and through a loop that has no reverse mode; twice the same as the plain function."""
    x, y = data
    plain = ATTACKS["square"](F, x, y, KEY, epsilon=0.5, num_queries=20)
    shape = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    through_numpy = lambda x: jax.pure_callback(lambda x: np.asarray(F(x)), shape, x)
    looped = lambda x: jax.lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, F(x)), (0, jnp.zeros((5, 3))))[1]
    for f in (through_numpy, looped):
        result = ATTACKS["square"](f, x, y, KEY, epsilon=0.5, num_queries=20)
        np.testing.assert_array_equal(result.success, plain.success)
        np.testing.assert_allclose(result.x_adv, plain.x_adv, atol=1e-6)
    assert plain.success.any()


def test_masking_checks_of_feature_vectors(data):
    """In L2; in L-infinity and L1 with one logit, in `test_attacks_reach`."""
    x, y = data
    found = masking.checks(F, x, y, KEY, epsilon=0.05, norm="l2", num_steps=(2, 4), num_queries=10)
    assert found["zero gradient"].value == 0
    assert found["unbounded"].passed


# programs: never stale, compiled once


LOOPED = ("pgd", "apgd", "carlini_wagner", "ddn", "fab", "square", "pgd_distance", "fgsm_distance")


@pytest.mark.parametrize("name", LOOPED)
def test_direct_calls_compile_once_and_are_never_stale(name, data, compilations):
    """One function object, or a new one each time; the parameters it closes over change, and count."""
    x, y = data
    held = {"w": jax.random.normal(KEY, (4, 3))}
    same = lambda x: jax.nn.relu(x - 0.5) @ held["w"]

    def call(i):
        held["w"] = jax.random.normal(jax.random.key(i), (4, 3))
        f = same if i % 2 else (lambda x: jax.nn.relu(x - 0.5) @ held["w"])
        right = jnp.argmax(f(x), 1) == y
        np.testing.assert_array_equal(ATTACKS[name](f, x, y, jax.random.key(i)).clean_correct, right)

    for i in range(4):
        call(i)
    before = compilations[0]
    for i in range(4, 24):
        call(i)
    assert compilations[0] == before


def test_wrappers_are_never_stale(data):
    x, y = data
    held = {"w": jnp.eye(4, 3)}
    f = lambda x: x @ held["w"] + 0.1 * jnp.array([[1.0, 0, 0]])
    assert evaluation.accuracy(f, x, y) == 1
    assert evaluation.run_attack(ATTACKS["fgsm"], f, x, y, KEY).clean_correct.all()
    np.testing.assert_allclose(evaluation.jacobian_norms(f, x), np.sqrt(3), rtol=1e-6)
    assert (certify.certify_smoothed(f, x, KEY, sigma=0.01, num_samples=100).prediction == 0).all()
    held["w"] = -2 * jnp.eye(4, 3) * jnp.array([[1.0, 0, 0]])
    assert evaluation.accuracy(f, x, y) == 0
    assert not evaluation.run_attack(ATTACKS["fgsm"], f, x, y, KEY).clean_correct.any()
    np.testing.assert_allclose(evaluation.jacobian_norms(f, x), 2, rtol=1e-6)
    assert (certify.certify_smoothed(f, x, KEY, sigma=0.01, num_samples=100).prediction != 0).all()


def test_other_numbers_of_samples_and_parameters_trace_nothing(data):
    """16 rows and fewer are padded to 16; parameters are arguments."""
    x, y = jnp.tile(data[0], (4, 1)), jnp.tile(data[1], 4)
    traces = []

    def counted(name):
        def attack(f, x, y, key):
            traces.append(name)
            return ATTACKS[name](f, x, y, key)

        return attack

    pgd, fgsm = counted("pgd"), counted("fgsm")
    model = lambda w, x: x @ w
    for seed, n in enumerate((16, 13, 9)):
        f = jax.tree_util.Partial(model, jax.random.normal(jax.random.key(seed), (4, 5)))
        assert len(evaluation.run_attack(pgd, f, x[:n], y[:n], KEY).success) == n
        assert len(evaluation.worst_case({"a": fgsm}, f, x[:n], y[:n], KEY)[0].success) == n
    assert traces == ["pgd", "fgsm"]


def test_masking_checks_compile_once(data, compilations):
    x, y = data
    for seed in range(2):
        before = compilations[0]
        w = jax.random.normal(jax.random.key(seed), (4, 5))
        masking.checks(lambda x: x @ w, x, y, KEY, epsilon=0.1, num_steps=(1, 2), num_queries=2)
    assert compilations[0] - before <= 2  # the draw of w


def test_an_attack_that_calls_f_on_other_rows(data):
    """Expectation over four draws, as one call of f on 4 B rows."""
    x, y = data

    def averaged(f, x, y, keys, sigma):
        noise = jax.vmap(lambda k: jax.random.normal(k, (4, 4)))(keys)
        z = f((x[:, None] + sigma[:, None, None] * noise).reshape(-1, 4)).reshape(len(x), 4, -1)
        return jnp.argmax(z.mean(1), 1) == y

    assert evaluation.run_attack(averaged, F, x, y, KEY, sigma=0.01).all()


def test_warnings_stay_away_from_four_classes(data):
    x, y = data
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f = lambda x: jnp.concatenate([F(x), 0 * x[:, :1]], 1)
        jax.eval_shape(lambda x: attacks.auto_attack(f, x, y, KEY, epsilon=0.1, num_queries=2), x)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (np.zeros(3), np.ones(3)), None])
def test_an_ensemble_made_anew_is_the_same(bounds):
    """The same functions, so that nothing compiles again; the dict is the caller's own."""
    first, second = (attacks.standard_ensemble(norm="l2", num_queries=7, bounds=bounds) for _ in range(2))
    assert all(first[name] is second[name] for name in first)
    other = attacks.standard_ensemble(norm="l2", num_queries=8, bounds=bounds)
    assert other["square"] is not first["square"]
    del first["square"]
    assert "square" in attacks.standard_ensemble(norm="l2", num_queries=7, bounds=bounds)


def test_an_ensemble_of_a_criterion_without_a_hash():
    class Far:
        __hash__ = None

        def __call__(self, f, x, y):
            return f(x)[:, 0] > y

    assert list(attacks.standard_ensemble(criterion=Far())) == ["apgd-ce", "fab-t", "square"]
