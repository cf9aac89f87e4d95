"""The one id space: text pieces, then image codes, then location bins (OFA paper, section 3.1; the official dictionary's order).

`VocabConfig` holds the numbers; here are the two maps between a code or bin and its id, and the reading of mixed id lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ofa_jax.config.schema import EOS_ID, UNK_ID, VocabConfig


def code_id(code: int, *, vocab: VocabConfig) -> int:
    """Id of image code `code`. Raises ValueError unless 0 <= code < num_codes."""
    if not 0 <= code < vocab.num_codes:
        raise ValueError(f"image code: found {code}, expected 0 to {vocab.num_codes - 1}")
    return vocab.first_code_id + int(code)


def bin_id(location: int, *, vocab: VocabConfig) -> int:
    """Id of location bin `location`. Raises ValueError unless 0 <= location < num_bins."""
    if not 0 <= location < vocab.num_bins:
        raise ValueError(f"location bin: found {location}, expected 0 to {vocab.num_bins - 1}")
    return vocab.first_bin_id + int(location)


def code_of(token: int, *, vocab: VocabConfig) -> int | None:
    """Image code of id `token`, or None when the id is not a code."""
    return int(token) - vocab.first_code_id if vocab.first_code_id <= token < vocab.first_bin_id else None


def bin_of(token: int, *, vocab: VocabConfig) -> int | None:
    """Location bin of id `token`, or None when the id is not a bin."""
    return int(token) - vocab.first_bin_id if vocab.first_bin_id <= token < vocab.size else None


def render(ids: Iterable[int], *, vocab: VocabConfig, decode_pieces: Callable[[list[int]], str]) -> str:
    """Text of a mixed id list. `decode_pieces` turns a run of ordinary text ids into a string.

    BOS, PAD and EOS are skipped and do not end a run; `<unk>`, `<mask>`, `<code_i>` and `<bin_i>` are written out.
    Raises ValueError for an id outside 0 to size-1.
    """
    out: list[str] = []
    run: list[int] = []
    for token in ids:
        token = int(token)
        if not 0 <= token < vocab.size:
            raise ValueError(f"token id: found {token}, expected 0 to {vocab.size - 1}")
        if token <= EOS_ID:
            continue
        if UNK_ID < token < vocab.mask_id:
            run.append(token)
            continue
        if run:
            out.append(decode_pieces(run))
            run = []
        if token == UNK_ID:
            out.append("<unk>")
        elif token == vocab.mask_id:
            out.append("<mask>")
        elif token < vocab.first_bin_id:
            out.append(f"<code_{token - vocab.first_code_id}>")
        else:
            out.append(f"<bin_{token - vocab.first_bin_id}>")
    if run:
        out.append(decode_pieces(run))
    return "".join(out)
