"""Every mistake of a user is one line `error: ...`, exit code 2, and no trace.

One table: a name, what is prepared, and what the line has to say. `{chat}`, `{bare}` and so on are
the tiny checkpoints, `{tmp}` is an empty folder, `{copy}` a copy of `chat` that was damaged.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

Damage = Callable[[Path], object]


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A command that cannot work.

    Attributes:
      argv: words, with places in braces.
      said: what the error has to contain.
      files: written to `{tmp}` first.
      damage: done to `{copy}` first.
    """

    argv: str
    said: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...] = ()
    damage: Damage | None = None


def prompt_line(line: bytes, *said: str, target: str = "{chat}") -> Mistake:
    """A second line of a prompts file that is wrong."""
    return Mistake(
        f"--target {target} --prompts {{tmp}}/p.jsonl",
        ("p.jsonl, line 2: ", *said),
        files=(("p.jsonl", b'{"prompt_tokens": [1]}\n' + line + b"\n"),),
    )


def flag(words: str, *said: str) -> Mistake:
    return Mistake(f"--target {{chat}} --prompt hi {words}", said)


def config(text: bytes, *said: str) -> Mistake:
    files = (("run.yaml", text),)
    return Mistake("--config {tmp}/run.yaml --prompt hi", ("run.yaml", *said), files=files)


def damaged(damage: Damage, *said: str) -> Mistake:
    return Mistake("--target {copy} --prompt hi", said, damage=damage)


def edit_json(name: str, **changes) -> Damage:
    def edit(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        values = {k: v for k, v in (values | changes).items() if v is not None}
        (folder / name).write_text(json.dumps(values))

    return edit


def cut(name: str, share: float) -> Damage:
    def edit(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return edit


def edit_header(change: Callable[[dict], None]) -> Damage:
    """Rewrites the header of the safetensors file; the numbers stay."""

    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return edit


NORM = "model.norm.weight"


def without_norm(header: dict) -> None:
    header["rotary_emb.inv_freq"] = header.pop(NORM)  # its bytes belong to a harmless buffer


def misshapen_norm(header: dict) -> None:
    header[NORM]["shape"] = [2, header[NORM]["shape"][0] // 2]


def renamed_norm(header: dict) -> None:
    header["model.norm.bias"] = header.pop(NORM)


def quantised_norm(header: dict) -> None:
    """A byte a number; the bytes that are left over belong to a harmless buffer."""
    begin, end = header[NORM]["data_offsets"]
    middle = begin + (end - begin) // 4
    header[NORM] |= {"dtype": "F8_E4M3", "data_offsets": [begin, middle]}
    rest = {"dtype": "U8", "shape": [end - middle], "data_offsets": [middle, end]}
    header["rotary_emb.inv_freq"] = rest


MISTAKES: dict[str, Mistake] = {
    # what to run
    "recipe": Mistake("--config demo/target --prompt hi", ("python -m jspec.train --config",)),
    "no prompt": Mistake("--target {chat}", ("--prompt TEXT", "given no prompt")),
    "two sources of prompts": Mistake(
        "--target {chat} --prompt hi --prompts {tmp}/p.jsonl", ("given --prompt and --prompts",)
    ),
    "a prompt without its flag": Mistake("--target {chat} hello", ("'hello'", "--prompt TEXT")),
    "unknown flag": flag("--temprature 1", "unrecognized arguments: --temprature"),
    "empty file name": Mistake("--target {chat} --prompts ''", ("--prompts: an empty name",)),
    "flag without value": flag("--temperature", "--temperature", "expected one argument"),
    # flags
    "negative temperature": flag("--temperature -1", "from 0.01 to 1000000", "given -1"),
    "temperature too small": flag("--temperature 0.001", "given 0.001"),
    "temperature not a number": flag("--temperature nan", "temperature", "nan"),
    "temperature a word": flag("--temperature hot", "given 'hot'"),
    "top-p zero": flag("--top-p 0", "top_p", "(0, 1]"),
    "top-p above one": flag("--top-p 1.5", "given 1.5"),
    "min-p one": flag("--min-p 1", "min_p", "[0, 1)"),
    "top-k negative": flag("--top-k -3", "top_k", "given -3"),
    "top-k a fraction": flag("--top-k 2.5", "whole number"),
    "seed negative": flag("--seed -1", "seed", "4294967295"),
    "seed too large": flag("--seed 4294967296", "given 4294967296"),
    "sample too large": flag("--sample 4294967296", "sample"),
    "no new tokens": flag("--max-new-tokens 0", "max_new_tokens", "from 1 to 2147483647"),
    "no rows": flag("--batch-size 0", "batch_size", "from 1 to 4096"),
    "max-length above the context": flag("--max-length 9999", "9999", "192"),
    "unknown dtype": flag("--dtype int8", "dtype", "float32 or bfloat16", "'int8'"),
    "unknown rule": flag("--rule never", "walk or rejection"),
    "unknown drafter": flag("--drafter promt-lookup", "did you mean", "draft-model"),
    "more rows than any batch has": flag("--batch-size 1000000000", "from 1 to 4096"),
    "drafter without its weights": flag("--drafter draft-model", "drafter_path"),
    "weights for no drafter": flag("--drafter-path {small}", "add --drafter NAME"),
    "unknown drafter option": flag(
        "--drafter prompt-lookup --set drafter_options.dpeth=2", "dpeth", "max_ngram"
    ),
    "drafter option of a wrong type": flag(
        "--drafter prompt-lookup --set drafter_options.depth=deep", "depth", "'deep'"
    ),
    "drafter option out of range": flag(
        "--drafter prompt-lookup --set drafter_options.depth=0", "depth"
    ),
    "drafter path is not there": flag("--drafter draft-model --drafter-path {tmp}/no", "/no"),
    "drafter of another vocabulary": flag(
        "--drafter draft-model --drafter-path {stranger}", "vocabulary", "61", "320"
    ),
    "tree under rejection": flag(
        "--drafter draft-model --drafter-path {small} --set drafter_options.width=2 "
        "--rule rejection",
        "rejection rule takes chains",
    ),
    "mesh larger than the devices": flag("--mesh tensor=64", "64", "devices"),
    "mesh axis unknown": flag("--mesh tensr=2", "did you mean 'tensor'"),
    "mesh not a mesh": flag("--mesh two", "data=1,layer=1,tensor=2"),
    "set without a value": flag("--set temperature", "key=value"),
    "set of an unknown key": flag("--set temprature=1", "did you mean 'temperature'"),
    "empty stop string": Mistake("--target {chat} --prompt hi --stop ''", ("stop", "non-empty")),
    "system without template": Mistake(
        "--target {plain} --prompt hi --system kind", ("system", "chat template")
    ),
    "system with raw": flag("--system kind --raw", "--system", "--raw"),
    "stop without tokenizer": Mistake(
        "--target {bare} --prompts {tmp}/p.jsonl --stop x",
        ("stop", "tokenizer"),
        files=(("p.jsonl", b'{"prompt_tokens": [1]}'),),
    ),
    "broken chat template": Mistake(
        "--target {chat} --prompt hi --set chat_template={{%if%}}", ("chat template",)
    ),
    # configs
    "config not there": Mistake("--config nowhere --prompt hi", ("'nowhere'", "vicuna")),
    "config a folder": Mistake("--config {tmp} --prompt hi", ("directory",)),
    "config empty": config(b"", "empty"),
    "config broken": config(b"target: [1\n", "broken YAML, line"),
    "config no mapping": config(b"- 1\n", "expected keys"),
    "config not UTF-8": config(b"target: \xff\xfe\n", "not UTF-8"),
    "config with a misspelt key": config(b"target: x\ntemprature: 1\n", "'temperature'"),
    "config with a wrong type": config(b"target: x\nmax_new_tokens: many\n", "given 'many'"),
    "config with a key twice": config(b"target: x\ntarget: y\n", "twice"),
    "config without target": config(b"seed: 1\n", "no target"),
    # prompts
    "prompts not there": Mistake("--target {chat} --prompts {tmp}/no.jsonl", ("no.jsonl",)),
    "prompts a folder": Mistake("--target {chat} --prompts {tmp}", ("cannot be read",)),
    "prompts empty": Mistake(
        "--target {chat} --prompts {tmp}/p.jsonl", ("no prompts",), files=(("p.jsonl", b"\n"),)
    ),
    "empty prompt": Mistake("--target {chat} --prompt ''", ("prompt is empty",)),
    "prompt longer than the context": Mistake(
        "--target {chat} --prompt " + "x" * 400, ("192", "--max-length")
    ),
    "prompt without tokenizer": Mistake(
        "--target {bare} --prompt hi", ("tokenizer", "prompt_tokens")
    ),
    "broken line": prompt_line(b'{"prompt": ', "broken JSON"),
    "line no object": prompt_line(b"[1]", "expected a JSON object"),
    "line not UTF-8": prompt_line(b'{"prompt": "\xff"}', "not UTF-8"),
    "line without prompt": prompt_line(b'{"id": 3}', "prompt_tokens"),
    "line with two prompts": prompt_line(b'{"prompt": "a", "turns": ["b"]}', "given turns and"),
    "line with an empty turn": prompt_line(b'{"turns": ["a", ""]}', "turn 2 is empty"),
    "line with a bad setting": prompt_line(b'{"prompt": "a", "top_p": 7}', "top_p", "given 7"),
    "line with a misspelt setting": prompt_line(b'{"prompt": "a", "topk": 7}', "'top_k'"),
    "token outside the vocabulary": prompt_line(b'{"prompt_tokens": [320]}', "320", "319"),
    "token that is no number": prompt_line(b'{"prompt_tokens": ["a"]}', "token ids"),
    "no tokens": prompt_line(b'{"prompt_tokens": []}', "token ids"),
    "turns without template": prompt_line(
        b'{"turns": ["a", "b"]}', "chat template", target="{plain}"
    ),
    # checkpoints
    "target not there": Mistake("--target {tmp}/no --prompt hi", ("/no", "no such directory")),
    "target a file": Mistake("--target {chat}/config.json --prompt hi", ("is a file",)),
    "target an empty folder": Mistake("--target {tmp} --prompt hi", ("config.json",)),
    "truncated weights": damaged(cut("model.safetensors", 0.6), "model.safetensors", "incomplete"),
    "truncated header": damaged(cut("model.safetensors", 0.005), "header"),
    "no weights": damaged(lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "missing tensor": damaged(edit_header(without_norm), "missing", NORM),
    "unexpected tensor": damaged(edit_header(renamed_norm), "unexpected", "model.norm.bias"),
    "tensor of a wrong shape": damaged(edit_header(misshapen_norm), "shape", NORM),
    "tensor of an unknown type": damaged(edit_header(quantised_norm), "F8_E4M3", "unquantised"),
    "config.json broken": damaged(cut("config.json", 0.5), "config.json", "JSON"),
    "unknown architecture": damaged(edit_json("config.json", model_type="mamba"), "mamba"),
    "sizes of another model": damaged(edit_json("config.json", hidden_size=None), "wrong shapes"),
    "impossible heads": damaged(edit_json("config.json", num_key_value_heads=3), "3"),
    "tokenizer broken": damaged(cut("tokenizer.json", 0.5), "tokenizer"),
    "stop ids of a wrong type": damaged(edit_json("config.json", eos_token_id="end"), "eos"),
}


def words_of(mistake: Mistake, places: dict[str, Path]) -> list[str]:
    import shlex

    return [word.format(**places) for word in shlex.split(mistake.argv)]


def prepare(mistake: Mistake, checkpoints, tmp: Path) -> list[str]:
    """Writes the files, does the damage, and gives the command's words."""
    folder = tmp / "files"
    folder.mkdir()
    for name, data in mistake.files:
        (folder / name).write_bytes(data)
    places = {
        field.name: getattr(checkpoints, field.name) for field in dataclasses.fields(checkpoints)
    }
    places |= {"tmp": folder, "copy": tmp / "chat"}
    if mistake.damage is not None:
        mistake.damage(checkpoints.copy("chat", tmp))
    return words_of(mistake, places)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(name, checkpoints, infer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake = MISTAKES[name]
    run = infer(*prepare(mistake, checkpoints, tmp_path))
    assert run.code == 2, run.err
    assert run.out == ""
    assert run.err.startswith("error: ") and run.err.count("\n") == 1, run.err
    for part in mistake.said:
        assert part in run.err


def test_there_are_at_least_forty_kinds():
    assert len(MISTAKES) >= 40
