"""The memory that was in use, of real processes that really use it."""

import multiprocessing
import os

from ofa_jax.monitor.memory import high_water, process_peak

MIB = 2**20


def hold(num_bytes, ready, done):
    """A worker: takes memory, lets go of it, says so and waits."""
    content = b"x" * num_bytes
    del content
    ready.set()
    done.wait()


class Device:
    """What a GPU or TPU answers; a CPU device of JAX answers None."""

    def __init__(self, stats):
        self._stats = stats

    def memory_stats(self):
        return self._stats


def test_peaks_of_the_process_and_of_its_live_workers():
    before = high_water(())
    assert set(before) == {"memory/host_peak_bytes"}
    assert before["memory/host_peak_bytes"] > 20 * MIB
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    worker = context.Process(target=hold, args=(64 * MIB, ready, done))
    worker.start()
    try:
        assert ready.wait(60)
        assert 64 * MIB < high_water(())["memory/workers_peak_bytes"] < 400 * MIB  # though it was given back
    finally:
        done.set()
        worker.join()
    assert "memory/workers_peak_bytes" not in high_water(())
    assert process_peak(worker.pid) == 0 < process_peak(os.getpid())


def test_the_fullest_device_counts_and_one_without_a_count_is_left_out():
    full, other = ({"peak_bytes_in_use": peak, "bytes_limit": 100} for peak in (90, 70))
    found = high_water([Device(None), Device(other), Device(full)])
    assert (found["memory/device_peak_bytes"], found["memory/device_limit_bytes"]) == (90, 100)
    assert "memory/device_peak_bytes" not in high_water([Device(None), Device({"num_allocs": 3})])
