"""E3: float64, tiny models, in a process with x64 on: strictly equal over drafters and meshes."""

import json
import subprocess
import sys
from pathlib import Path

from jspec.certify.roster import ROSTER

ALL = ",".join(entry.name for entry in ROSTER)
CASES = (f"1,1,1={ALL}", "1,1,2=oracle-tree", "2,2,2=none,draft-model-tree", "8,1,1=oracle-tree")


def test_float64_is_strictly_equal_on_one_two_and_eight_devices():
    command = [sys.executable, "-m", "tests.proof.float64_run", *CASES]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["n_tokens"] > 300
    assert len(found["problems"]) == len(ROSTER) + 4
    assert {name: lines for name, lines in found["problems"].items() if lines} == {}
