"""Convolution and max pooling whose derivatives of every order run at matmul speed on CPU; XLA's own elsewhere.

A convolution is one trilinear form in input x, kernel w and output cotangent g,

    T(x, w, g) = sum_{b,i,j,o} g[b,i,j,o] sum_{u,v,c} x[b, s i + u, s j + v, c] w[u,v,c,o],

and its three partial gradients, "output" (x, w) -> y, "input" (w, g) -> dx and "kernel" (x, g) -> dw, are closed under
differentiation: the derivative of each, in either argument and to any order, is another of the three. So one primitive
holds them all (`primitive`), and the platform picks its realisation when the program is lowered: `matmul_form` on CPU,
`lax_form` elsewhere. On CPU, XLA's own runs "input" and "kernel" of convolutions in loops, slower again inside `scan`.
"""

from jacreg_jax.convolution.conv import conv_general_dilated as conv_general_dilated
from jacreg_jax.convolution.pooling import max_pool as max_pool
