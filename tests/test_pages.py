"""Pages say what the results say, printed commands reproduce their files, and a new experiment is one file."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from experiments import __main__ as command_line, catalogue, report
from experiments.benchmarks import on_gpu
from experiments.lab.problems import MNIST_LENET
from experiments.lab.recipes import regularizers
from experiments.page import decision_maps, elements, results, steps
from experiments.paper import cost, figure_s5, table1

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
READERS = ("train", "sweep", "verify", "runbook")  # a reader's own runs: they must parse
ALL_PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", report.pages(), ids=lambda p: p.name)
def test_pages_are_what_the_committed_results_say(page):
    """Every number between the marks comes from a result: `make report` changes nothing."""
    text = page.read_text()
    assert report.rebuild(text) == text, "run `make report`"


def test_everything_owned_is_shown_and_everything_shown_is_owned():
    shown = [name for page in ALL_PAGES for name in re.findall(r"<!-- results:(\w+) -->", page.read_text())]
    owned = {"elements", *catalogue.owned("TABLES"), *catalogue.owned("FIGURES")}
    assert sorted(shown) == sorted(owned)
    with pytest.raises(ValueError, match="no experiment owns 'table9'; there are .*table1"):
        report.rebuild("<!-- results:table9 -->\n<!-- /results:table9 -->\n")


def commands() -> dict[str, Path]:
    """Every `python -m experiments NAME ...` that a page prints, on one line or over two, in text or a code block."""
    found = {}
    for page in ALL_PAGES:
        text = page.read_text()
        code = [line.split("#")[0] for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
                for line in block.splitlines()]  # fmt: skip
        spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
        for command in map(" ".join, map(str.split, code + spans)):
            name = re.match(r"python -m experiments (\w+)", command)
            if name and name[1] != "NAME" and "--help" not in command:
                found[command] = page
    return found


def files_of(command: str) -> dict[str, tuple[dict, list[str]]]:
    """{result file: (configuration, seeds)} that a command would write."""
    name, *arguments = shlex.split(command)[3:]
    module, config = command_line.parse(name, arguments)
    found = {}
    if hasattr(module, "cells"):
        within = str(config.results.relative_to(config.out) / "_").removesuffix("_")
        found |= {within + cell.name: (cell.config(), list(map(str, cell.seeds))) for cell in module.cells(config)}
    if hasattr(module, "files"):
        within = str(config.results.relative_to(config.out) / "_").removesuffix("_")
        seeds = list(map(str, range(config.seeds)))
        found |= {within + name: (config_, seeds) for name, config_ in module.files(config).items()}
    return json.loads(json.dumps(found))


def test_commands_are_found_on_the_pages():
    assert len(commands()) > 15
    assert any("--attacks CW DDN FAB-T" in command for command in commands()), "over two lines too"


@pytest.mark.parametrize("command", [c for c in commands() if "--quick" not in c])
def test_a_printed_command_reproduces_its_files(command):
    """What it would write is what is committed: the same configuration, down to every value."""
    written = files_of(command)
    committed = {name: json.loads(path.read_text()) for name in written if (path := RESULTS / f"{name}.json").exists()}
    for name, result in committed.items():
        assert result["config"] == written[name][0], f"{name}: {command}"
    if not committed and shlex.split(command)[3] not in READERS:
        page = commands()[command].read_text()
        assert re.search(r"not run", page[page.index(shlex.split(command)[3]) :]), (
            f"{command} made nothing that is shown"
        )


def test_every_committed_file_has_a_printed_command():
    """With all of its seeds."""
    printed = {}
    for command in commands():
        if "--quick" not in command and "demo" not in command:
            for name, (_, seeds) in files_of(command).items():
                printed.setdefault(name, set()).update(seeds)
    for path in sorted([*RESULTS.glob("*/*.json"), *RESULTS.glob("*-steps/*/*.json")]):
        name, models = str(path.relative_to(RESULTS).with_suffix("")), json.loads(path.read_text()).get("models", {})
        assert name in printed, f"no page prints the command of {name}"
        assert set(models) <= printed[name], f"{name} has seeds that no printed command makes"


def test_a_new_experiment_is_one_file(tmp_path, monkeypatch, capsys):
    """It is in the listing, runs from the command line, and its table and figure stand on a page."""
    (tmp_path / "coin.py").write_text(NEW)
    monkeypatch.setenv(catalogue.EXTRA, str(tmp_path))
    monkeypatch.setattr(results, "RESULTS", tmp_path / "out")
    monkeypatch.setattr(report, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr("sys.argv", ["experiments"])
    command_line.main()
    assert "coin" in capsys.readouterr().out
    page = tmp_path / "page.md"
    page.write_text("# Coins\n\n<!-- results:coin -->\n<!-- /results:coin -->\n")
    assert "not run" in report.rebuild(page.read_text())
    module, config = command_line.parse("coin", ["--seeds", "3", "--out", str(tmp_path / "out")])
    command_line.run(module, config)
    report.main([page])
    assert "| heads | 1.0 ± 2.5 (3) |" in page.read_text()
    assert "(figures/coin.svg)" in page.read_text()
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["coin.svg"]
    assert "| Figure 9 | heads come up |" in elements.render(module.ELEMENTS)


NEW = '''"""Heads or tails.

Command:    python -m experiments coin
"""
import matplotlib.pyplot as plt

from experiments.lab.cells import fill_file
from experiments.lab.options import QUICK, Options as Config
from experiments.page import results
from experiments.page.elements import Element


def run(config):
    fill_file(config.out / "coin" / "all.json", {}, range(config.seeds), lambda seeds: ((s, {"n": s}) for s in seeds))


def figure():
    if not results.models("coin/all"):
        return None
    drawing, axes = plt.subplots()
    axes.plot([m["n"] for m in results.models("coin/all")])
    return drawing


def table():
    return results.table(["", ""], [["heads", results.spread([m["n"] for m in results.models("coin/all")], 1)]])


TABLES = {"coin": table}
FIGURES = {"coin": figure}
ELEMENTS = [Element("Figure 9", "heads come up", lambda: ("reproduced", ""))]
'''


def test_two_of_one_name_are_refused(tmp_path, monkeypatch):
    (tmp_path / "table1.py").write_text(NEW)
    monkeypatch.setenv(catalogue.EXTRA, str(tmp_path))
    with pytest.raises(ValueError, match="two experiments are called table1"):
        catalogue.files()


def test_unknown_experiment(monkeypatch):
    monkeypatch.setattr("sys.argv", ["experiments", "table9"])
    with pytest.raises(SystemExit, match="unknown experiment 'table9'; experiments: .*demo"):
        command_line.main()


@pytest.mark.parametrize("option", ["--norms", "--seeds", "--num-steps", "--devices", "--part-size"])
def test_counts_are_checked(option, capsys):
    with pytest.raises(SystemExit):
        command_line.parse("table1", [option, "-1"])
    assert f"{option.removeprefix('--').replace('-', '_')} must be at least 1, got -1" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- the numbers


def test_intervals():
    mean, half = results.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.302653 / np.sqrt(3), rel=1e-5)  # t of 0.975 with 2 degrees of freedom
    assert results.spread([], 1) == "not run"
    assert results.spread([1.0], 1) == "1.0 (1)"
    assert results.spread([1.0, 2.0, 3.0], 1) == "2.0 ± 2.5 (3)"
    assert results.spread([1.0, np.inf, np.inf], 2) == "not reached by 2 of 3"


def test_the_mark_is_welch_s_t():
    """Of two samples whose own statistics are those of the paper's cell and ours."""
    from scipy import stats

    rng = np.random.default_rng(0)
    agree = 0
    for shift in np.linspace(0, 4, 30):
        theirs, ours = rng.normal(50, 3, 15), rng.normal(50 + shift, 5, 10)
        printed = (theirs.mean(), results.interval(theirs)[1], 15)
        exact = stats.ttest_ind(ours, theirs, equal_var=False).pvalue < 0.05
        agree += results.differs(list(ours), printed) == exact
    assert agree >= 29, "but for the rounding of what is printed"


def test_a_single_model_is_compared_with_single_models():
    """Those of the paper scatter about its mean, and by its own account lie beyond the interval of the mean."""
    half = 1.0  # of five: a standard deviation of 0.81, so that a sixth model lies within 2.4
    assert not results.differs([52.3], (50.0, half, 5))
    assert results.differs([52.6], (50.0, half, 5))
    assert results.compare([52.6], (50.0, half, 5)) == "52.6 (1) **!**"


def test_rows_of_a_few_shot_column_are_of_equal_seeds():
    columns = {c: {len(models) for models in table1.STUDY.column(c).values()} for c in ("1", "3", "10", "30")}
    assert all(len(sizes) == 1 for sizes in columns.values()), columns
    differences = results.paired({"0": {"v": 1}, "2": {"v": 5}}, {"2": {"v": 7}, "3": {"v": 9}}, lambda m: m["v"])
    assert differences == [2]


def test_models_of_another_recipe_are_not_shown():
    with pytest.raises(ValueError, match=r"table1/all-L2 holds models of another recipe"):
        results.models("table1/all-L2", {"weight_decay": 0.0})


def test_speed_on_a_gpu_by_hand(tmp_path, monkeypatch):
    """Torch over ours, a step over a plain one, and the claim of the paper with its ten per cent."""
    row = lambda variant, framework, ms: {"variant": variant, "framework": framework, "ms": ms}

    def put(ours, scanned=None):
        rows = [row("plain", "jacreg_jax", 2.0), row("n = 1", "jacreg_jax", ours)]
        rows += [row("plain", steps.SCAN, 2.0), row("n = 1", steps.SCAN, scanned)] if scanned else []
        rows += [row("plain", "torch", 3.0), row("n = 1", "torch", 9.0)]
        (tmp_path / "benchmark_lenet_gpu.json").write_text(json.dumps({"rows": rows}))

    monkeypatch.setattr(results, "RESULTS", tmp_path)
    put(2.8)
    (line,) = [line for line in on_gpu.against_torch().splitlines() if "LeNet', one H100" in line]
    assert [cell.strip() for cell in line.split("|")[2:6]] == ["1.5", "3.2", "not run", "not run"]
    assert steps.over_plain("lenet", "gpu") == {"n = 1": pytest.approx(1.4)}
    assert cost.state("mnist_lenet") == ("reproduced", "1.40 on one H100; PyTorch there 3.00")
    assert cost.state("cifar10_resnet18") == ("not run", "")
    put(2.9)
    assert cost.state("mnist_lenet")[0] == "outside"
    put(2.8, scanned=3.4)
    assert cost.state("mnist_lenet")[0] == "unsettled", "single steps and many in one program disagree"
    put(2.8, scanned=2.6)
    assert cost.state("mnist_lenet")[0] == "reproduced"


def test_every_element_has_a_state():
    found = catalogue.owned("ELEMENTS")
    assert len({element.name for element in found}) == len(found)
    for figure in ("1", "2", "S1", "S2", "S3", "S4", "S7"):
        assert f"Figure {figure}" in {element.name for element in found}
    states = {element.name: element.state()[0] for element in found}
    said = {element.name: element.state()[1] for element in found}
    assert set(states.values()) <= set(elements.State.__args__)
    assert states["Figure 2"] == "unsettled", "one model of each penalty"
    assert states["Figure 1"] == "unsettled", "one model"
    assert states["Figure S7"] == "not run"
    assert states["Figure S6, DDNet"] == "shortened"
    assert said["Figure S6, DDNet"].startswith("holds at 15,000 of 150,000 steps")
    assert states["Figure S4"] == "outside"
    assert said["Figure S4"] == "does not hold at 1,500 of 150,000 steps, 1 of 5 seeds"
    rendered = elements.render(found)
    (line,) = [line for line in rendered.splitlines() if line.startswith("| Section 3.1, few samples")]
    assert [cell.strip() for cell in line.split("|")[4:7]] == ["15 to 45", "10,000", "`table1`"]


def test_what_the_maps_of_decision_cells_show_by_hand(tmp_path, monkeypatch):
    """Radii that grow from panel to panel; in S2 the class of the defended model at the other's adversarial example."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    (tmp_path / "figure1").mkdir()

    def put(name, seeds, arrays, dots=()):
        facts = {"config": {"seeds": seeds, "extent": 1.0, "resolution": 3}, "samples": [{"label": 7, "dots": dots}]}
        (tmp_path / f"figure1/figure{name}.json").write_text(json.dumps(facts))
        np.savez(tmp_path / f"figure1/figure{name}.npz", **arrays)

    assert decision_maps.state("1", ("none", "L2")) == ("not run", "")
    put("1", 1, {"0/none/radius": 1.0, "0/L2/radius": 2.5})
    assert decision_maps.state("1", ("none", "L2")) == ("unsettled", "radii 1.00, 2.50")
    assert decision_maps.state("1", ("L2", "none"))[0] == "outside"
    put("1", 2, {"0/none/radius": 1.0, "0/L2/radius": 2.5})
    assert decision_maps.state("1", ("none", "L2"))[0] == "reproduced"
    classes = np.full((3, 3), 7)
    classes[0, 2] = 1  # a = 1, b = -1
    both = {"0/none/radius": 1.0, "0/both/radius": 1.0, "0/both/classes": classes}
    put("S2", 2, both, [[1.0, 0.0], [0.0, 1.0]])
    assert decision_maps.state("S2", ("none", "both"))[0] == "reproduced"
    put("S2", 2, both, [[1.0, -1.0], [0.0, 1.0]])
    assert decision_maps.state("S2", ("none", "both"))[0] == "outside"


def test_strength_is_compared_on_shared_images(tmp_path, monkeypatch):
    """CW on the first two images beside 4 of the others: its median is that of those two, and the table says so."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    folder = tmp_path / "figure_s5"
    folder.mkdir()
    recipe = regularizers(MNIST_LENET)["none"].config()

    def put(attack, distances):
        config = {"recipe": recipe, "num_samples": len(distances)}
        models = {"0": {"distance": distances, "steps": [1] * len(distances)}}
        (folder / f"{attack}-none.json").write_text(json.dumps({"config": config, "models": models}))

    for attack, distance in {"white-noise": 9, "FGSM": 3, "PGD": 2}.items():
        put(attack, [distance, distance, 0.1, 0.1])
    assert figure_s5.claim("mnist_lenet") == ("in part", "ran: FGSM-none, PGD-none, white-noise-none")
    put("CW", [1, 1])
    assert figure_s5.claim("mnist_lenet")[0] == "unsettled"
    assert "CW-none on the first 2" in figure_s5.table()
    put("CW", [2.5, 2.5])
    assert figure_s5.claim("mnist_lenet")[0] == "outside"
