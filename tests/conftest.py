"""A strict session: 8 virtual CPU devices, rank promotion raises, warnings are errors (pyproject.toml)."""

import contextlib
import gc
import inspect
import itertools
import os
import threading
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")
# the suite spends its time in compilation, which is twice as fast without LLVM's optimizations, and twice as fast again
# in one piece for each program and with the older code generator, which jaxlib 0.11 has no more
FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
FLAGS += ["--xla_cpu_use_fusion_emitters=false"] * version("jaxlib").startswith("0.10.")
if os.environ.get("JACREG_COMPILER") != "default":  # which is what users have
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).resolve().parents[1] / ".jax_cache")  # decoded datasets

import jaxtyping

import tests.typechecker  # noqa: F401  found by name

jaxtyping.install_import_hook("jacreg_jax", "tests.typechecker.checked")  # its annotations hold in the tests

import jax

if os.environ["JAX_PLATFORMS"] == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compiler, monitoring  # to choose how programs are compiled, and to count compilations
from jax._src.interpreters import mlir

ROOT = Path(__file__).resolve().parents[1]
NEIGHBOURING_DATA = ROOT.parent / "shared" / "data" / "tensorflow_datasets"
REQUIRED = os.environ.get("JACREG_REQUIRE", "").split(",")  # set by .ci/run: nothing may skip there

jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache" / "tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_numpy_rank_promotion", "raise")

_new_context, _contexts = mlir.make_ir_context, threading.local()


def _shared_context(programs=50):
    """A context of MLIR for each so many programs of a thread: making and freeing one costs as much as tracing."""
    if getattr(_contexts, "left", 0) == 0:
        _contexts.context, _contexts.left = _new_context(), programs
    _contexts.left -= 1
    return _contexts.context


mlir.make_ir_context = _shared_context

gc.set_threshold(100_000, 20, 100)  # a twentieth of the suite's time went into looking for garbage among programs


@contextlib.contextmanager
def optimized():
    """Programs first called in here take longer to compile and run faster: for tests that train for many steps."""
    plain = compiler.get_compile_options

    def options(*args, **kwargs):
        found = plain(*args, **kwargs)
        found.executable_build_options.debug_options.xla_backend_optimization_level = 3
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", options)
        yield


# for tests that penalise a BatchNorm network in train mode on purpose
TRAIN_MODE = pytest.mark.filterwarnings("ignore:the penalty is taken through statistics of the batch")


def skip_or_fail(what: str, reason: str):
    """Skip with a reason, unless JACREG_REQUIRE names what is missing."""
    if what in REQUIRED:
        pytest.fail(f"JACREG_REQUIRE names {what!r}, but {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def own_words(request):
    """Annotations out of the way in tests of wrong calls, which want the library's own words."""
    is_wrong_call = "pytest.raises" in inspect.getsource(request.function)
    jaxtyping.config.update("jaxtyping_disable", is_wrong_call)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Double precision inside one test, restored after it."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """A folder of prepared tensorflow-datasets: TFDS_DATA_DIR, or one that lies beside the checkout."""
    folder = Path(os.environ.get("TFDS_DATA_DIR") or NEIGHBOURING_DATA)
    if not (folder / "mnist").is_dir():
        skip_or_fail("data", f"no prepared MNIST in {folder}; set TFDS_DATA_DIR")
    return folder


@pytest.fixture(scope="session")
def torch():
    """The torch module with 2 threads, or a skip where it is not installed (`make peers`)."""
    try:
        import torch
    except ImportError:
        skip_or_fail("peers", "torch is not installed; run `make peers`")
    torch.set_num_threads(2)
    return torch


def mlp_params(key, sizes, dtype=jnp.float32):
    """Weights [n_out, n_in] and biases of a small multilayer perceptron."""
    params = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        w, b = jax.random.split(jax.random.fold_in(key, i))
        weight = jax.random.normal(w, (n_out, n_in), dtype) / np.sqrt(n_in)
        params.append((weight, 0.3 * jax.random.normal(b, (n_out,), dtype)))
    return params


def mlp(params, x, activation=jnp.tanh):
    """Logits [B, n_out] of the perceptron above; activation on all layers but the last."""
    for weight, bias in params[:-1]:
        x = activation(x @ weight.T + bias[None, :])
    weight, bias = params[-1]
    return x @ weight.T + bias[None, :]


@pytest.fixture
def small_mlp(key):
    """(f, x): a tanh network 12 -> 16 -> 8 -> 5 and a batch of 6."""
    params = mlp_params(key, (12, 16, 8, 5))
    x = jax.random.normal(jax.random.fold_in(key, 99), (6, 12))
    return lambda x: mlp(params, x), x


@pytest.fixture
def compilations():
    """[How many programs XLA has compiled so far]."""
    total = [0]
    listener = lambda name, *_, **__: total.__setitem__(0, total[0] + ("backend_compile" in name))
    monitoring.register_event_duration_secs_listener(listener)
    yield total
    monitoring.unregister_event_duration_listener(listener)
