"""What people print: penalties as the calls that made them, results as a line, and tables of them for pandas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jacreg_jax as jr
from jacreg_jax import attacks, certify, decision_cells, models, penalties, relatives, reporting_result, training

X, Y, KEY = jnp.linspace(0, 1, 12).reshape(4, 3), jnp.array([0, 1, 2, 2]), jax.random.key(0)


@pytest.mark.parametrize(
    ("penalty", "shown"),
    [
        (penalties.projected(), "projected(1, 'sphere')"),
        (penalties.projected(3, "orthonormal", 2), "projected(3, 'orthonormal', 2)"),
        (penalties.exact(), "exact()"),
        (penalties.exact(5), "exact(5)"),
        (penalties.on_part(1 / 4), "on_part(0.25, projected(1, 'sphere'))"),
        (penalties.of(relatives.noise_consistency, sigma=0.1), "of(noise_consistency, sigma=0.1)"),
        (penalties.checked(penalties.exact()), "exact()"),
    ],
)
def test_a_penalty_prints_as_its_call(penalty, shown):
    assert repr(penalty) == shown
    again = eval(shown, vars(penalties) | {"noise_consistency": relatives.noise_consistency})
    keys = jax.random.split(KEY, 4)
    np.testing.assert_array_equal(again(jnp.sin, X, Y, keys)[2], penalty(jnp.sin, X, Y, keys)[2])


def test_that_of_a_model_too():
    shown = repr(penalties.of_model(models.eval_mode(models.MLP((3,))), penalties.exact()))
    assert shown.startswith("of_model(")
    assert shown.endswith(", exact())")


def test_results_print_as_a_line():
    certificate = certify.Certificate(np.array([1, -1, 0]), np.array([0.5, 0.0, 0.25]), np.array([0.9, 0.4, 0.8]))
    assert repr(certificate) == "Certificate of 3: 1 abstained; median radius 0.375"
    assert repr(certificate._replace(prediction=np.full(3, -1))) == "Certificate of 3: 3 abstained"
    plane = decision_cells.random_plane(X[0], KEY)
    assert repr(plane) == "Plane through samples of shape (3,)"
    cells = decision_cells.decision_cells(lambda x: x, plane, extent=2.0, resolution=5)
    assert repr(cells) == f"Cells of {len(np.unique(cells.classes))} classes, 5 x 5 points to 2 from the origin"
    jax.jit(lambda cells: [print(cells), cells][1])(cells)  # traced


def test_any_result_is_a_pandas_frame_in_one_line():
    pandas = pytest.importorskip("pandas")
    result = attacks.fgsm(lambda x: x, X, Y, epsilon=0.1)
    assert list(pandas.DataFrame(result.rows())["success"]) == result.success.tolist()
    certificate = certify.Certificate(np.array([1, -1]), np.array([0.5, 0.0]), np.array([0.9, 0.4]))
    assert list(pandas.DataFrame(certificate.rows())) == ["prediction", "radius", "probability"]
    report = reporting_result.Report({"clean": {"accuracy": 0.5, "count": 4}}, [])
    assert list(pandas.DataFrame(report.rows())["value"]) == [0.5, 4]
    module = models.MLP((3,))
    params, _ = models.initialize(module, KEY, X)
    optimizer = training.sgd(0.1)
    steps = training.make_train_steps(training.classification_loss(models.train_mode(module), lambda_jr=0.1), optimizer)
    rows = jnp.tile(jnp.arange(4), (5, 1))
    _, metrics = steps(training.init_state(params, optimizer, KEY), {"image": X, "label": Y}, rows)
    assert pandas.DataFrame(metrics).shape[0] == 5


@pytest.mark.parametrize(
    ("function", "scope"),
    [
        (lambda x: jr.exact_frobenius_sq(jnp.sin, x), "exact_frobenius_sq"),
        (lambda x: attacks.pgd(jnp.sin, x, Y, epsilon=0.1, step_size=0.05, num_steps=2).success, "pgd"),
        (lambda x: penalties.projected()(jnp.sin, x, Y, jax.random.split(KEY, 4))[1], "jacobian_penalty"),
        (lambda x: penalties.of(relatives.noise_consistency, sigma=0.1)(jnp.sin, x, Y, KEY)[1], "jacobian_penalty"),
    ],
)
def test_profiles_name_what_was_called(function, scope):
    lowered = jax.jit(function).lower(X)  # a compiled program may come from the cache, with the names of another day
    assert f"/{scope}/" in lowered.as_text(debug_info=True)
