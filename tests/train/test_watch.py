"""The watch on the data: its numbers against sums taken sequence by sequence, and its warnings."""

import dataclasses

import numpy as np
import pytest
from train_case import BLOCKS, CONFIG, TASK_NAMES, Batches

from ofa_jax.config.schema import PAD_ID, BlockConfig
from ofa_jax.data.batch import Reject
from ofa_jax.data.mixture import Members
from ofa_jax.data.usage import Usage
from ofa_jax.train.watch import WatchData

LENGTHS = [[Members(16)], [Members(20)], [Members(1000)]]


def watch_of(config=CONFIG, said=None, **options) -> WatchData:
    say = (lambda line: None) if said is None else said.append
    return WatchData(config, Usage(config.data, LENGTHS), task_names=TASK_NAMES, say=say, **options)


@pytest.fixture(scope="module")
def batches():
    return [Batches().batch(step) for step in range(4)]


def test_numbers_of_an_interval(batches):
    watch = watch_of()
    for batch in batches[:3]:
        watch.batch(batch)
    record = watch.numbers(1)  # the third batch is under way
    sums = {task: np.zeros(3) for task in TASK_NAMES}
    useful = {block.name: np.zeros(2) for block in BLOCKS}
    for batch in batches[:2]:
        weights, counts = dict.fromkeys(TASK_NAMES, 0.0), {"pairs": 0, "images_text": 0}
        for name, block in batch.blocks.items():
            counts["pairs" if name == "pairs" else "images_text"] += np.count_nonzero(block.target_ids != PAD_ID)
        for name, block in batch.blocks.items():
            for q, task_id in enumerate(block.task_ids):
                tokens = sum(id_ != PAD_ID for id_ in [*block.source_ids[q], *block.decoder_ids[q]])
                sums[TASK_NAMES[task_id]] += [0.5, tokens / 2, 0]
                useful[name] += [tokens, block.source_ids.shape[1] + block.decoder_ids.shape[1]]
                carrying = sum(id_ != PAD_ID for id_ in block.target_ids[q])
                weights[TASK_NAMES[task_id]] += block.confidence[q] * carrying / counts["pairs" if name == "pairs" else "images_text"]
        for task, weight in weights.items():
            sums[task][2] += weight / sum(weights.values()) / 2
    for task, (sequences, tokens, share) in sums.items():
        assert record[f"data/sequences/{task}"] == sequences == 8
        assert record[f"data/tokens/{task}"] == pytest.approx(tokens)
        assert record[f"data/weight_share/{task}"] == pytest.approx(share)
    assert sum(record[f"data/weight_share/{task}"] for task in TASK_NAMES) == pytest.approx(1)
    for name, (present, positions) in useful.items():
        assert record[f"data/useful/{name}"] == pytest.approx(present / positions)
    everything = np.sum(list(useful.values()), axis=0)
    assert record["data/useful_tokens"] == pytest.approx(everything[0] / everything[1])
    # 16 sequences read 20 sampled patches, 8 read all 64; the picture of one row in eight is hidden.
    pairs, images = useful["pairs"] / 2, useful["images"] / 2
    assert record["data/useful_with_patches/pairs"] == pytest.approx((pairs[0] + 14 * 20) / (pairs[1] + 16 * 20))
    stride = CONFIG.model.resnet.stride
    patches = (32 // stride) ** 2
    assert record["data/useful_with_patches/images"] == pytest.approx((images[0] + 7 * patches) / (images[1] + 8 * patches))
    assert "data/useful_with_patches/text" not in record
    assert record["data/accept/d"] == pytest.approx(48 / 49)  # one of 49 records was rejected
    assert (record["data/rows/d/caption"], record["data/epochs/d/caption"], record["data/epochs/d/image_infilling"]) == (16, 1.0, 0.8)
    later = watch.numbers(2)
    assert (later["data/accept/d"], later["data/epochs/d/caption"]) == (1.0, 1.5)
    assert watch.numbers(2) == {}


def test_counts_of_several_hosts_are_those_of_the_global_batch(batches):
    one, four = watch_of(), watch_of(num_hosts=4)
    for watch in (one, four):
        watch.batch(batches[0])
    one, four = one.numbers(0), four.numbers(0)
    assert four["data/tokens/matching"] == 4 * one["data/tokens/matching"]
    assert four["data/weight_share/matching"] == one["data/weight_share/matching"]


def test_a_task_without_loss_has_no_weight(batches):
    text = batches[0].blocks["text"]
    blocks = {**batches[0].blocks, "text": text._replace(target_ids=np.full_like(text.target_ids, PAD_ID))}
    watch = watch_of()
    watch.batch(batches[0]._replace(blocks=blocks))
    record = watch.numbers(0)
    assert record["data/weight_share/text_infilling"] == 0
    assert sum(record[f"data/weight_share/{task}"] for task in TASK_NAMES) == pytest.approx(1)


def test_a_repeated_source_is_told_at_the_start_and_once_when_it_happens(batches):
    said: list[str] = []
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, max_epochs=1.2))
    watch = watch_of(config, said)
    watch.start(0)
    assert said == [
        "WARNING: data: d/caption will be seen 2.0 times by step 4, more than data.max_epochs 1.2: it has 16 records",
        "WARNING: data: d/image_infilling will be seen 1.6 times by step 4, more than data.max_epochs 1.2: it has 20 records",
    ]
    said.clear()
    for batch in batches:
        watch.batch(batch)
    assert said == [
        "WARNING: data: d/caption was seen 1.5 times by step 3, more than data.max_epochs 1.2",
        "WARNING: data: d/image_infilling was seen 1.6 times by step 4, more than data.max_epochs 1.2",
    ]
    silent: list[str] = []
    watch = watch_of(CONFIG, silent)
    watch.start(0)
    for batch in batches:
        watch.batch(batch)
    assert silent == []


def test_pictures_alone_have_rows_and_epochs_only():
    from configs.quickstart_vqgan import get_config

    config = get_config("debug")
    block: BlockConfig = config.data.blocks[0]
    empty = np.zeros((0, 0), np.int32)
    made = Batches().batch(0).blocks["images"]._replace(
        source_ids=empty, decoder_ids=empty, target_ids=empty, confidence=np.zeros(0, np.float32), task_ids=np.zeros(0, np.int32),
        code_mask=np.zeros(0, bool),
    )  # fmt: skip
    batch = Batches().batch(0)._replace(blocks={block.name: made}, rejects=(Reject("scenes", "r", "image", "image", "a", "b"),))
    watch = WatchData(config, Usage(config.data, [[Members(64)]]), task_names=())
    watch.batch(batch)
    assert watch.numbers(0) == {
        "data/accept/scenes": pytest.approx(8 / 9), "data/rows/scenes/picture": 8, "data/epochs/scenes/picture": 0.125,
    }  # fmt: skip
