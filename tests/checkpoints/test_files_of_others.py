"""Weights as other programs write them, and directories that are something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.hub import find_directory, local_directory
from jspec.checkpoints.target import load_target
from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.checkpoints.write import write_checkpoint
from jspec.errors import UserError
from jspec.models.model import build, random_params
from jspec.testing.models import tiny_config

CONFIG = tiny_config(n_layers=3)
TIED = tiny_config(n_layers=3, has_tied_head=True)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def params_of(config):
    return random_params(build(config), key=jax.random.key(0), scale=0.3)


def written(directory: Path, config=CONFIG, **options) -> Path:
    write_checkpoint(directory, params_of(config), config, **options)
    return directory


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(directory / "model.safetensors")


def save(directory: Path, tensors: dict[str, np.ndarray], name: str = "model.safetensors") -> None:
    from safetensors.numpy import save_file

    save_file(tensors, directory / name)


def edit_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(directory: Path, message: str) -> None:
    """Loading raises one line that matches."""
    with pytest.raises(UserError, match=message) as error:
        load_target(directory)
    assert "\n" not in str(error.value)


def equal(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("model."),
        lambda name: "module." + name,
        lambda name: "_orig_mod." + name,
        lambda name: "module._orig_mod." + name,
        lambda name: "model." + name,
        lambda name: "model.module." + name,
        lambda name: "base_model.model." + name,
        lambda name: name.replace("layers.", "layers._orig_mod."),
    ],
)
@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_names_may_lack_the_prefix_or_have_more(config, rename, tmp_path):
    written(tmp_path, config)
    save(tmp_path, {rename(name): x for name, x in tensors_of(tmp_path).items()})
    equal(load_target(tmp_path).params, params_of(config))


def test_what_stands_before_some_names_only_belongs_to_them(tmp_path):
    tensors = tensors_of(written(tmp_path))
    tensors["module." + EMBEDDING] = tensors.pop(EMBEDDING)
    save(tmp_path, tensors)
    refused(tmp_path, rf"missing .*\({EMBEDDING}\); unexpected .*\(module\.{EMBEDDING}\)")


def test_a_tensor_under_two_names_is_refused(tmp_path):
    tensors = tensors_of(written(tmp_path))
    save(tmp_path, tensors | {EMBEDDING.removeprefix("model."): tensors[EMBEDDING]})
    refused(tmp_path, f"two tensors of the name {EMBEDDING}; keep one")


def test_layers_beyond_the_config_are_left_out_with_a_warning(tmp_path, caplog):
    written(tmp_path)
    edit_config(tmp_path, num_hidden_layers=2)
    target = load_target(tmp_path)
    assert "the weights have 3 layers, config.json asks for 2: the first 2 are used" in caplog.text
    wanted = params_of(CONFIG)
    equal(target.params, wanted | {"layers": wanted["layers"][:2]})


def test_layer_types_beyond_the_config_are_left_out_too(tmp_path):
    config = tiny_config(n_layers=3, family="qwen3", has_qk_norm=True)
    written(tmp_path, config)
    edit_config(tmp_path, num_hidden_layers=1)
    assert load_target(tmp_path).model.config.windows == (None,)


@pytest.mark.parametrize(
    "name, told",
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "adapter's weights"),
        ("model.layers.0.self_attn.q_proj.base_layer.weight", "adapter's weights"),
        ("model.layers.0.self_attn.q_proj.qweight", "quantised weights"),
        ("model.layers.0.mlp.experts.0.up_proj.weight", "a mixture of experts"),
        ("visual.patch_embed.weight", "a multimodal model"),
        ("language_model.embed.weight", "a multimodal model"),
        ("score.weight", "scores texts"),
    ],
)
def test_tensors_that_give_their_kind_away(name, told, tmp_path):
    tensors = tensors_of(written(tmp_path))
    save(tmp_path, tensors | {name: np.zeros((2, 2), np.float32)})
    refused(tmp_path, f"unexpected 1 tensors.*these look like .*{told}")


def test_a_model_without_a_head_says_how_it_could_have_one(tmp_path):
    tensors = tensors_of(written(tmp_path))
    del tensors[HEAD]
    save(tmp_path, tensors)
    refused(tmp_path, "missing 1 tensors.*set tie_word_embeddings to true")


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda all: {name: all[name] for name in all if ".layers.2." not in name}, "to 2$"),
        (lambda all: all | {EMBEDDING: np.zeros((0,), np.float32)}, "gather and save again"),
        (lambda all: all | {n: all[n][:50] for n in (EMBEDDING, HEAD)}, "set vocab_size to 50 if"),
        (lambda all: {f"transformer.{name}": all[name] for name in all}, "save_pretrained of"),
        (lambda all: all | {"lm_head.bias": np.zeros(61, np.float32)}, "remove them, or give"),
        (lambda all: {name: all[name] for name in all if "norm" not in name}, "give the complete"),
    ],
)
def test_what_to_do_about_tensors_that_do_not_fit(edit, told, tmp_path):
    tensors = tensors_of(written(tmp_path))
    save(tmp_path, {name: np.array(tensor) for name, tensor in edit(tensors).items()})
    refused(tmp_path, told)


def test_buffers_of_the_rotary_embedding_are_no_weights(tmp_path):
    tensors = tensors_of(written(tmp_path))
    buffers = {
        f"model.layers.0.self_attn.rotary_emb.{name}": np.ones((4,), np.float32)
        for name in ("inv_freq", "cos_cached", "sin_cached")
    }
    save(tmp_path, tensors | buffers)
    equal(load_target(tmp_path).params, params_of(CONFIG))


# --- a head that the config does not expect ------------------------------------------------------


@pytest.fixture
def other_head(tmp_path) -> Path:
    """A tied config whose weights have a head of their own."""
    tensors = tensors_of(written(tmp_path / "other", TIED))
    save(tmp_path / "other", tensors | {HEAD: np.flip(tensors[EMBEDDING], 0).copy()})
    return tmp_path / "other"


def test_another_head_than_the_embedding_is_used_and_told(other_head, caplog):
    target = load_target(other_head)
    assert "ties the head to the embedding, and lm_head.weight has other numbers" in caplog.text
    assert not target.model.config.has_tied_head
    np.testing.assert_array_equal(
        target.params["head_weight"], np.flip(target.params["embedding"], 0).T
    )


def test_a_head_that_equals_the_embedding_is_the_embedding(tmp_path):
    tensors = tensors_of(written(tmp_path, TIED))
    tensors[EMBEDDING] = tensors[EMBEDDING].copy()
    tensors[EMBEDDING][-1] = np.nan  # as unused rows may be
    save(tmp_path, tensors | {HEAD: tensors[EMBEDDING].copy()})
    assert find_checkpoint(tmp_path).config.has_tied_head


def test_plans_know_of_the_other_head(other_head):
    assert not find_checkpoint(other_head).config.has_tied_head
    assert not find_checkpoint(other_head, downloads=False).config.has_tied_head
    (other_head / "model.safetensors").unlink()
    assert find_checkpoint(other_head, downloads=False).config.has_tied_head


def test_the_embedding_may_be_stored_as_the_head_alone(tmp_path, caplog):
    tensors = tensors_of(written(tmp_path, TIED))
    save(tmp_path, {HEAD if name == EMBEDDING else name: x for name, x in tensors.items()})
    equal(load_target(tmp_path).params, params_of(TIED))
    assert not caplog.text


# --- shards --------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path) -> Path:
    """Shards of a checkpoint without their index."""
    written(tmp_path / "shards", max_shard_bytes=40_000)
    (tmp_path / "shards" / "model.safetensors.index.json").unlink()
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    return tmp_path / "shards"


def test_shards_without_an_index_are_read(shards):
    equal(load_target(shards).params, params_of(CONFIG))
    files = sorted(shards.glob("*.safetensors"))
    for number, file in enumerate(files):  # from 0, as some count
        file.rename(shards / f"model-{number:05d}-of-{len(files):05d}.safetensors")
    equal(load_target(shards).params, params_of(CONFIG))
    for number, file in enumerate(sorted(shards.glob("*.safetensors"))):
        file.rename(shards / f"part{number}.safetensors")
    equal(load_target(shards).params, params_of(CONFIG))


def test_a_single_file_of_another_name_is_read(tmp_path):
    written(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp32.safetensors")
    equal(load_target(tmp_path).params, params_of(CONFIG))


def test_a_missing_shard_without_an_index_is_named(shards):
    files = sorted(shards.glob("*.safetensors"))
    files[1].unlink()
    refused(shards, f"1 of {len(files)} shards are missing, the first is number 2 beside model-0")


def test_two_series_of_shards_are_refused(shards):
    shutil.copy(next(shards.glob("*.safetensors")), shards / "model-00001-of-00002.safetensors")
    refused(shards, "shards of 2 and of .* lie side by side")


def test_a_tensor_in_two_files_without_an_index_is_refused(shards):
    file = min(shards.glob("*.safetensors"))
    shutil.copy(file, shards / "model-copy.safetensors")
    refused(shards, f"{file.name} and model-copy.safetensors both hold")


def test_an_index_decides_between_two_shards(tmp_path):
    written(tmp_path, max_shard_bytes=40_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    wrong = sorted(set(index.values()) - {index[EMBEDDING]})[-1]
    from safetensors.numpy import load_file

    tensors = load_file(tmp_path / wrong)
    save(tmp_path, tensors | {EMBEDDING: np.zeros((61, 32), np.float32)}, wrong)
    equal(load_target(tmp_path).params, params_of(CONFIG))


def test_an_index_of_other_shards_is_told(tmp_path):
    written(tmp_path, max_shard_bytes=40_000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][EMBEDDING] = max(index["weight_map"].values())
    path.write_text(json.dumps(index))
    refused(tmp_path, f"{EMBEDDING} should be in .*, which does not have it")


def test_a_tensor_of_the_index_that_no_shard_has_is_missed_only_where_it_is_needed(tmp_path):
    written(tmp_path, max_shard_bytes=40_000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.rotary_emb.inv_freq"] = index["weight_map"][EMBEDDING]
    path.write_text(json.dumps(index))
    equal(load_target(tmp_path).params, params_of(CONFIG))


# --- something else ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, told",
    [
        (["adapter_config.json", "adapter_model.safetensors"], "PEFT adapter of org/base: merge"),
        (["model_index.json", "unet/config.json"], "a diffusers pipeline"),
        (["modules.json", "0_Transformer/config.json"], "a sentence-transformers model"),
        (["llama.Q4_K_M.gguf"], "the directory of a GGUF model: give the .gguf file itself"),
        (["consolidated.00.pth", "params.json"], "Meta's own format"),
        (["consolidated.safetensors", "params.json"], "Mistral's own format"),
        (["tf_model.h5"], "TensorFlow weights alone"),
        (["flax_model.msgpack"], "Flax weights alone"),
        (["onnx/model.onnx"], "an ONNX model"),
        (["zero_to_fp32.py", "latest"], "a DeepSpeed checkpoint"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "a sharded training checkpoint of torch"),
        (["_CHECKPOINT_METADATA", "manifest.ocdbt"], "an Orbax checkpoint"),
        (["lit_model.pth"], "a training script's own file"),
        ([".cache/huggingface/download/x.incomplete"], "an unfinished download: start it again"),
        (["checkpoints/10/state", "model/config.json", "journal.jsonl"], "it holds model: give"),
        (["checkpoint-5/config.json", "checkpoint-9/config.json"], "checkpoint-5, checkpoint-9:"),
        (["models--a--b/snapshots/1/config.json"], "it holds models--a--b/snapshots/1: give that"),
        ([], "the directory is empty"),
        (["README.md"], "there is only README.md: give a model's directory"),
    ],
)
@pytest.mark.parametrize("has_config", [False, True])
def test_directories_of_other_kinds_are_named(names, told, has_config, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"base_model_name_or_path": "org/base"}')
    if not has_config:
        refused(tmp_path, f"config.json: no such file; .*{told}")
        return
    written(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    if names not in ([], ["README.md"]):
        refused(tmp_path, told)


def test_an_embedding_model_is_refused_though_it_has_weights(tmp_path):
    (written(tmp_path) / "modules.json").write_text("[]")
    refused(tmp_path, "a sentence-transformers model, which embeds texts")


def test_a_drafters_head_is_no_target(tmp_path):
    edit_config(written(tmp_path), k_mask=2)
    refused(tmp_path, "this is a drafter's head.*give it as the drafter, and its target here")


@pytest.mark.parametrize(
    "values, told",
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"model_type": "llava", "text_config": {"model_type": "llama"}}, "a multimodal model"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "a mixture of experts"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "an encoder"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised.*: gptq\); give the orig"),
        ({"quantization_config": {"load_in_4bit": True}}, r"quantised \(quantization_config\)"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "quantised"),
    ],
)
def test_configs_of_other_kinds_are_named(values, told, tmp_path):
    edit_config(written(tmp_path), **values)
    refused(tmp_path, told)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_git_lfs_pointer_is_named(name, tmp_path):
    (written(tmp_path) / name).write_text(POINTER)
    refused(tmp_path, f"{name}: a git-lfs pointer, not the file itself; run `git lfs pull`")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_tokenizer_that_is_a_git_lfs_pointer_is_named(name, tmp_path):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(UserError, match=f"{name}: a git-lfs pointer"):
        load_tokenizer(tmp_path)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = written(tmp_path) / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    equal(load_target(tmp_path).params, params_of(CONFIG))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_whose_end_is_gone_is_named(name, tmp_path):
    path = written(tmp_path) / name
    path.rename(tmp_path / "gone")
    path.symlink_to("elsewhere/blob")
    refused(tmp_path, f"{name}: a link to elsewhere/blob, which is not there")


def test_files_in_place_of_a_directory_are_named(tmp_path):
    written(tmp_path / "model")
    refused(tmp_path / "model" / "model.safetensors", f"directory that holds it: {tmp_path}/model$")


def test_a_models_folder_in_the_hubs_cache_is_its_snapshot(tmp_path):
    root = tmp_path / "models--org--name"
    for name in ("one", "two"):
        written(root / "snapshots" / name)
    with pytest.raises(UserError, match="give one of its snapshots; it has one, two"):
        local_directory(root)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("two")
    assert local_directory(root) == find_directory(root) == root / "snapshots" / "two"
    shutil.rmtree(root / "snapshots" / "two")
    assert local_directory(root) == root / "snapshots" / "one"
    shutil.rmtree(root / "snapshots" / "one")
    with pytest.raises(UserError, match="it has none"):
        local_directory(root)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "expected a model's directory or hub id, given ''"),
        (None, "expected a model's directory or hub id, given nothing"),
        (b"weights", "expected a model's directory or hub id"),
        ("~nosuchuser/model", "cannot be looked at"),
        ("x" * 5000, "cannot be looked at .File name too long"),
        ("https://huggingface.co/owner/name/tree/main", "give owner/name$"),
        ("C:\\models\\llama", "C:.models.llama: no such directory"),
    ],
)
def test_what_is_no_path_is_told(given, told):
    with pytest.raises(UserError, match=told) as error:
        local_directory(given)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("given", ["", None, "~nosuchuser/model", "x" * 5000])
def test_looking_without_the_network_refuses_the_same(given):
    with pytest.raises(UserError, match="expected a model's directory|cannot be looked at"):
        find_directory(given)
