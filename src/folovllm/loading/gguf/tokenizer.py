"""From what a GGUF file says of its tokenizer to one of the package `tokenizers`."""

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from folovllm.errors import ModelLoadError
from folovllm.loading.gguf.header import GgufFile
from folovllm.loading.gguf.keys import Keys
from folovllm.loading.gguf.pre_tokenizers import ADDS_BOS, IGNORES_MERGES, make_pre_tokenizer
from folovllm.loading.gguf.special import CONTROL, SPECIAL, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNKNOWN, _USER_DEFINED = 2, 4
"""Types of tokens: what stands for unknown text, and what is found in a text before all else."""

_PHI3_KEEPS_SPACES = ("<unk>", "<s>", "<|endoftext|>")

_WORD_START = "\u2581"
"""What SentencePiece writes for a space."""

HARMLESS: dict[str, Collection[Any] | None] = {
    **dict.fromkeys(f"ggml.{key}" for key in SPECIAL.values()),
    "ggml.add_sep_token": (False,),
    "ggml.cls_token_id": None,
    "ggml.mask_token_id": None,
    "ggml.seperator_token_id": None,  # as llama.cpp spells it
    "ggml.separator_token_id": None,
    "ggml.remove_extra_whitespaces": (False,),
    "ggml.token_type_count": None,
    **dict.fromkeys(
        f"ggml.{part}_token_id"
        for part in ("prefix", "suffix", "middle", "fim_pre", "fim_suf", "fim_mid", "fim_pad")
    ),
    "ggml.fim_rep_token_id": None,
    "ggml.fim_sep_token_id": None,
    "chat_templates": None,  # the names of those that are read
    "huggingface.json": None,  # the same tokenizer once more
}
"""Keys of a tokenizer that change nothing, or not where they have these values."""


def make_tokenizer(file: GgufFile) -> "PreTrainedTokenizerBase":
    """Make the tokenizer that a file describes.

    Raises:
        ModelLoadError: it is of a kind that cannot be made, lacks what is needed, or says
            something that cannot be honoured.
    """
    from transformers import PreTrainedTokenizerFast

    keys = Keys(file, "tokenizer.")
    tokens = _read_tokens(file, keys)
    ids = special_ids(file)
    kind = keys.text("ggml.model")
    if kind == "gpt2":
        tokenizer, adds_bos = _byte_level(file, keys, tokens)
    elif kind == "llama":
        tokenizer, adds_bos = _sentencepiece(keys, tokens, ids), True
    else:
        raise ModelLoadError(
            f"{file.path} says tokenizer.ggml.model = {kind!r}; FoloVLLM makes tokenizers of the "
            "kinds gpt2 and llama. Name the model's own tokenizer (FOLOVLLM_TOKENIZER)"
        )
    _add_special(file, keys, tokenizer, tokens)
    adds = {
        "bos": keys.flag("ggml.add_bos_token", default=adds_bos),
        "eos": keys.flag("ggml.add_eos_token", default=False),
    }
    _surround(tokenizer, {name: tokens[ids[name]] for name in adds if adds[name] and name in ids})
    templates = {"default": keys.text("chat_template"), **keys.named("chat_template.")}
    keys.check_rest(HARMLESS)
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **{f"{n}_token": tokens[ids[n]] for n in ("bos", "eos", "unk", "pad") if n in ids},
    )
    if len(templates) > 1:
        made.chat_template = templates
    elif templates["default"]:
        made.chat_template = templates["default"]
    return made


def _read_tokens(file: GgufFile, keys: Keys) -> list[str]:
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(keys.texts("ggml.tokens"))]
    rows = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0
    if not tokens or len(set(tokens)) != len(tokens) or len(tokens) > rows:
        raise ModelLoadError(
            f"{file.path} has {len(tokens)} tokens (tokenizer.ggml.tokens), {len(set(tokens))} "
            f"different ones, and {rows} rows in its embedding; the file is damaged"
        )
    return tokens


def _byte_level(file: GgufFile, keys: Keys, tokens: list[str]) -> tuple[Tokenizer, bool]:
    """Make a tokenizer that merges bytes, as GPT-2's does; tell whether it adds a beginning."""
    pre = keys.text("ggml.pre")
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in keys.texts("ggml.merges")]
    try:
        tokenizer = Tokenizer(
            models.BPE(vocabulary, merges, ignore_merges=pre in IGNORES_MERGES)  # type: ignore[arg-type]
        )
        tokenizer.pre_tokenizer = make_pre_tokenizer(pre)
    except ModelLoadError as error:
        raise ModelLoadError(f"{file.path}: {error}") from error
    except Exception as error:
        raise ModelLoadError(f"{file.path} has merges that are none: {error}") from error
    tokenizer.decoder = decoders.ByteLevel()
    if keys.flag("ggml.add_space_prefix", default=False):
        raise ModelLoadError(
            f"{file.path} says tokenizer.ggml.add_space_prefix = True, which FoloVLLM knows of "
            "SentencePiece's tokenizers alone"
        )
    return tokenizer, pre in ADDS_BOS


def _sentencepiece(keys: Keys, tokens: list[str], ids: dict[str, int]) -> Tokenizer:
    """Make a tokenizer that merges characters by the scores of what they make."""
    keys.text("ggml.pre")  # which llama.cpp does not look at here
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    scores = keys.numbers("ggml.scores", len(tokens), 0.0)
    model = models.BPE(
        vocabulary,
        _merges(vocabulary, scores),
        unk_token=tokens[ids["unk"]] if "unk" in ids else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prefix = keys.flag("ggml.add_space_prefix", default=True)
    steps: list[Any] = [normalizers.Prepend(_WORD_START)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _WORD_START)])
    strip: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_WORD_START, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Return every pair of tokens that make a token, the best first, as SentencePiece merges."""
    found = []
    for token, token_id in vocabulary.items():
        parts = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = [(left, right) for left, right in parts if {left, right} <= vocabulary.keys()]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(scores[token_id], pair) for pair in pairs]
    found.sort(key=lambda merge: -merge[0])
    return [pair for _, pair in found]


def _add_special(file: GgufFile, keys: Keys, tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Have the tokens that no text is made of, and those of the user, found before all else."""
    types = keys.numbers("ggml.token_type", len(tokens), 1)
    named = set(special_ids(file).values())
    control, defined = [], []
    # llama.cpp too knows these models, whose special tokens swallow spaces, by their name.
    swallows = re.search("phi-?3", str(file.metadata.get("general.name")), re.IGNORECASE)
    for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in {CONTROL, _UNKNOWN} or token_id in named:
            strip = swallows and token not in _PHI3_KEEPS_SPACES
            control.append(AddedToken(token, normalized=False, special=True, rstrip=bool(strip)))
        elif kind == _USER_DEFINED:
            defined.append(AddedToken(token, normalized=False, special=False))
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(defined)


def _surround(tokenizer: Tokenizer, added: dict[str, str]) -> None:
    """Put tokens around each text."""
    if not added:
        return
    before, after = ([added[name]] if name in added else [] for name in ("bos", "eos"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B:1", *after],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in set(added.values())],
    )
