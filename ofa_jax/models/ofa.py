"""The OFA model: pictures and text in, token logits out. A pure function of (params, stats, inputs, key).

    graphdef, params = create(config.model, config.vocab, key, precision="f32")       # once, outside jit; works under jax.eval_shape
    model = nnx.merge(graphdef, params)                                               # inside jit

The modules hold parameters only; running statistics, keys and caches are arguments and results.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ofa_jax.config.schema import PAD_ID, ModelConfig, VocabConfig
from ofa_jax.models import resnet
from ofa_jax.models.decoder import CodeRows, Decoded, Decoder
from ofa_jax.models.encoder import Encoded, Encoder
from ofa_jax.models.layers import Embedding, draw_params, tied_logits
from ofa_jax.models.precision import Policy, policy
from ofa_jax.models.resnet import ResNet, Stats, normalise_images
from ofa_jax.parallel import layout

# Added to the logits of rows that only pad the vocabulary matrix: their probability is exactly 0 and no infinity enters the loss.
NEVER = -1e30


class OFA(nnx.Module):
    """Encoder, decoder, picture network and the one vocabulary matrix that serves both inputs and the output.

    What `config.without` names is not there: neither parameters nor running statistics.
    """

    def __init__(self, config: ModelConfig, vocab: VocabConfig, *, policy: Policy):
        self.embedding = Embedding(vocab.padded_size, config.width, ("vocab", "width"), std=config.init_std, policy=policy)
        if config.reads_pictures:
            self.resnet = ResNet(config, policy=policy)
        self.encoder = Encoder(config, policy=policy)
        self.decoder = Decoder(config, policy=policy)
        self.config, self.vocab, self.policy = config, vocab, policy

    @jax.named_scope("resnet")
    def embed_images(
        self, images: jax.Array, hole_mask: jax.Array | None, *, stats: Stats, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, Stats]:
        """Returns the features of pictures and the batch-norm statistics to keep.

        Args:
          images: uint8 [R, height, width, 3], RGB; normalised here as `ModelConfig.pixel_scale` says.
          hole_mask: bool [R] or None; True cuts the central half-side square out after normalisation.
          stats: running statistics (`init_stats`); they come back unchanged unless `train` and `image_norm` is "batch".
          train: use the statistics of this batch.

        Returns:
          Features [R, P, C] in the compute dtype, patches row by row, and the new statistics.

        Raises:
          ValueError: the model is without pictures.
        """
        if not self.config.reads_pictures:
            raise ValueError("images: found some for a model with model.without=pictures, expected none")
        pixels = normalise_images(images, hole_mask, scale=self.config.pixel_scale, accum=self.policy.accum)
        features, new_stats = self.resnet(pixels, stats=stats, train=train, key=key)
        return features.reshape(features.shape[0], -1, features.shape[-1]), new_stats

    @jax.named_scope("embedding")
    def embed(self, ids: jax.Array) -> jax.Array:
        """ids int [Q, S] -> their rows of the vocabulary matrix, [Q, S, D] in the compute dtype."""
        return layout.look_up(self.embedding.table[...], ids).astype(self.policy.compute)

    def encode(
        self,
        source_ids: jax.Array,
        features: jax.Array | None = None,
        patch_ids: jax.Array | None = None,
        image_mask: jax.Array | None = None,
        key: jax.Array | None = None,
        grid: tuple[int, int] | None = None,
        keep_layers: bool = False,
    ) -> Encoded:
        """Returns the encoded sequences, picture first.

        Args:
          source_ids: int32 [Q, S], right-padded with PAD.
          features: [R, P, C] with Q a multiple of R (sequence q sees picture q // (Q / R)); None: no picture is encoded.
          patch_ids: int32 [Q, P'], indices of the patches each sequence keeps; None keeps all.
          image_mask: bool [Q] or [R]; False hides a row's picture.
          key: dropout and drop path; None is deterministic.
          grid: rows and columns of the patches; None: a square.
          keep_layers: also return what enters each layer (for comparisons).
        """
        if features is not None and grid is None:
            side = math.isqrt(features.shape[1])
            if side * side != features.shape[1]:
                raise ValueError(f"features: found {features.shape[1]} patches without a grid, expected a square number")
            grid = (side, side)
        embedded, text_mask = self.embed(source_ids), source_ids != PAD_ID
        with jax.named_scope("encoder"):
            return self.encoder(
                embedded, text_mask, features=features, grid=grid, patch_ids=patch_ids, image_mask=image_mask, key=key,
                keep_layers=keep_layers,
            )  # fmt: skip

    def decode(
        self,
        encoded: Encoded,
        decoder_ids: jax.Array,
        code_mask: jax.Array | None = None,
        key: jax.Array | None = None,
        code_rows: CodeRows | None = None,
    ) -> jax.Array:
        """Returns hidden states [Q, T, D]; multiply with `logits`.

        Args:
          decoder_ids: int32 [Q, T], BOS + target, right-padded with PAD.
          code_mask: bool [Q], True where the target is a grid of image codes; None: nowhere.
          code_rows: static knowledge about `code_mask`: "none", "all" or "mixed". None means "mixed" with a mask, "none" without.
        """
        rows = code_rows or ("none" if code_mask is None else "mixed")
        embedded = self.embed(decoder_ids)
        with jax.named_scope("decoder"):
            return self.decoder(embedded, decoder_ids, encoded, code_mask=code_mask, code_rows=rows, key=key)

    def decode_tree(self, encoded: Encoded, ids: jax.Array, *, places: jax.Array, sees: jax.Array, length: int) -> jax.Array:
        """Returns hidden states [Q, L, D] of text tokens `ids` int32 [Q, L] that form a tree; arguments as in `Decoder.tree`."""
        return self.decoder.tree(self.embed(ids), encoded, places=places, sees=sees, length=length)

    def trace_decode(
        self, encoded: Encoded, decoder_ids: jax.Array, code_mask: jax.Array | None = None, code_rows: CodeRows | None = None
    ) -> Decoded:
        """Returns what `decode` does, with what entered each layer and where it looked in the encoder's states (for comparisons)."""
        rows = code_rows or ("none" if code_mask is None else "mixed")
        return self.decoder.trace(self.embed(decoder_ids), decoder_ids, encoded, code_mask=code_mask, code_rows=rows)

    @jax.named_scope("logits")
    def rows_of(self, ids: np.ndarray) -> jax.Array:
        """Returns the rows [U, D] of the vocabulary matrix of the ids int [U], whole on every device."""
        return layout.all_rows_of(self.embedding.table[...], ids)

    @jax.named_scope("logits")
    def logits_among(self, hidden: jax.Array, rows: jax.Array) -> jax.Array:
        """hidden [..., D] -> logits [..., U] of some ids alone, from their `rows_of` [U, D], in `policy.accum`."""
        return tied_logits(hidden, rows, self.policy.accum)

    @jax.named_scope("logits")
    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden [..., D] -> logits [..., padded V] in `policy.accum`; rows past the vocabulary get -1e30, so probability 0.

        Where devices hold parts of the vocabulary (`layout.vocab_shards`), the logits are those of this device's part.
        """
        table = self.embedding.table[...]
        scores = tied_logits(hidden, table, self.policy.accum)
        if self.vocab.padded_size == self.vocab.size:
            return scores
        ids = layout.first_id(table.shape[0]) + np.arange(table.shape[0])
        xp = np if isinstance(ids, np.ndarray) else jnp
        return scores + xp.where(ids < self.vocab.size, 0.0, NEVER).astype(self.policy.accum)


def create(model: ModelConfig, vocab: VocabConfig, key: jax.Array, *, precision: str = "f32") -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the model's structure and its freshly drawn parameters; works under `jax.eval_shape` for the second.

    Initialisation follows the official code: N(0, 0.02) for all linear and embedding weights (the relative tables and PAD's row
    too), LayerNorm 1 and 0, head scales 1, Kaiming fan-out for convolutions.

    Raises:
      ValueError: the width does not split into heads, the filler id is outside the position table, or the precision is unknown.
    """
    if model.width % model.num_heads:
        raise ValueError(f"model.num_heads: found {model.num_heads} heads for width {model.width}, expected a divisor")
    if model.code_filler_id >= model.num_image_positions:
        raise ValueError(f"model.code_filler_id: found {model.code_filler_id}, expected less than {model.num_image_positions} position ids")
    graphdef, params = nnx.split(OFA(model, vocab, policy=policy(precision)))
    return graphdef, draw_params(params, key)


def init_stats(model: ModelConfig, *, precision: str = "f32") -> Stats:
    """Returns the running batch-norm statistics of an untrained model: nested dicts with leaves "mean" 0 and "var" 1; none without
    pictures."""
    return resnet.init_stats(model.resnet, policy(precision).accum) if model.reads_pictures else {}


def num_params(params: nnx.State, vocab: VocabConfig) -> int:
    """Returns the number of parameters, without the rows that only pad the vocabulary (arrays or ShapeDtypeStructs)."""
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    width = params["embedding"]["table"].shape[1]
    return total - (vocab.padded_size - vocab.size) * width
