"""Tables from the committed results: `make report` rebuilds every number shown, and trains nothing.

A page holds `<!-- results:NAME -->` ... `<!-- /results:NAME -->`; what stands between is replaced.
"""

import json
import re
from pathlib import Path

from experiments import plots, record

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/performance.md")


def demo_table(result: dict) -> str:
    """The two models of the demo side by side, as a markdown table."""
    models = result["models"]
    percent = lambda values: [f"{100 * v:.1f} %" for v in values]
    rows = [
        ["clean accuracy", *percent(m["accuracy"] for m in models.values())],
        ["mean norm of the Jacobian", *(f"{m['jacobian_norm']['mean']:.2f}" for m in models.values())],
    ]
    for kind, label in (("noise", "accuracy, white noise sigma = "), ("pgd", "accuracy, PGD epsilon = ")):
        for size in models["plain"][kind]:
            rows.append([label + size, *percent(m[kind][size] for m in models.values())])
    return plots.table([f"LeNet', {result['config']['dataset']}", *models], rows)


def demo() -> str:
    """Both data sets of the demo, each with the command that made it."""
    parts = []
    for name in ("digits", "mnist"):
        path = record.RESULTS / f"demo_{name}.json"
        if not path.exists():
            parts.append(f"{name}: not run")
            continue
        result = json.loads(path.read_text())
        config = result["config"]
        parts.append(
            f"`make demo DATASET={name}`: {config['num_steps']:,} steps of {config['batch_size']}, "
            f"lambda_jr = {config['lambda_jr']:g}, one seed; noise and PGD on {config['num_attacked']} test images.\n\n"
            + demo_table(result)
            + f"\n\n![Decision cells of both models around a test digit](experiments/results/demo_{name}.png)"
        )
    return "\n\n".join(parts)


# measure, (model, variant, framework) over (model, variant, framework), bar, whether larger is better
BARS = (
    ("LeNet' plain, torch / ours", ("lenet", "plain", "torch"), ("lenet", "plain", "jacreg_jax"), 1.3, True),
    ("LeNet' n = 1, torch / ours", ("lenet", "n = 1", "torch"), ("lenet", "n = 1", "jacreg_jax"), 2.0, True),
    ("LeNet' exact, torch / ours", ("lenet", "exact", "torch"), ("lenet", "exact", "jacreg_jax"), 1.5, True),
    ("DDNet plain, torch / ours", ("ddnet", "plain", "torch"), ("ddnet", "plain", "jacreg_jax"), 0.7, True),
    ("DDNet n = 1, torch / ours", ("ddnet", "n = 1", "torch"), ("ddnet", "n = 1", "jacreg_jax"), 0.8, True),
    ("ResNet-18 n = 1, torch / ours", ("resnet18", "n = 1", "torch"), ("resnet18", "n = 1", "jacreg_jax"), 0.7, True),
    ("LeNet' n = 1 / plain", ("lenet", "n = 1", "jacreg_jax"), ("lenet", "plain", "jacreg_jax"), 2.2, False),
    ("DDNet n = 1 / plain", ("ddnet", "n = 1", "jacreg_jax"), ("ddnet", "plain", "jacreg_jax"), 2.2, False),
    (
        "LeNet' sample_fraction 1/4 / plain",
        ("lenet", "sample_fraction 1/4", "jacreg_jax"),
        ("lenet", "plain", "jacreg_jax"),
        1.4,
        False,
    ),
    (
        "DDNet sample_fraction 1/4 / plain",
        ("ddnet", "sample_fraction 1/4", "jacreg_jax"),
        ("ddnet", "plain", "jacreg_jax"),
        1.4,
        False,
    ),
    (
        "scan of 100 steps / 100 calls, LeNet' plain",
        ("lenet", "plain", "jacreg_jax, scan of 100"),
        ("lenet", "plain", "jacreg_jax"),
        1.05,
        False,
    ),
    (
        "scan of 100 steps / 100 calls, LeNet' n = 1",
        ("lenet", "n = 1", "jacreg_jax, scan of 100"),
        ("lenet", "n = 1", "jacreg_jax"),
        1.05,
        False,
    ),
)


def bars() -> str:
    """The goals set beforehand, what was measured, and whether it holds."""
    results = [benchmark_result(model) for model in ("lenet", "ddnet", "resnet18")]
    rows = {(r["model"], r["variant"], r["framework"]): r for result in results if result for r in result["rows"]}
    lines = []
    for label, above, below, bar, larger in BARS:
        if above not in rows or below not in rows:
            lines.append([label, "", "not run", ""])
            continue
        ratio = rows[above]["ms"] / rows[below]["ms"]
        met = ratio >= bar if larger else ratio <= bar
        lines.append([label, f"{'>=' if larger else '<='} {bar:g}", f"{ratio:.2f}", "yes" if met else "no"])
    exact, plain = (rows["lenet", variant, "jacreg_jax"]["temporary_bytes"] for variant in ("exact", "plain"))
    lines.append(
        [
            "LeNet' exact / plain, temporary memory",
            "<= 4",
            f"{exact / plain:.2f}",
            "yes" if exact <= 4 * plain else "no",
        ]
    )
    return plots.table(["measure", "goal", "measured", "met"], lines)


def benchmark() -> str:
    """Every row of the step benchmark and of the attack benchmark."""
    from experiments.benchmarks import __main__ as steps, attack_cost

    parts = []
    for name, table in (("lenet", steps), ("ddnet", steps), ("resnet18", steps), ("attacks", attack_cost)):
        result = benchmark_result(name)
        if result is None:
            parts.append(f"{name}: not run")
            continue
        environment = result["environment"]
        where = f"{name}: {environment['devices'][0]}, jax {environment['jax']}, {result['config']['rounds']} rounds."
        parts += [where + " " + result.get("note", ""), table.table(result["rows"])]
    return "\n\n".join(part.strip() for part in parts)


def benchmark_result(name: str) -> dict | None:
    """What `make bench` wrote of a model, or of the attacks."""
    path = record.RESULTS / f"benchmark_{name}_cpu.json"
    return json.loads(path.read_text()) if path.exists() else None


BLOCKS = {"demo": demo, "bars": bars, "benchmark": benchmark}


def rebuild(text: str) -> str:
    """The page with every block made anew."""
    for name, make in BLOCKS.items():
        if f"<!-- results:{name} -->" not in text:
            continue
        pattern = re.compile(f"(<!-- results:{name} -->\n).*?(<!-- /results:{name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, make=make: f"{match[1]}{make()}\n{match[2]}", text)
    return text


def main():
    """Write the pages."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(rebuild(path.read_text()))
        print(f"wrote {page}")


if __name__ == "__main__":
    main()
