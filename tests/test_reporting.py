"""The report: its numbers against the functions that it calls, its table, figure and file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacreg_jax import evaluation, reporting

SMALL = reporting.Budget(gradient_steps=20, searches=3, queries=20, draws=100, norms=8, certified=8)


@pytest.fixture(scope="module")
def found():
    """A linear classifier of two features, whose distances are known: |x_0 - x_1| / 2 in L-infinity."""
    x = np.asarray(jax.random.uniform(jax.random.key(0), (30, 2)))
    y = np.asarray(x[:, 1] > x[:, 0], int)
    y[0] = 1 - y[0]  # one is wrong
    options = {"epsilon": {"linf": 0.1}, "bounds": None, "budget": SMALL, "sigmas": (0.1,), "progress": False}
    return x, y, evaluation.report(lambda x: 3 * x, x, y, jax.random.key(1), **options)


def test_numbers_of_a_linear_classifier(found):
    x, _, report = found
    distance = np.where(np.arange(30) == 0, 0, np.abs(x[:, 0] - x[:, 1]) / 2)
    sections = report.sections
    assert sections["clean"]["accuracy"] == 29 / 30
    np.testing.assert_allclose(sections["||J||_F"]["mean"], 3 * np.sqrt(2), rtol=1e-6)
    assert sections["worst case"]["linf 0.1, robust accuracy"] == np.mean(distance > 0.1)
    np.testing.assert_allclose(
        sections["fooling distance"]["linf, nearest of all, median"], np.median(distance), rtol=0.02
    )
    proved = sections["certificates"]["interval arithmetic, mean L-infinity radius"]
    np.testing.assert_allclose(proved, distance[:8].mean(), rtol=1e-3)
    assert sections["masking"]["linf, zero gradient"] == "passed"
    assert any("2 classes" in note for note in report.notes)
    assert any("corruptions: not run" in note for note in report.notes)


def test_it_is_shown(found, tmp_path):
    *_, report = found
    text = repr(report)
    assert "robust accuracy" in text
    assert all(note in text for note in report.notes)
    assert len(report.rows()) == sum(map(len, report.sections.values()))
    report.to_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["sections"]["clean"] == report.sections["clean"]
    figure = report.figure()
    assert [axis.get_title() for axis in figure.axes] == ["white noise", "worst case"]


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda x: jax.nn.softmax(40 * jnp.tile(x, 2)), "f gives probabilities, not logits"),
        (lambda x: jnp.tile(x, 2) + np.random.default_rng().normal(size=(1, 4)), "f is random"),
    ],
)
def test_misuse_is_told(f, words):
    from jacreg_jax.reporting_sections import misuse

    assert any(words in note for note in misuse(f, np.ones((3, 2), np.float32), True))


def test_wrong_calls():
    f, x, y, key = (lambda x: x), np.ones((2, 2), np.float32), np.zeros(2, int), jax.random.key(0)
    with pytest.raises(ValueError, match="epsilon must be radii by norm"):
        evaluation.report(f, x, y, key, epsilon=0.1)
    with pytest.raises(ValueError, match="epsilon must be radii by norm"):
        evaluation.report(f, x, y, key, epsilon={"l3": 0.1})
    with pytest.raises(ValueError, match=r"epsilon\['l2'\] must be above 0|above 0"):
        evaluation.report(f, x, y, key, epsilon={"l2": 0.0})
    with pytest.raises(TypeError, match="budget must be a Budget"):
        evaluation.report(f, x, y, key, epsilon={"l2": 0.1}, budget="quick")
