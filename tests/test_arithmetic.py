"""arithmetic.py: operations of a function, counted from its program, beside formulas and XLA's own count."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jacreg_jax import models
from jacreg_jax.arithmetic import operations
from jacreg_jax.convolution import conv_general_dilated
from jacreg_jax.shared_product import shared_product

IMAGES = jax.ShapeDtypeStruct((2, 9, 9, 4), jnp.float32)


@pytest.mark.parametrize("convolve", [lax.conv_general_dilated, conv_general_dilated], ids=["lax", "own"])
def test_a_convolution(convolve):
    """Two for each entry of the output and of the kernel that it sees; strides and the gradient as well."""
    call = lambda x, w, stride=1: convolve(x, w, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    kernel = jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.float32)
    forward = 2 * (2 * 7 * 7 * 6) * (3 * 3 * 4)
    assert operations(call, IMAGES, kernel) == pytest.approx(forward, rel=0.02)
    assert operations(lambda x, w: call(x, w, 2), IMAGES, kernel) == pytest.approx(forward * (4 * 4) / (7 * 7), rel=0.2)
    backward = operations(jax.grad(lambda x, w: call(x, w).sum(), argnums=(0, 1)), IMAGES, kernel)
    assert 1.9 * forward < backward < 3.9 * forward


def test_groups_products_loops_and_calls():
    grouped = lambda x, w: lax.conv_general_dilated(
        x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
    )
    assert operations(grouped, IMAGES, jnp.zeros((3, 3, 1, 8))) == 2 * (2 * 7 * 7 * 8) * 9
    x, w = jnp.zeros((5, 6)), jnp.zeros((6, 7))
    product = lambda x, w: x @ w
    assert operations(product, x, w) == operations(jax.jit(product), x, w) == 2 * 5 * 6 * 7
    many = lambda x, w: lax.scan(lambda c, _: (product(x, w), None), product(x, w), length=10)[0]
    assert operations(many, x, w) == 11 * 2 * 5 * 6 * 7
    assert operations(jax.vmap(product, (0, None)), jnp.zeros((3, 5, 6)), w) == 3 * 2 * 5 * 6 * 7
    assert operations(lambda x: x, x) == 0
    for gradient in (0, 1):  # and those of the primitive of pooled convolutions
        total = lambda a, p: jnp.sum(shared_product(a, p) ** 2)
        columns = jnp.zeros((6, 2, 2, 3))
        wanted = 2 * 2 * 5 * 6 * 12
        assert operations(jax.grad(total, gradient), x, columns) == pytest.approx(wanted, rel=0.2)
    assert operations(jnp.tanh, x) == 30


@pytest.mark.parametrize("network", [models.LeNet(), models.DDNet(), models.ResNet18()], ids=lambda n: type(n).__name__)
def test_networks_as_xla_counts_them(network):
    """XLA leaves out products with the padding, here a seventh of ResNet-18's."""
    shape = (1, 28, 28, 1) if isinstance(network, models.LeNet) else (1, 32, 32, 3)
    plain = {name: f for name, f in (("conv_general_dilated", lax.conv_general_dilated),) if hasattr(network, name)}
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape))
    own = operations(network.apply, variables, jnp.zeros(shape))
    lowered = jax.jit(network.clone(**plain).apply).lower(variables, jnp.zeros(shape))
    assert own == pytest.approx(lowered.cost_analysis()["flops"], rel=0.2)
