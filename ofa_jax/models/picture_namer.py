"""The image front with one linear layer on top, which names what every patch shows. Only the front is of use afterwards."""

from __future__ import annotations

import jax
from flax import nnx

from ofa_jax.config.schema import ModelConfig, VocabConfig
from ofa_jax.models.layers import Linear, draw_params
from ofa_jax.models.precision import Policy, policy
from ofa_jax.models.resnet import ResNet, Stats, normalise_images


class PictureNamer(nnx.Module):
    """Pictures in, scores of every text piece for every patch out; `resnet` is laid out as in `OFA`."""

    def __init__(self, config: ModelConfig, vocab: VocabConfig, *, policy: Policy):
        self.resnet = ResNet(config, policy=policy)
        self.head = Linear(config.resnet.out_channels, vocab.num_text, ("channels_in", "words"), std=config.init_std, policy=policy)
        self.pixel_scale, self.policy = config.pixel_scale, policy

    def __call__(self, images: jax.Array, *, stats: Stats, train: bool, key: jax.Array | None = None) -> tuple[jax.Array, Stats]:
        """images uint8 [R, height, width, 3] -> (scores [R, P, num_text] in `policy.accum`, patches row by row, and new statistics)."""
        pixels = normalise_images(images, None, scale=self.pixel_scale, accum=self.policy.accum)
        features, new_stats = self.resnet(pixels, stats=stats, train=train, key=key)
        features = features.reshape(features.shape[0], -1, features.shape[-1])
        return self.head(features).astype(self.policy.accum), new_stats


def create(model: ModelConfig, vocab: VocabConfig, key: jax.Array, *, precision: str = "f32") -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the structure and freshly drawn parameters; works under `jax.eval_shape` for the second."""
    graphdef, params = nnx.split(PictureNamer(model, vocab, policy=policy(precision)))
    return graphdef, draw_params(params, key)
