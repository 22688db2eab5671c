"""What of copies and captured graphs only a GPU can show."""

import logging
import re

import numpy as np
import pytest
import torch

from folovllm import LLM, SamplingParams
from folovllm.attention.backend import LayerSpec
from folovllm.attention.paged import PagedBackend
from folovllm.utils.transfer import send
from folovllm.worker.cuda_graphs import CudaCapture, GraphMaker, free_cuda_memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def device():
    return torch.device("cuda", 0)


def test_what_is_sent_while_the_device_is_busy_arrives(device):
    work = torch.randn(4096, 4096, device=device)
    sent = []
    for number in range(50):  # nothing waits: the memory must not be used again too early
        work = work @ work / 64
        sent.append(send([np.full(1000, number), np.full(3, -number, np.int32)], device))
    for number, (first, second) in enumerate(sent):
        assert (first == number).all()
        assert (second == -number).all()


def test_a_replay_computes_what_was_captured(device):
    inputs, output = torch.ones(4, 8, device=device), torch.zeros(4, 8, device=device)

    def work():
        output.copy_(inputs @ inputs.T @ inputs)

    work()
    output.zero_()
    replay = CudaCapture(device)(work)
    assert not output.any()
    for number in (1.0, 2.0):
        inputs.fill_(number)
        replay()
        assert (output == 32 * number**3).all()


class WaitingModel:
    dtype, layers = torch.float32, [LayerSpec(1, 2, 2)]

    def __init__(self, device):
        self.device = device

    def forward(self, token_ids, positions, step, logit_rows):
        return positions[logit_rows, None] * float(token_ids.sum().item())


def test_a_forward_that_waits_is_told_and_harms_nothing(device, caplog):
    made = GraphMaker(
        WaitingModel(device),
        PagedBackend(),
        (1, 2, 4),
        16,
        64,
        lambda: CudaCapture(device),
        lambda: free_cuda_memory(device),
    )
    assert made.measure() == 0
    assert made.make([]) is None
    [record] = caplog.records
    assert "decoding runs without captured CUDA graphs" in record.message
    assert torch.cuda.current_stream(device) == torch.cuda.default_stream(device)
    ones = torch.ones(4, device=device)
    assert (ones + ones).sum().item() == 8


@pytest.fixture
def model_folder(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    words = {f"w{i}": i for i in range(512)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1").save_pretrained(tmp_path)
    return str(tmp_path)


def test_the_same_tokens_with_and_without_graphs(model_folder, caplog):
    prompts = [[2 + (7 * i + j) % 500 for j in range(3 + 5 * i)] for i in range(19)]
    params = [
        SamplingParams(temperature=0, max_tokens=5 + 3 * i, ignore_eos=True) for i in range(19)
    ]
    params[3] = SamplingParams(temperature=1, seed=1, n=4, max_tokens=20, ignore_eos=True)
    tokens = {}
    for eager in (True, False):
        with caplog.at_level(logging.INFO):
            llm = LLM(
                model_folder,
                device="cuda",
                dtype="float32",
                enforce_eager=eager,
                max_num_seqs=19,
                gpu_memory_utilization=0.5,
            )
        assert (llm.llm_engine.executor.runner.graphs is None) is eager
        outputs = llm.generate(prompts, params, use_tqdm=False)
        tokens[eager] = [[c.token_ids for c in out.outputs] for out in outputs]
        del llm
    assert tokens[True] == tokens[False]


def test_no_more_memory_than_was_reserved(model_folder):
    from folovllm.config import EngineConfig
    from folovllm.engine import assemble

    taken = {}
    measure, make = GraphMaker.measure, GraphMaker.make

    def note_measure(maker):
        taken["reserved"] = measure(maker)
        return taken["reserved"]

    def note_make(maker, layers):
        before = maker.free_memory()
        graphs = make(maker, layers)
        taken["used"] = before - maker.free_memory()
        return graphs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphMaker, "measure", note_measure)
        patch.setattr(GraphMaker, "make", note_make)
        options = EngineConfig.from_options(model=model_folder, gpu_memory_utilization=0.5)
        assemble.build_parts(options, "cuda")
    assert 0 < taken["used"] <= taken["reserved"] + (64 << 20)


def test_the_log_says_how_much(model_folder, caplog):
    with caplog.at_level(logging.INFO):
        LLM(model_folder, device="cuda", max_num_seqs=8, gpu_memory_utilization=0.5)
    assert re.search(
        r"captured decoding for 4 batch sizes up to 8 in \d+\.\d s, \d+ MiB", caplog.text
    )
