"""What a training step costs: this library beside its PyTorch twin, interleaved, medians of several rounds.

Data are arguments of every step: a batch that is closed over is folded at compile time and flatters.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.benchmarks.networks import CNN, Critic, ViT, wgan_gp
from experiments.benchmarks.torch_worker import Worker
from jacreg_jax import penalties, training
from jacreg_jax.models import DDNet, LeNet, ResNet18, initialize, train_mode
from jacreg_jax.pooled_convolution import lax_conv_max_pool

MODELS = {"lenet": LeNet, "ddnet": DDNet, "resnet18": ResNet18, "cnn": CNN, "critic": Critic, "vit": ViT}
_XLA_CONV = {"conv_general_dilated": jax.lax.conv_general_dilated}
_XLA_OWN = _XLA_CONV | {"max_pool": nn.max_pool}
PLAIN_LAX = {"lenet": {"conv_max_pool": lax_conv_max_pool}, "ddnet": _XLA_OWN, "resnet18": _XLA_OWN}
PLAIN_LAX |= {"cnn": _XLA_CONV, "critic": _XLA_CONV, "vit": {}}
SHAPES = {"lenet": (28, 28, 1), "ddnet": (32, 32, 3), "resnet18": (32, 32, 3)}
SHAPES |= {"cnn": (28, 28, 1), "critic": (32, 32, 3), "vit": (32, 32, 3)}
VARIANTS = {
    "plain": {},
    "n = 1": {"num_projections": 1},
    "n = 3": {"num_projections": 3},
    "exact": {"num_projections": "exact"},
    "on a part, 1/4": {"num_projections": 1, "sample_fraction": 0.25},
    "lazily, 4": {"num_projections": 1, "lazy": 4},
    "WGAN-GP": {},  # the critic's gradient penalty
}


@dataclasses.dataclass
class Case:
    """One step to be timed: run(k) does k steps, waits for them, and returns the seconds or None for the caller's."""

    model: str
    variant: str
    framework: str
    run: object
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    granularity: int = 1  # steps are run in multiples of this: whole lazy periods, whole scans
    times: list = dataclasses.field(default_factory=list)

    def row(self) -> dict:
        """What is recorded: median and quartiles, milliseconds a step."""
        low, median, high = np.percentile(self.times, [25, 50, 75]) if self.times else [None] * 3
        row = dataclasses.asdict(dataclasses.replace(self, run=None, times=[]))
        del row["run"], row["times"], row["granularity"]
        return row | {"ms": median, "ms_low": low, "ms_high": high, "rounds": len(self.times)}


def batch_for(model: str, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch of normal images [B, H, W, C] and labels; time does not depend on the pixels."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch_size, *SHAPES[model])).astype(np.float32), rng.integers(0, 10, batch_size)


def loss_of(module, variant: str):
    """The library's loss of a variant."""
    if variant == "WGAN-GP":
        return wgan_gp(train_mode(module))
    options = VARIANTS[variant]
    n, share, period = (options.get(k, d) for k, d in (("num_projections", 1), ("sample_fraction", 1), ("lazy", 1)))
    penalty = penalties.exact() if n == "exact" else penalties.projected(n)
    penalty = penalties.on_part(share, penalty) if share < 1 else penalty
    loss = training.classification_loss(train_mode(module), penalty=penalty, lambda_jr=0.01 if options else 0.0)
    return training.lazily(period, loss) if period > 1 else loss


def jax_case(model: str, variant: str, batch_size: int, *, plain_lax: bool = False) -> Case:
    """This library's own step (`plain_lax`: with XLA's convolution and pooling as flax writes them)."""
    module = MODELS[model](**(PLAIN_LAX[model] if plain_lax else {}))
    image, label = batch_for(model, batch_size)
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label, jnp.int32)}
    params, model_state = initialize(module, jax.random.key(0), batch["image"][:1])
    optimizer = training.sgd(0.01)
    loss = loss_of(module, variant)
    state = training.init_state(params, optimizer, jax.random.key(1), model_state)
    start = time.perf_counter()
    compiled = training.make_train_step(loss, optimizer).lower(state, batch).compile()
    seconds = time.perf_counter() - start
    holder = [state]

    def run(k):
        for _ in range(k):
            holder[0], _ = compiled(holder[0], batch)
        jax.block_until_ready(holder[0])

    temporary = compiled.memory_analysis().temp_size_in_bytes
    name = "jax, lax convolutions" if plain_lax else "jacreg_jax"
    return Case(model, variant, name, run, round(seconds, 2), temporary, VARIANTS[variant].get("lazy", 1))


def scan_case(model: str, variant: str, batch_size: int, length: int) -> Case:
    """The same steps, `length` of them in one dispatch, batches gathered on the device from resident data."""
    module = MODELS[model]()
    image, label = batch_for(model, 10 * batch_size)
    data = {"image": jnp.asarray(image), "label": jnp.asarray(label, jnp.int32)}
    params, model_state = initialize(module, jax.random.key(0), data["image"][:1])
    optimizer = training.sgd(0.01)
    loss = loss_of(module, variant)
    state = training.init_state(params, optimizer, jax.random.key(1), model_state)
    indices = jnp.asarray(np.random.default_rng(1).integers(0, len(label), (length, batch_size)), jnp.int32)
    start = time.perf_counter()
    compiled = training.make_train_steps(loss, optimizer).lower(state, data, indices).compile()
    seconds = time.perf_counter() - start
    holder = [state]

    def run(k):
        for _ in range(max(1, k // length)):
            holder[0], _ = compiled(holder[0], data, indices)
        jax.block_until_ready(holder[0])

    temporary = compiled.memory_analysis().temp_size_in_bytes
    return Case(model, variant, f"jacreg_jax, scan of {length}", run, round(seconds, 2), temporary, length)


def torch_case(worker: Worker, model: str, variant: str, batch_size: int, *, compiled: bool = False) -> Case:
    """The PyTorch twin of the same step, on the device that jax uses, in the worker's process."""
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    image, label = batch_for(model, batch_size)
    image = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
    number = worker.make(model, VARIANTS[variant], compiled, device, image, label)
    name = "torch.compile" if compiled else "torch"
    run = lambda count: worker.run(number, count)
    return Case(model, variant, name, run, granularity=VARIANTS[variant].get("lazy", 1))


def measure(cases: list[Case], *, rounds: int, target_seconds: float, progress=lambda x: x) -> None:
    """Time every case once a round, in turn; a measurement takes about target_seconds and at least one granule."""
    counts = []
    for case in progress(cases):
        _seconds(case, case.granularity)  # compiles where that is lazy, warms caches
        per_granule = _seconds(case, case.granularity)
        counts.append(case.granularity * max(1, round(target_seconds / per_granule)))
    for _ in progress(range(rounds)):
        for case, count in zip(cases, counts, strict=True):
            case.times.append(1e3 * _seconds(case, count) / count)


def _seconds(case: Case, count: int) -> float:
    start = time.perf_counter()
    inner = case.run(count)
    return time.perf_counter() - start if inner is None else inner
