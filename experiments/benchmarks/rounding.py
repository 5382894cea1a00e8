"""Rounding of convolutions in float32: Toom-Cook tiles, plain sums (im2col) and XLA's own, against float64.

Command:    python -m experiments.benchmarks.rounding
Leaves:     experiments/results/benchmark_rounding_cpu.json
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from tqdm import tqdm

from experiments.benchmarks import page
from experiments.benchmarks.rows import write
from experiments.lab import stopping
from experiments.lab.options import in_paragraphs
from jacreg_jax.convolution import conv_general_dilated

NHWC = ("NHWC", "HWIO", "NHWC")
# name -> side of the image, side of the kernel; without padding the outputs lie in tiles of 4, 5 and 2
SHAPES = {"3x3, 30 -> 28": (30, 3), "3x3, 12 -> 10": (12, 3), "5x5, 14 -> 10": (14, 5)}
FORMS = {"tiles": (conv_general_dilated, None), "plain sums": (conv_general_dilated, "highest")}
FORMS |= {"XLA's own": (lax.conv_general_dilated, None)}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    batch_size: int = 16
    channels: int = 128
    seed: int = 0


def quantities(convolve, x, w, ct):
    """Value, both gradients, and the gradients of the norm of an input gradient through a curved function."""
    y, vjp = jax.vjp(convolve, x, w)
    dx, dw = vjp(ct)

    def penalty(x, w):
        z, back = jax.vjp(lambda x: jnp.sin(convolve(x, w)), x)
        return 0.5 * jnp.sum(back(ct.astype(z.dtype))[0] ** 2)

    second = jax.grad(penalty, (0, 1))(x, w)
    return {"value": y, "dx": dx, "dw": dw, "second, x": second[0], "second, w": second[1]}


def errors(shape: str, config: Config) -> list[dict]:
    """Root mean square of the error over that of the value, of every quantity by every form."""
    side, k = SHAPES[shape]
    rng = np.random.default_rng(config.seed)
    x = rng.normal(size=(config.batch_size, side, side, config.channels))
    w = rng.normal(size=(k, k, config.channels, config.channels)) / (k * np.sqrt(config.channels))
    ct = rng.normal(size=(config.batch_size, side - k + 1, side - k + 1, config.channels))

    def run(form: str, dtype):
        convolution, precision = FORMS[form]
        convolve = lambda x, w: convolution(x, w, (1, 1), "VALID", dimension_numbers=NHWC, precision=precision)
        return jax.jit(lambda *a: quantities(convolve, *a))(*(jnp.asarray(a, dtype) for a in (x, w, ct)))

    with jax.enable_x64(True):
        true = jax.tree.map(np.asarray, run("plain sums", jnp.float64))
    rows = []
    for form in FORMS:
        found = run(form, jnp.float32)
        for name, value in found.items():
            error = np.sqrt(np.mean((np.asarray(value, np.float64) - true[name]) ** 2) / np.mean(true[name] ** 2))
            rows.append({"shape": shape, "form": form, "quantity": name, "error": float(error)})
    return rows


def main(config: Config):
    """Measure every shape, print the table, write the result."""
    rows = [row for shape in tqdm(SHAPES, leave=False, disable=None) for row in errors(shape, config)]
    write("rounding_cpu", rows, config)
    print(page.rounding())


if __name__ == "__main__":
    with stopping.in_one_line("stopped; nothing is written"):
        main(tyro.cli(Config, description=in_paragraphs(__doc__)))
