"""One call that says how robust a model is, with the checks that tell whether to believe it.

found = evaluation.report(f, x, y, jax.random.key(0), epsilon={"linf": 0.1, "l2": 1.0})
print(found)                              # a table
found.figure().savefig("report.png")
found.to_json("report.json")
"""

import contextlib
import dataclasses
import sys
import time
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax import attacks, certify, checks, corruptions, evaluation, masking, reporting_sections as parts
from jacreg_jax.attacks.criteria import Criterion, misclassified
from jacreg_jax.attacks.inputs import inputs
from jacreg_jax.keys import check_key
from jacreg_jax.reporting_result import Budget as Budget, Report as Report, quick as quick, standard as standard
from jacreg_jax.types import Array, Function


def report(
    f: Function,
    x: Any,
    y: Any,
    key: Array,
    *,
    epsilon: Mapping[str, float],
    sigmas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4),
    criterion: Criterion | Function = misclassified,
    bounds: Any = (0.0, 1.0),
    budget: Budget = standard,
    has_gradient: bool = True,
    batch_size: int = 250,
    progress: bool = True,
) -> Report:
    """Clean accuracy, ||J||_F, noise, corruptions, fooling distances, worst case of all attacks, checks, certificates.

    Args:
        f: batched function, raw inputs [B, ...] -> what the criterion looks at: logits [B, C], one logit [B], logits of
            tokens [B, T, V], numbers [B, ...].
        x: raw inputs [N, ...] within bounds; corruptions want images [N, H, W, C] within [0, 1].
        y: integer labels [N], or what the criterion compares with.
        key: typed key.
        epsilon: {"linf": radius, "l2": radius}, one or both.
        sigmas: deviations of white noise.
        criterion: what counts as a failure, see `attacks.criteria`.
        bounds: (low, high) of the inputs, each a scalar, an array that broadcasts to one sample, or None.
        budget: `reporting.quick`, `reporting.standard`, or a Budget of one's own.
        has_gradient: False for a model that has none: only noise, corruptions, Square and smoothing are tried.
        batch_size: B.
        progress: show a bar, on a terminal alone.

    Returns:
        Report. Robust accuracy at epsilon is the share of samples that no attack fools, those that seek the nearest
        fooling sample included.

    Raises:
        TypeError, ValueError: as `evaluation.run_attack`; epsilon names no norm, or is not above 0; sigmas are no
            sequence of numbers of at least 0; x or y is no array, such as a pytree; key is no single typed key.

    Example:
        >>> f = lambda x: jnp.stack([4 * x.sum(1), 4 - 4 * x.sum(1)], axis=1)
        >>> x = np.array([[0.1, 0.2], [0.7, 0.6]], np.float32)
        >>> found = report(f, x, np.array([1, 0]), jax.random.key(0), epsilon={"linf": 0.01}, budget=quick)
        >>> found.sections["clean"]["accuracy"]
        1.0
    """
    sigmas = checks.items("sigmas", sigmas, "deviations")
    _check(f, key, epsilon, sigmas, budget)
    x, y, options = _samples("x", x), _samples("y", y), {"criterion": criterion, "bounds": bounds}
    run = _Run(f, x, y, key, dict(epsilon), options, budget, batch_size)
    steps: dict[str, Any] = {"clean": run.clean, "||J||_F": run.jacobian, "noise": partial(run.noise, sigmas)}
    steps |= {"corruptions": run.corruptions, "fooling distance": run.distances, "worst case": run.robust}
    steps |= {"masking": run.masking, "certificates": run.certificates}
    if not has_gradient:
        steps = {name: step for name, step in steps.items() if name not in ("||J||_F", "fooling distance", "masking")}
        run.attacks = ("square",)
    sections: dict[str, dict[str, Any]] = {}
    with _bar(steps, progress) as bar:
        for name, step in steps.items():
            bar.set_description(name)
            start = time.perf_counter()
            if found := step():
                sections[name] = found
                run.seconds[name] = time.perf_counter() - start
            bar.update()
    sections["settings"] = {"samples": len(x), **dataclasses.asdict(budget)}
    sections["seconds"] = run.seconds
    return Report(sections, run.notes)


class _Run:
    """The samples of one report, and what is found of them on the way."""

    def __init__(self, f: Any, x: Any, y: Any, key: Array, epsilon: Any, options: Any, budget: Budget, size: int):
        self.f, self.x, self.y, self.epsilon, self.budget = f, x, y, epsilon, budget
        self.keys = iter(jax.random.split(key, 64))
        self.options, self.size = options, size
        ranges = inputs(jnp.asarray(self.x[:1]), options["bounds"])
        self.span = float(np.min(ranges.span))  # the shortest range of a pixel
        self.is_classes = options["criterion"] == misclassified
        self.attacks: tuple[str, ...] = ()  # those of the ensemble that are tried; all where empty
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.nearest: dict[str, Any] = {}  # by norm

    def attack(self, attack: Function, *, key: Any = None, **swept: Any) -> Any:
        """The result of an attack on all samples."""
        key = next(self.keys) if key is None else key
        return evaluation.run_attack(attack, self.f, self.x, self.y, key, batch_size=self.size, **swept)

    def clean(self) -> dict[str, Any]:
        """Accuracy, and the ways in which the model is used that make attacks fail."""
        found = self.attack(parts.clean_outcome(**self.options))
        self.notes += parts.misuse(self.f, self.x[: self.size], self.is_classes)
        name = "accuracy" if self.is_classes else "share within the criterion"
        return {name: float(np.mean(found.right)), "not finite": float(np.mean(~found.finite))}

    def jacobian(self) -> dict[str, Any]:
        """Of f with respect to the raw input."""
        x = self.x[: self.budget.norms]
        norms = evaluation.jacobian_norms(self.f, x, batch_size=min(self.size, 50))
        if missing := int((~np.isfinite(norms)).sum()):
            self.notes.append(f"||J|| of {missing} of {len(x)} samples is not finite; those are left out")
            norms = norms[np.isfinite(norms)]
        if not len(norms):
            return {}
        return evaluation.norm_summary(norms) | {"median": float(np.median(norms)), "samples": len(norms)}

    def noise(self, sigmas: tuple[float, ...]) -> dict[str, Any]:
        """Accuracy under one draw for each deviation."""
        attack, key = parts.noise(**self.options), next(self.keys)
        return {f"sigma = {s:g}": 1 - float(self.attack(attack, key=key, sigma=s).success.mean()) for s in sigmas}

    def corruptions(self) -> dict[str, Any]:
        """Accuracy under each family, in five severities."""
        if self.x.ndim != 4 or not self.is_classes or self.x.min() < 0 or self.x.max() > 1:
            self.notes.append("corruptions: not run, they are for classifiers of images [N, H, W, C] in [0, 1]")
            return {}
        key = next(self.keys)
        under = lambda name, s: 1 - float(self.attack(corruptions.corruption(name), key=key, severity=s).success.mean())
        found: dict[str, Any] = {
            name: [under(name, s) for s in corruptions.SEVERITIES] for name in corruptions.FAMILIES
        }
        return found | {"mean": float(np.mean(list(found.values())))}

    def distances(self) -> dict[str, Any]:
        """The nearest fooling sample by several attacks, and the point-wise nearest of all."""
        found: dict[str, Any] = {}
        effort = self.budget.gradient_steps, self.budget.searches, self.span
        for norm in self.epsilon:
            results = {}
            for name, attack in parts.nearest(norm, *effort, **self.options).items():
                results[name] = self.attack(attack).distance
            self.nearest[norm] = np.min(list(results.values()), axis=0)
            for name, values in {**results, "nearest of all": self.nearest[norm]}.items():
                found[f"{norm}, {name}, median"] = evaluation.median_distance(values)["median"]
        return found

    def robust(self) -> dict[str, Any]:
        """Who is fooled within epsilon by the standard ensemble or by an attack that seeks the nearest sample."""
        found: dict[str, Any] = {}
        for norm, epsilon in self.epsilon.items():
            ensemble = attacks.standard_ensemble(norm=norm, num_queries=self.budget.queries, **self.options)
            ensemble = {name: a for name, a in ensemble.items() if not self.attacks or name in self.attacks}
            options = {"batch_size": self.size, "epsilon": epsilon}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "apgd-t is left out")  # a note says so
                result, robust = evaluation.worst_case(ensemble, self.f, self.x, self.y, next(self.keys), **options)
            fooled = np.asarray(result.success) | ~np.asarray(result.clean_correct)
            for name, share in robust.items():
                found[f"{norm} {epsilon:g}, after {name}"] = share
            if norm in self.nearest:
                fooled |= evaluation.fooled_within(self.nearest[norm], epsilon)
            found[f"{norm} {epsilon:g}, robust accuracy"] = 1 - float(fooled.mean())
        return found

    def masking(self) -> dict[str, Any]:
        """The checks that a claim should pass."""
        found: dict[str, Any] = {}
        for norm, epsilon in self.epsilon.items():
            effort = {"num_steps": self.budget.pgd_steps, "num_queries": self.budget.queries}
            options = effort | self.options | {"epsilon": epsilon, "norm": norm, "batch_size": self.size}
            results = masking.checks(self.f, self.x, self.y, next(self.keys), **options)
            for name, check in results.items():
                found[f"{norm}, {name}"] = (
                    "passed" if check.passed else f"FAILED: {check.value:.4g} above {check.limit:g}"
                )
                if not check.passed:
                    self.notes.append(f"{norm}, {name}: {parts.MEANINGS[name]}")
        return found

    def certificates(self) -> dict[str, Any]:
        """By randomized smoothing, of the smoothed model; by interval arithmetic, of f itself, where it has rules."""
        if not self.is_classes or self.y.ndim != 1:
            self.notes.append("certificates: not run, they are for classifiers")
            return {}
        x, y = self.x[: self.budget.certified], self.y[: self.budget.certified]
        sigma = max(self.epsilon.get("l2", 0.25) / 2, 1e-3)
        smoothed = certify.certify_smoothed(
            self.f, x, next(self.keys), sigma=sigma, num_samples=self.budget.draws, batch_size=min(len(x), self.size)
        )
        radius = np.where(smoothed.prediction == y, smoothed.radius, 0.0)
        found = {f"smoothed, sigma = {sigma:g}, median L2 radius": float(np.median(radius))}
        found[f"smoothed, sigma = {sigma:g}, accuracy"] = float(np.mean(smoothed.prediction == y))
        try:
            options = {"bounds": self.options["bounds"], "largest": self.span}
            proved = certify.interval_radius(self.f, jnp.asarray(x), jnp.asarray(y), **options)
            found["interval arithmetic, mean L-infinity radius"] = float(jnp.mean(proved))
        except TypeError as error:
            self.notes.append(f"interval arithmetic: not run ({str(error).splitlines()[0]})")
        return found


def _check(f: Any, key: Any, epsilon: Any, sigmas: tuple[Any, ...], budget: Any) -> None:
    checks.function("f", f)
    check_key(key)
    if key.ndim:
        raise ValueError(f"key must be one typed key, got {len(key)} of them")
    for sigma in sigmas:
        checks.non_negative("sigmas", sigma)
    if not isinstance(epsilon, Mapping) or not epsilon or epsilon.keys() - {"linf", "l2", "l1"}:
        raise ValueError(f'epsilon must be radii by norm, such as {{"linf": 8 / 255, "l2": 0.5}}, got {epsilon!r}')
    for norm, radius in epsilon.items():
        checks.positive(f"epsilon[{norm!r}]", radius)
    if not isinstance(budget, Budget):
        raise TypeError(f"budget must be a Budget, such as reporting.quick, got {type(budget).__name__}")


def _samples(name: str, value: Any) -> np.ndarray:
    """An array [N, ...], also of a list."""
    found = np.asarray(value)
    if found.dtype == object or not found.ndim:
        raise TypeError(f"{name} must be an array [N, ...], got {checks.what(value)}")
    return found


def _bar(parts: Any, wanted: bool) -> Any:
    """A tqdm bar on a terminal; without tqdm a line for each part."""

    class Lines(contextlib.nullcontext[Any]):
        def __enter__(self) -> "Lines":
            return self

        def set_description(self, name: str) -> None:
            if wanted and sys.stderr.isatty():
                print(f"report: {name} ...", file=sys.stderr)

        def update(self) -> None: ...

    if wanted:
        with contextlib.suppress(ImportError):
            from tqdm import tqdm  # type: ignore[import-untyped]

            return tqdm(total=len(parts), disable=None, leave=False)
    return Lines()
