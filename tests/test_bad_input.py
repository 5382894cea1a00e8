"""Every public function refuses wrong values with a ValueError or TypeError that names the argument."""

import re

import jax
import jaxtyping
import pytest

from jacreg_jax import corruptions
from tests import bad_input
from tests.conftest import ROOT
from tests.test_house import promised_functions


@pytest.fixture(autouse=True)
def own_words():
    """The library's own words, not those of the type checker."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


WITHOUT_A_RIGHT_CALL = {"datasets.prepare", "best_of"}  # it downloads; it has no result at hand
WITHOUT_A_RIGHT_CALL |= {f"interop.from_{library}" for library in ("linen", "nnx", "equinox", "haiku")}
LONG = ("auto_attack", "evaluation.report")  # their examples run in test_doctests
RIGHT = [name for name in bad_input.SPECS if name not in WITHOUT_A_RIGHT_CALL]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in RIGHT])
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
        wanted += [f"| {bad_input.HOST[name]} | {bad_input.TRACED} |"] if name in bad_input.HOST else []
        assert [line for line in wanted if line not in section] == [], name
        assert "accepted" not in section


FEW = {
    "corruptions.corruption": "one argument, a name",
    "max_pool": "as flax.linen.max_pool, in whose words it speaks",
    "training.make_train_step over devices": "the number of rows is all that can be wrong",
}


def test_five_wrong_calls_of_each():
    count = {name: sum(len(bad_input.KINDS[k]) for k in spec.kinds.values()) for name, spec in bad_input.SPECS.items()}
    assert {name for name, wrong in count.items() if wrong < 5} <= FEW.keys()


# public functions without a section: what stands behind checked ones, and who else speaks
WITHOUT = {
    "checks": "the checks themselves",
    "rows": "the inside of `jacobian` and `penalty`, which check",
    "mean_norm": "the inside of `penalty`, which checks",
    "metrics": "the inside of train steps",
    "concrete": "the inside of `checks`",
    "command": "the command line; test_command.py",
    "penalty.value_and": "the inside of penalties",
    "penalty.on_random_rows": "the inside of penalties",
    "penalty.depends_on_argument": "the inside of penalties",
    "penalties.checked": "a check itself",
    "keys.check_key": "a check itself",
    "keys.model_key": "of keys that a step has made",
    "keys.part_keys": "of keys that a step has made",
    "generators": "the inside of train steps",
    "shares": "the inside of train steps",
    "keys.perturbation_keys": "of keys that a step has made",
    "sharding.check_mesh": "a check itself",
    "collectives": "the inside of train steps",
    **dict.fromkeys((f"corruptions.{name}" for name in corruptions.FAMILIES), "the inside of corrupted"),
    **dict.fromkeys(
        (
            "sharding.varying",
            "sharding.mean_loss",
            "sharding.mean_over_devices",
            "sharding.sum_over_devices",
            "sharding.stacked_over_devices",
            "sharding.share_of_mean",
            "sharding.num_shares",
        ),
        "the inside of train steps",
    ),
    "convolution.conv_general_dilated": "as lax.conv_general_dilated, which checks, and in whose words it speaks",
    "attacks.apgd_targeted": "an old name",
    "attacks.carlini_wagner_converged": "carlini_wagner called anew",
    "cyclopropagation.penalty_and_gradient": "an old name",
}


def test_every_public_function_has_a_section():
    """Of each submodule and of the package itself; sections are named by the function, or MODULE.function."""
    sections = {name.split()[0].split(".")[-1] for name in bad_input.SPECS}
    lacking = set()
    for parameter in promised_functions():
        module, name = parameter.id.split(".")
        if name not in sections and not {module, parameter.id} & WITHOUT.keys():
            lacking.add(parameter.id)
    assert not lacking
    assert not [name for name in WITHOUT if "." in name and name.split(".")[1] in sections]
