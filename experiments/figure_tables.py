"""Numbers beside the figures of the results page, and beyond the paper, from the committed results alone."""

import json
from collections.abc import Callable

import numpy as np

from experiments import plots, record
from experiments.tables import DEFENCE_NAMES, NAMES, by_seed, models, spread


def figure2() -> str:
    """The last point of each curve."""
    rows = []
    for name in ("exact", "n1", "n3"):
        curves = [m["curve"] for m in models(f"figure2/{name}")]
        steps = f"{curves[0][-1]['step']:,}" if curves else "not run"
        rows.append([name.replace("n1", "n = 1").replace("n3", "n = 3"), steps,
                     *spread([100 * c[-1]["accuracy"] for c in curves], 2),
                     *spread([c[-1]["jacobian_norm"]["mean"] for c in curves], 3)])  # fmt: skip
    return plots.table(["penalty", "steps", "test accuracy, %", "mean norm of the Jacobian"], rows)


def figure3() -> str:
    """Numbers one reads off the curves: accuracy under noise, after PGD, and the median CW distance."""
    rows = []
    for name, label in NAMES.items():
        path = record.RESULTS / "figure3" / f"noise-{name}.json"
        found = models(f"figure3/noise-{name}")
        sigmas = json.loads(path.read_text())["config"]["sigmas"] if found else []
        at = [[100 * m["accuracy"][sigmas.index(s)] for m in found] if s in sigmas else [] for s in (0.2, 0.4, 0.6)]
        rows.append([label, *(spread(values, 1)[0] for values in at)])
    noise = plots.table(["(a) accuracy under white noise, %", "sigma 0.2", "sigma 0.4", "sigma 0.6"], rows)
    rows = []
    for name, label in DEFENCE_NAMES.items():
        pgd, cw = models(f"figure3/PGD-{name}"), models(f"figure3/CW-{name}")
        after = [[100 * survivors(m, k) for m in pgd] for k in (16, 32, 300)]
        rows.append([label, *(spread(v, 1)[0] for v in after), *spread([median(m) for m in cw], 3)])
    header = ["(b, c) base with L2 and dropout", "PGD, 16 steps, %", "32 steps, %", "300 steps, %", "CW median L2"]
    return noise + "\n\n" + plots.table(header, rows)


def survivors(model: dict, steps: int) -> float:
    """Share of samples not fooled within so many PGD steps."""
    return float(np.mean((record.from_json(model["distance"]) > 0) & (_hit(model) > steps)))


def _hit(model: dict) -> np.ndarray:
    return np.where(np.isfinite(record.from_json(model["distance"])), model["steps"], np.inf)


def median(model: dict) -> float:
    """Median fooling distance over all samples, wrong ones at 0."""
    return float(np.median(record.from_json(model["distance"])))


def figure_s5() -> str:
    """Median fooling distance by attack."""
    rows = []
    for name in ("none", "both"):
        found = [models(f"figure_s5/{a}-{name}") for a in ("white-noise", "FGSM", "PGD", "CW")]
        rows.append([DEFENCE_NAMES[name], *(spread([median(m) for m in f], 2)[0] for f in found)])
    return plots.table(["median L2 distance", "white noise", "FGSM", "PGD", "CW"], rows)


def figure_s6() -> str:
    """Clean accuracy, norm and medians by lambda_jr."""
    rows = []
    paths = sorted((record.RESULTS / "figure_s6").glob("clean-*.json"), key=lambda p: float(p.stem.split("-", 1)[1]))
    for path in paths:
        value = path.stem.split("-", 1)[1]
        clean = models(f"figure_s6/clean-{value}")
        found = [models(f"figure_s6/{a}-{value}") for a in ("white-noise", "PGD", "CW")]
        steps = json.loads(path.read_text())["config"]["recipe"]["num_steps"]
        rows.append([value, f"{steps:,}", *spread([100 * m["accuracy"] for m in clean], 1),
                     *spread([m["jacobian_norm"]["mean"] for m in clean], 2),
                     *(spread([median(m) for m in f], 2)[0] for f in found)])  # fmt: skip
    header = ["lambda_jr", "steps", "test accuracy, %", "mean ||J||_F", "white noise", "PGD", "CW"]
    return plots.table(header, rows) if rows else "not run"


def beyond_attacks() -> str:
    """The ratio of medians, Jacobian over plain, under ever stronger attacks; robust accuracy of the ensemble."""
    attacks = ("CW", "CW-3-times-the-steps", "DDN", "FAB-T")
    found = {a: {n: by_seed(f"beyond_attacks/{a}-{n}") for n in ("none", "Jacobian")} for a in attacks}
    rows = []
    for attack in attacks:
        rows.append(_ratio(attack.replace("-", " ").replace("FAB T", "FAB-T"), found[attack], median))
    best = {n: _best([found[a][n] for a in ("CW", "DDN", "FAB-T")]) for n in ("none", "Jacobian")}
    rows.append(_ratio("smallest of CW, DDN, FAB-T", best, lambda d: float(np.median(d))))
    clean = {n: by_seed(f"beyond_attacks/clean-{n}") for n in ("none", "Jacobian")}
    without = [
        _ratio("test accuracy, %", clean, lambda m: 100 * m["accuracy"]),
        _ratio("||J||_F, root of the mean square", clean, lambda m: m["jacobian_norm"]["rms"]),
    ]
    header = ["no regularization", "Jacobian", "ratio", "seeds alone"]
    parts = [plots.table(["without an attack", *header], without), plots.table(["median L2 distance", *header], rows)]
    for norm in ("linf", "l2"):
        parts.append(_ensemble(norm))
    return "\n\n".join(parts)


def _best(found: list[dict[str, dict]]) -> dict[str, np.ndarray]:
    """The smallest distance of each sample, for the seeds that all attacks have."""
    seeds = [seed for seed in found[0] if all(seed in attack for attack in found)]
    return {seed: np.min([record.from_json(attack[seed]["distance"]) for attack in found], axis=0) for seed in seeds}


def _ratio(label: str, found: dict[str, dict], value: Callable) -> list[str]:
    """Both models, the ratio of their means, and that of each seed that both have."""
    plain, jacobian = ({seed: value(m) for seed, m in found[n].items()} for n in ("none", "Jacobian"))
    both = [*plain.values()], [*jacobian.values()]
    ratio = f"{np.mean(both[1]) / np.mean(both[0]):.2f}" if plain and jacobian else ""
    alone = ", ".join(f"{jacobian[seed] / plain[seed]:.2f}" for seed in plain if seed in jacobian)
    return [label, *spread(both[0], 3), *spread(both[1], 3), ratio, alone]


def _ensemble(norm: str) -> str:
    found = {n: models(f"beyond_attacks/ensemble-{norm}-{n}") for n in ("none", "Jacobian")}
    epsilons = next((list(m[0]) for m in found.values() if m), [])
    rows = [
        [NAMES[n], *(spread([100 * m[e]["square"] for m in ms], 1)[0] for e in epsilons)] for n, ms in found.items()
    ]
    label = {"linf": "L-infinity", "l2": "L2"}[norm]
    header = [f"robust accuracy, standard ensemble, {label}, %", *(f"epsilon {e}" for e in epsilons)]
    return plots.table(header, rows) if epsilons else f"Standard ensemble, {label}: not run."


def beyond_probes() -> str:
    """Accuracy, norm and time by variant."""
    names = ("sphere", "rademacher", "sphere, n = 3", "orthonormal, n = 3", "a quarter of the batch", "every 4th step")
    path = record.RESULTS / "beyond_probes" / "milliseconds.json"
    times = json.loads(path.read_text())["milliseconds"] if path.exists() else {}
    rows = []
    for name in names:
        path = path.with_name(f"{record.slug(name)}.json")
        found = models(f"beyond_probes/{path.stem}")
        steps = f"{json.loads(path.read_text())['config']['recipe']['num_steps']:,}" if found else "not run"
        rows.append([name, steps, *spread([100 * m["accuracy"] for m in found], 2),
                     *spread([m["jacobian_norm"]["mean"] for m in found], 3),
                     f"{times[name]:.1f}" if name in times else "not run"])  # fmt: skip
    return plots.table(["penalty", "steps", "test accuracy, %", "mean ||J||_F", "ms a step"], rows)


def relu_study() -> str:
    """What each penalty does to each activation."""
    rows = []
    for activation in ("relu", "gelu", "tanh"):
        for penalty, label in (("none", "none"), ("Jacobian", "Jacobian, n = 1"), ("noise", "noise consistency")):
            found = models(f"relu_study/{activation}-{penalty}")
            columns = (("accuracy", 100, 2), ("norm_sq", 1, 2), ("finite_sq", 1, 2), ("accuracy_noise_0.3", 100, 1))
            values = [
                spread([scale * m[k] for m in found], digits)[0] for k, scale, digits in (*columns, ("ddn", 1, 3))
            ]
            rows.append([activation, label, *values])
    header = ["activation", "penalty", "accuracy, %", "||J||_F^2", "by noise", "under noise 0.3, %", "DDN median L2"]
    return plots.table(header, rows)
