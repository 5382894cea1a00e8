"""The command `jacreg`: a demonstration, a report on a model of yours, and the experiments where they are at hand.

jacreg demo                                     two perceptrons on handwritten digits, without and with the penalty
jacreg report my_module:f --data test.npz --epsilon linf=0.03 l2=0.5     how robust is it, and is that true?
jacreg experiments table1 --quick               what `python -m experiments` does, from a clone of the repository
"""

import argparse
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax.types import Array, Function, PyTree


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says; what is wrong with it is one line on stderr, and exit status 1.

    What goes wrong inside the module that `report` imports, or its function, comes with its traceback.

    Args:
        arguments: in place of those of the process.

    Example:
        >>> main(["report", "os.path:join", "--data", "missing.npz", "--epsilon", "linf=0.1"])
        Traceback (most recent call last):
        SystemExit: jacreg: --data must be an .npz file that is there, got 'missing.npz'
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["experiments"]:
        return _experiments(given[1:])
    parsed = _parser().parse_args(given)
    try:
        return parsed.do(parsed)
    except Exception as error:
        if name := getattr(error, "raised_in", None):
            raise RuntimeError(f"{name} failed") from error
        if isinstance(error, ValueError | TypeError | ImportError):
            sys.exit(f"jacreg: {error}")
        raise


def _parser() -> argparse.ArgumentParser:
    from jacreg_jax import __version__

    parser = argparse.ArgumentParser("jacreg", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--version", action="version", version=f"jacreg_jax {__version__}")
    commands = parser.add_subparsers(required=True, metavar="{demo,report,experiments}")
    shown = commands.add_parser("demo", help="without and with the penalty, on handwritten digits; under a minute")
    shown.add_argument("--steps", type=int, default=3000, help="of training, each of the two")
    shown.add_argument("--norm", type=float, default=10.0, help="the norm of the Jacobian that is asked for")
    shown.set_defaults(do=lambda parsed: print(demo(parsed.steps, parsed.norm)))
    report = commands.add_parser("report", help="`evaluation.report` of a function that you can import")
    report.add_argument("model", help="MODULE:FUNCTION, raw inputs [B, ...] -> logits [B, C]; batched")
    report.add_argument("--data", required=True, help=".npz with x [N, ...] and y [N]")
    report.add_argument("--epsilon", nargs="+", required=True, metavar="NORM=RADIUS", help="linf=8/255 l2=0.5")
    report.add_argument("--bounds", nargs=2, type=float, default=(0.0, 1.0), help="of the inputs; default 0 1")
    report.add_argument(
        "--budget", choices=("quick", "standard"), default="standard", help="quick: a first look; standard: a claim"
    )
    report.add_argument(
        "--out", type=Path, default=Path("report"), help="folder for report.json and, with matplotlib, report.png"
    )
    report.add_argument("--seed", type=int, default=0)
    report.set_defaults(do=_report)
    commands.add_parser("experiments", help="what `python -m experiments` does, in a clone of the repository")
    return parser


def _report(parsed: argparse.Namespace) -> None:
    from jacreg_jax import evaluation, reporting

    x, y = _data_of(parsed.data)
    model = _function_of(parsed.model)
    _check_folder(parsed.out)
    found = evaluation.report(
        model,
        x,
        y,
        jax.random.key(parsed.seed),
        epsilon=_radii_of(parsed.epsilon),
        bounds=tuple(parsed.bounds),
        budget=getattr(reporting, parsed.budget),
    )
    print(found)
    parsed.out.mkdir(parents=True, exist_ok=True)
    found.to_json(parsed.out / "report.json")
    drawn = importlib.util.find_spec("matplotlib") is not None
    if drawn:
        found.figure().savefig(parsed.out / "report.png", bbox_inches="tight")
    left_out = "" if drawn else "; for report.png install matplotlib"
    print(f"\nwritten to {parsed.out}: report.json{' and report.png' * drawn}{left_out}")


def _check_folder(out: Path) -> None:
    """Before the attacks run, so that nothing is lost.

    Raises:
        ValueError: out cannot be made, or written to.
    """
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"--out must be a folder that can be written, got {str(out)!r}")


def _function_of(name: str) -> Function:
    """The function of MODULE:FUNCTION; the module may lie in the working directory.

    Raises:
        ValueError: there is none of this name.
        RuntimeError: the module raised an error: its cause.
    """
    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"model must be MODULE:FUNCTION, got {name!r}: {error}") from None
    except Exception as error:
        raise RuntimeError(f"{module} cannot be imported") from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise ValueError(f"model must name a function, {name!r} is {type(found).__name__}")

    def called(*args: Any) -> Any:
        try:
            return found(*args)
        except Exception as error:  # as it is: the library has advice for some kinds
            error.raised_in = name  # type: ignore[attr-defined]
            raise

    return called


def _data_of(path: str) -> tuple[np.ndarray, np.ndarray]:
    """x [N, ...] and y [N] of an .npz.

    Raises:
        ValueError: it is missing, is none, or holds neither.
    """
    if not Path(path).is_file():
        raise ValueError(f"--data must be an .npz file that is there, got {path!r}")
    try:
        with np.load(path) as arrays:
            return arrays["x"], arrays["y"]
    except (KeyError, ValueError, OSError, AttributeError) as error:
        raise ValueError(f"--data must be an .npz with arrays x and y; {path!r}: {error}") from None


def _radii_of(words: Sequence[str]) -> dict[str, float]:
    """{"linf": 0.03} of "linf=0.03"; a radius may be a fraction, such as 8/255.

    Raises:
        ValueError: a word is no NORM=RADIUS.
    """
    try:
        return {norm: float(Fraction(radius)) for norm, radius in (word.split("=") for word in words)}
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"--epsilon must be NORM=RADIUS each, such as linf=0.03, got {' '.join(words)}") from None


def demo(steps: int = 3000, norm: float = 10.0) -> str:
    """Train a perceptron on handwritten digits without and with the penalty; a table of what it bought, and what next.

    Args:
        steps: of each training.
        norm: ||J||_F that is asked for; lambda_jr finds itself.

    Returns:
        The table.

    Raises:
        ImportError: scikit-learn, which holds the digits, is not installed.
        ValueError: steps below 1, norm not above 0.

    Example:
        >>> demo(0)
        Traceback (most recent call last):
        ValueError: steps must be an integer of at least 1, got 0
    """
    from jacreg_jax import attacks, checks, datasets, evaluation

    checks.count("steps", steps)
    checks.positive("norm", norm)
    x, y = (jnp.asarray(part) for part in datasets.load("digits", "train"))
    test, labels = datasets.load("digits", "test")
    x, test = datasets.from_uint8(x).reshape(len(x), -1), np.asarray(datasets.from_uint8(test)).reshape(len(test), -1)
    rows, key = {}, jax.random.key(0)
    for name, wanted in (("plain", None), (f"||J|| = {norm:g}", norm)):
        start = time.perf_counter()
        print(f"training and attacking: {name} ...", file=sys.stderr)
        f = jax.tree_util.Partial(_perceptron, _trained(x, y, key, steps, wanted))
        found = [evaluation.accuracy(f, test, labels)]
        for epsilon in (0.05, 0.1):
            pgd = partial(attacks.pgd, epsilon=epsilon, step_size=epsilon / 5, num_steps=20)
            found.append(1 - float(np.mean(evaluation.run_attack(pgd, f, test, labels, key).success)))
        rms = evaluation.norm_summary(evaluation.jacobian_norms(f, test))["rms"]
        rows[name] = [
            *(f"{100 * share:.1f} %" for share in found),
            f"{rms:.2f}",
            f"{time.perf_counter() - start:.0f} s",
        ]
    head = ["", "clean", "PGD 0.05", "PGD 0.1", "||J||_F", "took"]
    lines = ["".join(f"{cell:<14}" for cell in row) for row in [head, *([name, *row] for name, row in rows.items())]]
    here = "Yours: value_and_penalty(f, x, key) in your loss, then `jacreg report my_module:f --data test.npz ...`."
    return "\n".join([f"A perceptron on {len(x):,} handwritten digits, {steps:,} steps each", "", *lines, "", here])


def _perceptron(params: PyTree, x: Array) -> Array:
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def _trained(x: Array, y: Array, key: Array, steps: int, norm: float | None) -> PyTree:
    from jacreg_jax import interop, schedules, training

    first, second = jax.random.split(key)
    glorot = jax.nn.initializers.glorot_uniform()
    params = {"w1": glorot(first, (x.shape[1], 128)), "b1": jnp.zeros((1, 128))}
    params |= {"w2": glorot(second, (128, 10)), "b2": jnp.zeros((1, 10))}
    apply, params, _ = interop.from_function(_perceptron, params)
    target = None if norm is None else schedules.target_norm(norm)
    loss = training.classification_loss(apply, lambda_jr=0.0 if target is None else target)
    optimizer = training.sgd(0.05) if target is None else target.optimizer(training.sgd(0.05))
    state = training.init_state(params, optimizer, key)
    indices = jax.random.randint(key, (steps, 100), 0, len(x))
    state, _ = training.make_train_steps(loss, optimizer)(state, {"image": x, "label": y}, indices)
    return state.params


def _experiments(arguments: list[str]) -> None:
    sys.path.insert(0, "")
    if importlib.util.find_spec("experiments") is None or importlib.util.find_spec("experiments.catalogue") is None:
        sys.exit("jacreg: the experiments are no part of the package; run this inside a clone of the repository")
    sys.argv = ["jacreg experiments", *arguments]
    importlib.import_module("experiments.__main__").main()
