"""Weights of models that are without the parts of pictures: their part of a whole state, said; out, recognised and in again."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.errors import ConvertError
from ofa_jax.config.schema import VocabConfig
from ofa_jax.config.sizes import SIZES
from ofa_jax.convert import verify
from ofa_jax.convert.architecture import model_of, size_of
from ofa_jax.convert.state_files import write_npz
from ofa_jax.convert.transfer import count_parameters, restore
from ofa_jax.convert.weights import buffers, from_state, grown, left_of, shapes, to_state

ROOT = Path(__file__).resolve().parents[2]
KINDS = [("pictures", "codes"), ("pictures",), ("codes",)]
OF_PICTURES = ("embed_images", "image_", "patch_", "code_")
CODES = ("--config.vocab.num_text=300", "--config.vocab.num_codes=16", "--config.vocab.num_bins=4")
TEXTS = "--config.model.without=pictures,codes"


def convert(*words) -> tuple[int, str, str]:
    """(exit code, output, errors) of `launch/convert.py words`, run in this process."""
    main = runpy.run_path(str(ROOT / "launch" / "convert.py"))["main"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["launch/convert.py", *map(str, words)])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def whole(small, golden):
    """The whole state of a small model, buffers and counters too."""
    floats = {name: array.astype(np.float32) for name, array in golden.state(small).items()}
    return to_state(from_state(floats, small, golden.VOCAB, where="field"), small, golden.VOCAB)


@pytest.mark.parametrize("parts", KINDS, ids="+".join)
def test_a_part_of_a_whole_state_goes_out_and_in_again(whole, small, golden, parts):
    model = dataclasses.replace(small, without=parts)
    weights = from_state(whole, model, golden.VOCAB, where="whole")
    own = to_state(weights, model, golden.VOCAB)
    assert set(own) < set(whole) and all(array.tobytes() == whole[name].tobytes() for name, array in own.items())
    gone = set(whole) - set(own)
    assert all(any(word in name for word in OF_PICTURES) for name in gone)
    stacks = {"pictures": "encoder.", "codes": "decoder."}
    assert {name.split(".")[0] + "." for name in gone} == {stacks[part] for part in parts}
    counted = sum(whole[name].size for name in gone & set(shapes(small, golden.VOCAB)))
    assert sum(int(group.rsplit(" ", 1)[1].replace(",", "")) for group in left_of(whole, model).split(", ")) == counted
    assert left_of(own, model) == left_of(whole, small) == ""
    found = model_of({**own, **buffers(model)}, where="own")
    assert found.without == parts and found.reads_pictures == model.reads_pictures
    again = from_state(own, model, golden.VOCAB, where="own")
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(weights.params), strict=True):
        assert a.tobytes() == b.tobytes()
    hf = to_state(weights, model, golden.VOCAB, style="hf")
    assert to_state(from_state(hf, model, golden.VOCAB, where="hf"), model, golden.VOCAB).keys() == own.keys()


def test_what_is_missing_or_unknown_stays_an_error(whole, small, golden):
    texts = dataclasses.replace(small, without=("pictures", "codes"))
    own = to_state(from_state(whole, texts, golden.VOCAB, where="whole"), texts, golden.VOCAB)
    with pytest.raises(ConvertError, match=r"missing: encoder.embed_images.conv1.weight"):
        from_state(own, small, golden.VOCAB, where="own")
    with pytest.raises(ConvertError, match=r"2 fault\(s\).*\n  missing: encoder.pos_ln.bias.*\n  not expected: encoder.pictures.weight"):
        lacking = {name: array for name, array in whole.items() if name != "encoder.pos_ln.bias"}
        from_state({**lacking, "encoder.pictures.weight": np.zeros(3, np.float32)}, texts, golden.VOCAB, where="x")
    with pytest.raises(ConvertError, match="found no encoder.embed_images.conv1.weight"):  # of the pictures' part something is there
        model_of({name: array for name, array in whole.items() if ".conv1." not in name}, where="torn")
    wider = dataclasses.replace(texts, image_bucket_size=43)
    assert grown(whole, wider, golden.VOCAB, seed=0)[1] == []


def test_a_size_is_recognised_without_its_pictures():
    for size in ("base", "huge"):
        model = dataclasses.replace(SIZES[size], without=("pictures", "codes"))
        stored = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes(model, VocabConfig()).items()}
        assert model_of(stored, where="here") == model and size_of(model) == size
    assert count_parameters(model, VocabConfig()) < count_parameters(SIZES["huge"], VocabConfig())


def test_inputs_that_a_model_has_no_part_for_are_refused(small, golden):
    inputs = {"src_tokens": np.full((1, 3), 5), "prev_output_tokens": np.full((1, 3), 5)}
    texts = dataclasses.replace(small, without=("pictures", "codes"))
    verify.check_inputs({**inputs, "code_masks": np.array([False])}, texts, golden.VOCAB, where="i")
    with pytest.raises(ConvertError, match="patch_images: found it, expected none of it, as model.without=pictures,codes"):
        verify.check_inputs({**inputs, "patch_images": np.zeros((1, 3, 32, 32), np.float32)}, texts, golden.VOCAB, where="i")
    with pytest.raises(ConvertError, match="code_masks: found rows of image codes, expected none of it"):
        verify.check_inputs({**inputs, "code_masks": np.array([True])}, texts, golden.VOCAB, where="i")


def test_the_commands_say_what_is_left(whole, small, golden, tmp_path):
    write_npz(tmp_path / "whole.npz", whole)
    code, said, errors = convert("import", tmp_path / "whole.npz", f"--out={tmp_path / 'run'}", *CODES, TEXTS)
    assert code == 0, errors
    (line,) = [line for line in said.splitlines() if line.startswith("left in ")]
    assert f"{tmp_path / 'whole.npz'}, as model.without=pictures,codes: " in line
    assert ", encoder.embed_images " in line and "decoder.image_rel_pos_table_list" in line and "rp_bucket" not in line
    assert "a size of its own without pictures and codes, " in said
    config, weights, _ = restore(tmp_path / "run")
    assert config.model.without == ("pictures", "codes") and weights.stats == {}
    described = " ".join(convert("describe", tmp_path / "run")[1].split())
    assert "size of its own without pictures and codes" in described and "ResNet stages none" in described
    assert described.endswith("positions 1026 source, 1026 target")
    code, said, errors = convert("export", tmp_path / "run", f"--out={tmp_path / 'own.pt'}", "--layout=fairseq")
    assert code == 0 and "own.pt has nothing of pictures, codes (model.without): what expects those tensors" in said, errors
    code, said, errors = convert("import", tmp_path / "own.pt", f"--out={tmp_path / 'again'}", *CODES)
    assert code == 0 and "left in" not in said, errors
    assert CheckpointManager(tmp_path / "again", read_only=True).config().model.without == ("pictures", "codes")
    # The parts of texts give the same logits as the whole, by the command that compares.
    inputs = {"src_tokens": golden.SOURCE_IDS, "prev_output_tokens": golden.DECODER_IDS}
    found = verify.run(from_state(whole, small, golden.VOCAB, where="whole"), inputs, small, golden.VOCAB)
    np.savez(tmp_path / "i.npz", **inputs)
    np.savez(tmp_path / "e.npz", **found)
    files = (f"--inputs={tmp_path / 'i.npz'}", f"--expected={tmp_path / 'e.npz'}")
    code, said, errors = convert("verify", f"--state={tmp_path / 'whole.npz'}", *files, *CODES, TEXTS)
    assert code == 0 and said.startswith("left in ") and f"all {len(found)} arrays agree" in said, errors
    glue = f"--config={ROOT}/configs/finetune/glue.py:size=tiny"
    code, _, errors = convert("import", tmp_path / "whole.npz", f"--out={tmp_path / 'no'}", "--part=resnet", glue)
    assert code == 2 and "--part=resnet: found model.without=pictures,codes, expected a model that reads pictures" in errors
