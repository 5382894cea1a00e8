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
        "purposes": by_purpose(text),
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


# what a kernel is for, by what its line says of itself; the first that fits
GROUPS = {
    "convolutions of the library": r'custom_call_target="__cudnn',
    "update of the parameters": r'op_name="jit\(<lambda>\)(/shard_map)?/jit\(_where\)/|%input_transpose_fusion\S* = \(',
    "gradient norm": r'op_name="jit\(<lambda>\)(/shard_map)?/reduce_sum',
    "random numbers": r"threefry|_normal|_uniform|row_keys|random_bits",
    "matrix products": r"kind=kCustom.*op_name=\"[^\"]*/(dot_general|transpose)|custom_call_target=\"__cublas",
    "BatchNorm and what is fused with it": r"/BatchNorm_",
    "patches and pooling": r"conv_max_pool|reduce_window|select_and",
    "weights in the library's layout": r"kernel\\+'\]",
    "sums and padding of matrix products cut in parts": r'op_name="[^"]*/dot_general|pad.*kind=kLoop(?!.*op_name)',
    "loss, penalty, metrics": r"jvp\(\)|jit\(take_along",
}


def by_purpose(text: str) -> dict[str, int]:
    """How many kernels serve what, see `GROUPS`; "other" holds the rest."""
    found = dict.fromkeys([*GROUPS, "other"], 0)
    for line in entry(text):
        match = INSTRUCTION.match(line)
        if match and match[1] in KERNELS:
            found[next((group for group, pattern in GROUPS.items() if re.search(pattern, line)), "other")] += 1
    return {group: count for group, count in found.items() if count}
