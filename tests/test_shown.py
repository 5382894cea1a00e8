"""Everything that is shown runs: README's Python, every experiment with --quick, every notebook; by glob."""

import contextlib
import importlib.util
import json
import re
import shutil
import sys
import time
import types
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import __main__ as command_line
from experiments.lab import problems
from jacreg_jax import datasets
from tests.conftest import skip_or_fail

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(page: Path) -> list[str]:
    """In order; a diff stands for the program before it and the one after it."""
    found = re.findall(r"^```(python|diff)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    sides = lambda block: [_side(block, without) for without in "+-"]
    return [program for kind, block in found for program in ([block] if kind == "python" else sides(block))]


def _side(diff: str, without: str) -> str:
    return "".join(line[1:] + "\n" for line in diff.splitlines() if line[:1] != without)


SLOW_PAGES = ("report.md", "autoattack.md", "implicit.md")  # the first: five models through all attacks
SHOWN = [pytest.param(p, marks=[pytest.mark.slow] * (p.name in SLOW_PAGES)) for p in PAGES if python_blocks(p)]
# pages about libraries that no lock holds
PEERS = {"jacobian_regularizer.md": "torch", "foolbox.md": "foolbox", "autoattack.md": "pyautoattack"}
EXTRAS = PEERS | {"keras.md": "keras"}
OPTIONAL = ("pandas", "tensorboardX")  # a block that takes one of these runs where it is installed


def keras_trains(shown):
    """Dropout draws anew in each step, moving averages move, and the penalty sees the batch's own statistics."""
    model, x = shown.model, 3.0 + shown.x
    weights, fixed = (shown.values(v) for v in (model.trainable_variables, model.non_trainable_variables))
    first, after = shown.train(weights, fixed, x)
    second, _ = shown.train(weights, after, x)
    assert (abs(first - second) > 0).any()
    moved = [n.layers[i].moving_mean.value for n, i in ((shown.normed, 1), (shown.fitted, 1))]
    assert all(abs(mean).max() > 0.01 for mean in moved)
    body = shown.keras.Sequential([shown.layers.Input((8,)), *shown.normed.layers[:2]])
    trainable, before = (shown.values(v) for v in (body.trainable_variables, body.non_trainable_variables))
    wanted, after = body.stateless_call(trainable, before, x, training=True)
    held = shown.batch_statistics(body, before, after)
    found, _ = body.stateless_call(trainable, held, x, training=False)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    slope = lambda weights: shown.penalty_of(
        body, weights, before, body.stateless_call(weights, before, x, training=True)[1], x, jax.random.key(0)
    )
    kernel = jax.grad(slope)(trainable)[0]
    # of this layer's kernel the function with its batch's statistics is homogeneous of degree 0 in the scale
    assert abs((kernel * trainable[0]).sum()) < 1e-2 * abs(kernel * trainable[0]).sum()


def equation_is_solved(shown):
    plain, penalised = shown.errors.tolist()
    assert penalised < 0.5 * plain < 0.05


def solver_converges_and_flow_learns(shown):
    assert shown.with_penalty < 0.8 * shown.without
    assert shown.losses[-1] < shown.losses[0] - 0.5
    one = lambda x: shown.forward(shown.layers, x[None])[0][0]
    _, log_det = shown.forward(shown.layers, shown.ring[:5])
    found = jax.vmap(lambda x: jax.numpy.linalg.slogdet(jax.jacobian(one)(x))[1])(shown.ring[:5])
    np.testing.assert_allclose(log_det, found, rtol=1e-3, atol=1e-4)


def kernel_is_refused_and_mended(shown):
    assert shown.refusal
    for found in (shown.first_order, shown.second):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4), found, shown.wanted)


def restored_goes_on(shown):
    assert len(set(shown.after)) == 1
    assert b"jacobian_penalty" in shown.profile.read_bytes()
    lines = [json.loads(line) for line in Path("metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]


CLAIMS = {
    "own_loop.md": restored_goes_on,
    "no_second_derivative.md": kernel_is_refused_and_mended,
    "keras.md": keras_trains,
    "regression.md": equation_is_solved,
    "implicit.md": solver_converges_and_flow_learns,
}


@pytest.mark.parametrize("page", SHOWN, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_of_a_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as allowed:
        if page.name in EXTRAS:
            monkeypatch.setenv("KERAS_BACKEND", "jax")
            if importlib.util.find_spec(EXTRAS[page.name]) is None:
                what = "peers" if page.name in PEERS else "keras"
                skip_or_fail(what, f"{EXTRAS[page.name]} is not installed; run `make peers`")
            allowed.enter_context(jax.numpy_rank_promotion("allow"))
            allowed.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        namespace = {}
        for block in python_blocks(page):
            optional = [name for name in OPTIONAL if f"\nimport {name}\n" in f"\n{block}"]
            if all(map(importlib.util.find_spec, optional)):
                exec(compile(block, str(page), "exec"), namespace)
        CLAIMS.get(page.name, lambda shown: None)(types.SimpleNamespace(**namespace))


def test_diffs_are_short():
    """Adding the penalty changes five lines of a training step at most, removed and added ones together; every page."""
    diffs = {page: re.findall(r"^```diff\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE) for page in PAGES}
    changed = {
        page.name: [sum(line[:1] in ("+", "-") for line in diff.splitlines()) for diff in found]
        for page, found in diffs.items()
        if found
    }
    assert max(max(counts) for counts in changed.values()) <= 5, changed
    assert len(changed["libraries.md"]) == 5
    assert {"keras.md", "batch_norm.md", "tokens.md", "regression.md", "sweeps.md"} < set(changed)


# others of the fast suite take the same paths: table2 and demo train, demo attacks, figure_s5 draws and compares
SLOW = ("beyond_attacks", "figure1", "figure2", "figure_s3", "figure_s4", "figure_s6", "table3", "worst_case")
SLOW += ("beyond_probes", "cost", "data_order", "dropout_in_penalty", "figure3", "relu_study", "sceptic", "table1")
SLOW += ("verify",)
ELSEWHERE = ("runbook", "figure_s7", "small_figure_s7")  # tests/test_experiments_paper.py
EXPERIMENTS = [
    pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in command_line.names() if n not in ELSEWHERE
]


@pytest.fixture
def short_test_sets(monkeypatch):
    """The first 1,000 images of every test set, as is said in the results where no more are at hand."""
    load, caches = datasets.load, (problems.images, problems.held_out)
    short = lambda name, split, **options: load(name, "test[:1000]" if split == "test" else split, **options)
    monkeypatch.setattr(datasets, "load", short)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_quick(name, tmp_path, monkeypatch, tfds_dir, short_test_sets):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    module, config = command_line.parse(name, ["--quick"])
    assert config != module.Config()
    command_line.run(module, config)
    assert list(tmp_path.rglob("*.json")), "an experiment leaves its result"


SLOW_NOTEBOOKS = ("decision_cells", "robust_digits")  # training against attacks, and cells of several models


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in SLOW_NOTEBOOKS)) for p in NOTEBOOKS],
    ids=lambda p: p.stem,
)
def test_notebook_runs(path):
    """The .ipynb for Colab is the .py, and runs from top to bottom in under five minutes."""
    nbformat, nbclient, jupytext = (pytest.importorskip(m) for m in ("nbformat", "nbclient", "jupytext"))
    notebook = nbformat.read(path.with_suffix(".ipynb"), 4)
    source = jupytext.read(path)
    cells = lambda n: [(c.cell_type, c.source) for c in n.cells]
    assert cells(notebook) == cells(source), f"run `make notebooks`: {path.stem}.ipynb is not what its .py says"
    assert len(notebook.cells) <= 15
    start, whole = time.monotonic(), 300
    left = lambda cell: max(1, int(start + whole - time.monotonic()))  # nbclient asks anew at each cell
    where = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout_func=left, resources=where).execute()
    assert time.monotonic() - start < whole


@pytest.mark.parametrize("has_gpu", [False, True])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_installs_on_colab(path, has_gpu, monkeypatch):
    """With CUDA for the same JAX where there is a GPU: pip would raise JAX past the plug-in that Colab has."""
    inputs, text, jupytext = (
        pytest.importorskip(m) for m in ("IPython.core.inputtransformer2", "IPython.utils.text", "jupytext")
    )
    code = next(cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code")
    lines = code.splitlines()
    (at,) = (number for number, line in enumerate(lines) if "%pip" in line)
    program = inputs.TransformerManager().transform_cell("\n".join(lines[: at + 1]))
    asked, namespace = [], {}
    magic = lambda name, line: asked.append(text.DollarFormatter().vformat(line, (), namespace))  # as IPython expands
    namespace["get_ipython"] = lambda: types.SimpleNamespace(run_line_magic=magic)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if has_gpu else None)
    exec(program, namespace)
    extras = re.fullmatch(r'install -q "jacreg-jax\[(.+)\] @ git\+https://github.com/jacreg-jax/jacreg-jax"', asked[0])[
        1
    ]
    assert ("cuda12" in extras.split(",")) == has_gpu
    assert "notebooks" in extras.split(",")
