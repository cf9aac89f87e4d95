"""The patch discriminator of a VQGAN's training (Isola et al. 2017, arXiv 1611.07004, section 3.2.2; taming's NLayerDiscriminator).

Its norms are the VQGAN's, within one picture; the original's are over the batch. So a picture's scores do not depend on the others,
and neither devices nor micro-batches change anything.
"""

from __future__ import annotations

import jax
from flax import nnx

from ofa_jax.config.schema import VQGANConfig, VQGANLossConfig
from ofa_jax.models.precision import Policy
from ofa_jax.models.vqgan import AROUND, Convolution, GroupNorm

_SLOPE = 0.2  # of the leaky ReLU
_WIDEST = 8  # channels stop doubling at this multiple of the first


class PatchDiscriminator(nnx.Module):
    """4x4 convolutions, `discriminator_layers` of them with stride 2 and two without; every score sees one patch of the picture."""

    def __init__(self, loss: VQGANLossConfig, config: VQGANConfig, *, policy: Policy):
        self.num_inner = loss.discriminator_layers
        channels = loss.discriminator_width
        self.conv0 = Convolution(4, 3, channels, config, policy=policy, stride=2, padding=AROUND)
        for i in range(1, self.num_inner + 1):
            out = loss.discriminator_width * min(2**i, _WIDEST)
            stride = 2 if i < self.num_inner else 1
            setattr(self, f"conv{i}", Convolution(4, channels, out, config, policy=policy, stride=stride, padding=AROUND))
            setattr(self, f"norm{i}", GroupNorm(out, config, policy=policy))
            channels = out
        self.scorer = Convolution(4, channels, 1, config, policy=policy, padding=AROUND)
        self.accum = policy.accum

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """pixels [B, H, W, 3] -> scores [B, h, w] in `policy.accum`: high where a patch looks real."""
        x = jax.nn.leaky_relu(self.conv0(pixels), _SLOPE)
        for i in range(1, self.num_inner + 1):
            x = jax.nn.leaky_relu(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x), swish=False), _SLOPE)
        return self.scorer(x)[..., 0].astype(self.accum)
