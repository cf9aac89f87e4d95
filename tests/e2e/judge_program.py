"""One of two processes: the second one met bad records, and the stop rule is asked on both. Run by test_two_processes.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ofa_jax.config.errors import DataError
from ofa_jax.data.batch import Reject
from ofa_jax.data.quarantine import Quarantine
from ofa_jax.parallel import hosts
from ofa_jax.train.hooks import StopOnRejects


def main(folder: str) -> int:
    hosts.start()
    quarantine = Quarantine(Path(folder) / f"rejects_{hosts.index()}.jsonl", max_fraction=0.04, grace=20)
    hook = StopOnRejects(quarantine, every_steps=2)
    for step in range(1, 7):
        bad = [Reject("d", f"r{step}", "image", "image", "3 bytes", "a JPEG file")] if hosts.index() == 1 and step > 2 else []
        quarantine.add(bad, data_step=step - 1, rows=2**31 if step > 4 else 5)  # beyond 32 bits at the end
        try:
            hook.evaluate(step, None, last=step == 6)
        except DataError as error:
            print(f"stopped at {step}: {str(error).split(' rows')[0]}")
    print("end", *hosts.sums(quarantine.rejected, quarantine.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
