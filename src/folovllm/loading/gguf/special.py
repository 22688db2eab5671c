"""What a GGUF file says of generating: the ids that begin a text and end a turn, the defaults."""

from folovllm.errors import ModelLoadError
from folovllm.loading.gguf.header import GgufFile
from folovllm.loading.gguf.keys import Keys

SPECIAL = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
}
"""What the keys are called; eot ends a turn, eom a message that goes on with a tool's answer."""

_SENTENCEPIECE = {"bos": 1, "eos": 2, "unk": 0}

_ENDS = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<EOT>", "_<EOT>"),
        *("<|endoftext|>", "<|end_of_text|>", "</s>", "[EOT]", "[EOS]", "<end_of_utterance>"),
    )
)
"""Control tokens by which llama.cpp ends a text, whatever the file says; so do the generation
configurations that models are published with, of which a file has no more than one id."""

CONTROL = 3
"""The type of tokens that no text is made of."""


def special_ids(file: GgufFile) -> dict[str, int]:
    """Return the special ids that the file names.

    Raises:
        ModelLoadError: one is not in the vocabulary.
    """
    keys = Keys(file, "tokenizer.ggml.")
    count = len(keys.texts("tokens"))
    found = {}
    if keys.text("model") == "llama":
        found = {name: token_id for name, token_id in _SENTENCEPIECE.items() if token_id < count}
    for name, key in SPECIAL.items():
        if key not in keys:
            continue
        found[name] = keys.integer(key, least=0)
        if found[name] >= count:
            raise ModelLoadError(
                f"{file.path} says tokenizer.ggml.{key} = {found[name]}, and its vocabulary has "
                f"{count} tokens"
            )
    return found


def ending_ids(file: GgufFile) -> list[int]:
    """Return the ids that end what the model says: a text, a turn or a message."""
    found, keys = special_ids(file), Keys(file, "tokenizer.ggml.")
    tokens = keys.texts("tokens")
    types = keys.numbers("token_type", len(tokens), 1)
    named = [found[name] for name in ("eos", "eot", "eom") if name in found]
    known = [i for i, token in enumerate(tokens) if token in _ENDS and types[i] == CONTROL]
    return list(dict.fromkeys([*named, *known]))


_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def sampling_defaults(file: GgufFile) -> dict[str, float]:
    """Return the sampling that the file recommends, as a generation configuration has it.

    Raises:
        ModelLoadError: a value is none.
    """
    keys = Keys(file, "general.sampling.")
    whole = {"top_k": keys.integer("top_k", least=0)} if "top_k" in keys else {}
    names = [key for key in _SAMPLING if key in keys and key not in whole]
    return {**whole, **{_SAMPLING[key]: keys.number(key, above=-1e-9) for key in names}}
