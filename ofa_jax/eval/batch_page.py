"""The batch of one step as HTML: every row as the network gets it, and where it came from.

A page stands alone, its pictures are embedded, and holds `PAGE_ROWS` rows at most: with pictures of 384 px that are some 15 MB, which a
browser opens in two seconds. More rows take more pages, each of which lists all.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.config.render import config_hash
from ofa_jax.config.schema import PAD_ID, AnyRun, BlockConfig, RunConfig
from ofa_jax.data.batch import Batch, digest
from ofa_jax.data.pipeline import Origin, Pipeline
from ofa_jax.data.records import Box
from ofa_jax.data.usage import Usage, source_name
from ofa_jax.eval import drawing
from ofa_jax.eval.batch_rows import BatchReader, ChosenRows, Piece, Selection, ShownRow, ShownSequence, check_selection, choose_rows
from ofa_jax.eval.codec import PictureCodec, load_codec, picture_of
from ofa_jax.eval.countdown import Countdown
from ofa_jax.eval.report import escaped, page, picture_html
from ofa_jax.tasks.table import TASK_NAMES
from ofa_jax.vocab.tokenizer import load_tokenizer

PAGE_ROWS = 400
_EXACT_PX = 128  # pictures of at most this side are embedded pixel for pixel
_SHOWN_NUMBERS = 16  # image codes that are written out; more are folded away
_STYLE = """<style>
.rows { display: grid; gap: 12px }
.row { border: 1px solid var(--line); border-radius: 8px; padding: 12px; display: flex; gap: 16px; overflow-wrap: anywhere;
  content-visibility: auto; contain-intrinsic-size: auto 300px }
.row > .seen { flex: 0 0 256px; display: grid; gap: 6px; align-content: start }
.row > .said { flex: 1; color: inherit; min-width: 0 }
.seen img, .card img { display: block; width: 256px; max-width: 100%; border-radius: 4px; image-rendering: auto }
.seen span { font-size: 12px; color: var(--soft) }
.from { color: var(--soft); font-size: 13px } .from b { color: var(--ink) }
.sequences { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 10px 16px; margin-top: 10px }
.sequence { padding-left: 10px; border-left: 3px solid var(--line) }
.sequence .facts { margin: 0 0 2px; font-size: 13px }
.ids { display: grid; grid-template-columns: 52px 1fr; font-size: 14px }
.ids > small { padding-top: 1px }
.ids > div { white-space: pre-wrap }
.special { color: var(--soft); font: 12px ui-monospace, monospace; background: #f0f3f6; border-radius: 3px; padding: 0 3px; margin: 0 1px }
.bin { font: 12px ui-monospace, monospace; background: #fbe3d6; border-radius: 3px; padding: 0 3px; margin: 0 2px }
.target .bin { background: #d5ece8 }
.code { font: 12px ui-monospace, monospace; background: #e8e3f5; border-radius: 3px; padding: 0 3px }
.silent { color: #98a4b0; text-decoration: line-through }
.again { color: #b2182b }
.ok { color: #1b7837; font-weight: 600 }
code { font-size: 13px }
details { display: inline } summary { cursor: pointer; display: inline }
</style>"""


@dataclasses.dataclass(frozen=True)
class WrittenPage:
    """What was written, and what there is to say of it."""

    pages: tuple[Path, ...]  # in order
    digest: str
    verdict: str  # how the digest compares with the run's own list
    agrees: bool | None  # None: there is nothing to compare it with
    shown: int
    total: int


def logged_digest(directory: Path, data_step: int) -> str | None:
    """Returns the digest of a batch as the run in `directory` wrote it down (`data.write_digests`), or None where it did not.

    A run of several hosts has a list for each host's part, none of the whole: None too. Raises DataError for a list that does not parse.
    """
    path = directory / "batches_0.jsonl"
    if not path.exists() or (directory / "batches_1.jsonl").exists():
        return None
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                if not line.endswith("\n"):  # a run that is still writing
                    return None
                raise DataError(f"{path}: line {number}: found no JSON object ({error}), expected one a line") from error
            if record["data_step"] == data_step:
                return str(record["digest"])
    return None


# Of one page: the rows of each block that it shows.
_PageRows = list[tuple[ChosenRows, tuple[int, ...]]]


def write_batch_page(
    config: AnyRun,
    pipeline: Pipeline,
    *,
    data_step: int,
    selection: Selection,
    directory: Path,
    out: Path,
    page_rows: int = PAGE_ROWS,
    progress: Callable[[str], None] = lambda _: None,
) -> WrittenPage:
    """Makes the global batch `data_step` as training does and writes the page of its selected rows to `out`.

    pipeline: of the whole batch (one host). directory: the run's folder, whose list of digests is compared where there is one.
    page_rows: what a page holds at most; the second page of `x.html` is `x-2.html`. progress: is told of each page where there are several,
    and of rows where they take long.
    Raises ConfigError for a selection that names what is not there, DataError for data that cannot be read or a file that cannot be
    written.
    """
    check_selection(selection, config)
    vocab = config.vocab if isinstance(config, RunConfig) else None
    tokenizer = None if vocab is None else load_tokenizer(vocab)
    batch, origins = pipeline.trace(data_step)
    usage = Usage(config.data, pipeline.members())
    reader = BatchReader(batch, origins, usage, vocab, tokenizer, selection.task)
    chosen = choose_rows(batch, origins, selection)
    plan = split_into_pages(chosen, page_rows)
    found, logged = digest(batch), logged_digest(directory, data_step)
    if logged is None:
        verdict = f"no digest of this batch in {directory / 'batches_0.jsonl'} to compare it with"
    elif logged == found:
        verdict = f"equals that of {directory / 'batches_0.jsonl'}"
    else:
        verdict = f"DIFFERS from {logged} in {directory / 'batches_0.jsonl'}: the run's config, data or tokeniser was another"
    agrees = None if logged is None else logged == found
    shown, total = sum(len(block.numbers) for block in chosen), sum(block.total for block in chosen)

    codec = load_codec(config.data.dir) if _have_codes(batch, chosen) else None
    kind = "" if agrees is None else "class=ok" if agrees else "class=again"
    title = f"{config.name}: batch of step {data_step + 1:,}"
    first_page = [
        f"<p class=facts>data_step <b>{data_step:,}</b> · config <b>{config_hash(config)[:12]}</b> · seed <b>{config.seed}</b> · "
        f"rows shown <b>{shown:,} of {total:,}</b>{escaped(_selection_words(selection))}</p>",
        f"<p>Digest <code>{found}</code> <span {kind}>{escaped(verdict)}</span></p>",
        _contents(plan, out, 0),
        _legend(config),
        _sources(batch, origins, usage),
        _rejects(batch, origins),
    ]
    blocks, written = {block.name: block for block in config.data.row_blocks}, Countdown("rows of the page", shown, progress)
    pages = tuple(_page_path(out, place) for place in range(len(plan)))
    for place, (path, parts) in enumerate(zip(pages, plan, strict=True)):
        body = [_STYLE, f"<h1>{escaped(title)}{f', page {place + 1} of {len(plan)}' if len(plan) > 1 else ''}</h1>"]
        body += [_contents(plan, out, place)] if place else first_page
        for part, numbers in parts:
            rows = _counted((reader.read(part.name, number) for number in numbers), written)
            body.append(_block(blocks[part.name], part, rows, batch, config, codec, page_rows))
        _write(path, page(title, body))
        if len(plan) > 1:
            progress(f"page {place + 1} of {len(plan)}: {path}")
    return WrittenPage(pages, found, verdict, agrees, shown, total)


def _have_codes(batch: Batch, chosen: Sequence[ChosenRows]) -> bool:
    """Whether a chosen row has image codes: a VQGAN that draws them is large, and not read for nothing."""
    masks = [batch.blocks[block.name].code_mask.reshape(block.total, -1) for block in chosen]
    return any(mask[list(block.numbers)].any() for mask, block in zip(masks, chosen, strict=True))


def _counted(rows: Iterable[ShownRow], count: Countdown) -> Iterator[ShownRow]:
    for row in rows:
        yield row
        count()  # when the next one is asked for, so that this one was drawn


def split_into_pages(chosen: Sequence[ChosenRows], page_rows: int) -> list[_PageRows]:
    """Returns for each page the blocks that it shows, with the numbers of their rows, `page_rows` in all at most.

    Every block stands on a page, one without chosen rows too; there is at least one page.
    """
    pages: list[_PageRows] = [[]]
    room = page_rows
    for block in chosen:
        left = block.numbers
        while True:
            if left and not room:
                pages.append([])
                room = page_rows
            part, left = left[:room], left[room:]
            pages[-1].append((block, part))
            room -= len(part)
            if not left:
                break
    return pages


def _page_path(out: Path, place: int) -> Path:
    return out if not place else out.with_name(f"{out.stem}-{place + 1}{out.suffix}")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: found no file that can be written ({error.strerror}), expected one") from error


def _contents(plan: Sequence[_PageRows], out: Path, here: int) -> str:
    """What is on which page; `here` is the one that says it."""
    lines = []
    for place, parts in enumerate(plan):
        file = "" if place == here else quote(_page_path(out, place).name)
        links = " · ".join(f"<a href='{file}#{part.name}'>{part.name}</a> ({_numbers_words(numbers)})" for part, numbers in parts)
        number = f"<b>{place + 1}</b>" if place == here else f"<a href='{file}'>{place + 1}</a>"
        lines.append(f"Blocks: {links}" if len(plan) == 1 else f"Page {number}: {links}")
    return f"<p>{'<br>'.join(lines)}</p>"


def _numbers_words(numbers: Sequence[int]) -> str:
    count = f"{len(numbers):,} row{'' if len(numbers) == 1 else 's'}"
    return f"{count} from {numbers[0]:,} to {numbers[-1]:,}" if len(numbers) > 1 else count


def _selection_words(selection: Selection) -> str:
    words = [f"task {selection.task}"] if selection.task else []
    words += [f"dataset {selection.dataset}"] if selection.dataset else []
    words += ["rows whose first draw was rejected"] if selection.rejects else []
    return f" · only {', '.join(words)}" if words else ""


def _legend(config: AnyRun) -> str:
    if not isinstance(config, RunConfig):
        return "<p><small>Pictures are the network's input, cropped and resized as in training.</small></p>"
    return (
        "<p><small>Pictures are the network's input; boxes are drawn where the location bins of the ids say: "
        "<span class=key style='background:var(--prediction)'></span>in the source "
        "<span class=key style='background:var(--truth)'></span>in the target. "
        "<span class=special>&lt;s&gt;</span> special id · <span class=bin>12</span> location bin · <span class=code>7</span> image code · "
        "<span class=silent>struck</span> target without loss. Padding is left out; the decoder reads <span class=special>&lt;s&gt;</span> "
        "and the target. Patches that a step samples, dropout and noise of the network are drawn on the device and not shown.</small></p>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()) -> str:
    kinds = [" class=n" if name in numbers else "" for name in head]
    lines = ["<tr>" + "".join(f"<th{kind}>{escaped(name)}" for name, kind in zip(head, kinds, strict=True))]
    lines += ["<tr>" + "".join(f"<td{kind}>{escaped(cell)}" for cell, kind in zip(row, kinds, strict=True)) for row in rows]
    return f"<div class=wide><table>{''.join(lines)}</table></div>"


def _sources(batch: Batch, origins: Mapping[str, Sequence[Origin]], usage: Usage) -> str:
    drawn = collections.Counter(source_name(origin.source) for found in origins.values() for origin in found)
    rejected: collections.Counter[str] = collections.Counter()
    for origin in (origin for found in origins.values() for origin in found):
        rejected[source_name(origin.source)] += len(origin.rejects)
    epochs = usage.epochs(batch.data_step + 1)
    rows = [
        (name, f"{drawn[name]:,}", f"{rejected[name]:,}", f"{records:,}", f"{epochs[name]:,.2f}") for name, records in usage.records.items()
    ]
    head = ("source", "rows here", "rejected here", "records", "epochs drawn with this batch")
    return "<h2>Sources</h2>" + _table(head, rows, head[1:])


def _rejects(batch: Batch, origins: Mapping[str, Sequence[Origin]]) -> str:
    if not batch.rejects:
        return "<h2>Rejected records</h2><p>None: every first draw could be used.</p>"
    rows = [
        (
            f"{name} row {number}",
            reject.dataset,
            reject.record,
            reject.reason,
            reject.field,
            reject.found,
            reject.expected,
            origin.record_id,
        )
        for name, found in origins.items()
        for number, origin in enumerate(found)
        for reject in origin.rejects
    ]
    head = ("row", "dataset", "record", "reason", "field", "found", "expected", "replaced by")
    return f"<h2>Rejected records: {len(rows):,}</h2>" + _table(head, rows)


def _block(
    block: BlockConfig,
    chosen: ChosenRows,
    rows: Iterable[ShownRow],
    batch: Batch,
    config: AnyRun,
    codec: PictureCodec | None,
    page_rows: int,
) -> str:
    """A block's facts, and of its chosen rows those of one page."""
    arrays = batch.blocks[block.name]
    facts = [f"stream <b>{block.stream}</b>", f"<b>{chosen.total:,}</b> rows"]
    if block.image_px:
        facts.append(f"pictures <b>{block.image_px} px</b>, {block.augment}")
    if len(arrays.task_ids):
        counts = collections.Counter(TASK_NAMES[task] for task in arrays.task_ids.tolist())
        facts.append("sequences: " + ", ".join(f"{escaped(task)} <b>{count:,}</b>" for task, count in counts.items()))
        present = sum(np.count_nonzero(ids != PAD_ID) for ids in (arrays.source_ids, arrays.decoder_ids))
        facts.append(f"useful tokens <b>{present / (arrays.source_ids.size + arrays.decoder_ids.size):.0%}</b>")
    if block.num_patches and isinstance(config, RunConfig):
        facts.append(f"<b>{block.num_patches}</b> of {(block.image_px // config.model.resnet.stride) ** 2} patches a sequence")
    left_out = chosen.selected - len(chosen.numbers)
    said = f"<p class=facts>{' · '.join(facts)}</p>"
    if chosen.selected < chosen.total:
        said += f"<p><small>{chosen.selected:,} of {chosen.total:,} rows are selected.</small></p>"
    if left_out:
        said += (
            f"<p><small>{left_out:,} more rows are left out: --rows=0 shows all, on pages of {page_rows} rows; --task, --dataset and "
            "--rejects choose.</small></p>"
        )
    if block.stream == "pictures":
        written = f"<div class=cards>{''.join(_picture_card(row) for row in rows)}</div>"
    else:
        written = f"<div class=rows>{''.join(_row(row, block, codec) for row in rows)}</div>"
    return f"<h2 id='{escaped(block.name)}'>Block {escaped(block.name)}</h2>{said}{written}"


def _from(row: ShownRow) -> str:
    """Where a row came from, as HTML."""
    origin = row.origin
    again = "".join(
        f"<div class=again>drawn again: {escaped(reject.record)} was rejected ({escaped(reject.reason)})</div>" for reject in origin.rejects
    )
    return (
        f"<div class=from>row <b>{row.number}</b> · {escaped(source_name(origin.source))} record <b>{escaped(origin.record_id)}</b> "
        f"({escaped(origin.source.split)}#{origin.record}) · element {origin.element:,} · epoch {row.epoch:,}</div>{again}"
    )


def _picture_card(row: ShownRow) -> str:
    assert row.image is not None, "a row of pictures has one"
    return f"<div class=card>{_picture('', drawing.enlarge(row.image), row.image)}{_from(row)}</div>"


def _picture(caption: str, panel: np.ndarray, pixels: np.ndarray) -> str:
    return picture_html(caption, panel, exact=pixels.shape[0] <= _EXACT_PX)


def _row(row: ShownRow, block: BlockConfig, codec: PictureCodec | None) -> str:
    seen = ""
    if row.image is not None:
        panels = "".join(_picture(caption, panel, row.image) for caption, panel in row_panels(row, codec))
        seen = f"<div class=seen>{panels}</div>"
    sequences = "".join(_sequence(sequence, block) for sequence in row.sequences)
    return f"<div class=row>{seen}<div class=said>{_from(row)}<div class=sequences>{sequences}</div></div></div>"


def row_panels(row: ShownRow, codec: PictureCodec | None) -> list[tuple[str, np.ndarray]]:
    """(caption, enlarged picture) of a row with a picture: the network's input with its boxes, and what its target's codes show.

    Boxes of detection bear their labels; where several sequences have boxes, theirs bear the sequence's number. `codec` None leaves the
    codes undrawn.
    """
    assert row.image is not None, "rows of text have no panels"
    pixels = drawing.hide_square(row.image) if row.hole else row.image
    named = sum(bool(s.source_boxes or s.target_boxes) for s in row.sequences) > 1
    target, source = (
        _labelled([(label or (str(s.number) if named else ""), box) for s in row.sequences for label, box in boxes_of(s)])
        for boxes_of in (lambda s: s.target_boxes, lambda s: s.source_boxes)
    )
    side_px = row.image.shape[0]
    drawn = drawing.draw_boxes(pixels, truth=target, predicted=source, width=side_px, height=side_px)
    panels = [("input, its middle hidden" if row.hole else "", drawn)]
    for sequence in row.sequences:
        if sequence.codes and codec is not None:
            square = picture_of(np.array(sequence.codes), codec)
            fits = row.hole and square.shape[0] <= side_px
            panels.append(("the target's codes", drawing.enlarge(drawing.fill_square(row.image, square) if fits else square)))
    return panels


def _labelled(boxes: Sequence[tuple[str, Box]]) -> list[tuple[str, Box]]:
    """Boxes, each once, with all the labels that it had."""
    labels: dict[Box, list[str]] = {}
    for label, box in boxes:
        labels.setdefault(box, []).append(label)
    return [(", ".join(filter(None, its)), box) for box, its in labels.items()]


def _sequence(sequence: ShownSequence, block: BlockConfig) -> str:
    silent = sequence.target_tokens - sequence.loss_tokens
    facts = [
        f"{sequence.number} <b>{escaped(sequence.task)}</b>",
        f"confidence <b>{sequence.confidence:g}</b>",
        f"source {sequence.source_tokens} of {block.source_len}",
        f"target {sequence.target_tokens} of {block.target_len}" + (f", {silent} without loss" if silent else ""),
    ]
    lines = "".join(
        f"<div class='ids {name}'><small>{name}</small><div>{''.join(map(_piece, pieces))}</div></div>"
        for name, pieces in (("source", sequence.source), ("target", sequence.target))
    )
    return f"<div class=sequence><p class=facts>{' · '.join(facts)}</p>{lines}</div>"


def _piece(piece: Piece) -> str:
    silent = " silent" if not piece.loss else ""
    if piece.kind == "text":
        return f"<span class=silent>{escaped(piece.text)}</span>" if silent else escaped(piece.text)
    if piece.kind == "special":
        return f"<span class='special{silent}'>{escaped(piece.text)}</span>"
    numbers = piece.text.split()
    if piece.kind == "code" and len(numbers) > _SHOWN_NUMBERS:
        return (
            f"<details><summary><span class='code{silent}'>{len(numbers)} codes: {' '.join(numbers[:_SHOWN_NUMBERS])} …</span></summary>"
            f"<span class='code{silent}'>{piece.text}</span></details>"
        )
    return "".join(f"<span class='{piece.kind}{silent}'>{number}</span>" for number in numbers)
