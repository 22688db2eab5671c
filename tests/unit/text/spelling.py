"""Whether a word stands alone in a text, said in another way than the code does."""

import re

from folovllm.sampling.bad_words import BadWordTracker

LETTER = r"(?![\u0e00-\u109f\u1780-\u17ff\u2e80-\U0010ffff])\w"


def stands_alone(word: str, text: str) -> bool:
    """Whether the word is in the text, and not within a longer one."""
    word = word.strip(" ") or word
    behind = f"(?!{LETTER})" if re.match(LETTER, word[-1]) else ""
    for match in re.finditer(f"(?={re.escape(word)}{behind})", text):
        before = text[: match.start()][-1:]
        if not (re.match(LETTER, word) and re.match(LETTER, before)):
            return True
    return False


def wander(compiler, word, choices, vocab_size, *, skip=True):
    """Take tokens at will that are not barred, as a sampler would; return them."""
    tracker = BadWordTracker(compiler.compile([word], skip_special_tokens=skip), vocab_size)
    ids = []
    for token in choices:
        if not any(token in barred for barred in tracker.barred()):
            tracker.append(token)
            ids.append(token)
    return ids
