"""What a call without options does: the settings of the papers, or else those that the documentation names."""

import inspect

import jax
import numpy as np
import pytest

from jacreg_jax import attacks, certify, decision_cells, evaluation, masking, penalties, relatives, training
from jacreg_jax.penalty import joint_loss

UNIT = {"bounds": (0.0, 1.0)}
DEFAULTS = {
    # Croce & Hein 2020, AutoAttack: 100 steps, rho 0.75, 5000 queries
    attacks.apgd: UNIT | {"num_steps": 100, "num_restarts": 1, "rho": 0.75},
    attacks.auto_attack: UNIT | {"norm": "linf", "num_queries": 5000},
    attacks.standard_ensemble: UNIT | {"norm": "linf", "num_queries": 5000},
    # Andriushchenko et al. 2020
    attacks.square: UNIT | {"norm": "linf", "num_queries": 5000, "initial_share": 0.8},
    # Croce & Hein 2020, FAB: 100 steps, eta 1.05, alpha_max 0.1, beta 0.9
    attacks.fab: UNIT | {"num_steps": 100, "num_targets": 9, "overshoot": 1.05, "alpha_max": 0.1, "beta": 0.9},
    # Carlini & Wagner 2017, as foolbox runs it
    attacks.carlini_wagner: UNIT
    | {"num_steps": 1000, "binary_search_steps": 10, "learning_rate": 0.005, "initial_const": None, "confidence": 0},
    attacks.carlini_wagner_converged: UNIT | {"num_steps": 3000, "learning_rate": 0.01, "adam_eps": 1e-14},
    # Rony et al. 2019
    attacks.ddn: UNIT | {"num_steps": 100, "init_epsilon": None, "gamma": 0.05},
    # Hoffman et al. 2019: PGD of 1 / 255 a step within 32 / 255, FGSM by one shade, noise by 0.01
    attacks.fgsm: UNIT,
    attacks.pgd: UNIT | {"norm": "linf", "random_start": False},
    attacks.pgd_distance: UNIT | {"epsilon": None, "step_size": None, "num_steps": 300},
    attacks.fgsm_distance: UNIT | {"step_size": None, "num_steps": 255},
    attacks.white_noise: UNIT,
    attacks.white_noise_distance: UNIT | {"step_size": None, "num_steps": 400},
    # Cohen et al. 2019: 100 samples to select, alpha 0.001
    certify.certify_smoothed: {"num_selection": 100, "num_samples": 10_000, "alpha": 0.001, "batch_size": 100},
    certify.interval_radius: UNIT | {"num_bisections": 20, "largest": 1.0},
    masking.checks: UNIT | {"num_steps": (10, 40, 100), "num_queries": 1000, "tolerance": 0.002, "batch_size": 500},
    evaluation.median_distance: {"resamples": 1000, "confidence": 0.95, "seed": 0},
    decision_cells.decision_cells: {"resolution": 201, "batch_size": 2048},
    decision_cells.boundary_distance: {"num_rays": 360, "num_radii": 200, "batch_size": 2048},
    # Hoffman et al. 2019: one projection from the sphere; momentum 0.9, the rate quenched tenfold
    penalties.projected: {"num_projections": 1, "probe": "sphere"},
    relatives.first_order_frobenius_sq: {"step": 0.01},
    relatives.spectral_norm_sq: {"num_iterations": 5},
    training.sgd: {"momentum": 0.9, "weight_decay": 0.0},
    training.quench: {"factor": 0.1},
    training.make_train_step: {"backend": "jit", "donate": True},
    training.make_train_steps: {"donate": True, "together": False},
    joint_loss: {"lambda_wd": 0.0},
}
name = lambda function: getattr(function, "__name__", None) or "carlini_wagner_converged"


IN_UNIT = {  # what None means for pixels in [0, 1]
    attacks.carlini_wagner: {"initial_const": 0.01},
    attacks.ddn: {"init_epsilon": 1.0},
    attacks.pgd_distance: {"epsilon": 32 / 255, "step_size": 1 / 255},
    attacks.fgsm_distance: {"step_size": 1 / 255},
    attacks.white_noise_distance: {"step_size": 0.01},
}


@pytest.mark.parametrize("attack", IN_UNIT, ids=name)
def test_default_sizes_for_pixels_of_unit_range(attack):
    f = lambda x: x @ jax.random.normal(jax.random.key(2), (12, 4))
    x, few = jax.random.uniform(jax.random.key(0), (9, 12)), {"num_steps": 30}
    y, key = f(x).argmax(1), jax.random.key(1)
    found, expected = (attack(f, x, y, key, **few, **sizes) for sizes in ({}, IN_UNIT[attack]))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found.success.any()


@pytest.mark.parametrize("function", DEFAULTS, ids=name)
def test_documented_defaults(function):
    parameters = inspect.signature(function).parameters
    assert {option: parameters[option].default for option in DEFAULTS[function]} == DEFAULTS[function]
