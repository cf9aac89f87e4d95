"""The grid of sizes, kinds of TPU and numbers of chips: points are legal, what is stored is not compiled again, lines are found again."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from ofa_jax.config.check import check
from ofa_jax.config.errors import UserError
from ofa_jax.pods import scaling
from ofa_jax.pods.collectives import SLICES
from ofa_jax.pods.grid import CHIPS, KINDS, SIZES, Point, compile_all, points, topology_of
from ofa_jax.pods.roofline import OUTER_HOP_S
from ofa_jax.pods.scaling import COPIES, GATHERED, MOMENTS, SUMMED
from ofa_jax.pods.scaling_page import table, write

ROOT = Path(__file__).resolve().parents[2]


def test_every_point_can_be_run_in_some_way_at_least():
    assert len(points()) == 80 and len({point.name for point in points()}) == 80
    for point in points():
        assert point.topology.chips == point.chips
        tried = point.choices()
        assert tried and [one.config.optimizer.accumulate for one in tried] == sorted(one.config.optimizer.accumulate for one in tried)
        for one in tried:
            check(one.config, point.chips)
            assert len(one.config.data.row_blocks) == 4 and sum(block.rows for block in one.config.data.blocks) == 3_072 * point.batch


def test_a_point_is_a_call_of_the_command_that_compiles(tmp_path: Path):
    point = Point("huge", "v5e", 512)
    command = point.command(point.choices()[0], tmp_path / "found.json")
    assert command[1:] == [
        "launch/compile.py", "--config=configs/ofa_huge.py:batch=2,shards=4096", "--topology=v5e:16x16", "--slices=2",
        "--config.mesh.fsdp=16", "--config.model.remat=full", "--skip_decoding", f"--json={tmp_path}/found.json",
    ]  # fmt: skip


def test_more_chips_than_a_slice_has_are_several_slices():
    assert topology_of("v6e", 4096).text == "16 x v6e:16x16" and topology_of("v5p", 4096).text == "v5p:16x16x16"
    with pytest.raises(UserError, match="chips: found 300 of v5e, expected one of 8, 16, 64, 128, 256, or a multiple of the last"):
        topology_of("v5e", 300)


def stored(size: str, kind: str, *, wrong: float = 1.0) -> dict[str, Any]:
    """Numbers of a size whose bytes, seconds and operations are lines of a chip's rows; on 512 chips gathers are `wrong` times those."""
    found = {}
    for chips in CHIPS:
        rows = 3_072 * max(chips // 256, 1)
        each, off = rows / chips, wrong if chips == 512 else 1.0
        lines = [("all-gather", ["fsdp"], 170, off * (1e9 + 2e6 * each)), ("reduce-scatter", ["fsdp"], 30, 2e9 + 1e6 * each)]
        lines += [("all-reduce", ["data"], 2, 1e8), ("all-reduce", ["data", "fsdp"], 500, 2e7)] if chips > 16 else []
        if chips == 512 and kind == "v5e":  # two slices
            lines += [("all-reduce", [SLICES], 502, 3e7), ("all-gather", ["data"], 2, 1e8)]
        found[f"{size} {kind} {chips}"] = {
            "config": f"ofa_{size}", "topology": f"{kind}:{chips}", "chips": chips, "rows": rows, "micros": 1, "command": [], "changes": [],
            "mesh": {"data": chips // 16, "fsdp": 16, "tensor": 1}, "memory": {"peak": 9e9}, "memory_limit": 1e11, "rows_s": 100.0 * chips,
            "times": {"local_s": 0.02 + 0.005 * each, "step_s": 0.03 + 0.005 * each}, "operations": {"encoder": 1e12 * rows}, "mfu": 0.2,
            "executed": 1e12 * each, "num_bytes": 1e11,
            "collectives": [{"kind": k, "axes": axes, "count": n, "turns": n, "total_bytes": size} for k, axes, n, size in lines],
        }  # fmt: skip
    return found


def test_what_is_stored_is_not_compiled_again(tmp_path: Path):
    file, said = tmp_path / "pods.json", []
    file.write_text(json.dumps(stored("large", "v5p")))
    found = compile_all(points(["large"], ["v5p"]), file, jobs=1, say=said.append)
    assert sorted(found) == sorted(stored("large", "v5p")) and said == [f"4 of 4 points are in {file}; 0 to compile, 1 at a time"]
    page = table(found, command="python launch/scaling.py")
    assert "| large | v5p:512 | 32 x 16 | 6,144 | 1 | all | 9.0 | 91% | 12.0 | 3.16 | 90 | 100.0 | 20% |" in page


def test_lines_are_found_again_and_tell_what_512_chips_send():
    numbers = stored("large", "v5p")
    fitted = scaling.fit(numbers, "large", "v5p")
    assert fitted.exchanges[GATHERED].fixed == pytest.approx(1e9) and fitted.exchanges[SUMMED].row == pytest.approx(1e6)
    assert fitted.exchanges[COPIES].at(12) == 1e8 and fitted.local.at(100) == pytest.approx(0.52)
    errors = scaling.errors(numbers, "large", "v5p")
    assert set(errors) == {GATHERED, SUMMED, COPIES, MOMENTS} and max(map(abs, errors.values())) < 1e-6
    wrong = scaling.errors(stored("large", "v5p", wrong=1.1), "large", "v5p")
    assert wrong[GATHERED] == pytest.approx(1 / 1.1 - 1) and abs(wrong[SUMMED]) < 1e-6


@pytest.mark.full
@pytest.mark.tpu
def test_slices_wait_for_their_hosts():
    numbers = stored("large", "v5e")
    fitted = scaling.fit(numbers, "large", "v5e")
    assert max(map(abs, scaling.errors(numbers, "large", "v5e").values())) < 1e-6
    one, two = (
        scaling.forecast(fitted, topology, scaling.paths(topology, 16), rows=12.0) for topology in map(topology_of, ["v5e"] * 2, [256, 512])
    )
    apart = 502 * OUTER_HOP_S + 3e7 / (12.5e9 / 4)  # 2 x half of the bytes
    assert two.sent_s - one.sent_s == pytest.approx(apart, rel=0.1) and two.sent_s > one.sent_s + apart


@pytest.mark.full
@pytest.mark.tpu
def test_the_page_has_forecasts_and_says_what_is_off(tmp_path: Path):
    file = tmp_path / "scaling.md"
    assert write(stored("large", "v5e"), file, command="python launch/scaling.py") == []
    text = file.read_text()
    assert "| large | v5e | +0.0% | +0.0% | +0.0% | +0.0% |" in text and (tmp_path / "scaling.png").stat().st_size > 10_000
    off = write(stored("large", "v5e", wrong=1.1), file, command="python launch/scaling.py")
    assert off == ["large v5e: gathered over fsdp: off by -9.1%"]


def test_what_was_compiled_for_512_chips_was_predicted_for_every_size_and_kind():
    """On the points that are kept: bytes by exchange within 5 %, as compiled for 16, 64 and 256 chips."""
    numbers = json.loads((ROOT / "docs" / "results" / "pods.json").read_text())
    assert set(numbers) == {point.name for point in points()}
    for size, kind in itertools.product(SIZES, KINDS):
        assert max(map(abs, scaling.errors(numbers, size, kind).values())) < 0.05, (size, kind)
