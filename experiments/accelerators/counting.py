"""What a compiled program holds, read from its text and its own accounts: of one device."""

import re
from typing import Any

from experiments.benchmarks.sharded import collectives

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?\S+ = (?:\([^=]*\)|\S+) ([\w-]+)\(")
KERNELS = ("fusion", "custom-call", "convolution", "dot", "reduce", "sort", "scatter")


def counts(program: Any) -> dict[str, Any]:
    """Kernels, calls of libraries, collectives by kind, arithmetic and memory; None where a compiler does not say."""
    text, cost, memory = program.as_text(), program.cost_analysis() or {}, program.memory_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    kinds = [match[1] for line in entry(text) if (match := INSTRUCTION.match(line))]
    return {
        "kernels": sum(kind in KERNELS for kind in kinds),
        "library_calls": len(re.findall(r'custom_call_target="__cudnn', text)),
        "collectives": {kind: [len(sizes), sum(sizes)] for kind, sizes in collectives(text).items()},
        "flops": cost.get("flops"),
        "bytes_moved": cost.get("bytes accessed"),
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
    }


def entry(text: str) -> list[str]:
    """Lines of the program itself, without those of the computations that it calls."""
    found = re.search(r"^ENTRY .*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return found[1].splitlines() if found else []


def by_source(text: str) -> list[tuple[int, str, str]]:
    """(how many, kind, where from) of the kernels, the most frequent first; numbers of layers left out."""
    found: dict[tuple[str, str], int] = {}
    for line in entry(text):
        match = INSTRUCTION.match(line)
        if match and match[1] in KERNELS:
            source = re.search(r'op_name="([^"]*)"', line)
            key = match[1], re.sub(r"\d+", "#", source[1]) if source else ""
            found[key] = found.get(key, 0) + 1
    return sorted(((count, *key) for key, count in found.items()), reverse=True)
