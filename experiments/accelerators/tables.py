"""Tables of docs/scaling.md: what the compilers make of the sharded step."""

from experiments.page import results

NETWORKS = ("LeNet'", "DDNet", "ResNet-18")
NAMES = {"h100": "H100", "v5e": "TPU v5e", "cpu": "virtual CPU devices"}


def table(target: str) -> str:
    """One compiler's programs, a line each."""
    result = results.read(f"accelerators_{target}")
    if result is None:
        return f"{NAMES[target]}: not run"
    rows = result["rows"]
    alone = {(r["network"], r["variant"]): r["flops"] for r in rows if r["chips"] == 1}
    has_flops, has_library = (any(r[name] for r in rows) for name in ("flops", "library_calls"))
    header = [f"{NAMES[target]}, {result['config']['share']} samples each", "chips", "backend", "collectives"]
    header += ["GFLOP", "over 1 chip"] * has_flops + ["kernels"] + ["cuDNN calls"] * has_library + ["temporaries, MB"]
    lines: dict[tuple, list[str]] = {}  # what a line says, but for the backends that it holds for
    for r in sorted(
        rows, key=lambda r: (NETWORKS.index(r["network"]), r["variant"] != "plain", r["chips"], r["backend"])
    ):
        cells = [f"{r['network']} {r['variant']}", str(r["chips"]), _collectives(r["collectives"])]
        if has_flops:
            cells += [f"{r['flops'] / 1e9:.2f}", f"{r['flops'] / alone[r['network'], r['variant']]:.2f}"]
        megabytes = r["temporary_bytes"] / 1e6
        cells += [str(r["kernels"])] + [str(r["library_calls"])] * has_library
        cells += [f"{megabytes:.0f}" if megabytes >= 10 else f"{megabytes:.1f}"]
        lines.setdefault(tuple(cells), []).append(r["backend"])
    return results.table(header, [[*cells[:2], ", ".join(found), *cells[2:]] for cells, found in lines.items()])


def _collectives(found: dict[str, list[int]]) -> str:
    return ", ".join(f"{count} {kind} of {size / 1e6:.2f} MB" for kind, (count, size) in found.items()) or "-"


def accelerators() -> str:
    """All of them."""
    return "\n\n".join(table(name) for name in NAMES)


def purposes() -> str:
    """What the kernels of a step with n = 1 are for, on one H100."""
    result = results.read("accelerators_h100")
    if result is None:
        return "not run"
    of = {r["network"]: r["purposes"] for r in result["rows"] if r["chips"] == 1 and r["variant"] == "n = 1"}
    names = dict.fromkeys(name for found in of.values() for name in found)
    lines = [[name, *(str(found.get(name, 0)) for found in of.values())] for name in names]
    lines.append(["all", *(str(sum(found.values())) for found in of.values())])
    return results.table(["kernels of a step with n = 1 on one H100", *of], lines)


TABLES = {"accelerators": accelerators, "purposes": purposes}
