"""The paper's networks in flax.linen (Appendix D): `module.apply(variables, x, train=...)`, logits out."""

from jacreg_jax.models.apply import (
    batch_statistics_mode as batch_statistics_mode,
    eval_mode as eval_mode,
    initialize as initialize,
    predictor as predictor,
    train_mode as train_mode,
)
from jacreg_jax.models.ddnet import DDNet as DDNet
from jacreg_jax.models.held import held_statistics_mode as held_statistics_mode
from jacreg_jax.models.lenet import LeNet as LeNet
from jacreg_jax.models.mlp import MLP as MLP
from jacreg_jax.models.resnet import ResNet18 as ResNet18
