"""Everything that is shown runs: README's Python, every experiment with --quick, every notebook; by glob."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import __main__ as command_line, data_order, record, report, runner
from experiments.recipes import Recipe

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=lambda p: p.name)
def test_python_of_a_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("name", command_line.names())
def test_experiment_quick(name, tmp_path, monkeypatch, tfds_dir):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    module, config = command_line.parse(name, ["--quick"])
    assert config != module.Config()
    module.run(config)
    assert list(tmp_path.rglob("*.json")), "an experiment leaves its result"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path):
    """The .ipynb for Colab is the .py, and runs from top to bottom."""
    nbformat, nbclient, jupytext = (pytest.importorskip(m) for m in ("nbformat", "nbclient", "jupytext"))
    notebook = nbformat.read(path.with_suffix(".ipynb"), 4)
    source = jupytext.read(path)
    cells = lambda n: [(c.cell_type, c.source) for c in n.cells]
    assert cells(notebook) == cells(source), f"run `make notebooks`: {path.stem}.ipynb is not what its .py says"
    assert len(notebook.cells) <= 15
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}})
    client.execute()


def test_batches_go_on_where_they_stopped():
    whole = runner.batch_indices(3, 0, 25, 4, 18)
    parts = [runner.batch_indices(3, start, count, 4, 18) for start, count in ((0, 7), (7, 18))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    epoch = whole[:4].ravel()
    assert len(set(epoch)) == 16
    assert not np.array_equal(whole[:4], whole[4:8])
    with pytest.raises(ValueError, match="batch_size must be at most the 18 training samples, got 19"):
        runner.batch_indices(0, 0, 1, 19, 18)


@pytest.mark.parametrize("order", ["reshuffled otherwise", "same every epoch", "with replacement"])
def test_other_orders_of_the_data(order):
    recipe = data_order.Ordered(batch_size=4, order=order)
    whole = recipe.batches(3, 0, 25, 16)
    np.testing.assert_array_equal(whole[7:], recipe.batches(3, 7, 18, 16))
    assert not np.array_equal(whole, Recipe(batch_size=4).batches(3, 0, 25, 16))
    assert np.array_equal(whole[:4], whole[4:8]) == (order == "same every epoch")
    assert (len(set(whole[:4].ravel())) == 16) == (order != "with replacement")


def test_a_result_is_written_whole(tmp_path):
    path = tmp_path / "deep" / "result.json"
    record.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        record.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_unknown_experiment(monkeypatch):
    monkeypatch.setattr("sys.argv", ["experiments", "table9"])
    with pytest.raises(SystemExit, match="unknown experiment 'table9'; experiments: .*demo"):
        command_line.main()


def test_environment_names_what_a_result_depends_on():
    found = record.environment()
    assert found["jax"] == jax.__version__
    assert found["device_count"] == 8


@pytest.mark.parametrize("page", report.PAGES)
def test_pages_are_what_the_committed_results_say(page):
    """Every number between the marks comes from a result: `make report` changes nothing."""
    text = (ROOT / page).read_text()
    assert "<!-- results:" in text
    assert report.rebuild(text) == text, "run `make report`"
