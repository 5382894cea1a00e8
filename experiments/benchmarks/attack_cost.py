"""What an attack's step costs on LeNet' and DDNet: this library, foolbox on the same jitted model, and torch's peers.

Command:    python -m experiments.benchmarks --one-core --no-steps      # with all other benchmarks: make bench

Interleaved, medians of several rounds; the time of a whole run divided by its gradient steps, compilation apart. Time
does not depend on the weights, so that they are the initial ones, and every sample is attacked to the end.
"""

import time
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.torch_worker import Worker
from jacreg_jax import attacks
from jacreg_jax.models import DDNet, LeNet, initialize

TINY = 1e-6  # a ball so small that no sample is fooled and none stops early
# network -> module, shape of an image, batch size, steps
NETWORKS = {"lenet": (LeNet(), (28, 28, 1), 256, 40), "ddnet": (DDNet(), (32, 32, 3), 32, 10)}


def problem(network: str):
    """(f, x, y): the network and images in [0, 1], y what it calls them."""
    module, shape, batch_size, _ = NETWORKS[network]
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(batch_size, *shape)), jnp.float32)
    params, _ = initialize(module, jax.random.key(0), x[:1])
    f = jax.jit(lambda x: module.apply({"params": params}, x))
    return f, x, jnp.argmax(f(x), axis=1)


def ours(f, x, y, steps: int) -> dict:
    """name -> function that runs the attack once."""
    key = jax.random.key(0)
    runs = {
        "CW": partial(attacks.carlini_wagner, num_steps=steps, binary_search_steps=1),
        "DDN": partial(attacks.ddn, num_steps=steps),
        "FAB, one class": partial(attacks.fab, num_steps=steps, num_targets=1),
        "APGD": partial(attacks.apgd, num_steps=steps, epsilon=TINY),
        "Square": partial(attacks.square, num_queries=steps, epsilon=TINY),
    }
    compiled = {n: jax.jit(lambda x, y, run=run: run(f, x, y, key)).lower(x, y).compile() for n, run in runs.items()}
    return {n: lambda run=run: jax.block_until_ready(run(x, y)) for n, run in compiled.items()}


def foolboxes(f, x, y, steps: int) -> dict:
    """The same attacks of foolbox on the same jitted model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox

    model = foolbox.JAXModel(f, bounds=(0, 1))
    made = {
        "CW": foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=1, steps=steps, stepsize=0.005, initial_const=0.01, abort_early=False
        ),
        "DDN": foolbox.attacks.DDNAttack(init_epsilon=1.0, steps=steps),
    }

    def run(attack):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attack.run(model, x, foolbox.criteria.Misclassification(y))

    return {name: partial(run, attack) for name, attack in made.items()}


PEERS = {"foolbox": ("CW", "DDN"), "adv-lib": ("CW", "DDN", "APGD")}
PEERS |= {"pyautoattack": ("FAB, one class", "APGD", "Square")}


def measure(worker: Worker, network: str, *, rounds: int = 5) -> list[dict]:
    """Rows of network, attack, framework and milliseconds a step."""
    f, x, y = problem(network)
    *_, batch_size, steps = NETWORKS[network]
    cases = {("jacreg_jax", n): run for n, run in ours(f, x, y, steps).items()}
    cases |= {("foolbox, jitted model", n): run for n, run in foolboxes(f, x, y, steps).items()}
    for library, names in PEERS.items():
        for name in names:
            number = worker.make("attack", network, library, name, batch_size, steps)
            cases[f"{library}, torch", name] = partial(worker.run, number, 1)
    times = {case: [] for case in cases}
    for run in cases.values():
        run()
    for _ in range(rounds):
        for case, run in cases.items():
            start = time.perf_counter()
            inner = run()
            seconds = inner if isinstance(inner, float) else time.perf_counter() - start
            times[case].append(1e3 * seconds / steps)
    same = {"network": network, "batch_size": batch_size, "steps": steps, "rounds": rounds}
    return [{"framework": c[0], "attack": c[1], "ms": float(np.median(t))} | same for c, t in times.items()]
