"""Tables of docs/performance.md from the committed benchmark: what a step costs, and which goals hold."""

from experiments.page import results

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
    found = [benchmark_result(model) for model in ("lenet", "ddnet", "resnet18")]
    rows = {(r["model"], r["variant"], r["framework"]): r for result in found if result for r in result["rows"]}
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
    return results.table(["measure", "goal", "measured", "met"], lines)


def benchmark() -> str:
    """Every row of the step benchmark and of the attack benchmark."""
    parts = []
    tables = dict.fromkeys(("lenet", "ddnet", "resnet18"), step_table) | {"attacks": attack_table}
    for name, table in tables.items():
        result = benchmark_result(name)
        if result is None:
            parts.append(f"{name}: not run")
            continue
        environment = result["environment"]
        where = f"{name}: {environment['devices'][0]}, jax {environment['jax']}, {result['config']['rounds']} rounds."
        parts += [where + " " + result.get("note", ""), table(result["rows"])]
    return "\n\n".join(part.strip() for part in parts)


def step_table(rows: list[dict]) -> str:
    """Median milliseconds a step, the torch time over ours, and temporary memory."""
    milliseconds = {(r["model"], r["variant"], r["framework"]): r["ms"] for r in rows}
    lines = []
    for r in rows:
        torch = milliseconds.get((r["model"], r["variant"], "torch"))
        plain = milliseconds.get((r["model"], "plain", r["framework"]))
        ratio = f"{torch / r['ms']:.2f}" if torch else ""
        memory = f"{r['temporary_bytes'] / 2**20:.0f}" if r["temporary_bytes"] else ""
        seconds = "" if r["compile_seconds"] is None else f"{r['compile_seconds']:.1f}"
        over_plain = f"{r['ms'] / plain:.2f}" if plain else ""
        lines.append([r["model"], r["variant"], r["framework"], f"{r['ms']:.2f}", ratio, over_plain, memory, seconds])
    header = ["model", "variant", "framework", "ms a step", "torch / this", "over plain", "temporary MiB", "compile s"]
    return results.table(header, lines)


def attack_table(rows: list[dict]) -> str:
    """Milliseconds a step, and how many times slower than ours."""
    own = {r["attack"]: r["ms"] for r in rows if r["framework"] == "jacreg_jax"}
    lines = [[r["attack"], r["framework"], f"{r['ms']:.2f}", f"{r['ms'] / own[r['attack']]:.2f}"] for r in rows]
    return results.table(["attack", "framework", "ms a step", "this / ours"], sorted(lines))


def benchmark_result(name: str) -> dict | None:
    """What `make bench` wrote of a model, or of the attacks."""
    return results.read(f"benchmark_{name}_cpu")


def cyclopropagation() -> str:
    """Time and memory of the penalty's gradient, cyclopropagation first."""
    result = benchmark_result("cyclopropagation")
    if result is None:
        return "not run"
    first = {r["model"]: r["ms"] for r in result["rows"] if r["variant"] == "cyclopropagation"}
    lines = [
        [
            r["model"],
            r["variant"],
            f"{r['ms']:.2f}",
            f"{r['ms'] / first[r['model']]:.2f}",
            f"{r['temporary_bytes'] / 2**20:.1f}",
        ]
        for r in result["rows"]
    ]
    where = f"{result['environment']['devices'][0]}, batch {result['config']['batch_size']}"
    header = [f"penalty's gradient ({where})", "form", "ms", "over cyclopropagation", "temporary MiB"]
    return results.table(header, lines)


def rounding() -> str:
    """Relative errors of a convolution's value and derivatives in float32."""
    result = benchmark_result("rounding")
    if result is None:
        return "not run"
    names = list(dict.fromkeys(r["quantity"] for r in result["rows"]))
    lines: dict[tuple, list] = {}
    for r in result["rows"]:
        lines.setdefault((r["shape"], r["form"]), []).append(f"{r['error']:.1e}")
    header = [f"error over value, rms ({result['config']['channels']} channels)", "form", *names]
    return results.table(header, [[*key, *errors] for key, errors in lines.items()])


TABLES = {"bars": bars, "benchmark": benchmark, "cyclopropagation": cyclopropagation, "rounding": rounding}
