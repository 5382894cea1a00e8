"""Relatives of the Jacobian penalty, one function each: same f, [B, ...] -> [B, ...], rows independent; [B] out.

Costs count whole steps in units of the plain one, as 1 + n does for n projections. Add (coefficient / 2) times the mean
over the batch to the loss; `penalties.of(function, ...)` does. Unless said otherwise, x and f(x) may be pytrees.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jacreg_jax import checks
from jacreg_jax.explicit_axes import entry
from jacreg_jax.jacobian import exact_frobenius_sq, projected_frobenius_sq
from jacreg_jax.keys import normal_like, sample_keys
from jacreg_jax.probes import sample_probes
from jacreg_jax.programs import once
from jacreg_jax.rows import Rows, at_least_float32, batch_size, sum_abs, sum_sq, times
from jacreg_jax.types import Array, Float, Function, Int, PyTree

_folded = jax.vmap(jax.random.fold_in, (0, None))  # a key of each row, and a number


@entry
def input_gradient_penalty(
    f: Function, x: PyTree, y: Int[Array, "B *T"], *, norm: Literal["l2", "l1"] = "l2"
) -> Float[Array, " B"]:
    """||d cross-entropy / dx||_2^2 ("l2", double backpropagation) or ||.||_1 ("l1"); cost 2.

    "l1" is the dual of L-infinity attacks and works with smooth activations only (Rodriguez-Munoz et al.).

    Args:
        f: batched function to logits [B, ..., C].
        x: float array or pytree of arrays [B, ...].
        y: integer labels, of the logits' leading shape [B, ...]: of positions the cross-entropies are summed, without
            those of label -1.
        norm: "l2" or "l1".

    Returns:
        [B].

    Raises:
        TypeError: x or y of another type.
        ValueError: unknown norm; y of another shape, or concrete labels outside of [0, C).

    Example:
        >>> f = lambda x: x @ jnp.eye(3)
        >>> input_gradient_penalty(f, jnp.zeros((1, 3)), jnp.asarray([0])).round(4)  # (2/3)^2 + 2 (1/3)^2
        Array([0.6667], dtype=float32)

    References: Drucker, LeCun (1992); Rodriguez-Munoz, Wang, Torralba (2024), https://arxiv.org/abs/2409.20139.
    """
    checks.function("f", f)
    checks.one_of("norm", norm, ("l2", "l1"))
    batch, logits = batch_size(x), jax.eval_shape(f, x)
    checks.class_logits(logits, batch)
    y = checks.labels(y, logits.shape[:-1], logits.shape[-1], masked=True)

    def loss(x: PyTree) -> Array:
        z = f(x)
        log_p = jax.nn.log_softmax(z.astype(at_least_float32(z.dtype)))
        return -jnp.sum(jnp.where(y >= 0, jnp.take_along_axis(log_p, y[..., None], axis=-1)[..., 0], 0))

    gradient = jax.grad(loss)(x)
    return sum_sq(gradient) if norm == "l2" else sum_abs(gradient)


@entry
def noise_consistency(f: Function, x: PyTree, key: jax.Array, *, sigma: float) -> Float[Array, " B"]:
    """||f(x + sigma u) - f(x)||^2 / sigma^2 with u ~ N(0, 1); cost 2.

    Its mean is ||J||_F^2 + O(sigma^2) for smooth f. It also sees the motion of kinks, which gradients of differentiated
    Jacobians miss: those of a bias of ReLU networks are exactly zero. Half precision rounds a small sigma away: keep x
    in float32, cast inside of f, and take a tenth of the size of x.

    Args:
        f: batched function.
        x: float array or pytree of arrays [B, ...].
        key: typed key, or B of them.
        sigma: standard deviation, in the units of x.

    Returns:
        [B].

    Raises:
        TypeError: x is not real floating point; key is not a typed key.
        ValueError: sigma not above 0.

    Example:
        >>> noise_consistency(lambda x: 3 * x, jnp.zeros((2, 4)), jax.random.key(0), sigma=0.1).shape
        (2,)

    References: Zheng et al. (2016), https://arxiv.org/abs/1604.04326; Bishop (1995).
    """
    checks.function("f", f)
    checks.positive("sigma", sigma)
    keys = sample_keys(key, batch_size(x))
    leaves, treedef = jax.tree.flatten(x)
    own = [keys] if len(leaves) == 1 else [_folded(keys, i) for i in range(len(leaves))]
    noisy = [leaf + sigma * normal_like(k, leaf) for k, leaf in zip(own, leaves, strict=True)]
    difference = jax.tree.map(jnp.subtract, f(jax.tree.unflatten(treedef, noisy)), f(x))
    return sum_sq(difference) / sigma**2


@entry
def first_order_frobenius_sq(f: Function, x: PyTree, key: jax.Array, *, step: float = 0.01) -> Float[Array, " B"]:
    """<v, f(x + h g) - f(x - h g)> / (2 h), g = stop_gradient(J^T v): ||J^T v||^2 without double backward; cost 2.7.

    Value and gradient are those of ||J^T v||^2 up to O(h^2) for smooth f; not for ReLU networks. In bfloat16: step=0.1.

    Args:
        f: batched function.
        x: float array or pytree of arrays [B, ...].
        key: typed key, or B of them; v = sqrt(C) times a unit vector.
        step: length of h g, in the units of x.

    Returns:
        [B]: value ||J^T v||^2 and the gradient of it.

    Raises:
        TypeError: x or f(x) is not real floating point; key is not a typed key.
        ValueError: step not above 0.

    Example:
        >>> f, x, key = lambda x: 3 * x, jnp.zeros((2, 4)), jax.random.key(0)
        >>> first_order_frobenius_sq(f, x, key).round(2)
        Array([36., 36.], dtype=float32)
    """
    checks.function("f", f)
    checks.positive("step", step)
    batch = batch_size(x)
    constant, held = jax.closure_convert(f, x)  # parameters are held too: the kernel's backward is not differentiated
    z, vjp = jax.vjp(lambda x: constant(x, *jax.lax.stop_gradient(held)), jax.lax.stop_gradient(x))
    outputs = Rows(z, "f(x)", batch=batch)
    v = sample_probes(key, outputs.batch, outputs.size, 1, "sphere")[:, 0]
    g = vjp(outputs.unravel(v))[0]
    length = jnp.sqrt(sum_sq(g))
    h = jnp.where(length > 0, step / jnp.where(length > 0, length, 1), 1.0)
    ahead, behind = (f(jax.tree.map(jnp.add, x, times(sign * h, g))) for sign in (1, -1))
    directional = jnp.sum(v * outputs.ravel(jax.tree.map(jnp.subtract, ahead, behind)), axis=1) / (2 * h)  # <v, J g>
    return 2 * directional - jax.lax.stop_gradient(directional)


@once
def spectral_norm_sq(f: Function, x: PyTree, key: jax.Array, *, num_iterations: int = 5) -> Float[Array, " B"]:
    """sigma_max(J)^2 by power iteration on J J^T, the vector held fixed in the gradient; cost 2 + 2 k / 3.

    A lower bound that rises with num_iterations.

    Args:
        f: batched function.
        x: float array or pytree of arrays [B, ...].
        key: typed key, or B of them, for the first vector.
        num_iterations: k.

    Returns:
        [B].

    Raises:
        TypeError: x or f(x) is not real floating point; key is not a typed key.
        ValueError: num_iterations is not an integer of at least 1.

    Example:
        >>> f = lambda x: x * jnp.asarray([[1.0, 2.0, 3.0]])
        >>> spectral_norm_sq(f, jnp.zeros((1, 3)), jax.random.key(0), num_iterations=50).round(3)
        Array([9.], dtype=float32)

    Reference: Johansson et al. (2022), https://arxiv.org/abs/2206.13581.
    """
    checks.function("f", f)
    checks.count("num_iterations", num_iterations)
    batch, fixed, (z, vjp) = batch_size(x), jax.lax.stop_gradient(x), jax.vjp(f, x)
    outputs = Rows(z, "f(x)", batch=batch)
    unit = lambda u: u / jnp.maximum(jnp.linalg.norm(u, axis=1, keepdims=True), 1e-30)

    def iterate(_: Any, u: Array) -> Array:
        g = vjp(outputs.unravel(u))[0]
        g = times(1 / jnp.maximum(jnp.sqrt(sum_sq(g)), 1e-30), g)  # J J^T u would leave float16 where J does not
        return unit(outputs.ravel(jax.jvp(f, (fixed,), (g,))[1]).astype(u.dtype))

    start = unit(sample_probes(key, outputs.batch, outputs.size, 1, "sphere")[:, 0])
    start = start + 0 * jnp.sum(outputs.ravel(jax.lax.stop_gradient(z)), axis=1, keepdims=True).astype(start.dtype)
    u = jax.lax.stop_gradient(jax.lax.fori_loop(0, num_iterations, iterate, start))
    return sum_sq(vjp(outputs.unravel(u))[0])


@entry
def target_jacobian_sq(
    f: Function, x: Array, target: Array, key: jax.Array | None = None, *, num_projections: int | None = None
) -> Float[Array, " B"]:
    """||J - J*||_F^2 for a given J*, exact or projected; costs 1 + n.

    It is the Jacobian norm of f(x) - J* x, with J* x linear in x.

    Args:
        f: batched function to one array [B, ...].
        x: one float array [B, ...].
        target: J*, [B, ..., ...] or [..., ...]: the output's shape and the input's behind it.
        key: typed key, or B of them; needed for projections.
        num_projections: n; None for exact.

    Returns:
        [B].

    Raises:
        TypeError: x or f(x) is not one real floating point array; key is not a typed key.
        ValueError: target of another shape; num_projections below 1.

    Example:
        >>> target_jacobian_sq(lambda x: 3 * x, jnp.zeros((1, 2)), 2 * jnp.eye(2))
        Array([2.], dtype=float32)
    """
    checks.function("f", f)
    if not hasattr(x, "shape"):
        raise TypeError(f"x must be one array [B, ...], got {type(x).__name__}")
    batch_size(x)
    z = jax.eval_shape(f, x)
    if not hasattr(z, "shape"):
        raise TypeError(f"f(x) must be one array [B, ...], got {type(z).__name__}")
    shape = (*z.shape, *x.shape[1:])
    if jnp.shape(target) not in (shape, shape[1:]):
        raise ValueError(f"target must have shape {shape} or {shape[1:]}, got {jnp.shape(target)}")
    rows = jnp.broadcast_to(target, shape).reshape(len(x), -1, math.prod(x.shape[1:]))
    difference = lambda x: f(x).reshape(len(x), -1) - jnp.einsum("bci,bi->bc", rows, x.reshape(len(x), -1))
    if num_projections is None:
        return exact_frobenius_sq(difference, x)
    return projected_frobenius_sq(difference, x, key, num_projections=num_projections)  # type: ignore[arg-type]


def centred(f: Function) -> Function:
    """f with the mean over classes taken off: its Jacobian norm is (1/C) sum_{c<c'} ||J_c - J_c'||^2.

    Only differences of logits decide the class; what moves all of them together is not penalised. Free.

    Args:
        f: batched function to logits [B, ..., C].

    Returns:
        The same with logits of mean 0.

    Raises:
        TypeError: f cannot be called.
        ValueError: in a call, f(x) is not [B, ..., C].

    Example:
        >>> centred(lambda x: x)(jnp.asarray([[1.0, 3.0]]))
        Array([[-1.,  1.]], dtype=float32)
    """
    checks.function("f", f)

    def centred_f(x: PyTree) -> Array:
        z: Array = f(x)
        if jnp.ndim(z) < 2:
            raise ValueError(f"f(x) must be logits [B, ..., C], got shape {jnp.shape(z)}")
        return z - jnp.mean(z, axis=-1, keepdims=True)

    return centred_f


def layerwise_frobenius_sq(
    layers: Iterable[Function], x: PyTree, key: jax.Array, *, num_projections: int = 1
) -> Float[Array, " B"]:
    """Sum over the layers of ||J^(l)||_F^2, each with respect to its own input; cost 1 + n.

    Args:
        layers: functions [B, ...] -> [B, ...] that follow each other.
        x: float array or pytree of arrays [B, ...], input of the first.
        key: typed key, or B of them.
        num_projections: n, for each layer.

    Returns:
        [B].

    Raises:
        TypeError: layers is no sequence of functions; x or an output is not real floating point; key is no typed key.
        ValueError: no layers; num_projections below 1.

    Example:
        >>> double = lambda x: 2 * x
        >>> layerwise_frobenius_sq([double, double], jnp.zeros((1, 2)), jax.random.key(0)).round(3)
        Array([16.], dtype=float32)

    Reference: Gu, Rigazio (2014), https://arxiv.org/abs/1412.5068.
    """
    if not (layers := checks.items("layers", layers, "functions")):
        raise ValueError("layers must hold at least one function, got none")
    for i, layer in enumerate(layers):
        checks.function(f"layers[{i}]", layer)
    total: Any = 0.0
    for i, layer in enumerate(layers):
        keys = _folded(sample_keys(key, batch_size(x)), i)
        total = total + projected_frobenius_sq(layer, x, keys, num_projections=num_projections)
        x = layer(x)
    return total
