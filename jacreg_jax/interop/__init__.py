"""Models of any library as the pure functions that training takes: functional = from_LIBRARY(model).

``apply, params, model_state = functional``, and ``apply(params, model_state, x, key) -> (output, model_state)`` goes
into `training.classification_loss`; ``functional.predictor(params, model_state)`` is the f(x) that penalties, attacks
and evaluation take. Nothing here imports a library: each adapter needs only the one whose model it is given.
"""

from jacreg_jax.functional import Functional as Functional
from jacreg_jax.interop.equinox_module import from_equinox as from_equinox
from jacreg_jax.interop.function import bind as bind, from_function as from_function
from jacreg_jax.interop.haiku_transformed import from_haiku as from_haiku
from jacreg_jax.interop.linen_module import from_linen as from_linen
from jacreg_jax.interop.nnx_module import from_nnx as from_nnx
