"""Cyclopropagation: the gradient of the Jacobian penalty of a multilayer perceptron in closed form (Appendix C).

z^(0) = x, zh^(l) = W^(l) z^(l-1) + b^(l), z^(l) = sigma(zh^(l)); the last layer is the identity or activated. The
printed Eqs. 25 and 29 divide by sigma' and give 0/0 where it vanishes: for ReLU units that are off and for saturated
tanh. This is the division-free form, one probe v at a time: backward sweep d, forward sweep t, return q.

    d^(L) = v,            d^(l-1) = W^(l)^T (s'_l * d^(l))
    t^(0) = d^(0) = J^T v, u^(l) = W^(l) t^(l-1),  t^(l) = s'_l * u^(l)
    q^(l) = s'_l * (W^(l+1)^T q^(l+1)) + s''_l * u^(l) * d^(l),   the first term absent at l = L
    d/dW^(l) (1/2) ||J^T v||^2 = q^(l) z^(l-1)^T + (s'_l * d^(l)) t^(l-1)^T,   d/db^(l) = q^(l)

The return sweep is linear in u * d, so that it runs once for the sum over all probes: a probe costs three products with
each weight matrix (d, u and the second term of the gradient), where reverse over reverse needs five.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jacreg_jax import checks, deprecation
from jacreg_jax.explicit_axes import automatic, here
from jacreg_jax.probes import Probe, sample_probes
from jacreg_jax.rows import at_least_float32
from jacreg_jax.types import Array, Float

ElementWise: TypeAlias = Callable[[Array], Array]
Layer: TypeAlias = tuple[Array, Array]  # weight [n_out, n_in], bias [n_out]
Layers: TypeAlias = Sequence[Layer]


class Activation(NamedTuple):
    """sigma with its first two derivatives, element-wise.

    Example:
        >>> float(TANH.first(0.0))
        1.0
    """

    value: ElementWise
    first: ElementWise
    second: ElementWise


def activation_from(sigma: ElementWise) -> Activation:
    """The activation and its derivatives by automatic differentiation.

    Args:
        sigma: maps scalars to scalars.

    Returns:
        Activation.

    Raises:
        TypeError: sigma cannot be called.
        ValueError: sigma does not give a scalar for a scalar.

    Example:
        >>> float(activation_from(jnp.sin).first(jnp.zeros(1))[0])
        1.0
    """
    checks.function("sigma", sigma)
    shape = jax.eval_shape(sigma, jnp.zeros(())).shape
    if shape != ():
        raise ValueError(f"sigma must map a scalar to a scalar, got shape {shape}")
    first, second = jax.grad(sigma), jax.grad(jax.grad(sigma))
    everywhere = lambda f: lambda x: jax.vmap(f)(x.ravel()).reshape(x.shape)
    return Activation(everywhere(sigma), everywhere(first), everywhere(second))


_ZERO = jnp.zeros_like
IDENTITY = Activation(lambda x: x, jnp.ones_like, _ZERO)
TANH = Activation(jnp.tanh, lambda x: 1 - jnp.tanh(x) ** 2, lambda x: -2 * jnp.tanh(x) * (1 - jnp.tanh(x) ** 2))
RELU = Activation(jax.nn.relu, lambda x: (x > 0).astype(x.dtype), _ZERO)
SOFTPLUS = Activation(jax.nn.softplus, jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x))


def perceptron(
    params: Layers, x: Float[Array, "B n"], activation: Activation = TANH, *, last: Activation = IDENTITY
) -> Float[Array, "B C"]:
    """z^(L), [B, C], of weights and biases [(W [n_out, n_in], b [n_out]), ...] and x [B, n_0].

    Args:
        params: first layer first.
        x: [B, n_0].
        activation: of the hidden layers.
        last: of the last layer.

    Returns:
        [B, C].

    Raises:
        TypeError: x or a layer is no array.
        ValueError: layers that do not fit together, x that does not fit the first, or an activation of another kind.

    Example:
        >>> perceptron([(jnp.eye(2), jnp.ones(2))], jnp.zeros((1, 2)))
        Array([[1., 1.]], dtype=float32)
    """
    _check(params, x, activation=activation, last=last)
    for (weight, bias), sigma in zip(params, _activations(params, activation, last), strict=True):
        x = sigma.value(x @ weight.T + bias[None])
    return x


@automatic
def penalty_and_grad(
    params: Layers,
    x: Float[Array, "B n"],
    key: jax.Array | None = None,
    *,
    activation: Activation = TANH,
    last: Activation = IDENTITY,
    num_projections: int | None = None,
    probe: Probe = "sphere",
    chunk_size: int | None = None,
) -> tuple[Float[Array, ""], list[Layer]]:
    """Batch mean of ||J||_F^2 and its gradient in the parameters, without automatic differentiation.

    Args:
        params: [(W [n_out, n_in], b [n_out]), ...], first layer first.
        x: [B, n_0].
        key: typed key, or B of them; needed for projections.
        activation: of the hidden layers, such as `TANH`, or `activation_from(sigma)`.
        last: of the last layer; `IDENTITY` for logits.
        num_projections: n; None for the exact sum over the C basis vectors.
        probe: as in `jacobian.projected_frobenius_sq`.
        chunk_size: probes handled at once, each of which holds one activation of every layer; None: all.

    Returns:
        (penalty, gradient): a scalar, at least in float32, and a list like params. The loss takes
            (lambda_jr / 2) of both.

    Raises:
        TypeError: key is not a typed key where num_projections is given.
        ValueError: layers that do not fit together, x that does not fit the first, or an activation of another kind.

    Example:
        >>> penalty, gradient = penalty_and_grad([(2 * jnp.eye(2), jnp.zeros(2))], jnp.ones((1, 2)))
        >>> float(penalty), gradient[0][0]
        (8.0, Array([[4., 0.],
               [0., 4.]], dtype=float32))

    Reference: Hoffman, Roberts, Yaida (2019), Eqs. 17-30, in the form above.
    """
    _check(params, x, activation=activation, last=last)
    checks.optional_count("chunk_size", chunk_size)
    given = params
    wide = lambda leaf: leaf.astype(at_least_float32(leaf.dtype))  # sums in half precision would round
    params, x = jax.tree.map(wide, (list(map(tuple, params)), x))
    layers = _activations(params, activation, last)
    inputs, firsts, seconds = [], [], []
    z = x
    for (weight, bias), sigma in zip(params, layers, strict=True):
        inputs.append(z)
        before = z @ weight.T + bias[None]
        firsts.append(sigma.first(before))
        seconds.append(sigma.second(before))
        z = sigma.value(before)
    batch, classes = z.shape
    if num_projections is None:
        probes, scale = jnp.broadcast_to(jnp.eye(classes, dtype=z.dtype)[:, None], (classes, batch, classes)), 1.0
    else:
        if key is None:
            raise TypeError("key must be a typed key where num_projections is given, got None")
        probes = jnp.moveaxis(sample_probes(key, batch, classes, num_projections, probe), 1, 0).astype(z.dtype)
        scale = 1.0 / num_projections

    weights = [weight for weight, _ in params]
    penalty, outer, products = _sweeps(weights, firsts, probes, chunk_size or len(probes))
    qs = _return_sweep(weights, firsts, [s * p for s, p in zip(seconds, products, strict=True)])
    # the sweeps give the gradient of half the penalty
    scale_gradient = lambda g: 2 * scale / batch * g
    gradient = [(q.T @ z + o, q.sum(0)) for q, z, o in zip(qs, inputs, outer, strict=True)]
    as_given = lambda g, leaf: scale_gradient(g).astype(leaf.dtype)
    return scale * penalty / batch, jax.tree.map(as_given, gradient, list(map(tuple, given)))


@automatic
def cyclopropagated_penalty(
    params: Layers,
    x: Float[Array, "B n"],
    key: jax.Array | None = None,
    *,
    activation: Activation = TANH,
    last: Activation = IDENTITY,
    num_projections: int | None = None,
    probe: Probe = "sphere",
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    """Batch mean of ||J||_F^2 whose `jax.grad` in params is the closed form, by `custom_vjp`.

    It is differentiable in params alone, once.

    Args:
        params: [(W [n_out, n_in], b [n_out]), ...], first layer first.
        x: [B, n_0].
        key: typed key, or B of them; needed for projections.
        activation: of the hidden layers.
        last: of the last layer.
        num_projections: n; None for the exact sum.
        probe: as in `jacobian.projected_frobenius_sq`.
        chunk_size: probes handled at once; None: all.

    Returns:
        Scalar.

    Raises:
        TypeError, ValueError: as `penalty_and_grad`.

    Example:
        >>> float(cyclopropagated_penalty([(2 * jnp.eye(2), jnp.zeros(2))], jnp.ones((1, 2))))
        8.0
    """
    _check(params, x, activation=activation, last=last)
    both = partial(
        penalty_and_grad,
        activation=activation,
        last=last,
        num_projections=num_projections,
        probe=probe,
        chunk_size=chunk_size,
    )

    @jax.custom_vjp
    def penalty(params: Any, x: Any, key: Any) -> Any:
        return both(params, x, key)[0]

    scaled = lambda gradient, ct: (jax.tree.map(lambda g: (ct * g).astype(g.dtype), gradient), None, None)
    penalty.defvjp(here(both), here(scaled))
    return penalty(list(map(tuple, params)), x, key)


def _sweeps(weights: list[Array], firsts: list[Array], probes: Array, chunk_size: int) -> Any:
    """Sums over all probes [n, B, C] of ||J^T v||^2, of (s' * d)^T t, and of u * d, the last two by layer."""

    def sweep(v: Array) -> Any:
        depth = len(weights)
        gated: list[Any] = [None] * depth  # s'_l * d^(l)
        d: list[Any] = [None] * depth + [v]
        for i in reversed(range(depth)):
            gated[i] = firsts[i][None] * d[i + 1]
            d[i] = gated[i] @ weights[i]
        t, outer, products = d[0], [], []
        for i in range(depth):
            u = t @ weights[i].T
            outer.append(jnp.einsum("nbo,nbi->oi", gated[i], t))
            products.append(jnp.sum(u * d[i + 1], axis=0))
            t = firsts[i][None] * u
        return jnp.sum(d[0] ** 2), outer, products

    if chunk_size >= len(probes):
        return sweep(probes)
    fill = -len(probes) % chunk_size  # probes of zeros add nothing
    probes = jnp.pad(probes, ((0, fill), (0, 0), (0, 0))).reshape(-1, chunk_size, *probes.shape[1:])
    add = lambda total, v: (jax.tree.map(jnp.add, total, sweep(v)), None)
    return jax.lax.scan(add, sweep(probes[0]), probes[1:])[0]


def _return_sweep(weights: list[Array], firsts: list[Array], sources: list[Array]) -> list[Array]:
    """q^(l) summed over the probes: it is linear in them, so that one sweep does for all."""
    q = [sources[-1]]
    for i in reversed(range(len(weights) - 1)):
        q.insert(0, firsts[i] * (q[0] @ weights[i + 1]) + sources[i])
    return q


def _activations(params: Layers, activation: Activation, last: Activation) -> list[Activation]:
    return [activation] * (len(params) - 1) + [last]


def _check(params: Layers, x: Array, **activations: Activation) -> None:
    for name, sigma in activations.items():
        if not isinstance(sigma, Activation):
            got = getattr(sigma, "__name__", repr(sigma))
            raise ValueError(f"{name} must be an Activation, such as TANH or activation_from(sigma), got {got}")
    if not (hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)):
        raise TypeError(f"x must be a floating point array [B, n_0], got {getattr(x, 'dtype', type(x).__name__)}")
    if x.ndim != 2:
        raise ValueError(f"x must have shape [B, n_0], got {x.shape}")
    is_sequence = isinstance(params, list | tuple)
    if not is_sequence or not all(isinstance(layer, list | tuple) and len(layer) == 2 for layer in params):
        raise TypeError(f"params must be a list of pairs (weight, bias), got {params if is_sequence else type(params)}")
    if not params:
        raise ValueError("params must hold at least one layer, got none")
    width = x.shape[1]
    for i, (weight, bias) in enumerate(params, 1):
        if not all(hasattr(leaf, "ndim") for leaf in (weight, bias)):
            raise TypeError(f"params must hold arrays, got {type(weight).__name__} in layer {i}")
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise ValueError(
                f"params must fit x of shape {x.shape} and each other: layer {i} must have a weight [n_out, {width}] "
                f"and a bias [n_out], got {weight.shape} and {bias.shape}"
            )
        width = weight.shape[0]


penalty_and_gradient = deprecation.renamed("cyclopropagation.penalty_and_gradient", penalty_and_grad)
