"""The page of a batch, from real shards: its rows are those of the pipeline's batch, boxes lie where ids say, rejects are listed."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from configs.quickstart import get_config
from configs.quickstart_vqgan import get_config as get_vqgan
from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.schema import PAD_ID, BlockConfig, RunConfig, SourceConfig
from ofa_jax.data.batch import Row, Sequence, collate, digest
from ofa_jax.data.pictures import picture_row
from ofa_jax.data.pipeline import Pipeline, row_generator
from ofa_jax.data.records import Record, open_records
from ofa_jax.data.transforms.image import transform
from ofa_jax.data.usage import Usage
from ofa_jax.eval import drawing
from ofa_jax.eval.batch_page import PAGE_ROWS, logged_digest, row_panels, split_into_pages, write_batch_page
from ofa_jax.eval.batch_rows import BatchReader, ChosenRows, Selection, ShownRow, boxes_of, check_selection, choose_rows, read_sequence
from ofa_jax.eval.codec import load_codec
from ofa_jax.prepare import fixtures
from ofa_jax.tasks.negatives import load_negatives
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.tasks.table import TASK_NAMES
from ofa_jax.tasks.training_data import training_pipeline
from ofa_jax.train.hooks import WriteDigests
from ofa_jax.vocab.boxes import bins_to_box
from ofa_jax.vocab.tokenizer import load_tokenizer

ALL = Selection(rows=0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The quickstart's debug run on fixtures of this test, with pictures and boxes that are cropped."""
    folder = fixtures.write(tmp_path_factory.mktemp("fixtures"))
    config = get_config("debug")
    augments = {"scenes": "random_resize_crop", "detection": "scale_jitter"}
    blocks = tuple(dataclasses.replace(block, augment=augments.get(block.name, "resize")) for block in config.data.blocks)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir=str(folder), blocks=blocks),
        vocab=dataclasses.replace(config.vocab, path=str(folder / "tokenizer.model")),
    )


class HalfPictures:
    """Every third record has lost the second half of its picture file."""

    def __init__(self, records: object):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        return record if index % 3 or not hasattr(record, "image") else dataclasses.replace(record, image=record.image[:200])


def damaged(config: RunConfig) -> Pipeline:
    def open_source(source: SourceConfig) -> HalfPictures:
        return HalfPictures(open_records(config.data.dir, source.dataset, source.split, codes=source.code_area))

    return Pipeline(config.data, config.seed, RowBuilder(config.vocab, load_tokenizer(config.vocab), {}, transform), open_source)


class ShownBlock(NamedTuple):
    name: str
    rows: list[ShownRow]
    selected: int
    total: int


def shown_blocks(config: RunConfig, selection: Selection, *, pipeline: Pipeline | None = None, data_step: int = 2) -> list[ShownBlock]:
    pipeline = pipeline or training_pipeline(config)[0]
    batch, origins = pipeline.trace(data_step)
    usage = Usage(config.data, pipeline.members())
    reader = BatchReader(batch, origins, usage, config.vocab, load_tokenizer(config.vocab), selection.task)
    return [
        ShownBlock(block.name, [reader.read(block.name, number) for number in block.numbers], block.selected, block.total)
        for block in choose_rows(batch, origins, selection)
    ]


def text_only(config: RunConfig) -> RunConfig:
    """Without blocks whose tasks draw negatives, which the damaged pipeline does not load."""
    blocks = tuple(block for block in config.data.blocks if block.name in ("detection", "infilling", "prose"))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, blocks=blocks))


def test_every_row_of_the_batch_is_read_back(config: RunConfig):
    batch = training_pipeline(config)[0].batch(2)
    tokenizer, codes = load_tokenizer(config.vocab), 0
    for shown, block in zip(shown_blocks(config, ALL), batch.blocks.values(), strict=True):
        assert [row.number for row in shown.rows] == list(range(len(block.elements)))
        assert [row.origin.element for row in shown.rows] == block.elements.tolist()
        sequences = [sequence for row in shown.rows for sequence in row.sequences]
        assert [sequence.task for sequence in sequences] == [TASK_NAMES[task] for task in block.task_ids]
        assert [sequence.confidence for sequence in sequences] == block.confidence.tolist()
        assert sum(s.source_tokens for s in sequences) == np.count_nonzero(block.source_ids != PAD_ID)
        assert sum(s.target_tokens for s in sequences) == np.count_nonzero(block.decoder_ids != PAD_ID)
        assert sum(s.loss_tokens for s in sequences) == np.count_nonzero(block.target_ids != PAD_ID)
        for row in shown.rows:
            assert (row.image is None) == (block.images is None)
            if row.image is not None:
                np.testing.assert_array_equal(row.image, block.images[row.number])
                assert row.hole == block.hole_mask[row.number]
        for q, sequence in enumerate(sequences):
            for pieces, ids in ((sequence.source, block.source_ids[q]), (sequence.target, block.decoder_ids[q])):
                # As the tokeniser writes it: `<bin_3>` for each bin, BOS and EOS left out.
                written = [
                    "".join(f"<{p.kind}_{number}>" for number in p.text.split()) if p.kind in ("bin", "code") else p.text
                    for p in pieces
                    if p.text not in ("<s>", "</s>")
                ]
                assert "".join(written) == tokenizer.decode(ids)
            assert (sequence.source[0].text, sequence.source[-1].text, sequence.target[-1].text) == ("<s>", "</s>", "</s>")
            codes += len(sequence.codes)
    assert codes == 8 * 64


def test_a_row_made_from_the_named_record_is_the_row_of_the_batch(config: RunConfig):
    vocab, batch = config.vocab, training_pipeline(config)[0].batch(2)
    negatives = {name: load_negatives(config.data.dir, name) for name in ("scenes", "easy_vqa", "prose")}
    build = RowBuilder(vocab, load_tokenizer(vocab), negatives, transform)
    for index, (block, shown) in enumerate(zip(config.data.blocks, shown_blocks(config, ALL), strict=True)):
        for row in shown.rows[:3]:
            source = row.origin.source
            record = open_records(config.data.dir, source.dataset, source.split)[row.origin.record]
            assert record.record_id == row.origin.record_id
            draw = row_generator(seed=config.seed, block_index=index, element=row.origin.element, retry=0)
            made = collate([build(block, source, record, draw)], block, [row.origin.element])
            for field, one, whole in zip(made._fields, made, batch.blocks[block.name], strict=True):
                if one is not None:
                    np.testing.assert_array_equal(one, whole[row.number * len(one) :][: len(one)], err_msg=f"{block.name} {field}")


def test_boxes_are_drawn_where_the_ids_say(config: RunConfig):
    batch = training_pipeline(config)[0].batch(2)
    vocab, seen = config.vocab, 0
    shown = {block.name: block for block in shown_blocks(config, Selection(task="grounding"))}
    assert shown["scenes"].rows and not shown["captions"].rows
    block = batch.blocks["scenes"]
    per_row = len(block.task_ids) // len(block.elements)
    teal = np.array([int(drawing.TRUTH_COLOUR[i : i + 2], 16) for i in (1, 3, 5)])
    for row in shown["scenes"].rows:
        first = row.sequences[0]
        bins = block.target_ids[row.number * per_row, :4] - vocab.first_bin_id
        box = bins_to_box(bins.tolist(), canvas_px=vocab.canvas_px, num_bins=vocab.num_bins)
        assert first.target_boxes == (("", box),)
        [(_, panel)] = row_panels(dataclasses.replace(row, sequences=(first,)), None)
        scale = panel.shape[0] / vocab.canvas_px
        rows, columns = np.nonzero((panel == teal).all(-1))
        found = (columns.min(), rows.min(), columns.max(), rows.max())
        np.testing.assert_allclose(found, np.minimum(np.array(box) * scale, panel.shape[0] - 1), atol=1)
        seen += 1
    assert seen
    # The same box is the source of the task that is asked the other way round.
    both = {block.name: block for block in shown_blocks(config, ALL)}["scenes"].rows[shown["scenes"].rows[0].number]
    assert both.sequences[1].source_boxes == both.sequences[0].target_boxes


def test_detection_names_its_boxes_and_infilling_its_hole(config: RunConfig):
    shown = {block.name: block for block in shown_blocks(config, ALL)}
    for row in shown["detection"].rows:
        [sequence] = row.sequences
        words = "".join(piece.text if piece.kind == "text" else "|" for piece in sequence.target)
        assert [label for label, _ in sequence.target_boxes] == [word.strip() for word in words.split("|") if word.strip()]
    row = shown["infilling"].rows[0]
    panels = dict(row_panels(row, load_codec(config.data.dir)))
    assert list(panels) == ["input, its middle hidden", "the target's codes"]
    hidden, filled = panels.values()
    assert (hidden[64:192, 64:192] == 128).all() and (hidden[:64] == filled[:64]).all() and filled[64:192, 64:192].std() > 0
    assert list(dict(row_panels(row, None))) == ["input, its middle hidden"]


def test_targets_without_loss_and_specials_are_told(config: RunConfig):
    tokenizer, vocab = load_tokenizer(config.vocab), config.vocab
    block = BlockConfig("b", "text", 1, 40, 40, (SourceConfig("cc12m", "caption"),))
    ids = tokenizer.encode(" the dog and the cat")
    source = [0, *ids[:2], vocab.mask_id, *ids[2:], 3, 2]
    made = collate([Row(None, False, (Sequence(source, ids, 1.5, False, 0, 2),))], block, [0])
    sequence = read_sequence(made, 0, 1, vocab=vocab, tokenizer=tokenizer)
    assert [piece.text for piece in sequence.source if piece.kind == "special"] == ["<s>", "<mask>", "<unk>", "</s>"]
    assert [piece.loss for piece in sequence.target] == [False, True, True]
    assert "".join(piece.text for piece in sequence.target) == " the dog and the cat</s>"
    assert sequence.target[0].text == tokenizer.decode(ids[:2])
    assert (sequence.target_tokens, sequence.loss_tokens, sequence.confidence) == (len(ids) + 1, len(ids) - 1, 1.5)
    b = vocab.first_bin_id
    assert boxes_of([*ids, b, b, b + 63, b + 63, b + 1, *ids], vocab=vocab) == [("", (0, 0, 64, 64))]


def test_the_page_holds_its_rows_and_stands_alone(config: RunConfig, tmp_path: Path):
    pipeline, _ = training_pipeline(config)
    out = tmp_path / "pages" / "page.html"
    made = write_batch_page(config, pipeline, data_step=2, selection=Selection(rows=3), directory=tmp_path, out=out)
    batch, text = pipeline.batch(2), out.read_text()
    assert (made.pages, made.digest, made.agrees, made.shown, made.total) == ((out,), digest(batch), None, 18, 48)
    assert f"<code>{digest(batch)}</code>" in text and "no digest of this batch" in text
    assert not re.search(r"<(link|script|iframe)|src='(?!data:image/)|url\(|@import", text)
    assert text.count("<div class=row>") == 18 and text.count("5 more rows are left out: --rows=0 shows all") == 6
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(found)))) for found in re.findall(r"src='data:image/png;base64,([^']+)'", text)
    ]
    for name in ("shapes", "captions"):  # nothing is drawn on these
        for row in range(3):
            expected = drawing.enlarge(batch.blocks[name].images[row])
            assert any(picture.shape == expected.shape and (picture == expected).all() for picture in pictures), (name, row)
    _, origins = pipeline.trace(2)
    for found in origins.values():
        for origin in found[:3]:
            assert f"record <b>{origin.record_id}</b> ({origin.source.split}#{origin.record}) · element {origin.element} · epoch 1" in text
    assert "None: every first draw could be used" in text


def test_many_rows_take_several_pages_each_row_once(config: RunConfig, tmp_path: Path):
    pipeline, _ = training_pipeline(config)
    out, said = tmp_path / "it's one.html", []
    made = write_batch_page(config, pipeline, data_step=2, selection=ALL, directory=tmp_path, out=out, page_rows=20, progress=said.append)
    assert made.pages == (out, tmp_path / "it's one-2.html", tmp_path / "it's one-3.html") and (made.shown, made.total) == (48, 48)
    assert said == [f"page {number} of 3: {path}" for number, path in enumerate(made.pages, 1)]
    texts = [path.read_text() for path in made.pages]
    assert [text.count("<div class=row>") for text in texts] == [20, 20, 8]
    rows = [re.findall(r"row <b>(\d+)</b> · .*? element ([\d,]+)", text) for text in texts]
    _, origins = pipeline.trace(2)
    expected = [(str(r), f"{origin.element:,}") for found in origins.values() for r, origin in enumerate(found)]
    assert [row for page in rows for row in page] == expected
    names = [block.name for block in config.data.blocks]
    assert [re.findall(r"<h2 id='(\w+)'>", text) for text in texts] == [names[:3], names[2:5], names[5:]]
    assert "Digest" in texts[0] and "Sources" in texts[0] and not any("Digest" in text for text in texts[1:])
    for text in texts:  # each page leads to every block's rows on each page
        links = re.findall(r"<a href='([^']*)#(\w+)'>\w+</a> \((\d+) rows from (\d+) to (\d+)\)", text)
        assert [(name, first, last) for _, name, _, first, last in links] == [
            (names[0], "0", "7"), (names[1], "0", "7"), (names[2], "0", "3"), (names[2], "4", "7"), (names[3], "0", "7"),
            (names[4], "0", "7"), (names[5], "0", "7"),
        ]  # fmt: skip
        assert {name for name, *_ in links} <= {"", "it%27s%20one.html", "it%27s%20one-2.html", "it%27s%20one-3.html"}


def test_pages_are_full_and_blocks_without_rows_are_told():
    def chosen(name: str, count: int) -> ChosenRows:
        return ChosenRows(name, tuple(range(count)), count, 1_000)

    blocks = [chosen("a", 5), chosen("b", 0), chosen("c", 7), chosen("d", 0)]
    a, b, c, d = blocks
    assert split_into_pages(blocks, 5) == [[(a, (0, 1, 2, 3, 4)), (b, ())], [(c, (0, 1, 2, 3, 4))], [(c, (5, 6)), (d, ())]]
    assert split_into_pages([b, d], 5) == [[(b, ()), (d, ())]]
    # A page holds what a person is shown by default of the pretraining mixture, whose length classes make ten blocks.
    assert 10 * Selection().rows <= PAGE_ROWS


def test_rejects_are_listed_and_selected(config: RunConfig, tmp_path: Path):
    config = text_only(config)
    pipeline = damaged(config)
    batch, origins = pipeline.trace(1)
    again = {name: [r for r, origin in enumerate(found) if origin.rejects] for name, found in origins.items()}
    assert batch.rejects and any(again.values()) and not all(len(rows) == 8 for rows in again.values())
    shown = shown_blocks(config, Selection(rejects=True, rows=0), pipeline=pipeline, data_step=1)
    assert {block.name: [row.number for row in block.rows] for block in shown} == again
    out = tmp_path / "page.html"
    write_batch_page(config, pipeline, data_step=1, selection=Selection(rejects=True), directory=tmp_path, out=out)
    text = out.read_text()
    assert f"Rejected records: {len(batch.rejects)}" in text and "only rows whose first draw was rejected" in text
    table = text[text.index("Rejected records") : text.index("Block detection")]
    for reject in batch.rejects:
        assert f"<td>{reject.dataset}<td>{reject.record}<td>image<td>image<td>" in table
    assert text.count("drawn again:") == len(batch.rejects)


def test_selections(config: RunConfig):
    whole = shown_blocks(config, ALL)
    scenes = shown_blocks(config, Selection(dataset="scenes", rows=2))
    for block, all_rows in zip(scenes, whole, strict=True):
        expected = [row.number for row in all_rows.rows if row.origin.source.dataset == "scenes"]
        assert ([row.number for row in block.rows], block.selected, block.total) == (expected[:2], len(expected), 8)
    matching = {block.name: block for block in shown_blocks(config, Selection(task="matching", rows=0))}
    assert {sequence.task for row in matching["captions"].rows for sequence in row.sequences} == {"matching"}
    assert [sequence.number for sequence in matching["captions"].rows[0].sequences] == [2]
    assert not matching["prose"].rows
    for selection, words in (
        (Selection(task="vqq"), "--task: found 'vqq'; did you mean vqa"),
        (Selection(dataset="scene"), "--dataset: found 'scene', which no block draws from; did you mean scenes"),
        (Selection(rows=-1), "--rows: found -1"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_selection(selection, config)
    with pytest.raises(ConfigError, match="batches are pictures alone"):
        check_selection(Selection(task="vqa"), get_vqgan("debug"))


def test_the_digest_is_compared_with_the_run(config: RunConfig, tmp_path: Path):
    pipeline, _ = training_pipeline(config)
    hook = WriteDigests(tmp_path, host=0)
    hook.start(0)
    for step in range(3):
        hook.batch(pipeline.batch(step))
    hook.close()

    def made(config: RunConfig, data_step: int):
        pipeline, _ = training_pipeline(config)
        return write_batch_page(config, pipeline, data_step=data_step, selection=Selection(rows=1), directory=tmp_path, out=tmp_path / "p")

    page = made(config, 1)
    assert page.agrees and page.verdict == f"equals that of {tmp_path / 'batches_0.jsonl'}" and page.verdict in (tmp_path / "p").read_text()
    page = made(dataclasses.replace(config, seed=2), 1)
    assert page.agrees is False and page.verdict.startswith("DIFFERS from ")
    assert made(config, 3).agrees is None
    with (tmp_path / "batches_0.jsonl").open("a") as lines:
        lines.write('{"step": 9, "data_')  # a run that is still writing
    assert logged_digest(tmp_path, 8) is None and logged_digest(tmp_path, 2)
    (tmp_path / "batches_1.jsonl").touch()  # each host had its own rows
    assert logged_digest(tmp_path, 2) is None
    with pytest.raises(DataError, match="found no file that can be written"):
        write_batch_page(config, pipeline, data_step=0, selection=ALL, directory=tmp_path, out=tmp_path)


def test_a_batch_of_pictures(config: RunConfig, tmp_path: Path):
    vqgan = get_vqgan("debug")
    vqgan = dataclasses.replace(vqgan, data=dataclasses.replace(vqgan.data, dir=config.data.dir))
    out = tmp_path / "page.html"
    pipeline, identity = training_pipeline(vqgan)
    made = write_batch_page(vqgan, pipeline, data_step=4, selection=Selection(rows=5), directory=tmp_path, out=out)
    assert set(identity) == {"data/scenes"} and (made.shown, made.total) == (5, 8)  # and no tokeniser
    assert out.read_text().count("<div class=card>") == 5
    plain = Pipeline(vqgan.data, vqgan.seed, picture_row, lambda s: open_records(config.data.dir, s.dataset, s.split))
    assert made.digest == digest(plain.batch(4)) and "data:image/jpeg" not in out.read_text()
    large = dataclasses.replace(vqgan.data.blocks[0], image_px=160)  # pictures of this side and more would make a heavy page as PNG
    vqgan = dataclasses.replace(vqgan, data=dataclasses.replace(vqgan.data, blocks=(large,)))
    write_batch_page(vqgan, training_pipeline(vqgan)[0], data_step=4, selection=ALL, directory=tmp_path, out=out)
    assert out.read_text().count("src='data:image/jpeg;base64,") == 8
