"""Pictures that a model makes of codes, as evaluation draws, ranks and judges them.

A set of a task of codes is teacher-forced, and beside that generated: greedily, or as a setting of `eval.decode` that names the task says
(OFA draws 24 samples a text and keeps the one that CLIP likes best, paper section 4.2.3). What is generated is judged by what the config
brings (`eval.pictures`): a user's networks, as FID, the Inception score and CLIP's score need them, and a run of ours that captions.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ofa_jax.config.decoding import GREEDY, DecodeSetting
from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import PictureJudgesConfig, RunConfig, SourceConfig
from ofa_jax.data.pictures import decode_picture
from ofa_jax.data.records import ImageRecord, RecordSource
from ofa_jax.eval.codec import PictureCodec, pictures_of
from ofa_jax.eval.collect import Examples
from ofa_jax.eval.instruct import Instructor, Request
from ofa_jax.eval.networks import Network
from ofa_jax.eval.predict import Decoded, Predictor
from ofa_jax.eval.rank import NamedScorer, ranked
from ofa_jax.eval.shares import gather_shares, own_share
from ofa_jax.metrics.bootstrap import interval_95
from ofa_jax.metrics.cider import cider
from ofa_jax.metrics.clip_score import clip_score
from ofa_jax.metrics.fid import FeatureStatistics, feature_statistics, frechet_distance, read_statistics
from ofa_jax.metrics.inception_score import inception_score
from ofa_jax.metrics.measured import Measured
from ofa_jax.tasks.captioning import INSTRUCTION
from ofa_jax.vocab.tokenizer import Tokenizer

_READ = 1_000  # records at once
_SHUFFLE_SEED = 0


def generate(
    predictor: Predictor,
    examples: Examples,
    setting: DecodeSetting | None,
    *,
    config: RunConfig,
    codec: PictureCodec | None,
    tokenizer: Tokenizer,
) -> list[np.ndarray]:
    """Returns the ids of every example's codes, int32 [codes], generated without seeing a true one; the scorer's best of several.

    setting: None is greedy. On several hosts all call it, each generates its share, and all get all. Raises DataError where a scorer is
    to see pictures and nothing draws codes.
    """
    mine = own_share(examples)
    setting = setting or GREEDY
    found = predictor.generate(mine, setting) if mine.examples else Decoded([], np.zeros(0))
    if setting.scorer and mine.examples:
        found = ranked(mine, found, NamedScorer.load(setting.scorer), vocab=config.vocab, tokenizer=tokenizer, codec=codec)
    return gather_shares(found.ids, {}, total=len(examples.examples))[0]


def load_judges(judges: PictureJudgesConfig) -> list[str]:
    """Loads what `eval.pictures` names, and returns a digest of each network's file and the place of the captioning checkpoint.

    Called before anything is decoded: that a file or run is missing is found then. Raises ConfigError, DataError or CheckpointError.
    """
    networks = {name: getattr(judges, name) for name in ("features", "probabilities", "images", "texts")}
    found = [Network.load(spec, flag=f"eval.pictures.{name}").digest() for name, spec in networks.items() if spec]
    if judges.real:
        read_statistics(Path(judges.real))
        found.append(hashlib.sha256(Path(judges.real).read_bytes()).hexdigest())
    return found + ([_captioner(judges.captioner).source] if judges.captioner else [])


class PictureJudge:
    """Judges generated pictures by what `eval.pictures` names. The captioning run is loaded once."""

    def __init__(self, config: RunConfig, *, open_source: Callable[[SourceConfig], RecordSource], codec: PictureCodec | None):
        self._judges: PictureJudgesConfig = config.eval.pictures
        self._config, self._open_source, self._codec = config, open_source, codec

    def __call__(self, examples: Examples, codes: Sequence[Sequence[int]]) -> dict[str, dict[str, Any]]:
        """Returns rows as `scoring.score_set` gives them: "caption_cider", "clip_score", "inception_score" and "fid", as far as asked for.

        codes: of every example, -1 where the model said none. The baseline of what compares with texts is the same pictures with each
        other's texts, that of the others pictures of codes drawn at random. fid has no interval: it is no mean over pictures.
        Raises DataError where nothing draws codes.
        """
        judges, found = self._judges, {}
        if not any((judges.captioner, judges.features, judges.probabilities, judges.images)):
            return {}
        codec = self._codec
        if codec is None:
            raise DataError(f"{self._config.data.dir}: found neither vqgan.npz nor codebook.npz, expected one for eval.pictures")
        pictures = pictures_of(np.asarray(codes), codec)
        draw = np.random.Generator(np.random.Philox(key=_SHUFFLE_SEED))
        other = _derangement(len(pictures), draw)
        texts = [example.item.caption for example in examples.examples]
        records = [example.record.record_id for example in examples.examples]
        row = functools.partial(_row, records=records, num_samples=self._config.eval.bootstrap_samples)
        others = "the same pictures with each other's texts"
        if judges.captioner:
            said = self._captions(pictures)
            references = [[caption.text for caption in example.record.captions] for example in examples.examples]
            found["caption_cider"] = row(cider(said, references), cider(said, [references[i] for i in other]).value, others)
        if judges.images:
            shown = Network.load(judges.images, flag="eval.pictures.images").of_pictures(pictures)
            read = Network.load(judges.texts, flag="eval.pictures.texts").of_texts(texts, width=shown.shape[1])
            found["clip_score"] = row(clip_score(shown, read), clip_score(shown, read[other]).value, others)
        random = "pictures of codes drawn at random"
        random_codes = draw.integers(codec.num_codes, size=np.shape(codes))
        noise = pictures_of(random_codes, codec) if judges.probabilities or judges.features else pictures[:0]
        if judges.probabilities:
            network = Network.load(judges.probabilities, flag="eval.pictures.probabilities")
            found["inception_score"] = row(
                inception_score(network.of_pictures(pictures)), inception_score(network.of_pictures(noise)).value, random
            )
        if judges.features:
            network = Network.load(judges.features, flag="eval.pictures.features")
            real = self._real(examples, network, px=pictures.shape[1])
            value, naive = (frechet_distance(feature_statistics(network.of_pictures(some)), real) for some in (pictures, noise))
            about = {"baseline": naive, "baseline_name": random, "n": len(pictures), "interval_95": [None, None]}
            found["fid"] = {"value": value, **about}
        return found

    def _captions(self, pictures: np.ndarray) -> list[str]:
        written = _captioner(self._judges.captioner).predict_all([Request(INSTRUCTION, _png(picture)) for picture in pictures])
        texts = []
        for one in written:
            if isinstance(one, DataError):
                raise one
            texts.append(one.text)
        return texts

    def _real(self, examples: Examples, network: Network, *, px: int) -> FeatureStatistics:
        """Statistics of `eval.pictures.real`, or of all pictures of the set's split, each a square of `px`."""
        if self._judges.real:
            return read_statistics(Path(self._judges.real))
        [source] = examples.block.sources
        records = self._open_source(source)

        def squares() -> Iterator[np.ndarray]:
            for start in range(0, len(records), _READ):
                for record in records.read(list(range(start, min(start + _READ, len(records))))):
                    assert isinstance(record, ImageRecord)
                    yield np.asarray(Image.fromarray(decode_picture(record)).resize((px, px), Image.Resampling.LANCZOS))

        return feature_statistics(network.of_pictures(squares()))


@functools.cache
def _captioner(run: str) -> Instructor:
    return Instructor.load(run)


def _row(measured: Measured, baseline: float, baseline_name: str, *, records: Sequence[str], num_samples: int) -> dict[str, Any]:
    return {
        "value": measured.value,
        "baseline": baseline,
        "baseline_name": baseline_name,
        "n": measured.n,
        "interval_95": list(interval_95(measured, records=records, num_samples=num_samples)),
    }


def _derangement(num: int, draw: np.random.Generator) -> np.ndarray:
    """Returns an order of `num` things, int [num], in which none stays at its place (where there are two or more)."""
    order = draw.permutation(num)
    next_of = np.empty(num, int)
    next_of[order] = np.roll(order, 1)
    return next_of


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
