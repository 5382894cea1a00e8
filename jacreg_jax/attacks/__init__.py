"""Adversarial attacks and noise as compiled loops over a batch: name(f, x, y, key, *, ...) -> AttackResult.

f takes raw pixels [B, ...] and gives logits [B, C]; the preprocessing belongs inside it, see
`datasets.Preprocessing.wrap`. All sizes and distances are in raw pixels.
"""

from jacreg_jax.attacks.fgsm import fgsm as fgsm
from jacreg_jax.attacks.noise import white_noise as white_noise
from jacreg_jax.attacks.pgd import pgd as pgd
from jacreg_jax.attacks.result import AttackResult as AttackResult
