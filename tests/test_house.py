"""Who may import whom, what a plain import costs, and that the names promised to users exist."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jacreg_jax

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "jacreg_jax"

# third parties each part may import at module level, and its siblings; functions may import more (lazily)
BASE = {"jax", "numpy"}
FLOOR = {
    "checks",
    "concrete",
    "explicit_axes",
    "generators",
    "keys",
    "manual_axes",
    "rows",
    "types",
}  # what everything may stand on
MAP = {
    "types": (BASE | {"jaxtyping"}, set()),  # jaxtyping where it is loaded already
    "checks": (BASE, {"concrete"}),
    "generators": (BASE, {"types"}),
    "keys": (BASE, {"checks", "generators", "rows", "share_keys", "shares"}),
    "share_keys": (BASE, {"generators", "manual_axes", "types"}),
    "shares": (BASE, {"share_keys", "types"}),
    "manual_axes": (BASE, {"types"}),
    "explicit_axes": (BASE, {"checks", "types"}),
    "explicit_layers": (BASE, {"explicit_axes", "types"}),
    "deprecation": (set(), {"checks"}),
    "rows": (BASE, {"types"}),
    "probes": (BASE, FLOOR),
    "jacobian": (BASE, FLOOR | {"probes", "programs", "signatures"}),
    "mean_norm": (BASE, FLOOR | {"manual_axes", "probes"}),
    "concrete": (BASE, FLOOR),
    "programs": (BASE, FLOOR | {"concrete", "signatures"}),
    "signatures": (BASE, set()),
    "guard": (BASE, FLOOR),
    "penalty": (BASE, FLOOR | {"mean_norm", "probes", "programs"}),
    "bound_model": (set(), {"checks", "rows", "shares", "types"}),
    "penalties": (BASE, FLOOR | {"bound_model", "mean_norm", "penalty", "probes", "programs"}),
    "relatives": (BASE, FLOOR | {"jacobian", "probes", "programs"}),
    "cyclopropagation": (BASE, FLOOR | {"deprecation", "probes"}),
    "metrics": (BASE, set()),
    "accumulation": (BASE, FLOOR | {"metrics", "shares"}),
    "precision": (BASE, FLOOR),
    "objectives": (BASE | {"optax"}, FLOOR | {"attacks"}),
    "supervised": (BASE, FLOOR | {"deprecation", "objectives", "penalties", "penalty", "schedules"}),
    "collectives": (BASE, FLOOR | {"accumulation"}),
    "sharding": (BASE, FLOOR | {"collectives", "guard"}),
    "optimizers": (BASE | {"optax"}, FLOOR),
    "training": (
        BASE | {"optax"},
        FLOOR | {"accumulation", "guard", "metrics", "optimizers", "schedules", "sharding", "shares", "supervised"},
    ),
    "schedules": (BASE | {"optax"}, FLOOR),
    "convolution": (BASE, FLOOR | {"explicit_layers"}),
    "shared_product": (BASE, {"convolution", "types"}),
    "pooled_convolution": (BASE, FLOOR | {"convolution", "explicit_layers", "shared_product"}),
    "functional": (BASE, FLOOR),
    "modes": (set(), {"checks"}),
    "models": (BASE | {"flax"}, FLOOR | {"convolution", "functional", "modes", "pooled_convolution", "shares"}),
    "interop": (BASE, FLOOR | {"functional", "modes", "shares"}),
    "host_memory": (set(), FLOOR),
    "predictions": (BASE, FLOOR),
    "attacks": (BASE | {"optax"}, FLOOR | {"deprecation", "predictions", "programs", "signatures"}),
    "adversarial_training": (BASE, FLOOR | {"attacks", "objectives", "predictions"}),
    "batches": (BASE, FLOOR | {"programs", "signatures"}),
    "fooling": (BASE, FLOOR),
    "arithmetic": (BASE, FLOOR | {"convolution", "signatures"}),
    "attack_runs": (BASE, FLOOR | {"arithmetic", "batches", "deprecation", "predictions", "programs"}),
    "evaluation": (BASE, FLOOR | {"attack_runs", "batches", "deprecation", "fooling", "jacobian", "predictions"}),
    "masking": (BASE, FLOOR | {"attacks", "batches", "evaluation", "predictions", "programs", "signatures"}),
    "corruptions": (BASE, FLOOR | {"corruption_filters"}),
    "corruption_filters": (BASE, FLOOR),
    "reporting": (
        BASE,
        FLOOR
        | {"attacks", "certify", "corruptions", "evaluation", "masking", "reporting_result", "reporting_sections"},
    ),
    "reporting_result": (BASE, set()),
    "reporting_sections": (BASE, FLOOR | {"attacks", "signatures"}),
    "reporting_figure": (BASE, set()),
    "decision_cells": (BASE, FLOOR | {"predictions", "programs"}),
    "interval_operations": (set(), set()),
    "interval_rules": (BASE, FLOOR | {"interval_operations"}),
    "intervals": (BASE, FLOOR | {"interval_operations", "interval_rules", "signatures"}),
    "certify": (BASE, FLOOR | {"batches", "intervals", "predictions", "programs"}),  # scipy and the attacks lazily
    "datasets": (BASE, FLOOR),
    "datasets/builders.py": (BASE | {"tensorflow_datasets", "PIL"}, set()),  # itself imported lazily
    "datasets/imagenet.py": ({"tensorflow_datasets"}, set()),  # the same
    "command": (BASE, {"types"}),  # the rest within its functions
    "__init__": (set(), {"jacobian", "penalty", "probes"}),
}


def part(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def module_level_imports(path: Path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ([f"{module}.{a.name}" for a in node.names] if module == "jacreg_jax" else [module])


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda p: str(p.relative_to(LIBRARY)))
def test_imports_follow_the_map(path):
    third_parties, siblings = MAP.get(str(path.relative_to(LIBRARY)), MAP[part(path)])
    for name in module_level_imports(path):
        first, *rest = name.split(".")
        if first == "jacreg_jax":
            assert rest[0] in siblings | {part(path)}, f"{path.name} may not import {name}"
        elif first not in sys.stdlib_module_names:
            assert first in third_parties, f"{path.name} may not import {name}"


def test_import_brings_nothing_but_jax_and_flax():
    """`import jacreg_jax` loads no more than `import jax, flax` does, and makes no backend."""
    script = (
        "import sys, jax, flax; before = set(sys.modules); import jacreg_jax;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; print(sorted(new));"
        "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    new, initialized = out.splitlines()
    assert ast.literal_eval(new) == ["jacreg_jax"]
    assert initialized == "False"


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda p: str(p.relative_to(LIBRARY)))
def test_a_reader_can_take_it_in(path):
    """No file above 300 lines, no function above 60 without its docstring."""
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            doc = ast.get_docstring(node, clean=False)
            length = node.end_lineno - node.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
            assert length <= 60, f"{node.name} has {length} lines"


INNER = {
    "batches",
    "bound_model",
    "objectives",
    "concrete",
    "deprecation",
    "functional",
    "generators",
    "share_keys",
    "guard",
    "manual_axes",
    "explicit_axes",
    "explicit_layers",
    "shared_product",
    "optimizers",
    "intervals",
    "interval_operations",
    "interval_rules",
    "programs",
    "signatures",
    "corruption_filters",
    "reporting_figure",
    "reporting_result",
    "reporting_sections",
}
INNER |= {"command"}  # the command line
INNER |= {
    "arithmetic",
    "attack_runs",
    "fooling",
    "modes",
    "predictions",
}  # whose public names stand in evaluation and in others


def submodules():
    """All but the command line, which is there once something has imported it."""
    return [name for name in dir(jacreg_jax) if inspect.ismodule(getattr(jacreg_jax, name)) and name != "command"]


def test_submodules_by_dotted_name():
    """After `import jacreg_jax` alone, in dir() too; other names are errors."""
    files = {part(path) for path in LIBRARY.rglob("*.py")} - {"__init__", *INNER}
    assert files <= set(submodules())
    assert jacreg_jax.attacks.ddn is importlib.import_module("jacreg_jax.attacks").ddn
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        jacreg_jax.nothing  # noqa: B018


def public_functions():
    for name in submodules():
        module = getattr(jacreg_jax, name)
        for public, value in vars(module).items():
            is_own = getattr(value, "__module__", "").startswith("jacreg_jax")
            if not public.startswith("_") and inspect.isfunction(value) and is_own:
                yield pytest.param(value, id=f"{name}.{public}")


def promised_functions():
    """Public functions where a user finds them: each module's own, and those that it hands on as `name as name`."""
    for parameter in public_functions():
        (function,), (module, name) = parameter.values, parameter.id.split(".")
        if module in INNER:
            continue
        source = inspect.getsource(getattr(jacreg_jax, module))
        if function.__module__.startswith(f"jacreg_jax.{module}") or f"{name} as {name}" in source:
            yield parameter


@pytest.mark.parametrize("function", list(public_functions()))
def test_public_functions_are_annotated(function):
    signature = inspect.signature(function)
    bare = [n for n, p in signature.parameters.items() if p.annotation is p.empty]
    assert not bare
    assert signature.return_annotation is not signature.empty
    assert inspect.getdoc(function)


# the inside of checked entrances, in one or two sentences; of `keys`, streams that a step has made
BRIEF_MODULES = {"checks", "rows", "mean_norm"}
FAMILIES = set(jacreg_jax.corruptions.FAMILIES)  # of one form, said once above them
BRIEF = {"keys.check_key", "keys.model_key", "keys.part_key", "keys.perturbation_keys", "penalties.checked"}
BRIEF |= {"penalty.value_and", "penalty.depends_on_argument", "penalty.on_random_rows", "sharding.check_mesh"}
BRIEF |= {"attacks.apgd_targeted", "attacks.carlini_wagner_converged", "cyclopropagation.penalty_and_gradient"}  # old


def test_public_functions_say_all():
    """Args where there are any, Returns, and an Example; the losses that attacks climb too."""
    lacking = {}
    losses = importlib.import_module("jacreg_jax.attacks.losses")
    own = [pytest.param(v, id=f"losses.{n}") for n, v in vars(losses).items() if inspect.isfunction(v)]
    for parameter in (*promised_functions(), *own):
        (function,), module = parameter.values, parameter.id.split(".")[0]
        if parameter.id in BRIEF or module in BRIEF_MODULES or parameter.id.split(".")[1] in FAMILIES:
            continue
        doc, signature = inspect.getdoc(function) or "", inspect.signature(function)
        wanted = {"Args:"} if signature.parameters else set()
        wanted |= {">>>"} | (set() if signature.return_annotation in (None, "None") else {"Returns:"})
        if missing := {part for part in wanted if part not in doc}:
            lacking[parameter.id] = missing
    assert not lacking


def test_types_of_a_users_script(tmp_path):
    """Twenty lines as a user writes them, by a strict type checker, against the package as it is installed."""
    pytest.importorskip("mypy")
    script = tmp_path / "user.py"
    script.write_text(USER_SCRIPT)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", str(script)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout


USER_SCRIPT = """
import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]

import jacreg_jax
from jacreg_jax import attacks, penalties, training


State = dict[str, jax.Array]


def model(params: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params)


def apply(params: jax.Array, state: State, x: jax.Array, key: jax.Array) -> tuple[jax.Array, State]:
    return model(params, x), state


w, x, y, key = jnp.ones((4, 3)), jnp.ones((2, 4)), jnp.zeros(2, int), jax.random.key(0)
norms: jax.Array = jacreg_jax.exact_frobenius_sq(lambda x: model(w, x), x, chunk_size=2)
logits, penalty = jacreg_jax.value_and_penalty(lambda x: model(w, x), x, key, num_projections=2)
loss = training.classification_loss(apply, penalty=penalties.on_part(0.5, penalties.exact()), lambda_jr=0.01)
step = training.make_train_step(loss, optax.adam(1e-3))
state = training.init_state(w, optax.adam(1e-3), key)
state, metrics = step(state, {"image": x, "label": y})
result = attacks.ddn(lambda x: model(w, x), x, y, key, num_steps=10)
print(float(penalty), float(metrics["loss"]), result.distance.mean())
"""


def test_the_lock_pins_the_extras_that_packages_ask_of_each_other():
    """pip takes name[extra] for another requirement than name, and with hashes refuses what is not pinned."""
    lines = re.findall(r"^([\w.-]+)(?:\[(.*?)\])?==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    pinned = {canonicalize_name(name): {e.strip() for e in extras.split(",")} for name, extras in lines}
    asked = 0
    for package in metadata.distributions():
        if canonicalize_name(package.name) not in pinned:
            continue
        for line in package.requires or []:
            wanted = Requirement(line)
            if wanted.extras and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
                asked += 1
                missing = wanted.extras - pinned[canonicalize_name(wanted.name)]
                assert not missing, f"{package.name} asks for {wanted}: make lock"
    assert asked > 2
