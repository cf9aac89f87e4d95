from __future__ import annotations

from pathlib import Path

import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import ImageRecord, RecordError
from ofa_jax.prepare.layouts.image_folders import ImageFolders
from tests.prepare.layouts.fixtures.reading import errors, ids, records, sentences
from tests.prepare.layouts.fixtures.streamed import jpeg, strange_pictures, write_image_folders, write_tar


@pytest.mark.parametrize("tars", [True, False])
def test_each_class_is_an_input_of_pictures_alone(tmp_path: Path, tars: bool) -> None:
    written = write_image_folders(tmp_path, tars=tars)
    (tmp_path / "words.txt").write_text("n01440764\ttench\n")
    layout = ImageFolders(str(tmp_path), "imagenet21k")
    assert records(layout) == {name: ImageRecord(name, "imagenet21k", image, 40, 30) for name, image in written.items()}
    assert [item.name for item in layout.inputs(tmp_path)] == ["n01440764", "n02119789"]


def test_pictures_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "n1" / "more").mkdir(parents=True)
    (tmp_path / "n1" / "more" / "deep.jpg").write_bytes(jpeg())
    (tmp_path / "n1" / "list.csv").write_text("")
    for name, (content, _) in strange_pictures().items():
        (tmp_path / "n1" / f"{name}.jpg").write_bytes(content)
    layout = ImageFolders(str(tmp_path), "own")
    usable = {name: good for name, (_, good) in strange_pictures().items()}
    assert set(ids(layout)) == {f"n1/{name}.jpg" for name, good in usable.items() if good} | {"n1/more/deep.jpg"}
    assert {error.record for error in errors(layout)} == {f"n1/{name}.jpg" for name, good in usable.items() if not good}
    assert {error.reason for error in errors(layout)} == {"image"}


def test_cut_empty_and_missing_files_are_named(tmp_path: Path) -> None:
    layout = ImageFolders(str(tmp_path), "own")
    with pytest.raises(DataError, match=r"own: found no \*\.tar and no folders in .*, expected them as https://image-net.org"):
        layout.inputs(tmp_path)
    write_tar(tmp_path / "n1.tar", [("a.jpg", jpeg(1)), ("b.jpg", jpeg(2))])
    path = tmp_path / "n1.tar"
    path.write_bytes(path.read_bytes()[: 512 + len(jpeg(1)) + 900])
    (tmp_path / "n2").mkdir()
    assert ids(layout) == ["n1/a.jpg"]
    cut, empty = sentences(layout)
    assert cut.startswith(f"own record n1: field (file): found a tar that is cut or damaged after byte {512 + len(jpeg(1))} (")
    assert cut.endswith(f"1 whole pictures before it, expected {path} whole")
    assert empty.startswith("own record n2: field (file): found no file that ends in .jpg")


def test_a_large_folder_is_several_inputs_of_the_same_records(tmp_path: Path) -> None:
    """As Open Images lies: all pictures in a few folders."""
    source, gathered = tmp_path / "raw", tmp_path / "gathered"
    for number in range(7):
        path = source / "train" / ("more" if number == 5 else "") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
        (source / "train" / f"{number}.txt").write_text("no picture")
    for number in range(3):
        (source / "test").mkdir(exist_ok=True)
        (source / "test" / f"{number}.jpg").write_bytes(jpeg(number))
    whole, parted = ImageFolders(str(source), "own"), ImageFolders(str(source), "own", most_pictures=3)
    gathered.mkdir()
    said: list[str] = []
    parted.gather(gathered, said.append)
    assert [item.name for item in parted.inputs(gathered)] == ["test", "train@00000", "train@00001", "train@00002"]
    assert said == [f"own: 7 pictures of {source / 'train'} are 3 inputs"]
    found = [[one.record_id for one in parted.read(item)] for item in parted.inputs(gathered)]
    assert [len(ids) for ids in found] == [3, 2, 2, 3]
    assert [one for item in parted.inputs(gathered) for one in parted.read(item)] == list(records(whole).values())

    (source / "train" / "3.jpg").unlink()
    (source / "train" / "33.jpg").write_bytes(jpeg(33))
    again = [one for item in parted.inputs(gathered) for one in parted.read(item)]
    assert len(again) == 10, "what is listed once stays the list"
    (missing,) = (one for one in again if isinstance(one, RecordError))
    assert (missing.record, missing.found, missing.expected) == ("train/3.jpg", "no such file", str(source / "train" / "3.jpg"))
    with pytest.raises(DataError, match="own: option most_pictures: found 0, expected 1 or more"):
        ImageFolders(str(source), "own", most_pictures=0).gather(gathered, said.append)


def test_names_of_inputs_stay_unique(tmp_path: Path) -> None:
    """A tar and a folder of one name are refused; a folder that is several inputs does not take its name from another."""
    source, gathered = tmp_path / "raw", tmp_path / "gathered"
    for folder in ("a", "a@00000"):
        (source / folder).mkdir(parents=True)
        for number in range(2):
            (source / folder / f"{number}.jpg").write_bytes(jpeg(number))
    gathered.mkdir()
    layout = ImageFolders(str(source), "own", most_pictures=1)
    layout.gather(gathered, print)
    assert [item.name for item in layout.inputs(gathered)] == ["a@00000", "a@00001", "a@00000@00000", "a@00000@00001"]
    write_tar(source / "a.tar", [("a.jpg", jpeg(1))])
    with pytest.raises(DataError, match="both of the name a, expected different names"):
        layout.inputs(gathered)
