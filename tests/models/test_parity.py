"""Live comparison with `transformers`: needs torch, run by `make test-parity`."""

from __future__ import annotations

import argparse
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.checkpoints.hub import local_directory
from jspec.checkpoints.target import load_model, load_target
from jspec.checkpoints.tensor_files import open_torch
from jspec.checkpoints.write import write_checkpoint
from jspec.errors import UserError
from jspec.infer.generate import generate
from jspec.models.model import empty_cache, forward
from jspec.testing.decoding import full_logits, greedy
from tests.support.blocks import bidirectional_block
from tests.support.checkpoints import CASES, prompt_of
from tests.support.tolerances import tolerance

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
transformers = pytest.importorskip("transformers")

OTHER_SIZES = dict(vocab_size=131, hidden_size=48, intermediate_size=72, num_hidden_layers=2)
NEW_TOKENS = 64


def hf_model(case: str, sizes: dict, seed: int = 0):
    """A random model of a case, every weight moved so that biases and norms matter."""
    family, arguments = CASES[case]
    arguments = {name: value for name, value in arguments.items() if name != "layer_types"}
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**(arguments | sizes))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model


def hf_logits(model, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def hf_greedy(model, tokens: list[int]) -> list[int]:
    prompt = torch.tensor([tokens])
    with torch.no_grad():
        text = model.generate(
            prompt, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
        )
    return text[0, len(tokens) :].tolist()


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_equal_transformers(case, tmp_path):
    sizes = OTHER_SIZES if "longrope" not in case else {}
    model = hf_model(case, sizes)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    target = load_target(tmp_path)
    prompt = prompt_of(case)
    logits, tokens = greedy(target, prompt, NEW_TOKENS)
    atol = tolerance("float32").logits
    np.testing.assert_allclose(logits, hf_logits(model, prompt), rtol=0, atol=atol)
    assert tokens == hf_greedy(model, prompt)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["llama_llama3", "mistral_window", "qwen2_yarn", "qwen3"])
def test_transformers_loads_what_we_write(case, dtype, tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    model = hf_model(case, OTHER_SIZES).to(getattr(torch, dtype))
    model.save_pretrained(theirs)
    target = load_target(theirs, dtype=dtype)
    write_checkpoint(ours, target.params, target.model.config, max_shard_bytes=40_000)
    assert len(list(ours.glob("*.safetensors"))) > 1

    def read(directory):
        loaded, report = type(model).from_pretrained(
            directory, dtype="auto", output_loading_info=True, attn_implementation="eager"
        )
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert loaded.dtype == model.dtype
        return hf_logits(loaded.eval(), prompt_of(case))

    np.testing.assert_array_equal(read(ours), read(theirs))


@pytest.mark.parametrize("is_sharded", [False, True])
def test_torch_shards_load_like_safetensors(is_sharded, tmp_path):
    model = hf_model("llama", OTHER_SIZES).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    wanted = load_target(tmp_path, dtype="bfloat16")
    (tmp_path / "model.safetensors").unlink()
    tensors = model.state_dict()
    if is_sharded:
        shards = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(tensors)}
        for shard in set(shards.values()):
            part = {name: tensors[name] for name in tensors if shards[name] == shard}
            torch.save(part, tmp_path / shard)
        index = {"metadata": {}, "weight_map": shards}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    target = load_target(tmp_path, dtype="bfloat16")
    prompt = prompt_of("llama")
    np.testing.assert_array_equal(full_logits(target, prompt), full_logits(wanted, prompt))


def two_d(change):
    """`change` for the matrices of a state dict."""
    return lambda tensors: {k: change(x) if x.ndim == 2 else x for k, x in tensors.items()}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        two_d(lambda x: torch.nn.Parameter(x)),
        two_d(lambda x: x.T.contiguous().T),
        two_d(lambda x: torch.cat([x, x])[: len(x)]),
        lambda tensors: {"model": {"state_dict": tensors}, "epoch": 3},
    ],
    ids=["plain", "parameters", "strided", "shared", "wrapped"],
)
def test_bin_files_of_every_kind_load(wrap, dtype, is_zip, tmp_path):
    shutil.copytree(local_directory("demo/draft"), tmp_path, dirs_exist_ok=True)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    tensors = {name: x.to(getattr(torch, dtype)) for name, x in tensors.items()}
    wanted = load_target(tmp_path, dtype=dtype)
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "pytorch_model.bin"
    torch.save(wrap(tensors), file, _use_new_zipfile_serialization=is_zip)
    loaded = load_target(tmp_path, dtype=dtype)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, wanted.params)


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: {"model": {}, "args": argparse.Namespace()}, "more than tensors .*Namespace"),
        (lambda: [torch.ones(2)], "expected a state dict .* in the list"),
        (lambda: {"a": torch.ones(2, device="meta")}, "saved without its values"),
        (lambda: {"a": torch.ones(2).to(torch.int8)}, "a has type int8, expected one of F64"),
    ],
)
def test_bin_files_of_other_things_are_named(make, told, tmp_path):
    torch.save(make(), tmp_path / "x.bin")
    with pytest.raises(UserError, match=told):
        [each.read() for each in open_torch(tmp_path / "x.bin").values()]


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_bin_file_that_ends_too_early_is_one_line(is_zip, tmp_path):
    file = tmp_path / "x.bin"
    torch.save({"a": torch.ones(99)}, file, _use_new_zipfile_serialization=is_zip)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match="incomplete or corrupt; download it again") as error:
        open_torch(file)
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


@pytest.mark.parametrize("is_same", [True, False])
def test_a_tied_config_with_another_head_says_what_transformers_says(is_same, tmp_path):
    """Equal: the embedding is the head. Different: the file's head is used."""
    shutil.copytree(local_directory("demo/draft"), tmp_path, dirs_exist_ok=True)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.clone() if is_same else embedding.flip(0).contiguous()
    safetensors.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    target, prompt = load_target(tmp_path), [0, 300, 400]
    assert target.model.config.has_tied_head == is_same
    answer = generate(target, [prompt], max_new_tokens=6)[0]
    wanted = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=6)
    assert list(answer.tokens) == wanted[0, 3:].tolist()


@pytest.mark.parametrize(
    "change",
    [lambda name: name.removeprefix("model."), lambda name: name],
    ids=["base model", "fewer layers"],
)
def test_what_transformers_loads_in_spite_of_names_loads_alike(change, tmp_path):
    shutil.copytree(local_directory("demo/draft"), tmp_path, dirs_exist_ok=True)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    renamed = {change(name): x for name, x in tensors.items()}
    safetensors.save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"num_hidden_layers": 1}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompt, atol = [0, 300, 400], tolerance("float32").logits
    ours = full_logits(load_target(tmp_path), prompt)
    np.testing.assert_allclose(ours, hf_logits(theirs.eval(), prompt), rtol=0, atol=atol)


def test_configs_of_transformers_4_are_read_like_transformers_reads_them(tmp_path):
    model = hf_model("llama_llama3", OTHER_SIZES)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    scaling = values.pop("rope_parameters")
    values |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    path.write_text(json.dumps(values))
    reloaded = type(model).from_pretrained(tmp_path, attn_implementation="eager").eval()
    prompt = prompt_of("llama_llama3")
    np.testing.assert_allclose(
        full_logits(load_target(tmp_path), prompt),
        hf_logits(reloaded, prompt),
        rtol=0,
        atol=tolerance("float32").logits,
    )


@pytest.mark.parametrize("name", ["target", "draft", "draft-deep"])
def test_transformers_loads_the_shipped_models_and_says_the_same(name):
    directory = local_directory(f"demo/{name}")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    turns = [{"role": "user", "content": "I want to find a restaurant."}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    target = load_target(directory)
    logits, _ = greedy(target, prompt, 1)
    np.testing.assert_allclose(logits, hf_logits(model.eval(), prompt), rtol=0, atol=1e-3)
    (ours,) = generate(target, [prompt], max_new_tokens=NEW_TOKENS)
    with torch.no_grad():
        text = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
    assert list(ours.tokens) == text[0, len(prompt) :].tolist()


def test_dream_is_a_qwen2_without_its_causal_mask(tmp_path):
    model = hf_model("qwen2", OTHER_SIZES | {"tie_word_embeddings": False})
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    said = {"model_type": "Dream", "architectures": ["DreamModel"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    prompt = prompt_of("qwen2")
    T = len(prompt)
    with torch.no_grad():
        everything = torch.zeros(1, 1, T, T)
        wanted = model(torch.tensor([prompt]), attention_mask=everything).logits[0].numpy()
    loaded = load_model(tmp_path)
    cache = empty_cache(loaded.model.config, 1, T, jnp.float32)
    block = bidirectional_block(jnp.zeros((1,), jnp.int32), T)
    output, _ = forward(loaded.params, loaded.model, cache, jnp.asarray([prompt]), block)
    atol = tolerance("float32").logits
    np.testing.assert_allclose(output.logits[0], wanted, rtol=0, atol=atol)
    assert np.abs(wanted - hf_logits(model, prompt)).max() > 0.1
