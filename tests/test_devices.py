"""The test set-up itself: as many CPU devices as asked for, and arrays that spread over them."""

from __future__ import annotations

import os

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec


@pytest.mark.one_device
def test_the_fake_devices_are_there_and_share_an_array():
    count = int(os.environ.get("OFA_TEST_DEVICES", "8"))
    assert [device.platform for device in jax.devices()] == ["cpu"] * count
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))
    values = np.arange(2 * count, dtype=np.float32)
    array = jax.device_put(values, NamedSharding(mesh, PartitionSpec("data")))
    assert {shard.data.shape for shard in array.addressable_shards} == {(2,)}
    assert float(jax.jit(lambda x: x.sum())(array)) == values.sum()
