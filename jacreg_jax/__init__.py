"""Jacobian regularization for JAX and Flax: train networks that stay stable when their input moves."""

import importlib
from typing import TYPE_CHECKING, Any

from jacreg_jax.jacobian import (
    exact_frobenius_sq as exact_frobenius_sq,
    projected_frobenius_sq as projected_frobenius_sq,
    rows_are_independent as rows_are_independent,
)
from jacreg_jax.penalty import (
    joint_loss as joint_loss,
    standard_error as standard_error,
    value_and_exact_penalty as value_and_exact_penalty,
    value_and_penalty as value_and_penalty,
)
from jacreg_jax.probes import projection_variance as projection_variance

if TYPE_CHECKING:
    from jacreg_jax import (
        accumulation as accumulation,
        adversarial_training as adversarial_training,
        attacks as attacks,
        certify as certify,
        convolution as convolution,
        corruptions as corruptions,
        cyclopropagation as cyclopropagation,
        datasets as datasets,
        decision_cells as decision_cells,
        evaluation as evaluation,
        host_memory as host_memory,
        interop as interop,
        masking as masking,
        models as models,
        penalties as penalties,
        pooled_convolution as pooled_convolution,
        precision as precision,
        relatives as relatives,
        reporting as reporting,
        schedules as schedules,
        sharding as sharding,
        shares as shares,
        supervised as supervised,
        training as training,
    )

__version__ = "0.2.0"

# fmt: off
_SUBMODULES = (
    "accumulation", "adversarial_training", "attacks", "certify", "checks", "convolution", "corruptions",
    "cyclopropagation", "datasets", "decision_cells", "evaluation", "host_memory", "interop", "jacobian", "keys",
    "masking", "mean_norm", "metrics", "models", "penalties", "penalty", "pooled_convolution", "precision",
    "probes", "relatives", "reporting", "rows", "schedules", "sharding", "shares", "supervised", "training",
    "types",
)
# fmt: on
_OLD_NAMES = ("value_and_frobenius_sq", "value_and_exact_frobenius_sq", "value_and_mean_frobenius_sq")


def __getattr__(name: str) -> Any:
    """Submodules are loaded when they are first named, so that a plain import loads jax alone; old names warn."""
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _OLD_NAMES:
        from jacreg_jax import deprecation

        return deprecation.old_function(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if not name.startswith("_")), *_SUBMODULES} - {"importlib", "Any"})
