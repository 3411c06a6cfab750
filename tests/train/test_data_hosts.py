"""Of two hosts the first encodes a corpus; the other reads its file, or makes its own."""

from __future__ import annotations

import json

from tests.support.hosts import free_port, run_together

PROCESS = """
import sys
from pathlib import Path
import jax
port, process = sys.argv[1], int(sys.argv[2])
folder, tokenizer = map(Path, sys.argv[3:])
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
from jspec.errors import UserError
from jspec.train.config import CorpusConfig, DataConfig
from jspec.train.data import load_corpora

def load(name, cache):
    said = []
    corpora = [CorpusConfig(file=str(folder / name))]
    config = DataConfig(corpora=corpora, length=32, held_out=0.1)
    data = load_corpora(config, tokenizer, cache=cache, note=said.append)
    return any("encoded" in line for line in said), data.n_tokens

print(*load("cats.jsonl", folder / "shared"))
print(*load("cats.jsonl", folder / f"own-{process}"))
try:
    load("bad.jsonl", folder / "shared")
except UserError as error:
    print("line 2" in str(error))
"""


def test_the_first_host_encodes_and_the_other_reads(tmp_path, tokenizer_folder):
    rows = [json.dumps({"text": f"the cat sat on mat {i}"}) for i in range(40)]
    (tmp_path / "cats.jsonl").write_text("\n".join(rows))
    (tmp_path / "bad.jsonl").write_text(rows[0] + "\n{}")
    port = free_port()
    done = run_together(
        [("-c", PROCESS, port, host, tmp_path, tokenizer_folder) for host in (0, 1)]
    )
    assert [each.code for each in done] == [0, 0], [each.err[-2000:] for each in done]
    first, second = (each.out.split() for each in done)
    n_tokens = first[1]
    assert first == ["True", n_tokens, "True", n_tokens, "True"]
    assert second == ["False", n_tokens, "True", n_tokens, "True"]
    assert len(list((tmp_path / "shared").iterdir())) == 1
