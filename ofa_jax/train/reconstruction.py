"""Training of a VQGAN: reconstruct pictures through the codebook, and later fool a patch discriminator (arXiv 2012.09841, section 3.1).

L = pixel_weight mean|x - y| + perceptual_weight P(x, y) + quantizer_weight Q + active lambda G, and for the discriminator, cut off from the
rest, active D, where y is the reconstruction and

- Q of the Gumbel quantiser is the divergence of each cell's code probabilities from equal ones, sum p log(p n + 1e-10); codes are drawn
  by straight-through Gumbel softmax (Jang et al. 2017, arXiv 1611.01144). Of the nearest quantiser it is |sg(h) - e|^2 + commitment
  |h - sg(e)|^2 (van den Oord et al. 2017, arXiv 1711.00937, eq. 3); the gradient passes the quantiser unchanged.
- G = -mean D(y), D's loss is the hinge 0.5 mean max(0, 1 - D(x)) + 0.5 mean max(0, 1 + D(y)).
- lambda = discriminator_weight |dR/dk| / (|dG/dk| + 1e-4), at most 1e4, k the kernel of the last layer, R the pixel and perceptual terms
  (eq. 7 of the paper; both constants are those of the released code).
- active is 0 before `discriminator_start` updates, 1 afterwards.

Both sides are updated at once from one reconstruction; the released code updates the generator first and reconstructs again.

The nearest quantiser may begin late, after `quantizer_start_fraction` of the updates: until then the decoder sees the latents h themselves
and Q is 0, and then every code is born as an output of the encoder. A codebook that is there from the start is near 0, and Q falls fastest
when everything that the encoder gives comes to be so too: the decoder of a small network then learns to say one grey.

Codes die: one that no cell takes has no gradient. Every `revive_every` updates, for three quarters of the run, codes without use since
the last time are born again: for the nearest quantiser as outputs of the encoder drawn from the batch (random restarts, Dhariwal et al.
2020, arXiv 2005.00341, section 3), for the Gumbel one as copies of often used codes, scores moved a little, so that the two share cells.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from ofa_jax.config.errors import UserError
from ofa_jax.config.schema import VQGANRunConfig
from ofa_jax.data.batch import Batch, Block
from ofa_jax.models.discriminator import PatchDiscriminator
from ofa_jax.models.layers import draw_params
from ofa_jax.models.precision import Policy, policy
from ofa_jax.models.vqgan import VQGAN, to_pixels
from ofa_jax.train.keys import REVISION_KEY, run_key
from ofa_jax.train.loss import LossReport
from ofa_jax.train.optimizer import check_named, make_optimizer
from ofa_jax.train.perceptual import load_perceptual

SETTLED = 0.75  # share of the run after which temperature and codebook are left alone
_LAMBDA_EPS, _LAMBDA_MAX = 1e-4, 1e4
_KL_EPS = 1e-10
_SPLIT_NOISE = 0.01  # of the scores' kernel where a code is born as a copy, over the kernel's own standard deviation


class Networks(nnx.Module):
    """What is trained: the VQGAN, and the discriminator where it has a weight."""

    def __init__(self, config: VQGANRunConfig, *, policy: Policy):
        self.vqgan = VQGAN(config.model, policy=policy)
        if config.loss.discriminator_weight:
            self.discriminator = PatchDiscriminator(config.loss, config.model, policy=policy)


class Quantised(NamedTuple):
    """What the quantiser makes of a batch's cells."""

    entries: jax.Array  # [B, h, w, code_width]: with the gradient of the quantiser's kind
    codes: jax.Array  # int32 [B, h, w]: the best codes, without noise
    loss: jax.Array  # float []


class Reconstruction:
    """A VQGAN and its discriminator; an `Objective`. Its statistics: `usage` [num_codes], cells of each code since the last revival;
    `candidates` [num_codes, code_width], entries for codes to be revived; `perceptual`, the weights of that loss."""

    by_rows = False  # the discriminator's weight is a quotient of gradients of the whole batch

    def __init__(self, config: VQGANRunConfig):
        self.config = config
        self.quantizer_start = round(config.loss.quantizer_start_fraction * config.steps)  # updates without it
        self.perceptual = load_perceptual(config.loss.perceptual)
        self.graphdef = jax.eval_shape(self._create, jax.random.key(0))[0]

    def _create(self, key: jax.Array) -> tuple[nnx.GraphDef, nnx.State]:
        graphdef, params = nnx.split(Networks(self.config, policy=policy(self.config.precision)))
        return graphdef, draw_params(params, key)

    def init(self, key: jax.Array) -> tuple[nnx.State, Any]:
        params, model = self._create(key)[1], self.config.model
        accum = policy(self.config.precision).accum
        stats: dict[str, Any] = {"usage": jnp.zeros((model.num_codes,), accum)}
        if model.quantizer == "nearest" and (self.config.loss.revive_every or self.quantizer_start):
            stats["candidates"] = jnp.zeros((model.num_codes, model.code_width), accum)
        weights = self.perceptual.weights()
        return params, stats | ({} if weights is None else {"perceptual": jax.tree.map(jnp.asarray, weights)})

    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        return make_optimizer(self.config.optimizer, steps=self.config.steps)

    def num_params(self, params: Any) -> int:
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))

    def num_examples(self, batch: Batch) -> int:
        return sum(len(block.elements) for block in batch.blocks.values())

    def check(self) -> None:
        """Raises `UserError` when blocks differ in picture side, as their pictures go through the network together, and for an entry of
        `optimizer.frozen` or `optimizer.trained` that names nothing."""
        first, *rest = self.config.data.blocks
        for block in rest:
            if block.image_px != first.image_px:
                found = f"data.blocks.{block.name}.image_px: found {block.image_px}"
                raise UserError(f"{found}, expected {first.image_px} as in block {first.name}")
        if self.config.optimizer.frozen or self.config.optimizer.trained:
            check_named(jax.eval_shape(self.init, jax.random.key(0))[0], self.config.optimizer)

    def check_batch(self, batch: Batch, *, num_hosts: int = 1) -> None:
        expected = [block.name for block in self.config.data.blocks]
        if list(batch.blocks) != expected:
            raise UserError(f"batch {batch.data_step}: found blocks {list(batch.blocks)}, expected {expected}")
        for config in self.config.data.blocks:
            images, shape = batch.blocks[config.name].images, (config.rows // num_hosts, config.image_px, config.image_px, 3)
            if images is None or images.shape != shape:
                found = "none" if images is None else images.shape
                raise UserError(f"batch {batch.data_step}, block {config.name}: found pictures {found}, expected {shape}")

    def counts(self, blocks: dict[str, Block]) -> dict[str, jax.Array]:
        del blocks  # the discriminator's weight is a quotient of gradients: no part of a batch has a part of the loss
        return {}

    def loss(
        self,
        params: Any,
        stats: Any,
        blocks: dict[str, Block],
        key: jax.Array | None,
        *,
        num_tasks: int,
        step: jax.Array | int = 0,
        counts: dict[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, LossReport]:
        del num_tasks, counts  # there are no tasks, and a batch is never taken in parts
        networks, config = nnx.merge(self.graphdef, params), self.config.loss
        images = jnp.concatenate([blocks[block.name].images for block in self.config.data.blocks])
        model, accum = networks.vqgan, networks.vqgan.policy.accum
        pixels = to_pixels(images, accum=accum)
        noise_key, candidate_key = (None, None) if key is None else jax.random.split(key)
        latents = model.latents(pixels)
        quantised = self._quantise(model, latents, noise_key, step)
        features = model.decoder.last_features(model.post_quantizer(quantised.entries))
        last = model.decoder.conv_out
        made = last(features).astype(accum)

        def unlike(made: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            pixel = jnp.mean(jnp.abs(pixels - made))
            perceptual = jnp.mean(self.perceptual(stats.get("perceptual"), pixels, made))
            return config.pixel_weight * pixel + config.perceptual_weight * perceptual, (pixel, perceptual)

        reconstruction, (pixel, perceptual) = unlike(made)
        total = reconstruction + config.quantizer_weight * quantised.loss
        uses = jnp.bincount(quantised.codes.ravel(), length=self.config.model.num_codes).astype(accum)
        share = uses / jnp.sum(uses)
        error = jnp.mean(jnp.square(pixels - jnp.clip(made, -1.0, 1.0)), (1, 2, 3))
        scalars = {
            "vqgan/pixel": pixel,
            "vqgan/perceptual": perceptual,
            "vqgan/quantizer": quantised.loss,
            "vqgan/psnr": jnp.mean(10.0 * jnp.log10(4.0 / jnp.maximum(error, 1e-10))),
            "vqgan/codes_used": jnp.mean(uses > 0),
            "vqgan/perplexity": jnp.exp(-jnp.sum(share * jnp.log(share + _KL_EPS))),
        }
        if config.discriminator_weight:
            terms = self._adversarial(networks, pixels, made, features, unlike, step)
            total += terms.pop("loss")
            scalars |= terms
        # Nothing was coded before the quantiser starts: all codes count as dead then.
        new = {**stats, "usage": stats["usage"] + jnp.where(step >= self.quantizer_start, uses, 0)}
        if "candidates" in stats and candidate_key is not None:
            cells = latents.reshape(-1, latents.shape[-1])
            drawn = jax.random.randint(candidate_key, (self.config.model.num_codes,), 0, cells.shape[0])
            new["candidates"] = cells[drawn].astype(accum)
        new = lax.stop_gradient(new) if key is not None else stats
        return total, LossReport(new, {}, lax.stop_gradient(scalars))

    def _quantise(self, model: VQGAN, latents: jax.Array, key: jax.Array | None, step: jax.Array | int) -> Quantised:
        scores = model.code_scores(latents)
        codes = jnp.argmax(scores, -1).astype(jnp.int32)
        table, accum = model.codebook[...].astype(model.policy.compute), model.policy.accum
        if self.config.model.quantizer == "nearest":
            entries, wide = table[codes].astype(accum), latents.astype(accum)
            pull = jnp.mean(jnp.square(wide - lax.stop_gradient(entries)))
            loss = jnp.mean(jnp.square(entries - lax.stop_gradient(wide))) + self.config.loss.commitment * pull
            started = (jnp.asarray(step) >= self.quantizer_start).astype(accum)
            return Quantised(latents + lax.stop_gradient(started * (entries - wide)).astype(latents.dtype), codes, started * loss)
        probabilities = jax.nn.softmax(scores)
        divergence = jnp.sum(probabilities * jnp.log(probabilities * self.config.model.num_codes + _KL_EPS), -1)
        if key is None:
            return Quantised(table[codes], codes, jnp.mean(divergence))
        noisy = (scores + jax.random.gumbel(key, scores.shape, scores.dtype)) / self.temperature(step)
        soft = jax.nn.softmax(noisy)
        hard = jax.nn.one_hot(jnp.argmax(noisy, -1), scores.shape[-1], dtype=soft.dtype)
        chosen = (hard + soft - lax.stop_gradient(soft)).astype(table.dtype)
        return Quantised(jnp.einsum("bhwn,nc->bhwc", chosen, table), codes, jnp.mean(divergence))

    def temperature(self, step: jax.Array | int) -> jax.Array:
        """Returns the temperature of the Gumbel softmax after `step` updates: from the first to the second value along half a cosine, over
        the first three quarters of the run."""
        first, last = self.config.loss.temperature
        done = jnp.minimum(jnp.asarray(step) / (SETTLED * self.config.steps), 1.0)
        return last + (first - last) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))

    def _adversarial(
        self, networks: Networks, pixels: jax.Array, made: jax.Array, features: jax.Array, unlike: Any, step: jax.Array | int
    ) -> dict[str, jax.Array]:
        """Returns `loss`, the terms of both sides, and the scalars to report; all 0 before the discriminator starts, and not computed."""
        graphdef, params = nnx.split(networks.discriminator)
        last, weight = networks.vqgan.decoder.conv_out, self.config.loss.discriminator_weight

        def fool(made: jax.Array) -> jax.Array:
            return -jnp.mean(nnx.merge(graphdef, lax.stop_gradient(params))(made))

        def active(made: jax.Array, features: jax.Array, params: Any) -> tuple[jax.Array, ...]:
            judge = nnx.merge(graphdef, params)
            real, false = judge(pixels), judge(lax.stop_gradient(made))
            hinge = 0.5 * (jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + false)))
            generator = fool(made)
            # Both gradients at the last kernel, from those at its output: the features are given.
            fixed, at = lax.stop_gradient(features), lax.stop_gradient(made)
            kernel_graph, kernel = nnx.split(last)
            back = jax.vjp(lambda k: nnx.merge(kernel_graph, k)(fixed), kernel)[1]

            def norm(gradient: jax.Array) -> jax.Array:
                return jnp.linalg.norm(back(gradient.astype(fixed.dtype))[0]["kernel"][...].astype(at.dtype))

            ratio = norm(jax.grad(lambda y: unlike(y)[0])(at)) / (norm(jax.grad(fool)(at)) + _LAMBDA_EPS)
            ratio = lax.stop_gradient(jnp.minimum(ratio, _LAMBDA_MAX) * weight)
            return hinge + ratio * generator, hinge, generator, ratio

        def idle(made: jax.Array, features: jax.Array, params: Any) -> tuple[jax.Array, ...]:
            return (jnp.zeros((), made.dtype),) * 4

        started = jnp.asarray(step) >= self.config.loss.discriminator_start
        loss, hinge, generator, ratio = lax.cond(started, active, idle, made, features, params)
        return {"loss": loss, "vqgan/discriminator": hinge, "vqgan/generator": generator, "vqgan/adaptive_weight": ratio}

    def revise(self, params: Any, stats: Any, *, step: jax.Array) -> tuple[Any, Any]:
        every, start = self.config.loss.revive_every, self.quantizer_start
        if not every and not start:
            return params, stats
        count = step + 1
        due = (count == start) if start else jnp.zeros((), bool)
        if every:
            due |= (count % every == 0) & (count > start) & (count <= SETTLED * self.config.steps)
        dead = due & (stats["usage"] == 0)
        vqgan = params["vqgan"]
        new = dict(vqgan)
        if self.config.model.quantizer == "nearest":
            new["codebook"] = _revised(vqgan["codebook"], dead[:, None], stats["candidates"])
        else:
            key = jax.random.fold_in(run_key(self.config.seed, REVISION_KEY), step)
            parent_key, noise_key = jax.random.split(key)
            parents = jax.random.categorical(parent_key, jnp.log(stats["usage"] + _KL_EPS), shape=dead.shape)
            kernel, bias, table = (x[...] for x in (vqgan["scorer"]["kernel"], vqgan["scorer"]["bias"], vqgan["codebook"]))
            noise = _SPLIT_NOISE * jnp.std(kernel) * jax.random.normal(noise_key, kernel.shape, kernel.dtype)
            new["scorer"] = {
                "kernel": _revised(vqgan["scorer"]["kernel"], dead, kernel[..., parents] + noise),
                "bias": _revised(vqgan["scorer"]["bias"], dead, bias[parents]),
            }
            new["codebook"] = _revised(vqgan["codebook"], dead[:, None], table[parents])
        revised = jax.tree.unflatten(jax.tree.structure(vqgan), jax.tree.leaves(new))
        return _with(params, "vqgan", revised), {**stats, "usage": jnp.where(due, 0.0, stats["usage"])}


def _revised(variable: Any, where: jax.Array, value: jax.Array) -> Any:
    return variable.replace(jnp.where(where, value.astype(variable[...].dtype), variable[...]))


def _with(params: Any, name: str, part: Any) -> Any:
    leaves = jax.tree.leaves({key: part if key == name else value for key, value in params.items()})
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
