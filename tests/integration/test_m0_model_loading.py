"""ModelLoader on real files: tiny random models of every family, and the default model."""

import json
import logging
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping

from folovllm import ModelConfig, ModelLoader, ModelLoadError, get_model_and_tokenizer
from folovllm.loading.checksums import write_checksums
from folovllm.loading.direct import STRAIGHT_TYPES

DTYPES = (torch.float32, torch.bfloat16)
# transformers merges the experts' weights of the former and renames the latter's head.
CONVERTED = {"mixtral", "qwen2_moe", "qwen3_moe", "gpt_neox"}


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in os.environ:
        if name.startswith("FOLOVLLM_") and name != "FOLOVLLM_CACHE_DIR":
            monkeypatch.delenv(name)


def load(folder, device="cpu", **options):
    return ModelLoader(ModelConfig(model=str(folder), **options)).load_model(device)


def whole_state(model):
    """Parameters and all buffers, also those that no checkpoint holds."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_same_model(ours, theirs):
    mine, reference = whole_state(ours), whole_state(theirs)
    assert mine.keys() == reference.keys()
    for name, tensor in reference.items():
        assert mine[name].dtype == tensor.dtype, name
        assert torch.equal(mine[name], tensor), name
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)


class TestSameAsFromPretrained:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_family(self, save_tiny, family, dtype, caplog):
        folder = save_tiny(family, dtype=torch.bfloat16)
        with caplog.at_level(logging.INFO, "folovllm"):
            ours = load(folder, dtype=dtype)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        assert not ours.training
        assert_same_model(ours, theirs)
        assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
        assert ("by transformers" if family in CONVERTED else "directly") in caplog.text

    @pytest.mark.parametrize("family", sorted(STRAIGHT_TYPES))
    def test_families_taken_for_straight_are(self, family, tiny_config):
        model = AutoModelForCausalLM.from_config(tiny_config(family))
        assert get_model_conversion_mapping(model, add_legacy=False) == []

    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
    def test_tied_and_untied_embeddings(self, save_tiny, family, tied):
        folder = save_tiny(family, tie_word_embeddings=tied)
        ours = load(folder)
        assert_same_model(ours, AutoModelForCausalLM.from_pretrained(folder))
        same = ours.get_output_embeddings().weight is ours.get_input_embeddings().weight
        assert same == tied

    def test_tied_by_the_head_alone(self, save_tiny):
        folder = save_tiny(tie_word_embeddings=True)
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        assert_same_model(load(folder), AutoModelForCausalLM.from_pretrained(folder))

    def test_said_to_be_tied_but_holding_two_different_tensors(self, save_tiny):
        folder = save_tiny(tie_word_embeddings=True)
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        assert_same_model(load(folder), AutoModelForCausalLM.from_pretrained(folder))

    def test_several_shards(self, save_tiny):
        folder = save_tiny(max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
        assert_same_model(load(folder), AutoModelForCausalLM.from_pretrained(folder))

    def test_pickled_weights(self, save_tiny):
        folder = save_tiny()
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        assert_same_model(load(folder), AutoModelForCausalLM.from_pretrained(folder))

    def test_weights_with_a_surplus_tensor(self, save_tiny):
        folder = save_tiny()
        weights = load_file(folder / "model.safetensors")
        weights["model.rotary_emb.inv_freq"] = torch.ones(4)  # as old checkpoints hold
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        assert_same_model(load(folder), AutoModelForCausalLM.from_pretrained(folder))

    def test_float16_keeps_what_must_stay_float32(self, save_tiny):
        folder = save_tiny("gemma2", dtype=torch.float16)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
        assert_same_model(load(folder, dtype="half"), theirs)

    def test_gguf_file(self, tiny_gguf):
        ours, tokenizer = get_model_and_tokenizer(ModelConfig(model=str(tiny_gguf)), "cpu")
        assert ours.dtype == torch.float32
        assert tokenizer.decode(tokenizer("a b")["input_ids"]) == "a b"
        assert ours(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
class TestMapping:
    def test_parameters_are_the_file_itself(self, save_tiny):
        folder = save_tiny(dtype=torch.bfloat16, hidden_size=256, vocab_size=4096)
        model = load(folder, dtype="bfloat16")
        address = model.get_input_embeddings().weight.data_ptr()
        maps = Path("/proc/self/maps").read_text().splitlines()
        spans = [line.split() for line in maps if line.endswith("model.safetensors")]
        ranges = [[int(end, 16) for end in span[0].split("-")] for span in spans]
        assert any(start <= address < end for start, end in ranges)

    def test_writing_to_a_parameter_leaves_the_file_alone(self, save_tiny):
        folder = save_tiny()
        before = (folder / "model.safetensors").read_bytes()
        model = load(folder)
        model.get_input_embeddings().weight.data.fill_(7)
        assert (folder / "model.safetensors").read_bytes() == before


class TestDtypeAndDevice:
    def test_auto_on_a_cpu_is_float32(self, save_tiny):
        assert load(save_tiny(dtype=torch.bfloat16), dtype="auto").dtype == torch.float32

    @pytest.mark.parametrize("dtype", ["half", "float16", "bfloat16", "float", "float32"])
    def test_named_types(self, save_tiny, dtype):
        config = ModelConfig(model=str(save_tiny()), dtype=dtype)
        assert ModelLoader(config).load_model("cpu").dtype == config.torch_dtype

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    def test_cuda_where_there_is_none(self, save_tiny):
        with pytest.raises(ModelLoadError, match="cuda"):
            load(save_tiny(), device="cuda")

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_on_a_gpu(self, save_tiny, family):
        folder = save_tiny(family, dtype=torch.bfloat16)
        ours = load(folder, device=None)
        assert {tensor.device.type for tensor in whole_state(ours).values()} == {"cuda"}
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to("cuda")
        assert_same_model(ours.cpu(), theirs.cpu())


class TestLength:
    @pytest.mark.parametrize(("family", "expected"), [("llama", 64), ("gpt2", 64)])
    def test_is_filled_in_from_the_checkpoint(self, save_tiny, family, expected):
        config = ModelConfig(model=str(save_tiny(family)))
        ModelLoader(config).load_model("cpu")
        assert config.max_model_len == expected

    def test_without_positions_in_the_checkpoint(self, save_tiny):
        config = ModelConfig(model=str(save_tiny("bloom", max_position_embeddings=None)))
        ModelLoader(config).load_model("cpu")
        assert config.max_model_len == 2048

    def test_a_given_length_stays_and_too_long_a_one_is_warned_of(self, save_tiny, caplog):
        config = ModelConfig(model=str(save_tiny()), max_model_len=100)
        ModelLoader(config).load_model("cpu")
        assert config.max_model_len == 100
        assert "max_model_len is 100" in caplog.text
        assert "64 positions" in caplog.text


class TestTokenizer:
    def load(self, folder, **options):
        return ModelLoader(ModelConfig(model=str(folder), **options)).load_tokenizer()

    def test_pads_on_the_left_with_the_end_token(self, save_tiny):
        tokenizer = self.load(save_tiny())
        assert tokenizer.padding_side == "left"
        assert tokenizer.pad_token == "<eos>"
        rows = tokenizer(["the cat", "the cat sat on"], padding=True)
        assert rows["attention_mask"] == [[0, 0, 1, 1], [1, 1, 1, 1]]
        assert tokenizer.decode(rows["input_ids"][0][2:]) == "the cat"

    def test_its_own_padding_token_stays(self, save_tiny, save_tokenizer):
        folder = save_tiny()
        save_tokenizer(folder, pad_token=".")
        assert self.load(folder).pad_token == "."

    def test_a_new_padding_token_gets_an_embedding(self, save_tiny, save_tokenizer):
        folder = save_tiny(vocab_size=10)
        save_tokenizer(folder, eos=None)
        model, tokenizer = get_model_and_tokenizer(ModelConfig(model=str(folder)), "cpu")
        assert tokenizer.pad_token == "[PAD]"
        assert tokenizer.pad_token_id == 10
        rows = tokenizer(["the cat", "the cat sat on"], padding=True, return_tensors="pt")
        assert model(rows["input_ids"]).logits.isfinite().all()

    def test_from_another_folder(self, save_tiny, save_tokenizer, tmp_path):
        folder = save_tiny()
        other = tmp_path / "other"
        save_tokenizer(other, pad_token="mat")
        assert self.load(folder, tokenizer=str(other)).pad_token == "mat"

    def test_slow_mode(self, save_tiny):
        assert self.load(save_tiny(), tokenizer_mode="slow")("the cat")["input_ids"] == [0, 1]

    def test_missing(self, save_tiny):
        folder = save_tiny()
        for path in folder.glob("tokenizer*"):
            path.unlink()
        with pytest.raises(ModelLoadError, match="tokenizer") as raised:
            self.load(folder)
        assert str(folder) in str(raised.value)

    def test_damaged(self, save_tiny):
        folder = save_tiny()
        (folder / "tokenizer.json").write_text('{"model": {"type"')
        with pytest.raises(ModelLoadError, match="tokenizer"):
            self.load(folder)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path, size):
    os.truncate(path, path.stat().st_size + size if size < 0 else size)


def flip_bit(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


REMOTE_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def add_remote_code(folder):
    (folder / "own.py").write_text(REMOTE_CODE)
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit_config(folder, model_type="own", auto_map=names)


class TestRefused:
    """Each damaged checkpoint is refused with an error that says what, where and what to do."""

    def refuse(self, folder, *words, **options):
        with pytest.raises(ModelLoadError) as raised:
            load(folder, **options)
        message = str(raised.value)
        for word in words:
            assert str(word) in message, message
        assert len(message) < 800
        return message

    def test_no_such_folder(self, tmp_path):
        self.refuse(tmp_path / "nowhere", tmp_path / "nowhere", "no such folder")

    def test_no_such_relative_folder(self):
        self.refuse("./nowhere/at/all", "no such folder")

    def test_a_name_that_is_no_hub_id_nor_folder(self):
        self.refuse("nobody/has-this", "nobody/has-this", "no folder", "hub")

    def test_empty_folder(self, tmp_path):
        self.refuse(tmp_path, tmp_path, "is empty")

    def test_a_file_that_is_no_gguf(self, tmp_path):
        (tmp_path / "weights.bin").write_text("x")
        self.refuse(tmp_path / "weights.bin", "is a file", ".gguf")

    def test_gguf_that_is_none(self, tmp_path):
        (tmp_path / "x.gguf").write_bytes(b"not a gguf file at all" * 10)
        self.refuse(tmp_path / "x.gguf", "x.gguf")

    def test_no_config(self, save_tiny):
        folder = save_tiny()
        (folder / "config.json").unlink()
        self.refuse(folder, folder, "no config.json")

    def test_folder_that_holds_a_gguf_file(self, tmp_path):
        (tmp_path / "x.gguf").write_bytes(b"GGUF")
        self.refuse(tmp_path, "name the file itself", tmp_path / "x.gguf")

    def test_config_that_is_no_json(self, save_tiny):
        folder = save_tiny()
        (folder / "config.json").write_text("{")
        self.refuse(folder, folder / "config.json", "cannot be read")

    def test_config_of_nonsense(self, save_tiny):
        folder = save_tiny()
        edit_config(folder, num_attention_heads="many")
        self.refuse(folder)

    def test_no_weights(self, save_tiny):
        folder = save_tiny()
        (folder / "model.safetensors").unlink()
        self.refuse(folder, folder, "no weights", "model.safetensors", "tokenizer.json")

    def test_missing_shard(self, save_tiny):
        folder = save_tiny(max_shard_size="20KB")
        gone = sorted(folder.glob("*.safetensors"))[1]
        gone.unlink()
        self.refuse(folder, gone.name, "missing")

    def test_index_without_a_map(self, save_tiny):
        folder = save_tiny(max_shard_size="20KB")
        (folder / "model.safetensors.index.json").write_text("{}")
        self.refuse(folder, "weight_map")

    @pytest.mark.parametrize("size", [-1, -1000, 100, 8, 3, 0])
    def test_truncated_weights(self, save_tiny, size):
        folder = save_tiny()
        cut(folder / "model.safetensors", size)
        self.refuse(folder, folder / "model.safetensors", "truncated or damaged")

    @pytest.mark.parametrize("offset", [0, 3, 6, 8, 9, 20, 40, 60, 80, 100, 200, 400])
    def test_bit_flipped_in_the_header(self, save_tiny, offset):
        folder = save_tiny()
        flip_bit(folder / "model.safetensors", offset)
        self.refuse(folder)

    def test_bit_flipped_in_a_weight_with_checksums(self, save_tiny):
        folder = save_tiny()
        write_checksums(folder)
        load(folder)
        flip_bit(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 9)
        self.refuse(folder, folder / "model.safetensors", "damaged", "SHA256SUMS")

    def test_missing_tensor(self, save_tiny):
        folder = save_tiny()
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        self.refuse(folder, "lacks 1 tensor", "model.layers.1.mlp.up_proj.weight")

    def test_tensor_of_another_shape(self, save_tiny):
        folder = save_tiny()
        edit_config(folder, intermediate_size=40)
        self.refuse(folder)

    def test_unknown_architecture(self, save_tiny):
        folder = save_tiny()
        edit_config(folder, model_type="llamma")
        self.refuse(folder, "'llamma'", "transformers")

    def test_no_causal_language_model(self, save_tiny):
        folder = save_tiny()
        edit_config(folder, model_type="vit")
        self.refuse(folder, "'vit'", "no causal language model")

    def test_remote_code_without_trust(self, save_tiny):
        folder = save_tiny()
        add_remote_code(folder)
        self.refuse(folder, "Python code", "FOLOVLLM_TRUST_REMOTE_CODE")

    def test_remote_code_with_trust(self, save_tiny, monkeypatch, tmp_path):
        folder = save_tiny()
        expected = AutoModelForCausalLM.from_pretrained(folder)
        add_remote_code(folder)
        monkeypatch.setattr(
            "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m")
        )
        model = load(folder, trust_remote_code=True)
        assert type(model).__name__ == "OwnModel"
        assert_same_model(model, expected)

    def test_too_little_memory(self, save_tiny, monkeypatch):
        monkeypatch.setattr("folovllm.loading.loader.available_memory", lambda: 1000)
        self.refuse(save_tiny(), "not enough memory", "GiB", "float32")

    def test_a_bad_device(self, save_tiny):
        with pytest.raises(ModelLoadError, match="gpu0"):
            load(save_tiny(), device="gpu0")


def test_what_was_loaded_is_logged(save_tiny, caplog, capsys):
    caplog.set_level(logging.INFO, "folovllm")
    folder = save_tiny()
    model = load(folder, dtype="bfloat16")
    pattern = rf"loaded {re.escape(str(folder))}: {model.num_parameters():,} parameters in bfloat16"
    assert re.search(pattern + r" on cpu, directly in \d+\.\d\d s", caplog.text)
    assert capsys.readouterr().out == ""


def test_unchanged_files_are_not_read_for_their_checksums(save_tiny, monkeypatch):
    folder = save_tiny()
    write_checksums(folder)
    monkeypatch.setattr(
        "folovllm.loading.checksums.sha256_of", lambda path: pytest.fail(f"read {path}")
    )
    load(folder)


def test_touched_files_are_checked_once(save_tiny, monkeypatch):
    folder = save_tiny()
    write_checksums(folder)
    os.utime(folder / "config.json")
    os.utime(folder / "SHA256SUMS", ns=(0, 0))
    load(folder)
    monkeypatch.setattr(
        "folovllm.loading.checksums.sha256_of", lambda path: pytest.fail(f"read {path}")
    )
    load(folder)


def test_default_model(demo_model):
    model, tokenizer = get_model_and_tokenizer(ModelConfig(model=str(demo_model)), "cpu")
    assert model.num_parameters() == 134_515_008
    assert tokenizer.padding_side == "left"
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    tokens = model.generate(**ids, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer


def test_default_model_is_that_of_from_pretrained(demo_model):
    for dtype in DTYPES:
        theirs = AutoModelForCausalLM.from_pretrained(demo_model, dtype=dtype)
        assert_same_model(load(demo_model, dtype=dtype), theirs)
