"""launch/bench.py tokenizer runs and says a rate; how high it is, is no test."""

from __future__ import annotations

import re
import runpy
from pathlib import Path


def test_the_tokenizer_rate_is_printed(capsys):
    main = runpy.run_path(str(Path(__file__).resolve().parents[2] / "launch" / "bench.py"))["main"]
    assert main(["launch/bench.py", "tokenizer", "--seconds=0.01"]) == 0
    assert re.fullmatch(r"tokenizer: [\d,]+ ids/s of process time, [\d,]+ ids in batches of 256 texts\n", capsys.readouterr().out)
    assert main(["launch/bench.py", "tokenizer", "--dict=none.txt"]) == 2
    assert "expected OFA's dict.txt" in capsys.readouterr().err
