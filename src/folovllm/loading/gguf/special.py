"""The ids of a GGUF file that begin a text and end a turn."""

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

_ENDS_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
"""What llama.cpp takes for the end of a turn where the file names none."""

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
    """Return the ids that end what the model says: of the text, a turn and a message."""
    found = special_ids(file)
    if "eot" not in found:
        keys = Keys(file, "tokenizer.ggml.")
        tokens = keys.texts("tokens")
        types = keys.numbers("token_type", len(tokens), 1)
        ends = (token for token in _ENDS_OF_TURN if token in tokens)
        first = next(ends, None)
        if first is not None and types[tokens.index(first)] == CONTROL:
            found["eot"] = tokens.index(first)
    ids = [found[name] for name in ("eos", "eot", "eom") if name in found]
    return list(dict.fromkeys(ids))
