"""Make the golden vectors with `transformers`: `python tests/goldens/make.py` (needs torch).

Writes beside itself `cases.json` (config and tensor shapes of every case) and `outputs.npz` (for
each: logits after the last prompt tokens, and 64 greedy tokens).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from tests.support.checkpoints import CASES, prompt_of, random_tensors, write_directory

HERE = Path(__file__).parent
LOGITS_KEPT = 8
GREEDY_TOKENS = 64


def make(case: str) -> tuple[dict, np.ndarray, list[int]]:
    """Config and shapes, logits, and greedy tokens of a case."""
    import torch
    import transformers

    family, arguments = CASES[case]
    config = getattr(transformers, f"{family}Config")(**arguments)
    model_class = getattr(transformers, f"{family}ForCausalLM")
    with tempfile.TemporaryDirectory() as folder:
        model_class(config).save_pretrained(folder)
        written = json.loads((Path(folder) / "config.json").read_text())
        shapes = _stored_shapes(Path(folder))
        directory = write_directory(Path(folder) / "seeded", written, random_tensors(shapes))
        model = model_class.from_pretrained(directory, attn_implementation="eager").eval()
    prompt = torch.tensor([prompt_of(case)])
    with torch.no_grad():
        logits = model(prompt).logits[0, -LOGITS_KEPT:].numpy()
        text = model.generate(
            prompt, max_new_tokens=GREEDY_TOKENS, min_new_tokens=GREEDY_TOKENS, do_sample=False
        )
    return {"config": written, "shapes": shapes}, logits, text[0, prompt.shape[1] :].tolist()


def _stored_shapes(folder: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="np") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}


def main() -> None:
    cases, arrays = {}, {}
    for case in CASES:
        cases[case], logits, tokens = make(case)
        arrays[f"{case}/logits"] = logits.astype(np.float32)
        arrays[f"{case}/greedy"] = np.asarray(tokens, np.int32)
    (HERE / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    np.savez_compressed(HERE / "outputs.npz", **arrays)


if __name__ == "__main__":
    main()
