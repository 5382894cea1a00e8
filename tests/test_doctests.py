"""Every example of a docstring runs, and shows what it says; every public function that promises one has one."""

import doctest
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jacreg_jax

MODULES = sorted(m.name for m in pkgutil.walk_packages(jacreg_jax.__path__, "jacreg_jax."))
FLOOR = {"jax": jax, "jnp": jnp, "np": np}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in finder.find(module, name, globs=FLOOR | vars(module)):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


# the rooms whose public functions each show an example; the others say why not in their docstrings
SHOWN = ("jacobian", "probes", "penalty", "penalties", "supervised", "accumulation", "relatives", "schedules", "keys")
SHOWN += ("interop", "attacks", "evaluation", "masking", "certify", "decision_cells", "cyclopropagation", "metrics")
NOT_A_CALL = {"model_key", "part_key", "perturbation_keys", "check_key", "of_model"}
NOT_A_CALL |= {"depends_on_argument", "value_and", "on_random_rows"}  # of the core


@pytest.mark.parametrize("name", SHOWN)
def test_public_functions_show_an_example(name):
    module = importlib.import_module(f"jacreg_jax.{name}")
    for public, value in vars(module).items():
        is_own = getattr(value, "__module__", "").startswith(f"jacreg_jax.{name}")
        if inspect.isfunction(value) and is_own and not public.startswith("_") and public not in NOT_A_CALL:
            assert ">>>" in (inspect.getdoc(value) or ""), f"{name}.{public} shows no example"
