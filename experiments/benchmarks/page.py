"""Tables of docs/performance.md from the committed benchmark: what a step costs, and which goals hold."""

from experiments.page import results
from experiments.page.steps import SCAN, times_of

TITLES = {"lenet": "LeNet'", "ddnet": "DDNet", "resnet18": "ResNet-18", "cnn": "a user's CNN"}
# network -> torch / ours by variant, on two cores and on one
TORCH = {"lenet": {"plain": 1.7, "n = 1": 2.5, "n = 3": 2.4, "exact": 2.3}}
TORCH |= {"ddnet": {"plain": 1.2, "n = 1": 1.4, "n = 3": 1.7, "exact": 1.8}, "resnet18": {"plain": 1.0, "n = 1": 1.25}}
TORCH_ONE_CORE = {"ddnet": {"plain": 1.6, "n = 1": 1.8, "n = 3": 2.2, "exact": 2.4}}
TORCH_ONE_CORE |= {"resnet18": {"plain": 1.2, "n = 1": 1.6}}
OVER_PLAIN = {"n = 1": 2.2, "on a part, 1/4": 1.4}
LAX = "jax, lax convolutions"


def bars() -> str:
    """The goals set beforehand, what was measured, and whether it holds."""
    own, lines = "jacreg_jax", _torch("cpu", TORCH) + _torch("cpu_one_core", TORCH_ONE_CORE)
    for model in TORCH:
        for variant, bar in OVER_PLAIN.items():
            label, times = f"{TITLES[model]} {variant} / plain", times_of(model, "cpu")
            lines.append(_line(label, times, (variant, own), ("plain", own), bar, False))
    label, times = "a user's CNN n = 1, XLA's convolution / ours", times_of("cnn", "cpu")
    lines.append(_line(label, times, ("n = 1", LAX), ("n = 1", own), 3.0, True))
    for variant in ("plain", "n = 1"):
        label = f"LeNet' {variant}, 100 steps in a scan / in 100 calls"
        lines.append(_line(label, times_of("lenet", "cpu"), (variant, SCAN), (variant, own), 1.05, False))
    memory = times_of("lenet", "cpu", "temporary_bytes")
    label = "LeNet' exact / plain, temporary memory"
    lines.append(_line(label, memory, ("exact", own), ("plain", own), 4.0, False))
    return results.table(["measure", "goal", "measured", "met"], lines)


def _torch(place: str, goals: dict) -> list[list[str]]:
    cores, lines = "one core: " if place.endswith("one_core") else "", []
    for model, of_variant in goals.items():
        times = times_of(model, place)
        for variant, bar in of_variant.items():
            label = f"{cores}{TITLES[model]} {variant}, torch / ours"
            lines.append(_line(label, times, (variant, "torch"), (variant, "jacreg_jax"), bar, True))
    return lines


def _line(label: str, values: dict, above: tuple, below: tuple, bar: float, larger: bool) -> list[str]:
    """A ratio beside its goal."""
    goal = f"{'>=' if larger else '<='} {bar:g}"
    if above not in values or below not in values:
        return [label, goal, "not run", ""]
    ratio = values[above] / values[below]
    return [label, goal, f"{ratio:.2f}", "yes" if (ratio >= bar if larger else ratio <= bar) else "no"]


def benchmark() -> str:
    """Every row of the step benchmark, on all cores and on one, and of the attack benchmark."""
    names = dict.fromkeys(("lenet_cpu", "ddnet_cpu", "resnet18_cpu", "cnn_cpu", "vit_cpu", "critic_cpu"), step_table)
    names |= dict.fromkeys(("ddnet_cpu_one_core", "resnet18_cpu_one_core"), step_table) | {"attacks_cpu": attack_table}
    parts = []
    for name, table in names.items():
        result = results.read(f"benchmark_{name}")
        if result is None:
            parts.append(f"{name}: not run")
            continue
        where = result.get("machine") or result["environment"]["devices"][0]
        parts.append(f"{where}; jax {result['environment']['jax']}, {result['config']['rounds']} rounds.")
        parts.append(table(result["rows"]))
    return "\n\n".join(parts)


def attack_speed() -> str:
    """Steps of attacks on one core, beside other libraries."""
    result = results.read("benchmark_attacks_cpu_one_core")
    if result is None:
        return "not run"
    return f"{result['machine']}; jax {result['environment']['jax']}.\n\n{attack_table(result['rows'])}"


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
    """Milliseconds a step, steps a second, and how many times slower than ours."""
    network = lambda r: f"{TITLES[r.get('network', 'lenet')]}, batch {r.get('batch_size', 256)}"
    own = {(network(r), r["attack"]): r["ms"] for r in rows if r["framework"] == "jacreg_jax"}
    over = lambda r: f"{r['ms'] / own[network(r), r['attack']]:.2f}"
    speeds = lambda r: [f"{r['ms']:.2f}", f"{1e3 / r['ms']:.1f}", over(r)]
    lines = [[network(r), r["attack"], r["framework"], *speeds(r)] for r in rows]
    order = lambda line: (line[0] != network({}), line[1], line[2] != "jacreg_jax", line[2])
    header = ["network", "attack", "framework", "ms a step", "steps a second", "this / ours"]
    return results.table(header, sorted(lines, key=order))


NORM_NAMES = {"linf": "L-infinity", "l2": "L2", "l1": "L1"}


def distance_table(rows: list[dict]) -> str:
    """Of every attack and library: the largest and the median gap to the truth by model, and what it cost."""
    models = list(dict.fromkeys(r["model"] for r in rows))
    lines: dict[tuple, dict] = {}
    for r in rows:
        lines.setdefault((r["attack"], NORM_NAMES[r["norm"]], r["library"]), {})[r["model"]] = r
    total = lambda found, name: sum(r[name] for r in found.values())
    mean = lambda found, name: f"{total(found, name) / len(found):.4g}"
    counts = lambda found: [str(total(found, name)) for name in ("below", "missed")]
    costs = lambda found: [mean(found, "forward"), mean(found, "backward"), f"{total(found, 'seconds'):.2f}"]
    table = [[*case, *(_gap(found[m]) for m in models), *counts(found), *costs(found)] for case, found in lines.items()]
    header = ["attack", "norm", "library", *models, "below the truth", "not fooled", "forward", "backward", "seconds"]
    return results.table(header, table)


def _gap(r: dict) -> str:
    """Median and largest, in %."""
    return "none fooled" if r["median"] is None else f"{100 * r['median']:.2f}, {100 * r['max']:.2f}"


def attack_distances() -> str:
    """Gaps of minimum-norm attacks to true distances, beside other libraries."""
    result = benchmark_result("attack_distances")
    return "not run" if result is None else distance_table(result["rows"])


def ensemble_table(rows: list[dict]) -> str:
    """Seconds with all samples to the end, and with those that are left."""
    lines = [
        [r["attacks"], f"{r['epsilon']:g}", f"{100 * r['robust, left']:.1f} %", f"{r['all']:.1f}", f"{r['left']:.1f}"]
        for r in rows
    ]
    header = ["attacks", "epsilon", "robust", "processor s, every attack on all to the end", "on those that are left"]
    return results.table(header, lines)


def report_table(rows: list[dict]) -> str:
    """Seconds of every section, and those of the processor, which other programs shared."""
    lines = [[r["section"].replace("||", "‖"), f"{r['seconds']:.0f}"] for r in rows]
    return results.table(
        ["section", "seconds"], [*lines, ["all, of the processor", f"{rows[-1]['of_the_processor']:.0f}"]]
    )


def attack_ensemble() -> str:
    """What is saved where samples leave."""
    return _with_machine("attack_ensemble", ensemble_table)


def attack_report() -> str:
    """What a report costs."""
    return _with_machine("attack_report", report_table)


def _with_machine(name: str, table) -> str:
    result = benchmark_result(name)
    return "not run" if result is None else f"{result['machine']}.\n\n{table(result['rows'])}"


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


def rounded_training() -> str:
    """How far a training run with tiles ends from one with plain sums, beside a rounding-level change of the start."""
    result = benchmark_result("rounded_training")
    if result is None:
        return "not run"
    config = result["config"]
    lines = [
        [r["run"], f"{r['weights']:.1e}", f"{r['logits']:.1e}", f"{100 * r['predictions']:.1f} %", f"{r['loss']:.1e}"]
        for r in result["rows"]
    ]
    header = [
        f"DDNet, {config['num_steps']} steps, against plain sums",
        "weights, over the way from the start",
        f"logits of {config['held_out']} test images, rms",
        "predictions that differ",
        "last loss",
    ]
    return results.table(header, lines)


def input_rate() -> str:
    """Images a second that one core reads, decodes and crops."""
    result = benchmark_result("input_rate")
    if result is None:
        return "not run"
    lines: dict[str, list] = {}
    for r in result["rows"]:
        lines.setdefault(r["transform"], []).append(f"{r['images_per_second']:.0f}")
    header = [f"images a second of one core ({result['machine']})", "in the process that trains", "by a worker"]
    return results.table(header, [[name, *rates] for name, rates in lines.items()])


def imagenet_step() -> str:
    """Time and peak memory of ResNet-18 at 224 x 224 with 1,000 classes."""
    result = benchmark_result("imagenet_step")
    if result is None:
        return "not run"
    config, (step, norm) = result["config"], result["rows"]
    names = {
        f"one training step, B = {config['batch_size']}, n = 1": step,
        f"exact norm of one image, {config['chunk_size']} of 1,000 rows at once": norm,
    }
    lines = [[name, f"{row['seconds']:.1f}", f"{row['peak_bytes'] / 2**30:.1f}"] for name, row in names.items()]
    at_once = f"{norm['temporary_bytes_at_once'] / 2**30:.0f}, by the compiler's count"
    lines.append(["exact norm of one image, all rows at once", "not run", at_once])
    return results.table([f"ResNet-18 at 224 x 224 ({result['machine']})", "seconds", "peak memory, GiB"], lines)


OWN = (
    attack_distances,
    attack_speed,
    attack_ensemble,
    attack_report,
    bars,
    benchmark,
    cyclopropagation,
    rounding,
    rounded_training,
    input_rate,
    imagenet_step,
)
TABLES = {table.__name__: table for table in OWN}
