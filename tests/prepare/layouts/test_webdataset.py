from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Caption, ImageRecord
from ofa_jax.data.transforms.image import decode_image
from ofa_jax.prepare.layouts.webdataset import WebDataset
from tests.prepare.layouts.fixtures.reading import errors, found, ids, records, sentences
from tests.prepare.layouts.fixtures.streamed import jpeg, sample, strange_pictures, write_tar, write_webdataset


def test_samples_of_all_tars_become_records(tmp_path: Path) -> None:
    written = write_webdataset(tmp_path)
    layout = WebDataset(str(tmp_path), "cc3m")
    assert records(layout) == {
        name: ImageRecord(name, "cc3m", image, 40, 30, (Caption(caption),)) for name, (image, caption) in written.items()
    }
    assert [(item.name, item.split) for item in layout.inputs(tmp_path)] == [("00000", "train"), ("00001", "train")]
    assert not any(one.captions for one in records(WebDataset(str(tmp_path), "yfcc", captions=False)).values())


def test_captions_come_from_the_metadata_where_a_field_is_named(tmp_path: Path) -> None:
    members = sample("a", image=jpeg(), caption="alt text", title="a title") + sample("b", image=jpeg(), caption="alt text", title=3)
    write_tar(tmp_path / "in" / "0.tar", members)
    layout = WebDataset(str(tmp_path), "own", caption_field="title")
    one, error = found(layout)
    assert (one.record_id, one.captions) == ("in_0/a", (Caption("a title"),))
    assert str(error).startswith("own record in_0/b: field json/title: found '3' of fields key, url,")


def test_strange_pictures_are_kept_or_named(tmp_path: Path) -> None:
    pictures = strange_pictures()
    write_tar(tmp_path / "0.tar", [m for name, (image, _) in pictures.items() for m in sample(name, image=image, caption=name)])
    layout = WebDataset(str(tmp_path), "web")
    assert ids(layout) == [f"0/{name}" for name, (_, usable) in pictures.items() if usable]
    said = {error.record: str(error) for error in errors(layout)}
    assert set(said) == {f"0/{name}" for name, (_, usable) in pictures.items() if not usable}
    assert said["0/animated"] == "web record 0/animated: field image: found an animation of 3 frames, expected one picture"
    assert "found 16 bytes starting with 3c 68 74 6d" in said["0/no_picture"] and "expected a picture" in said["0/no_picture"]
    assert "30000 x 30000 pixels" in said["0/too_many_pixels"] or "decompression bomb" in said["0/too_many_pixels"]
    kept = {one.record_id: one for one in found(layout) if isinstance(one, ImageRecord)}
    assert (kept["0/wide"].width, kept["0/wide"].height) == (30_000, 10)
    for name in ("cmyk", "sixteen_bit", "webp", "still_gif"):
        assert decode_image(kept[f"0/{name}"].image).shape == (30, 40, 3)


def test_samples_that_lack_something_are_named_and_the_rest_kept(tmp_path: Path) -> None:
    members = [
        *sample("failed", image=None, caption="gone", status="failed_to_download"),
        *sample("silent", image=jpeg(), caption=None),
        *sample("latin", image=jpeg(), caption="caf\u00e9".encode("latin-1")),
        *sample("blank", image=jpeg(), caption=" \n"),
        *sample("long", image=jpeg(), caption="word " * 10_000),
        *sample("png", image=jpeg(), caption="of another ending", ending="PNG"),
    ]
    write_tar(tmp_path / "0.tar", members)
    layout = WebDataset(str(tmp_path), "web")
    assert ids(layout) == ["0/long", "0/png"]
    expected = "expected a picture (jpg, jpeg, png, webp, gif, bmp)"
    assert sentences(layout) == [
        f"web record 0/failed: field image: found members json, txt and the status 'failed_to_download', {expected}",
        "web record 0/silent: field txt: found members jpg, json, expected a caption in UTF-8",
        "web record 0/latin: field txt: found bytes that are no UTF-8 (unexpected end of data at 3), expected a caption in UTF-8",
        "web record 0/blank: field captions[0].text: found '', expected at least one word",
        "web record 0/blank: field (record): found no usable annotation, expected at least one",
    ]


def test_a_tar_that_is_cut_anywhere_gives_its_whole_samples_and_one_error(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "whole", shards=1)
    data = (tmp_path / "whole" / "00000.tar").read_bytes()
    path = tmp_path / "cut" / "00000.tar"
    path.parent.mkdir()
    layout = WebDataset(str(path.parent), "cut")
    end = len(data.rstrip(b"\0"))
    counts = []
    for cut in (*range(0, end, 512), *range(100, end, 1999)):
        path.write_bytes(data[:cut])
        (error,) = errors(layout)
        assert error.field == "(file)" and f"expected {path} whole" in str(error) and "cut or damaged after byte" in error.found
        kept = ids(layout)
        assert kept == [f"00000/00000000{number}" for number in range(len(kept))]
        counts.append((cut, len(kept)))
    counts.sort()
    assert [n for _, n in counts] == sorted(n for _, n in counts) and {n for _, n in counts} >= {0, 1, 2}
    # A header that is overwritten in the middle is no end of the archive either.
    with tarfile.open(tmp_path / "whole" / "00000.tar") as tar:
        header = tar.getmembers()[4].offset
    path.write_bytes(data[:header] + b"\xff" * 512 + data[header + 512 :])
    assert ids(layout) == ["00000/000000000"]
    assert [error.record for error in errors(layout)] == ["00000/000000001"]


def test_missing_empty_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"web: found no \*\*/\*.tar in .*, expected them as https://github.com/rom1504/img2dataset"):
        WebDataset(str(tmp_path), "web").inputs(tmp_path)
    for name, content in (("a", b""), ("b", b"no tar at all" * 100), ("c", bytes(10_240))):
        (tmp_path / f"{name}.tar").write_bytes(content)
    assert [(error.record, error.field) for error in errors(WebDataset(str(tmp_path), "web"))] == [(name, "(file)") for name in "abc"]
    write_tar(tmp_path / "x" / "y.tar", [])
    write_tar(tmp_path / "x_y.tar", [])
    with pytest.raises(DataError, match=r"both of the name x_y, expected different names"):
        WebDataset(str(tmp_path), "web").inputs(tmp_path)
