"""What the compiled program of a sharded training step holds: arithmetic on each device, and collectives.

    JAX_NUM_CPU_DEVICES=8 python -m experiments.benchmarks.sharded      the table of docs/scaling.md, in 15 minutes

Nothing is run: XLA counts the floating point operations of the program, and its text names the collectives.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments import RESULTS
from experiments.lab import record
from experiments.lab.problems import CIFAR10_DDNET, CIFAR10_RESNET18, MNIST_LENET
from experiments.page import results
from jacreg_jax import adversarial_training, models, penalties, sharding, training

PATH = RESULTS / "sharded_cpu.json"
DEVICES, SHARE = 8, 8  # rows of each device
KINDS = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
SIZES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1}
BACKENDS = ("jit", "shard_map", "pmap")


class Network(NamedTuple):
    """What is trained: a module, the shape of an image, and whether it has BatchNorm."""

    module: Callable[[float], Any]  # dropout rate -> module
    shape: tuple[int, ...]
    has_batch_norm: bool = False


NETWORKS = {
    "MLP": Network(lambda rate: models.MLP((256, 10)), (784,)),
    "LeNet'": Network(lambda rate: MNIST_LENET.network(rate, "xavier"), MNIST_LENET.shape),
    "DDNet": Network(lambda rate: CIFAR10_DDNET.network(rate, "xavier"), CIFAR10_DDNET.shape),
    "ResNet-18": Network(lambda rate: CIFAR10_RESNET18.network(rate, "torch"), CIFAR10_RESNET18.shape, True),
}


class Variant(NamedTuple):
    """One way to train."""

    penalty: Callable[[], Any] | None = None
    dropout_rate: float = 0.0
    wrap: Callable[[Any], Any] = lambda loss: loss
    options: dict[str, Any] = {}  # noqa: RUF012  of the loss


VARIANTS = {
    "plain": Variant(),
    "n = 1": Variant(penalties.projected),
    "exact": Variant(penalties.exact),
    "a quarter": Variant(lambda: penalties.on_part(0.25)),
    "lazy": Variant(penalties.projected, wrap=lambda loss: training.lazily(4, loss)),
    "parts": Variant(penalties.projected, wrap=lambda loss: training.in_parts(SHARE // 2, loss)),
    "dropout": Variant(penalties.projected, dropout_rate=0.5),
    "adversarial": Variant(penalties.projected, options={"perturb": adversarial_training.random_fgsm(0.01)}),
}


def step_and_arguments(network: Network, variant: Variant, mesh: Any, backend: str, rows: int) -> tuple[Any, Any, Any]:
    """(step, state, batch): the arguments as shapes alone."""
    module = network.module(variant.dropout_rate)
    penalty = variant.penalty and variant.penalty()
    if penalty is not None and network.has_batch_norm:
        penalty = penalties.of_model(models.held_statistics_mode(module), penalty)
    lambda_jr = 0.0 if penalty is None else 0.01
    loss = training.classification_loss(
        models.train_mode(module), penalty=penalty, lambda_jr=lambda_jr, **variant.options
    )
    optimizer = training.sgd(0.1)
    step = training.make_train_step(variant.wrap(loss), optimizer, mesh=mesh, backend=backend, donate=False)
    image = jax.ShapeDtypeStruct((rows, *network.shape), jnp.float32)

    def initial(key: jax.Array) -> training.TrainState:
        params, model_state = models.initialize(module, key, jnp.zeros((1, *network.shape)))
        return training.init_state(params, optimizer, key, model_state)

    state = jax.eval_shape(initial, jax.random.key(0))
    return step, state, {"image": image, "label": jax.ShapeDtypeStruct((rows,), jnp.int32)}


def compiled(network: Network, variant: Variant, mesh: Any, backend: str, rows: int) -> Any:
    """The compiled step."""
    step, state, batch = step_and_arguments(network, variant, mesh, backend, rows)
    return step.lower(state, batch).compile()


def collectives(text: str) -> dict[str, list[int]]:
    """{kind: bytes of each} in the text of a compiled program; those that do not occur are left out."""
    found: dict[str, list[int]] = {}
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(", line)
        if match:
            found.setdefault(match[2], []).append(_bytes(match[1]))
    return found


def _bytes(shapes: str) -> int:
    total = 0
    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
        size = SIZES.get(dtype, 0)
        for dim in filter(None, dims.split(",")):
            size *= int(dim)
        total += size
    return total


def count(program: Any) -> dict[str, Any]:
    """What one device does in a call of the program."""
    cost = program.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return {"flops": cost["flops"], "collectives": collectives(program.as_text())}


def rows_of(network: str, backends: tuple[str, ...] = BACKENDS, variants: tuple[str, ...] = ()) -> Iterator[dict]:
    """A row for each way to train and each backend: FLOPs over those of one device on its share, and collectives."""
    mesh = sharding.data_mesh(jax.devices()[:DEVICES])
    for name in variants or VARIANTS:
        alone = count(compiled(NETWORKS[network], VARIANTS[name], None, "jit", SHARE))
        for backend in backends:
            found = count(compiled(NETWORKS[network], VARIANTS[name], mesh, backend, SHARE * DEVICES))
            yield {
                "network": network,
                "variant": name,
                "backend": backend,
                "flops": found["flops"],
                "flops_alone": alone["flops"],
                "collectives": found["collectives"],
            }


def main() -> None:
    """Compile all, and write the result."""
    found = []
    for network in NETWORKS:
        for row in rows_of(network):
            kinds = {kind: len(each) for kind, each in row["collectives"].items()}
            print(f"{network}, {row['variant']}, {row['backend']}: {row['flops'] / row['flops_alone']:.3f}, {kinds}")
            found.append(row)
    config = {"devices": DEVICES, "rows_of_each_device": SHARE, "command": "python -m experiments.benchmarks.sharded"}
    record.write_json(PATH, {"config": config, "rows": found, "environment": record.environment()})


def table() -> str:
    """FLOPs over those of one device on its share, and the all-reduces of each step."""
    if not PATH.exists():
        return "not run"
    found = record.read_json(PATH)["rows"]
    cell = {(r["network"], r["variant"], r["backend"]): r for r in found}
    lines = []
    for network in NETWORKS:
        for variant in VARIANTS:
            rows = [cell.get((network, variant, backend)) for backend in BACKENDS]
            lines.append([f"{network}, {variant}", *map(_shown, rows), _bytes_of(rows[0])])
    return results.table(["", *BACKENDS, "MB summed"], lines)


def _shown(row: dict | None) -> str:
    if row is None:
        return "not run"
    kinds = ", ".join(f"{len(each)} {kind}" for kind, each in row["collectives"].items())
    return f"{row['flops'] / row['flops_alone']:.2f}; {kinds}"


def _bytes_of(row: dict | None) -> str:
    return "" if row is None else f"{sum(map(sum, row['collectives'].values())) / 1e6:.2f}"


TABLES = {"sharded": table}

if __name__ == "__main__":
    if len(jax.devices()) < DEVICES:
        raise SystemExit(f"{DEVICES} devices are needed; on CPU, JAX_NUM_CPU_DEVICES={DEVICES}")
    main()
