"""Examples shared by the hosts: host h of n decodes examples h, h + n, ..., each on a device of its own, and all get the outputs of all."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np

from ofa_jax.eval.collect import Examples
from ofa_jax.parallel import hosts


def own_share(examples: Examples) -> Examples:
    """Returns this host's examples, all of them where it is alone."""
    return dataclasses.replace(examples, examples=examples.examples[hosts.index() :: hosts.count()])


def gather_shares(
    ids: Sequence[np.ndarray], numbers: Mapping[str, np.ndarray], *, total: int
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Returns the ids, int32 an example, and the numbers, float64 [total] by name, of all examples in their order. All hosts must call it.

    ids, numbers: of this host's share. total: how many examples all shares have.
    """
    if hosts.count() == 1:
        return list(ids), dict(numbers)
    content = io.BytesIO()
    lengths = np.array([len(row) for row in ids], np.int32)
    np.savez(content, lengths=lengths, flat=np.concatenate([*ids, np.zeros(0, np.int32)]).astype(np.int32), **numbers)
    all_ids: list[np.ndarray] = [np.zeros(0, np.int32)] * total
    all_numbers = {name: np.zeros(total) for name in numbers}
    for host, part in enumerate(hosts.gather(content.getvalue())):
        with np.load(io.BytesIO(part)) as stored:
            all_ids[host :: hosts.count()] = np.split(stored["flat"], np.cumsum(stored["lengths"]))[:-1]
            for name, array in all_numbers.items():
                array[host :: hosts.count()] = stored[name]
    return all_ids, all_numbers
