"""Every public function refuses wrong values with a ValueError or TypeError that names the argument."""

import re

import jax
import jaxtyping
import pytest

from tests import bad_input
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def own_words():
    """The library's own words, not those of the type checker."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


RIGHT = [name for name, spec in bad_input.SPECS.items() if not name.startswith("interop.from_") or "function" in name]


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_call_is_right(name):
    spec = bad_input.SPECS[name]
    jax.block_until_ready(spec.function(**spec.arguments))


@pytest.mark.parametrize("name", bad_input.SPECS)
def test_wrong_calls_are_refused(name):
    """None is accepted in silence; each answer names the argument."""
    wrong = []
    for found in bad_input.wrong_calls(name):
        names_it = re.search(rf"\b{re.escape(found.argument)}\b|\bf\(x\)|\blabels?\b", found.message)
        if found.error not in ("ValueError", "TypeError", "DatasetNotFoundError") or not names_it:
            wrong.append(f"{found.argument} = {found.value}: {found.error or 'accepted'} {found.message[:120]}")
    assert not wrong, "\n".join(wrong)


def test_the_page_is_of_these_calls():
    """docs/errors.md names every function, argument and value that is tried here: `python -m tests.bad_input`."""
    page = (ROOT / "docs" / "errors.md").read_text()
    for name, spec in bad_input.SPECS.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        wanted = [f"| {a} | {value} |" for a, kind in spec.kinds.items() for value in bad_input.KINDS[kind]]
        assert [line for line in wanted if line not in section] == [], name
        assert "accepted" not in section


def test_five_wrong_calls_of_each():
    few = {
        name: count
        for name, spec in bad_input.SPECS.items()
        if (count := sum(len(bad_input.KINDS[kind]) for kind in spec.kinds.values())) < 5
    }
    # what has fewer values that could be wrong
    assert set(few) <= {"max_pool", "supervised.squared_error", "supervised.binary_cross_entropy"} | {
        "evaluation.fooling_curve",
        "datasets.from_uint8",
        "datasets.few_shot",
        "datasets.Preprocessing",
    } | {"certify.interval_bounds", "training.make_train_step", "sharding.map_over_devices", "keys.sample_keys"} | {
        "keys.normal_like",
        "training.init_state",
        "decision_cells.random_plane",
    }
