"""Old names: they work for one release, 0.2, and say what to write instead."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from jacreg_jax import checks

P = ParamSpec("P")
R = TypeVar("R")


def warn(old: str, new: str) -> None:
    """DeprecationWarning that says the new name."""
    checks.warn(f"{old} is deprecated since 0.2, use {new}", DeprecationWarning)


def renamed(old: str, function: Callable[P, R], new: str | None = None) -> Callable[P, R]:
    """The function under its old name, which warns."""

    @functools.wraps(function)
    def under_old_name(*args: P.args, **kwargs: P.kwargs) -> R:
        warn(old, new or function.__qualname__)
        return function(*args, **kwargs)

    return under_old_name


def renamed_arguments(**new_names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: keyword arguments old="new" are still taken under the old name, with a warning.

    Raises:
        TypeError: old and new name together.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            given: dict[str, Any] = dict(kwargs)
            for old, new in new_names.items():
                if old in given:
                    warn(f"{function.__name__}({old}=...)", f"{new}=...")
                    if new in given:
                        raise TypeError(f"{function.__name__} got both {new} and its old name {old}")
                    given[new] = given.pop(old)
            return function(*args, **given)

        return wrapper

    return decorate


def old_function(name: str) -> Callable[..., Any]:
    """A function of release 0.1 that is now made of others."""
    from jacreg_jax import jacobian, mean_norm, penalty

    def value_and_norms(reduce: Any, new: str, f: Any, x: Any, key: Any, fraction: float, has_aux: bool) -> Any:
        warn(name, new)
        penalise = lambda x, key: penalty.value_and(reduce, f, x, key, has_aux=has_aux)
        if fraction == 1:
            return penalise(x, key)
        return penalty.on_random_rows(fraction, penalise, f, x, key, needs_whole=has_aux)

    def value_and_frobenius_sq(f, x, key, *, sample_fraction=1.0, has_aux=False, **options):  # type: ignore[no-untyped-def]
        reduce = functools.partial(jacobian.projected_from_vjp, **options)
        return value_and_norms(reduce, "jacobian.projected_from_vjp", f, x, key, sample_fraction, has_aux)

    def value_and_exact_frobenius_sq(f, x, *, chunk_size=None, has_aux=False):  # type: ignore[no-untyped-def]
        reduce = lambda z, vjp, x, key: jacobian.exact_from_vjp(z, vjp, x, chunk_size=chunk_size)
        return value_and_norms(reduce, "jacobian.exact_from_vjp", f, x, None, 1.0, has_aux)

    def value_and_mean_frobenius_sq(  # type: ignore[no-untyped-def]
        f, x, key=None, *, num_projections=1, probe="sphere", sample_fraction=1.0, chunk_size=None, has_aux=False
    ):
        if num_projections == "exact":
            reduce = functools.partial(mean_norm.mean_exact, chunk_size=chunk_size)
        else:
            options = {"num_projections": num_projections, "probe": probe, "chunk_size": chunk_size}
            reduce = functools.partial(mean_norm.mean_projected, **options)
        new = "penalties.projected(...) or penalties.exact(...)"
        value, (mean, norms) = value_and_norms(reduce, new, f, x, key, sample_fraction, has_aux)
        return value, mean, norms

    return {f.__name__: f for f in (value_and_frobenius_sq, value_and_exact_frobenius_sq, value_and_mean_frobenius_sq)}[
        name
    ]


_OLD_LOSS_OPTIONS = {
    "num_projections": "penalty=projected(n) or exact()",
    "probe": "penalty=projected(probe=...)",
    "chunk_size": "penalty=projected(chunk_size=...) or exact(chunk_size)",
    "sample_fraction": "penalty=on_part(fraction, ...)",
    "penalty_apply": "penalty=of_model(apply, ...)",
    "relative": "penalty=of(function, ...)",
    "lazy": "lazily(k, loss)",
    "part_size": "in_parts(m, loss)",
}


def loss_options(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """(options of today, what wraps the loss) for options of `classification_loss` that may be those of 0.1.

    Raises:
        ValueError: old options that do not go together.
    """
    old = {name: options[name] for name in _OLD_LOSS_OPTIONS if name in options}
    if not old:
        return options, lambda loss: loss
    from jacreg_jax import accumulation, penalties

    for name in old:
        warn(f"classification_loss({name}=...)", _OLD_LOSS_OPTIONS[name])
    of_norm = {"num_projections", "probe", "chunk_size", "sample_fraction"} & old.keys()
    if "penalty" in options and old.keys() - {"lazy", "part_size"}:
        raise ValueError(f"penalty and its old options {sorted(old)} must not be given together")
    if "relative" in old and (of_norm or "penalty_apply" in old):
        raise ValueError(f"relative must not be given together with {sorted(old.keys() - {'relative'})}")
    today = {name: value for name, value in options.items() if name not in old}
    if "penalty" not in today:
        today["penalty"] = _old_penalty(old, penalties)
    part, period = old.get("part_size"), old.get("lazy", 1)

    def wrap(loss: Any) -> Any:
        loss = loss if part is None else accumulation.in_parts(part, loss)
        return accumulation.lazily(period, loss)

    return today, wrap


def _old_penalty(old: dict[str, Any], penalties: Any) -> Any:
    if "relative" in old:
        relative = old["relative"]
        return penalties.of(lambda f, x, y, key: relative(f, x, y, key))
    if old.get("num_projections") == "exact":
        penalty = penalties.exact(old.get("chunk_size"))
    else:
        penalty = penalties.projected(old.get("num_projections", 1), old.get("probe", "sphere"), old.get("chunk_size"))
    if old.get("sample_fraction", 1.0) != 1:
        penalty = penalties.on_part(old["sample_fraction"], penalty)
    return penalties.of_model(old["penalty_apply"], penalty) if old.get("penalty_apply") else penalty
