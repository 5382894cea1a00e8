"""What an attack's step costs on LeNet' and 256 images: this library, foolbox on the same jitted model, torch.

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
from jacreg_jax.models import LeNet, initialize


def problem(batch_size: int):
    """(f, x, y): LeNet' and images in [0, 1], y what it calls them."""
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(batch_size, 28, 28, 1)), jnp.float32)
    params, _ = initialize(LeNet(), jax.random.key(0), x[:1])
    f = jax.jit(lambda x: LeNet().apply({"params": params}, x))
    return f, x, jnp.argmax(f(x), axis=1)


def ours(f, x, y, steps: int) -> dict:
    """name -> function that runs the attack once."""
    key = jax.random.key(0)
    runs = {
        "CW": partial(attacks.carlini_wagner, num_steps=steps, binary_search_steps=1),
        "DDN": partial(attacks.ddn, num_steps=steps),
        # a ball so small that no sample is fooled and none stops early
        "APGD": partial(attacks.apgd, num_steps=steps, epsilon=1e-6),
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


def measure(worker: Worker, *, batch_size: int = 256, steps: int = 40, rounds: int = 5) -> list[dict]:
    """Rows of attack, framework and milliseconds a step."""
    f, x, y = problem(batch_size)
    cases = {("jacreg_jax", n): run for n, run in ours(f, x, y, steps).items()}
    cases |= {("foolbox, jitted model", n): run for n, run in foolboxes(f, x, y, steps).items()}
    number = worker.make("apgd", batch_size, steps)
    cases["pyautoattack, torch", "APGD"] = lambda: worker.run(number, 1)
    times = {case: [] for case in cases}
    for run in cases.values():
        run()
    for _ in range(rounds):
        for case, run in cases.items():
            start = time.perf_counter()
            inner = run()
            seconds = inner if isinstance(inner, float) else time.perf_counter() - start
            times[case].append(1e3 * seconds / steps)
    return [{"framework": c[0], "attack": c[1], "ms": float(np.median(t)), "rounds": rounds} for c, t in times.items()]
