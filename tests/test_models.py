"""models/: parameter counts and layer shapes of Appendix D, initial values, and the exact Jacobian norm on each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jacreg_jax as jr
from jacreg_jax.models import MLP, DDNet, LeNet, ResNet18, eval_mode, initialize, predictor, train_mode

COUNTS = [
    (LeNet(), (28, 28, 1), 61_706),
    (DDNet(), (32, 32, 3), 1_147_978),
    (ResNet18(), (32, 32, 3), 11_173_962),
    (ResNet18(num_classes=1000, variant="imagenet"), (224, 224, 3), 11_689_512),
    (MLP(), (28, 28, 1), 784 * 200 + 200 + 200 * 200 + 200 + 2010),
]


@pytest.mark.parametrize(("module", "shape", "count"), COUNTS)
def test_parameter_counts(module, shape, count, key):
    variables = jax.eval_shape(module.init, key, jnp.zeros((2, *shape)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    logits = jax.eval_shape(module.apply, variables, jnp.zeros((2, *shape)))
    assert logits.shape[0] == 2


def kernel_shapes(module, shape, key):
    params = jax.eval_shape(module.init, key, jnp.zeros((1, *shape)))["params"]
    return [layer["kernel"].shape for layer in params.values()]


def test_layer_shapes(key):
    conv_5, lenet = (5, 5), kernel_shapes(LeNet(), (28, 28, 1), key)
    assert lenet == [(*conv_5, 1, 6), (*conv_5, 6, 16), (400, 120), (120, 84), (84, 10)]
    conv_3, ddnet = (3, 3), kernel_shapes(DDNet(), (32, 32, 3), key)
    convolutions = [(*conv_3, 3, 64), (*conv_3, 64, 64), (*conv_3, 64, 128), (*conv_3, 128, 128)]
    assert ddnet == [*convolutions, (3200, 256), (256, 256), (256, 10)]


def layer_by_layer(params, x, activation, *, convolutions, pooled_after):
    """Convolutions [padding], a pooling of 2 after some, dense layers; the activation after all but the last."""
    with_bias = lambda z, layer: z + layer["bias"].reshape((1,) * (z.ndim - 1) + (-1,))
    for i, pad in enumerate(convolutions):
        layer, pads = params[f"Conv_{i}"], ((pad, pad), (pad, pad))
        z = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = activation(with_bias(z, layer))
        x = nn.max_pool(x, (2, 2), (2, 2)) if i in pooled_after else x
    x = x.reshape(len(x), -1)
    for i in range(3):
        x = activation(x) if i else x
        x = with_bias(x @ params[f"Dense_{i}"]["kernel"], params[f"Dense_{i}"])
    return x


@pytest.mark.parametrize(
    ("module", "activation", "size", "layers"),
    [
        (LeNet(), nn.tanh, (28, 28, 1), {"convolutions": (2, 0), "pooled_after": (0, 1)}),
        (DDNet(), nn.relu, (32, 32, 3), {"convolutions": (0,) * 4, "pooled_after": (1, 3)}),
        (DDNet(activation=nn.gelu), nn.gelu, (32, 32, 3), {"convolutions": (0,) * 4, "pooled_after": (1, 3)}),
    ],
)
def test_networks_are_their_layers(module, activation, size, layers, key):
    x = jax.random.normal(key, (2, *size))
    params, _ = initialize(module, key, x)
    with_biases = lambda leaf: leaf if leaf.ndim > 1 else 0.3 * jnp.cos(jnp.arange(leaf.size))
    params = jax.tree.map(with_biases, params)
    ours, by_hand = module.apply({"params": params}, x), layer_by_layer(params, x, activation, **layers)
    np.testing.assert_allclose(ours, by_hand, rtol=1e-4, atol=1e-5)


def test_mlp_is_its_layers(key):
    module, x = MLP((7, 5, 3)), jax.random.normal(key, (2, 4))
    p, _ = initialize(module, key, x)
    dense = lambda x, layer: x @ layer["kernel"] + layer["bias"][None]
    by_hand = dense(jnp.tanh(dense(jnp.tanh(dense(x, p["Dense_0"])), p["Dense_1"])), p["Dense_2"])
    np.testing.assert_allclose(module.apply({"params": p}, x), by_hand, rtol=1e-5, atol=1e-6)


def from_torch(model) -> dict:
    """The variables of our ResNet-18 that a torch twin's parameters and statistics are, by flax's names."""
    kernel = lambda conv: conv.weight.detach().numpy().transpose(2, 3, 1, 0)
    array = lambda tensor: tensor.detach().numpy()

    def named(pairs):
        params, statistics = {}, {}
        for i, (conv, norm) in enumerate(pairs):
            params[f"Conv_{i}"] = {"kernel": kernel(conv)}
            params[f"BatchNorm_{i}"] = {"scale": array(norm.weight), "bias": array(norm.bias)}
            statistics[f"BatchNorm_{i}"] = {"mean": array(norm.running_mean), "var": array(norm.running_var)}
        return params, statistics

    params, statistics = named([(model[0], model[1])])
    for number, block in enumerate(module for module in model if hasattr(module, "shortcut")):
        pairs = [(block.conv1, block.norm1), (block.conv2, block.norm2)]
        pairs += [tuple(block.shortcut)] if len(list(block.shortcut.children())) else []
        params[f"BasicBlock_{number}"], statistics[f"BasicBlock_{number}"] = named(pairs)
    params["Dense_0"] = {"kernel": array(model[-1].weight).T, "bias": array(model[-1].bias)}
    return jax.tree.map(jnp.asarray, {"params": params, "batch_stats": statistics})


@pytest.mark.parametrize(("variant", "size"), [("cifar", 16), ("imagenet", 64)])
def test_resnet_is_its_torch_twin(variant, size, torch, key):
    """With its parameters and statistics; for ImageNet the twin gets the 7x7 stem and the pooling."""
    from experiments.benchmarks.torch_twin import resnet18

    torch.manual_seed(0)
    twin = resnet18()
    if variant == "imagenet":
        stem = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        twin = torch.nn.Sequential(stem, *twin[1:3], torch.nn.MaxPool2d(3, 2, 1), *twin[3:])
    for module in twin.modules():  # what keeps a signal alive through all layers
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    x = np.array(jax.random.normal(key, (2, size, size, 3)))
    wanted = twin.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    ours = jax.jit(ResNet18(variant=variant).apply)(from_torch(twin), x)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1 * np.abs(wanted).max(), "the image decides"
    np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_initial_values(key):
    """Xavier: variance 2 / (fan_in + fan_out), zero biases. Torch: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    params, _ = initialize(LeNet(), key, jnp.zeros((1, 28, 28, 1)))
    kernel = params["Dense_0"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / 520), rtol=0.02)
    assert jnp.abs(kernel).max() <= np.sqrt(6 / 520)
    np.testing.assert_array_equal(params["Conv_0"]["bias"], 0)
    params, _ = initialize(LeNet(initialization="xavier_normal"), key, jnp.zeros((1, 28, 28, 1)))
    kernel = params["Dense_0"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / 520), rtol=0.02)
    assert jnp.abs(kernel).max() > np.sqrt(6 / 520), "a normal has no such bound"
    np.testing.assert_array_equal(params["Conv_0"]["bias"], 0)
    params, _ = initialize(LeNet(initialization="torch"), key, jnp.zeros((1, 28, 28, 1)))
    for layer, fan_in in (("Conv_1", 150), ("Dense_0", 400)):
        for leaf in params[layer].values():
            assert 0.8 / np.sqrt(fan_in) < jnp.abs(leaf).max() <= 1 / np.sqrt(fan_in)


def trained_statistics(module, shape, key, batch):
    """f in eval mode, after one train-mode pass so that BatchNorm's statistics are not the initial ones."""
    x = jax.random.normal(key, (batch, *shape))
    params, model_state = initialize(module, key, x)
    _, model_state = jax.jit(train_mode(module))(params, model_state, x, key)
    return predictor(module, params, model_state), x


@pytest.mark.parametrize(
    ("module", "shape", "batch"),
    [
        (LeNet(), (28, 28, 1), 3),
        (DDNet(), (32, 32, 3), 2),
        pytest.param(DDNet(activation=nn.gelu), (32, 32, 3), 2, marks=pytest.mark.slow),
        (MLP((20, 10)), (5, 5, 1), 3),
        pytest.param(ResNet18(), (32, 32, 3), 2, marks=pytest.mark.slow),
    ],
)
def test_exact_norm_equals_jacrev(module, shape, batch, key):
    """To 1e-5 relative in float32."""
    f, x = trained_statistics(module, shape, key, batch)
    exact = jax.jit(lambda f, x: jr.exact_frobenius_sq(f, x))(f, x)
    whole = jax.jit(jax.vmap(jax.jacrev(lambda f, s: f(s[None])[0], 1), (None, 0)))(f, x)
    np.testing.assert_allclose(exact, jnp.sum(whole**2, axis=(1, 2, 3, 4)), rtol=1e-5)


@pytest.mark.parametrize(
    ("module", "shape", "batch"),
    [
        (LeNet(), (28, 28, 1), 3),
        (MLP((20, 10)), (5, 5, 1), 3),
        pytest.param(DDNet(), (32, 32, 3), 2, marks=pytest.mark.slow),
        pytest.param(ResNet18(), (32, 32, 3), 2, marks=pytest.mark.slow),
    ],
)
def test_exact_norm_equals_jacfwd(module, shape, batch, key):
    """To 1e-5 relative in float32; the columns J e_i of jacfwd one block at a time, for memory."""
    f, x = trained_statistics(module, shape, key, batch)
    exact = jax.jit(lambda f, x: jr.exact_frobenius_sq(f, x))(f, x)
    column = lambda f, s, e: jax.jvp(lambda s: f(s[None])[0], (s,), (e.reshape(shape),))[1]
    basis = jnp.eye(int(np.prod(shape)))
    columns = jax.jit(lambda f, s: jax.lax.map(lambda e: column(f, s, e), basis, batch_size=64))
    whole = jnp.stack([columns(f, s) for s in x])
    np.testing.assert_allclose(exact, jnp.sum(whole**2, axis=(1, 2)), rtol=1e-5)


class DensePrediction(nn.Module):
    """Two outputs for every pixel."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(2, (3, 3))(nn.tanh(nn.Conv(4, (3, 3))(x)))


def test_exact_norm_of_a_dense_prediction(key):
    x = jax.random.normal(key, (2, 4, 5, 3))
    variables = DensePrediction().init(key, x)
    f = lambda x: DensePrediction().apply(variables, x)
    for jac in (jax.jacrev, jax.jacfwd):
        whole = jax.vmap(jac(lambda s: f(s[None])[0]))(x)
        np.testing.assert_allclose(jr.exact_frobenius_sq(f, x), jnp.sum(whole**2, axis=(1, 2, 3, 4, 5, 6)), rtol=1e-5)


def test_train_mode_draws_dropout_and_moves_statistics(key):
    x = jax.random.normal(key, (4, 28, 28, 1))
    module = LeNet(dropout_rate=0.5)
    params, model_state = initialize(module, key, x)
    assert model_state == {}
    train, evaluate = train_mode(module), eval_mode(module)
    first, _ = train(params, model_state, x, jax.random.key(1))
    again, _ = train(params, model_state, x, jax.random.key(1))
    other, _ = train(params, model_state, x, jax.random.key(2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    np.testing.assert_allclose(evaluate(params, model_state, x)[0], predictor(module, params)(x), rtol=1e-6)


def test_predictor_does_not_recompile_for_new_parameters(key):
    traces = []

    @jax.jit
    def logits(f, x):
        traces.append(1)
        return f(x)

    x = jnp.ones((2, 28, 28, 1))
    for seed in (1, 2):
        params, _ = initialize(LeNet(), jax.random.key(seed), x)
        logits(predictor(LeNet(), params), x)
    assert len(traces) == 1


def test_bad_options(key):
    x = jnp.zeros((1, 32, 32, 3))
    with pytest.raises(ValueError, match="variant must be 'cifar' or 'imagenet', got 'tiny'"):
        ResNet18(variant="tiny").init(key, x)
    with pytest.raises(ValueError, match="initialization must be 'xavier', 'xavier_normal' or 'torch', got 'he'"):
        DDNet(initialization="he").init(key, x)
