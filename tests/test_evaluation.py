"""evaluation.py: padding never counts, batches never matter, distances read as documented."""

import importlib
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

import jacreg_jax as jr
from jacreg_jax import attack_runs, attacks, evaluation
from tests.conftest import mlp, mlp_params


@pytest.fixture
def problem(key):
    """(f, x, y): 23 samples in [0, 1], a perceptron as a pytree of its parameters, about half of them right."""
    params = mlp_params(key, (6, 8, 3))
    x = jax.random.uniform(key, (23, 6))
    f = jax.tree_util.Partial(mlp, params)
    y = jnp.where(jnp.arange(23) % 2 == 0, jnp.argmax(f(x), 1), 0)
    return f, x, y


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_accuracy_in_any_batches(problem, batch_size):
    f, x, y = problem
    expected = np.mean(np.argmax(f(x), 1) == np.asarray(y))
    assert evaluation.accuracy(f, x, y, batch_size=batch_size) == pytest.approx(expected)
    assert evaluation.accuracy(lambda x: f(x), x, y, batch_size=batch_size) == pytest.approx(expected)


def test_jacobian_norms(problem):
    f, x, _ = problem
    norms = evaluation.jacobian_norms(f, x, batch_size=5)
    np.testing.assert_allclose(norms, np.sqrt(jr.exact_frobenius_sq(f, x)), rtol=1e-5)
    summary = evaluation.norm_summary(norms)
    assert summary["mean"] == pytest.approx(norms.mean(), rel=1e-6)
    assert summary["rms"] == pytest.approx(np.sqrt((norms**2).mean()), rel=1e-6)
    assert summary["rms"] > summary["mean"]


def noise(f, x, y, keys, sigma):
    return attacks.white_noise(f, x, y, keys, sigma=sigma)


def test_attack_in_any_batches(problem, key):
    """The noise of a sample follows its index, not its place in a batch."""
    f, x, y = problem
    results = [evaluation.run_attack(noise, f, x, y, key, sigma=0.3, batch_size=b) for b in (4, 23)]
    np.testing.assert_allclose(results[0].x_adv, results[1].x_adv, atol=1e-6)
    whole = attacks.white_noise(f, x, y, key, sigma=0.3)
    np.testing.assert_allclose(results[0].x_adv, whole.x_adv, atol=1e-6)
    other = evaluation.run_attack(noise, f, x, y, jax.random.key(5), sigma=0.3)
    assert not np.allclose(other.x_adv, whole.x_adv)


def test_compiles_once_for_all_batches_parameters_and_sizes(problem, key):
    _, x, y = problem
    attack = chex.assert_max_traces(noise, n=1)
    for seed in (1, 2):
        other = jax.tree_util.Partial(mlp, mlp_params(jax.random.key(seed), (6, 8, 3)))
        evaluation.run_attack(attack, other, x, y, key, sigma=0.1 * seed, batch_size=5)


def test_whole_batches_compile_once_for_any_number_of_samples(problem, key):
    """7, 64 and 130 samples by one program; each sample's result is that of batches that fit."""
    f, x, y = problem
    x, y = jnp.tile(x, (6, 1)), jnp.tile(y, 6)
    traced = []

    def attack(f, x, y, keys, sigma):
        traced.append(len(x))
        return noise(f, x, y, keys, sigma)

    run = lambda n, **options: evaluation.run_attack(attack, f, x[:n], y[:n], key, sigma=0.3, batch_size=64, **options)
    whole = [run(n, whole_batches=True) for n in (7, 64, 130)]
    assert traced == [64]
    fitting = [run(n) for n in (7, 64, 130)]
    assert traced == [64, 8]
    for a, b in zip(whole, fitting, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), a, b)


STOPPING = {
    "square": lambda: partial(attacks.square, num_queries=12),
    "ensemble": lambda: attacks.standard_ensemble(num_queries=12)["square"],
    "white noise": lambda: partial(attacks.white_noise_distance, num_steps=12, step_size=0.03),
    "fgsm": lambda: partial(attacks.fgsm_distance, num_steps=12, step_size=0.02),
    "pgd": lambda: partial(attacks.pgd_distance, num_steps=12, step_size=0.01, epsilon=0.08),
    "pgd, targeted": lambda: partial(attacks.pgd_distance, num_steps=12, step_size=0.04, target=1),
    "pgd, random": lambda: partial(attacks.pgd_distance, num_steps=12, step_size=0.01, epsilon=0.1, samples=2),
}


@pytest.mark.parametrize("name", STOPPING)
def test_samples_that_are_done_leave(problem, key, monkeypatch, name):
    """A search in three parts, on fewer and fewer samples: the result of one run, and the passes of one run."""
    f, x, _ = problem
    x = jnp.concatenate([x] * 6)[:130]
    y = jnp.argmax(f(x), 1).at[::7].add(1) % f(x).shape[1]  # every seventh is wrong from the start
    inner = getattr(STOPPING[name](), "func", None)
    of = attacks.square if name == "ensemble" else inner
    monkeypatch.setattr(of, "in_parts", of.in_parts._replace(stops=(3, 10)))
    ensembles = importlib.import_module("jacreg_jax.attacks.auto_attack")
    monkeypatch.setattr(ensembles, "_known", ensembles._known.__wrapped__)  # one of these parts, made anew
    attack = STOPPING[name]()
    draws = name == "pgd, random"
    function = (lambda x, key: f(x) + 0.01 * jax.random.normal(key, f(x).shape)) if draws else f
    swept = {"epsilon": np.linspace(0, 0.6, 130, dtype=np.float32)} if of is attacks.square else {}
    run = lambda: evaluation.run_attack(attack, function, x, y, key, batch_size=128, **swept)
    whole = run()
    monkeypatch.setattr(attack_runs, "LONG", {"cpu": 0})
    sizes, map_batches = [], attack_runs.map_batches

    def spy(fn, f, x, *args, **options):
        sizes.append((len(x), int(options["until"][0])))
        return map_batches(fn, f, x, *args, **options)

    monkeypatch.setattr(attack_runs, "map_batches", spy)
    parts = run()
    assert [until for _, until in sizes] == [3, 10, 12]
    assert 130 == sizes[0][0] > sizes[1][0] > sizes[2][0] >= 1
    assert len(np.unique(parts.steps[parts.success & parts.clean_correct])) > 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts, whole)


def test_progress_sees_every_batch(problem):
    f, x, _ = problem
    seen = []

    def progress(batches):
        for batch in batches:
            seen.append(batch)
            yield batch

    evaluation.map_batches(lambda f, x: f(x), f, x, batch_size=5, progress=progress)
    assert len(seen) == 5


def test_fooling_curve_and_robust_accuracy():
    distances = np.array([0.0, 0.5, 1.0, np.inf])
    np.testing.assert_allclose(evaluation.fooling_curve(distances, [0, 0.4, 0.5, 2]), [0.25, 0.25, 0.5, 0.75])
    assert evaluation.robust_accuracy(distances, 0.6) == 0.5
    assert evaluation.robust_accuracy(distances, 0) == 0.75
    np.testing.assert_allclose(
        evaluation.fooling_curve([1.0, np.inf, 0.0, 0.5], [0, 0.4, 0.5, 2]), [0.25, 0.25, 0.5, 0.75]
    )
    for bad in ([np.nan], [-1.0]):
        with pytest.raises(ValueError, match="distances must be 0 or positive"):
            evaluation.fooling_curve(bad, [0])


def test_median_distance():
    rng = np.random.default_rng(0)
    sample = evaluation.median_distance(rng.exponential(size=2001))
    assert sample["low"] < np.log(2) < sample["high"]
    assert sample["high"] - sample["low"] < 0.15
    values = np.sort(rng.exponential(size=2001))
    for confidence in (0.95, 0.8):  # the interval of the binomial: order statistics about the median
        found = evaluation.median_distance(values, confidence=confidence, resamples=4000)
        ends = binom.ppf([(1 - confidence) / 2, (1 + confidence) / 2], 2001, 0.5).astype(int)
        ranks = np.searchsorted(values, [found["low"], found["high"]])
        np.testing.assert_allclose(ranks, ends, atol=4)
    assert evaluation.median_distance([1.0, np.inf, np.inf])["median"] == np.inf
    assert evaluation.median_distance([1.0, 2.0, np.inf])["median"] == 2
    # of 3 draws the median is the smallest, or the largest, with probability 7 / 27: within the interval of 95 %
    assert evaluation.median_distance([1.0, 2.0, 3.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}
    # of few resamples the nearest order statistics, by numpy
    values = np.arange(1.0, 41)
    medians = np.sort(values[np.random.default_rng(2).integers(0, 40, (4, 40))], axis=1)[:, 19]
    found = evaluation.median_distance(values, resamples=4, confidence=0.5, seed=2)
    assert len(set(medians)) == 4
    assert [found["low"], found["high"]] == np.quantile(medians, [0.25, 0.75], method="nearest").tolist()


def test_bad_input(problem):
    f, x, y = problem
    with pytest.raises(ValueError, match=r"x and y must hold the same number of samples.*\[23, 3\]"):
        evaluation.accuracy(f, x, y[:3])
    with pytest.raises(ValueError, match=r"at least one; got \[0, 0\]"):
        evaluation.accuracy(f, x[:0], y[:0])
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        evaluation.accuracy(f, x, y, batch_size=0)
    with pytest.raises(ValueError, match="whole_batches must be True or False"):
        evaluation.run_attack(attacks.fgsm, f, x, y, jax.random.key(0), epsilon=0.1, whole_batches=2)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_swept_radius_is_as_precise_as_x(x64, norm):
    """A radius rounded to single precision lies up to 3e-8 of it outside of the ball, which double precision shows."""
    f = lambda x: jnp.concatenate([x, 0.2 - x], axis=1)
    x, y = np.array([[0.7], [0.9]]), np.array([0, 0])
    attack = partial(attacks.pgd, norm=norm, step_size=0.05, num_steps=5)
    found = evaluation.run_attack(attack, f, x, y, jax.random.key(0), epsilon=0.1)
    np.testing.assert_allclose(np.abs(found.x_adv - x), 0.1, rtol=1e-15)
    single = evaluation.run_attack(attack, f, x.astype(np.float32), y, jax.random.key(0), epsilon=0.1)
    assert single.x_adv.dtype == np.float32


def test_what_is_no_row_for_each_row_is_refused():
    """A mean over the batch, one value for each class, and f that gives a pair."""
    x, y = np.ones((5, 3), np.float32), np.zeros(5, int)
    for fn in (lambda f, x: f(x).mean(), lambda f, x: f(x).mean(0)):
        with pytest.raises(ValueError, match=r"fn must give arrays \[B, ...\]"):
            evaluation.map_batches(fn, lambda x: x, x, batch_size=2)
    with pytest.raises(TypeError, match=r"f\(x\) must be one array of logits, got tuple"):
        evaluation.accuracy(lambda x: (x, {}), x, y)
