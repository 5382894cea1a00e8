"""What `make bench` measured of a training step, by network and machine."""

from experiments.page import results

SCAN = "jacreg_jax, scan of 100"


def times_of(model: str, place: str, field: str = "ms") -> dict:
    """(variant, framework) -> milliseconds a step, or bytes."""
    found = results.read(f"benchmark_{model}_{place}")
    return {(r["variant"], r["framework"]): r[field] for r in found["rows"]} if found else {}


def over_plain(model: str, place: str, framework: str = "jacreg_jax") -> dict[str, float]:
    """A step of each variant over the plain one; empty where it was not run."""
    steps = {v: ms for (v, f), ms in times_of(model, place).items() if f == framework}
    return {v: ms / steps["plain"] for v, ms in steps.items() if v != "plain"}
