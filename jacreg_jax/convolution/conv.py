"""`jax.lax.conv_general_dilated` by the primitive, where that covers it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jacreg_jax.convolution.form import NHWC, Geometry, vary_alike
from jacreg_jax.convolution.primitive import convolution_p
from jacreg_jax.explicit_layers import over_rows
from jacreg_jax.types import Array


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    """`jax.lax.conv_general_dilated` that differentiates any number of times at matmul speed on CPU.

    y[b,i,j,o] = sum_{u,v,c} x[b, s i + u, s j + v, c] w[u,v,c,o] for two spatial dimensions in NHWC / HWIO, with any
    strides and padding. Dilation, groups, other layouts and other ranks go to `jax.lax.conv_general_dilated`. In flax,
    linen and nnx: `nn.Conv(features, (3, 3), conv_general_dilated=conv_general_dilated)`. Forward and reverse mode,
    `vmap`, `scan`, jit and shard_map; the platform is that of the compiled program, so a GPU or TPU gets the plain lax
    convolution.

    On CPU, 3x3 and 5x5 kernels of stride 1, and 5x5 and 6x6 of stride 2, run in float32 from 32 channels on as
    Toom-Cook tiles, with a quarter to a third of the products and three to ten times the rounding (1e-6 to 2e-6 of the
    root mean square of a value or gradient). A precision above the default, as an argument or by
    `with jax.default_matmul_precision("highest"):` around the trace, gives plain sums of products.

    Args:
        lhs: x, [B, H, W, C].
        rhs: w, [kh, kw, C, O], of the dtype of x.
        window_strides: (s_h, s_w).
        padding: "SAME", "VALID" or ((low, high), (low, high)).
        lhs_dilation: as in lax.
        rhs_dilation: as in lax.
        dimension_numbers: as in lax; ("NHWC", "HWIO", "NHWC") is covered.
        feature_group_count: as in lax.
        batch_group_count: as in lax.
        precision: of the matmuls, as in lax; "high" and "highest" leave Toom-Cook tiles out, too.
        preferred_element_type: as in lax.
        out_sharding: as in lax, which then runs; flax.nnx hands on a None.

    Returns:
        [B, H', W', O].

    Raises:
        TypeError, ValueError: as lax does.

    Example:
        >>> x, w = jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 2))
        >>> conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")).shape
        (1, 3, 3, 2)
    """
    plain = partial(
        lax.conv_general_dilated,
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **({} if out_sharding is None else {"out_sharding": out_sharding}),
    )
    out = jax.eval_shape(plain)  # lax's own checks and messages, covered or not
    is_undilated = all(d is None or set(d) <= {1} for d in (lhs_dilation, rhs_dilation))
    is_ungrouped = feature_group_count == batch_group_count == 1
    is_plain = preferred_element_type is None and out_sharding is None
    is_covered = is_undilated and is_ungrouped and is_plain and jnp.issubdtype(out, jnp.floating)
    if not (is_covered and _is_nhwc(np.shape(lhs), np.shape(rhs), dimension_numbers) and out.size):
        return plain()
    (_, height, width, _), (kh, kw, _, _) = np.shape(lhs), np.shape(rhs)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads((height, width), (kh, kw), window_strides, padding)
    rows, columns = ((int(low), int(high)) for low, high in padding)
    strides = int(window_strides[0]), int(window_strides[1])
    geometry = Geometry((height, width), (kh, kw), strides, (rows, columns))
    if precision is None:
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return _output(jnp.asarray(lhs), jnp.asarray(rhs), geometry=geometry, precision=precision)


@over_rows(0)
def _output(lhs: Array, rhs: Array, *, geometry: Geometry, precision: Any) -> Array:
    lhs, rhs = vary_alike(lhs, rhs)
    return convolution_p.bind(lhs, rhs, result="output", geometry=geometry, precision=precision)


def _is_nhwc(lhs_shape: tuple[int, ...], rhs_shape: tuple[int, ...], dimension_numbers: Any) -> bool:
    if len(lhs_shape) != 4:
        return False
    numbers = lax.conv_dimension_numbers(lhs_shape, rhs_shape, dimension_numbers)
    return numbers == lax.conv_dimension_numbers(lhs_shape, rhs_shape, NHWC)
