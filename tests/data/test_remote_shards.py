"""Shards read by ranges of bytes give what ArrayRecord's own reader gives, and say where they are damaged."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ofa_jax.data import remote_shards
from ofa_jax.data.remote_shards import BLOCK, RemoteShards
from ofa_jax.data.shards import ShardReader

OPTIONS = (
    "group_size:1",  # as ours are written
    "",
    "group_size:1,uncompressed",
    "group_size:3,uncompressed",
    "group_size:7,zstd:9",
    "group_size:1000",
    "group_size:2,pad_to_block_boundary:true",
)


def write(path: Path, records: list[bytes], options: str = "group_size:1") -> Path:
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


def records_of(sizes: list[int], seed: int = 0) -> list[bytes]:
    """Half noise, which does not compress, half one letter, which does."""
    draw = random.Random(seed)
    return [draw.randbytes(size // 2) + b"a" * (size - size // 2) for size in sizes]


def by_ranges(paths: list[Path], lengths: list[int]) -> RemoteShards:
    """What reads a store's shards, on local files: the ranges are the same."""
    return RemoteShards([str(path) for path in paths], lengths, [path.stat().st_size for path in paths])


@pytest.mark.parametrize("options", OPTIONS)
def test_both_readers_give_the_same_bytes(options: str, tmp_path: Path):
    draw = random.Random(1)
    near_blocks = [BLOCK - 24 - 40 - 3, BLOCK - 24 - 40, BLOCK - 64, BLOCK, BLOCK + 1, 2 * BLOCK]
    shards = [
        records_of([0, 0, 1]),
        records_of([300_000, 5, 299_999, 0, 65_000]),
        records_of([draw.choice([0, 1, 5, 100, 30_000, 70_000, *near_blocks]) for _ in range(40)]),
        records_of([10] * 2_000),
    ]
    paths = [write(tmp_path / f"{number}", records, options) for number, records in enumerate(shards)]
    lengths = [len(records) for records in shards]
    sizes = [path.stat().st_size for path in paths]
    everything = [record for records in shards for record in records]
    order = draw.sample(range(len(everything)), len(everything))
    local = ShardReader(paths, lengths, sizes=sizes, name="shards").read_bytes(order)
    assert local == [everything[place] for place in order]

    ranges = by_ranges(paths, lengths)
    shard_of = np.searchsorted(np.cumsum(lengths), order, side="right")
    records = np.array(order) - (np.cumsum(lengths) - lengths)[shard_of]
    assert ranges.read(shard_of, records) == local
    for few in (slice(0, 1), slice(5, 9), slice(20, 120)):
        assert pickle.loads(pickle.dumps(ranges)).read(shard_of[few], records[few]) == local[few]
    twice = np.array([1, 0, 1])
    assert ranges.read(np.ones(3, int), twice) == [shards[1][1], shards[1][0], shards[1][1]]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.one_of(st.integers(0, 200), st.integers(BLOCK - 200, BLOCK + 200), st.integers(0, 200_000)), max_size=12),
    options=st.sampled_from(OPTIONS),
    seed=st.integers(0, 9),
)
def test_any_sizes_of_records_come_back(sizes: list[int], options: str, seed: int, tmp_path: Path):
    records = records_of(sizes, seed)
    shards = by_ranges([write(tmp_path / "shard", records, options)], [len(records)])
    assert shards.read(np.zeros(len(records), int), np.arange(len(records))) == records
    one = np.arange(len(records))[-1:]
    assert shards.read(np.zeros(len(one), int), one) == records[-1:]


def test_neighbours_are_read_together_and_others_alone(tmp_path: Path, monkeypatch):
    paths = [write(tmp_path / f"{number}", records_of([100_000] * 40), "group_size:1,uncompressed") for number in range(2)]
    asked = []
    monkeypatch.setattr(remote_shards, "read_ranges", lambda ranges, read=remote_shards.read_ranges: asked.append(ranges) or read(ranges))
    shards = by_ranges(paths, [40, 40])
    shards.read(np.array([0, 0, 0, 1, 0]), np.array([5, 7, 30, 6, 6]))
    assert [len(ranges) for ranges in asked] == [2, 2, 3]  # postscripts, footers, records
    asked.clear()
    shards.read(np.zeros(40, int), np.arange(40))  # 4 MB
    assert [len(ranges) for ranges in asked] == [1]
    monkeypatch.setattr(remote_shards, "_MERGED_BYTES", 1_000_000)
    shards.read(np.zeros(40, int), np.arange(40))
    assert len(asked[1]) == 5 and max(stop - start for _, start, stop in asked[1]) <= 1_000_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("group_size:3,brotli", "found Brotli, expected records without compression or with Zstandard"),
        ("group_size:3,snappy", "found Snappy"),
        ("group_size:3,transpose", "found a chunk of type 't', expected 'r'"),
    ],
)
def test_other_ways_to_write_are_refused_by_name(options: str, said: str, tmp_path: Path):
    path = write(tmp_path / "shard", records_of([100] * 5), options)
    with pytest.raises(OSError, match=said) as caught:
        by_ranges([path], [5]).read(np.array([0]), np.array([1]))
    assert str(path) in str(caught.value)


def test_damage_is_named_by_shard_and_record(tmp_path: Path):
    records = records_of([70_000] * 6)
    whole = write(tmp_path / "whole", records).read_bytes()
    path = tmp_path / "damaged"

    def read(data: bytes, record: int = 4, length: int = 6, size: int | None = None) -> list[bytes]:
        path.write_bytes(data)
        return RemoteShards([str(path)], [length], [size or len(data)]).read(np.array([0]), np.array([record]))

    assert read(whole) == [records[4]]
    places = RemoteShards([str(tmp_path / "whole")], [6], [len(whole)])
    places.read(np.array([0]), np.array([0]))
    begin = int(places._indexes[0].offsets[4])
    for place, said in ((begin + 8, "expected"), (begin + 24, "type"), (begin + 40, "compression"), (begin + 3_000, "decompress")):
        data = bytearray(whole)
        data[place] ^= 0xFF
        if said == "decompress":  # noise is stored as it is, so that a changed byte of it shows nowhere: damage the frame's head
            data[place] ^= 0xFF
            data[begin + 60 : begin + 90] = bytes(30)
        with pytest.raises(OSError, match=f"{path}: record 4 cannot be read") as caught:
            read(bytes(data))
        assert said in str(caught.value)
        assert read(bytes(data), 0) == [records[0]]
    for cut in (whole[:-BLOCK], whole[: 3 * BLOCK], whole[:100], b"\0" * len(whole), whole[:-BLOCK] + bytes(BLOCK)):
        with pytest.raises(OSError, match=f"{path}: found"):
            read(cut)
    with pytest.raises(OSError, match="the file is cut off"):
        read(whole[:-BLOCK], size=len(whole))
    with pytest.raises(OSError, match=f"{path}: found 6 records, expected 7 records"):
        read(whole, length=7)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path}: the shard is gone"):
        RemoteShards([str(path)], [6], [len(whole)]).read(np.array([0]), np.array([0]))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 3 * BLOCK - 1), value=st.integers(0, 255), data=st.data())
def test_a_changed_byte_anywhere_gives_records_or_an_oserror(place: int, value: int, data: st.DataObject, tmp_path: Path):
    options = data.draw(st.sampled_from(["group_size:1", "group_size:4,uncompressed"]))
    path = write(tmp_path / "shard", records_of([2_000, 0, 7_000, 40, 1] * 6), options)
    changed = bytearray(path.read_bytes())
    changed[place % len(changed)] = value
    path.write_bytes(changed)
    try:
        found = by_ranges([path], [30]).read(np.zeros(30, int), np.arange(30))
    except OSError as error:
        assert str(path) in str(error)
    else:
        assert len(found) == 30
