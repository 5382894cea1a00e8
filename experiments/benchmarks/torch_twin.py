"""PyTorch twins: the same networks, and the training step with Algorithm 1 of the paper as its users write it.

The penalty is (C / n) sum ||J^T v||^2 by `torch.autograd.grad(create_graph=True)`, one Python iteration for each
projection, as in the reference implementation; the exact one takes the basis vectors for v.
"""

import torch
from torch import nn
from torch.nn import functional as F


def lenet() -> nn.Module:
    """LeNet', [B, 1, 28, 28]."""
    convolutions = [
        *(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.Tanh(), nn.MaxPool2d(2)),
    ]
    dense = [nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)]
    return nn.Sequential(*convolutions, nn.Flatten(), *dense)


def ddnet() -> nn.Module:
    """DDNet, [B, 3, 32, 32]."""
    layers = []
    for inputs, outputs in ((3, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3), nn.ReLU(), nn.Conv2d(outputs, outputs, 3), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Linear(3200, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    return nn.Sequential(*layers, nn.Flatten(), *dense)


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18() -> nn.Module:
    """ResNet-18 for 32x32 images, [B, 3, 32, 32]."""
    layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for stage, outputs in enumerate((64, 128, 256, 512)):
        for block in range(2):
            layers.append(Block(inputs, outputs, 2 if stage and not block else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def cnn() -> nn.Module:
    """The network of flax's first tutorial, [B, 1, 28, 28]."""
    convolutions = []
    for inputs, outputs in ((1, 32), (32, 64)):
        convolutions += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(3136, 256), nn.ReLU(), nn.Linear(256, 10))


def critic() -> nn.Module:
    """The critic of WGAN-GP, [B, 3, 32, 32]."""
    layers = []
    for inputs, outputs in ((3, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(inputs, outputs, 5, 2, 2), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4096, 1))


class Attention(nn.Module):
    """Softmax attention of all heads; `scaled_dot_product_attention` has no double backward on CPU."""

    def __init__(self, channels, heads):
        super().__init__()
        self.heads, self.split, self.join = heads, nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        """[B, T, D] -> [B, T, D]."""
        batch, tokens, channels = x.shape
        q, k, v = self.split(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        return self.join((weights @ v).transpose(1, 2).reshape(batch, tokens, channels))


class ViT(nn.Module):
    """A vision transformer for [B, 3, 32, 32]: patches of 4x4, 128 channels, 4 blocks, 4 heads."""

    def __init__(self, channels=128, depth=4, heads=4):
        super().__init__()
        self.embed, self.positions = nn.Linear(48, channels), nn.Parameter(0.02 * torch.randn(64, channels))
        norms = lambda count: nn.ModuleList(nn.LayerNorm(channels) for _ in range(count))
        self.norms = norms(2 * depth + 1)
        self.attentions = nn.ModuleList(Attention(channels, heads) for _ in range(depth))
        wide = lambda: nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(approximate="tanh"), nn.Linear(4 * channels, channels)
        )
        self.wide, self.head = nn.ModuleList(wide() for _ in range(depth)), nn.Linear(channels, 10)

    def forward(self, x):
        """Logits [B, 10]."""
        x = x.reshape(len(x), 3, 8, 4, 8, 4).permute(0, 2, 4, 3, 5, 1).reshape(len(x), 64, 48)
        x = self.embed(x) + self.positions
        for i, (attention, wide) in enumerate(zip(self.attentions, self.wide, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + wide(self.norms[2 * i + 1](x))
        return self.head(self.norms[-1](x).mean(dim=1))


MODELS = {"lenet": lenet, "ddnet": ddnet, "resnet18": resnet18, "cnn": cnn, "critic": critic, "vit": ViT}


def jacobian_penalty(x, z, num_projections) -> torch.Tensor:
    """Mean over the batch of ||J||_F^2, estimated (an integer) or exact ("exact"); Algorithm 1."""
    classes = z.shape[1]
    exact = num_projections == "exact"
    n = classes if exact else num_projections
    total = 0.0
    for i in range(n):
        if exact:
            v = torch.zeros_like(z)
            v[:, i] = 1
        else:
            v = torch.randn_like(z)
            v = v / v.norm(dim=1, keepdim=True)
        (jv,) = torch.autograd.grad(z, x, v, create_graph=True)
        total = total + (1 if exact else classes / n) * (jv**2).sum() / len(x)
    return total


def make_critic_step(model: nn.Module, weight: float = 10.0):
    """step(x, y): one SGD step with momentum on the critic's loss of WGAN-GP; y is not read."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(x, y):
        fake, u = 0.5 * x.flip(0), torch.rand(len(x), 1, 1, 1, device=x.device)
        between = (u * x + (1 - u) * fake).requires_grad_()
        (slopes,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
        norms = slopes.flatten(1).norm(dim=1)
        loss = model(fake).mean() - model(x).mean() + weight * ((norms - 1) ** 2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def make_step(model: nn.Module, penalty: dict, *, compiled: bool = False):
    """step(x, y): one SGD step with momentum on cross-entropy plus (lambda_jr / 2) penalty.

    penalty: num_projections (integer, "exact", or None for none), sample_fraction, lazy.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    forward = torch.compile(model) if compiled else model
    n, fraction, lazy = (penalty.get(k, d) for k, d in (("num_projections", None), ("sample_fraction", 1), ("lazy", 1)))
    count = 0

    def step(x, y):
        nonlocal count
        penalised = n is not None and count % lazy == 0
        count += 1
        x = x.detach().requires_grad_(penalised)
        m = max(1, round(fraction * len(x)))
        if penalised and m < len(x):
            z_part = forward(x[:m])
            z = torch.cat([z_part, forward(x[m:].detach())])
        else:
            z = z_part = forward(x)
        loss = F.cross_entropy(z, y)
        if penalised:
            part = x[:m] if m < len(x) else x
            loss = loss + 0.005 * lazy * jacobian_penalty(x, z_part, n) * (len(x) / len(part))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
