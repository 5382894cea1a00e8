"""Tables of what a step costs on a GPU, alone and beside PyTorch, from the committed benchmark."""

from experiments.benchmarks.page import TITLES, TORCH, step_table
from experiments.page import results
from experiments.page.steps import times_of


def against_torch() -> str:
    """PyTorch's time over ours, of a whole training step, on both machines."""
    variants, lines = ("plain", "n = 1", "n = 3", "exact"), []
    for model in TORCH:
        for place, where in {"cpu": "two CPU cores", "gpu": "one H100"}.items():
            times = times_of(model, place)
            pairs = [(times.get((v, "torch")), times.get((v, "jacreg_jax"))) for v in variants]
            ratios = [f"{torch / own:.1f}" if torch and own else "not run" for torch, own in pairs]
            lines.append([f"{TITLES[model]}, {where}", *ratios])
    return results.table(["PyTorch's time over ours", *variants], lines)


def benchmark_gpu() -> str:
    """Every network, variant and framework."""
    found = [results.read(f"benchmark_{model}_gpu") for model in TORCH]
    if None in found:
        return "not run"
    environment, rows = found[0]["environment"], [row for result in found for row in result["rows"]]
    return f"{environment['devices'][0]}; jax {environment['jax']}.\n\n{step_table(rows)}"


def together_table(rows: list[dict]) -> str:
    """Milliseconds of a step, of all models of a program and of one of them."""
    batch = lambda r: str(10 * r["samples_per_class"] if r["samples_per_class"] else 100)
    name = lambda r: results.NAMES[r["regularizer"]]
    cells = [[name(r), batch(r), str(r["models"]), f"{r['ms']:.2f}", f"{r['ms'] / r['models']:.2f}"] for r in rows]
    return results.table(["DDNet", "batch", "models in one program", "ms a step", "for each model"], cells)


def together() -> str:
    """Models in one program, convolutions by the library and as matrix products."""
    own, matmuls = (results.read(f"benchmark_together{form}_gpu") for form in ("", "_matmuls"))
    if own is None or matmuls is None:
        return "not run"
    return together_table(own["rows"]) + "\n\nAs matrix products:\n\n" + together_table(matmuls["rows"])


TABLES = {table.__name__: table for table in (against_torch, benchmark_gpu, together)}
