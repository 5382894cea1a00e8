"""Shapes in annotations: those of jaxtyping where it is loaded, as in the tests, and plain arrays elsewhere.

jaxtyping is not imported here at run time, so that `import jacreg_jax` loads jax and flax alone.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from jax import Array as Array

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool as Bool, Float as Float, Inexact as Inexact, Int as Int, Key as Key, Shaped as Shaped
else:

    class _Plain:
        def __class_getitem__(cls, array_and_shape: tuple[Any, str]) -> Any:
            return array_and_shape[0]

    Bool = Float = Inexact = Int = Key = Shaped = _Plain

PyTree: TypeAlias = Any  # of arrays
Counter: TypeAlias = Array | int  # of a loop; an int where jit is disabled
Function: TypeAlias = Callable[..., Any]  # batched, [B, ...] -> [B, ...], parameters closed over
Apply: TypeAlias = Callable[..., Any]  # (params, model_state, x, key) -> (output, model_state)
