"""MFU: the operations that a model needs, over those that its chips could do in the same time at their peak.

    mfu = operations of a step / (seconds a step * chips * peak of a chip)

Operations are counted from the config (`models/operations`): products of matrices and convolutions, forward and backward, 2 for a
multiply-add, whatever is computed again or beside; attention of the decoder counts all pairs, not the half that its mask keeps. Seconds are
those of training, waiting for data included, without compiling, evaluating and saving. The peak is that of bf16 whatever the precision.
"""

from __future__ import annotations

from collections.abc import Mapping


def rates(operations: Mapping[str, float], *, step_s: float, peak_flops: float | None) -> dict[str, float]:
    """Returns `perf/flops_per_s`, and where the peak is known `perf/mfu` (0 to 1) and `perf/mfu/<component>`, which add up to it.

    operations: of a step on the global batch, by component. step_s: more than 0. peak_flops: operations a second of all chips together.
    A component's part says how much of the peak went into it, not how well it alone runs: nothing is timed by component.
    """
    found = {"perf/flops_per_s": sum(operations.values()) / step_s}
    if peak_flops:
        found["perf/mfu"] = found["perf/flops_per_s"] / peak_flops
        found |= {f"perf/mfu/{name}": count / step_s / peak_flops for name, count in operations.items()}
    return found


def explain(operations: Mapping[str, float], *, kind: str, num_chips: int, peak_flops: float | None) -> str:
    """Returns the line that says how MFU is computed; `kind` of `num_chips` devices, `peak_flops` of one of them, None: not known."""
    total = sum(operations.values())
    parts = ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in operations.items())
    said = f"operations a step {total:.3g} ({parts}; 2 a multiply-add, forward and backward)"
    if peak_flops is None:
        return f"{said}; the peak of {kind} is not known: perf/flops_per_s, no MFU"
    return f"{said}; MFU is of {num_chips} x {peak_flops / 1e12:.0f} TFLOP/s, the bf16 peak of {kind}"
