"""The model's start with pictures alone: the image front says, in the vocabulary's own vectors, what every patch shows.

`resnet`, `embedding` and the two parts of `encoder` are laid out as in `OFA`, which takes them over. The word vectors stay as drawn,
so a picture's features move towards the words and enter the encoder as what the text of a question is made of.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from ofa_jax.config.schema import ModelConfig, VocabConfig
from ofa_jax.models.layers import Embedding, LayerNorm, Linear, draw_params, parameter
from ofa_jax.models.precision import Policy, policy
from ofa_jax.models.resnet import ResNet, Stats, normalise_images


class ImageStream(nnx.Module):
    """The encoder's path from picture features to its inputs."""

    def __init__(self, config: ModelConfig, *, policy: Policy):
        axes = ("channels_in", "width")
        self.image_proj = Linear(config.resnet.out_channels, config.width, axes, std=config.init_std, policy=policy)
        self.image_norm = LayerNorm(config.width, eps=config.layer_norm_eps, policy=policy)

    def __call__(self, features: jax.Array) -> jax.Array:
        """features [R, P, C] -> [R, P, D]; the type embedding, drawn anew in every run, is left out."""
        return self.image_norm(self.image_proj(features))


class PictureNamer(nnx.Module):
    """Pictures in, scores of every text piece for every patch out."""

    def __init__(self, config: ModelConfig, vocab: VocabConfig, *, policy: Policy):
        self.resnet = ResNet(config, policy=policy)
        self.embedding = Embedding(vocab.padded_size, config.width, ("vocab", "width"), std=config.init_std, policy=policy)
        self.encoder = ImageStream(config, policy=policy)
        self.bias = parameter((vocab.num_text,), ("vocab",), policy=policy)
        self.config, self.num_text, self.policy = config, vocab.num_text, policy

    def __call__(self, images: jax.Array, *, stats: Stats, train: bool, key: jax.Array | None = None) -> tuple[jax.Array, Stats]:
        """images uint8 [R, height, width, 3] -> (scores [R, P, num_text] in `policy.accum`, patches row by row, and new statistics).

        A score is the product with the word's vector, scaled to be sqrt(width) where both agree: enough to tell thousands of words apart.
        """
        features, new_stats = self.resnet(normalise_images(images, None, accum=self.policy.accum), stats=stats, train=train, key=key)
        patches = self.encoder(features.reshape(features.shape[0], -1, features.shape[-1]))
        words = lax.stop_gradient(self.embedding.table[: self.num_text]) / (self.config.init_std * self.config.width**0.5)
        scores = jnp.einsum("rpd,vd->rpv", patches, words.astype(patches.dtype), preferred_element_type=self.policy.accum)
        return scores + self.bias[...].astype(scores.dtype), new_stats


def create(model: ModelConfig, vocab: VocabConfig, key: jax.Array, *, precision: str = "f32") -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the structure and freshly drawn parameters; works under `jax.eval_shape` for the second."""
    graphdef, params = nnx.split(PictureNamer(model, vocab, policy=policy(precision)))
    return graphdef, draw_params(params, key)
