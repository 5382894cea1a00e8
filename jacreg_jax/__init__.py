"""Jacobian regularization for JAX and Flax: train networks that stay stable when their input moves."""

from jacreg_jax.jacobian import (
    exact_frobenius_sq as exact_frobenius_sq,
    projected_frobenius_sq as projected_frobenius_sq,
    projection_variance as projection_variance,
    rows_are_independent as rows_are_independent,
)
from jacreg_jax.penalty import (
    joint_loss as joint_loss,
    standard_error as standard_error,
    value_and_exact_frobenius_sq as value_and_exact_frobenius_sq,
    value_and_exact_penalty as value_and_exact_penalty,
    value_and_frobenius_sq as value_and_frobenius_sq,
    value_and_mean_frobenius_sq as value_and_mean_frobenius_sq,
    value_and_penalty as value_and_penalty,
)

__version__ = "0.1.0"
