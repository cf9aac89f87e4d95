"""The hang watch: beats, deadlines, stacks, and who is named."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from ofa_jax.monitor.heartbeat import Beat, Heartbeat, read_beats, slowest, thread_stacks


def wait_for(condition) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("not in ten seconds")


def test_a_beat_says_what_the_loop_is_at(tmp_path: Path):
    watch = Heartbeat(tmp_path, host=3, deadline_s=0, on_hang=lambda said: None, write_every_s=0.05)
    watch.enter(7, "save")
    wait_for(lambda: [(beat.step, beat.phase) for beat in read_beats(tmp_path)] == [(7, "save")])
    [beat] = read_beats(tmp_path)
    assert beat.host == 3 and abs(time.time() - beat.written) < 5 and beat.since <= beat.written
    watch.close()
    assert read_beats(tmp_path) == []


def test_a_phase_is_written_down_when_it_begins_but_steps_are_not(tmp_path: Path):
    watch = Heartbeat(tmp_path, host=0, deadline_s=0, on_hang=lambda said: None, write_every_s=60)
    watch.enter(4, "restore")
    wait_for(lambda: [beat.phase for beat in read_beats(tmp_path)] == ["restore"])
    watch.enter(4, "data")
    wait_for(lambda: [beat.phase for beat in read_beats(tmp_path)] == ["data"])
    watch.enter(4, "step")
    watch.enter(5, "data")
    time.sleep(0.5)
    assert [(beat.step, beat.phase) for beat in read_beats(tmp_path)] == [(4, "data")]
    watch.enter(5, "save")
    wait_for(lambda: [(beat.step, beat.phase) for beat in read_beats(tmp_path)] == [(5, "save")])
    began = time.monotonic()
    watch.close()
    assert time.monotonic() - began < 5, "the end does not wait for the next beat"


def test_a_step_beyond_its_deadline_dumps_stacks_and_names_the_last_host(tmp_path: Path):
    (tmp_path / "heartbeat_1.json").write_text(
        json.dumps({"host": 1, "step": 41, "phase": "data", "since": time.time() - 90, "written": time.time() - 80})
    )
    said: list[str] = []
    ended = threading.Event()
    watch = Heartbeat(tmp_path, host=0, deadline_s=0.4, on_hang=lambda words: (said.append(words), ended.set()), write_every_s=0.05)
    for _ in range(10):  # steps in time
        watch.enter(42, "step")
        time.sleep(0.05)
    assert not said
    assert ended.wait(10)
    assert said[0].startswith("host 0: phase 'step' after step 42 has lasted ") and "expected at most 0 s" in said[0]
    assert "host 1 is last: step 41, data since 9" in said[0]
    stacks = (tmp_path / "hang_0.txt").read_text()
    assert "test_a_step_beyond_its_deadline" in stacks and "heartbeat" in stacks
    watch.close()


def test_stacks_begin_with_the_main_thread_however_many_there_are():
    done = threading.Event()
    threads = [threading.Thread(target=done.wait, name=f"idle-{number}") for number in range(150)]
    for thread in threads:
        thread.start()
    stacks = thread_stacks()
    done.set()
    for thread in threads:
        thread.join()
    main, *others = stacks.split("\nthread ")
    assert main.startswith("thread MainThread (0x") and "test_stacks_begin_with_the_main_thread" in main
    assert {f"idle-{number}" for number in range(150)} <= {other.split()[0] for other in others}


def test_other_phases_may_take_longer(tmp_path: Path):
    said: list[str] = []
    watch = Heartbeat(tmp_path, host=0, deadline_s=0.2, on_hang=said.append, write_every_s=0.05)
    watch.enter(1, "evaluate")
    time.sleep(0.8)
    assert not said
    wait_for(lambda: said)
    assert "phase 'evaluate'" in said[0]
    watch.close()


def test_the_last_is_the_one_with_the_fewest_steps_then_the_longest_silent():
    beats = [Beat(0, 5, "step", 90, 99), Beat(1, 5, "step", 90, 60), Beat(2, 6, "step", 90, 10)]
    assert slowest(beats, now=100) == "host 1 is last: step 5, step since 10 s, last heard of 40 s ago"
    assert slowest([*beats, Beat(3, 4, "data", 20, 99)], now=100).startswith("host 3 is last: step 4, data since 80 s")
    assert slowest([], now=0) == ""
