import pytest
from hypothesis import given, strategies as st

from folovllm.text.text_limit import TextLimit

KINDS = ["byte_level", "byte_fallback", "unigram", "words", "word_piece", "slow"]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_it_is_certain(tokenizers, kind, data):
    tokenizer = tokenizers[kind]
    pieces = st.sampled_from(sorted(tokenizer.get_vocab())) | st.text(max_size=9)
    text = data.draw(st.text(max_size=9) | pieces) * data.draw(st.integers(1, 40))
    limit = data.draw(st.integers(1, 4))
    if TextLimit(tokenizer, limit).explain(text):
        assert len(tokenizer.encode(text, add_special_tokens=False)) > limit


def test_it_is_of_use(tokenizers):
    for kind in ("byte_level", "byte_fallback"):
        assert TextLimit(tokenizers[kind], 100).explain("fox " * 10**4)


def test_spaces_are_not_counted(tokenizers):
    assert not TextLimit(tokenizers["byte_level"], 2).explain(f"{' ' * 10**6}fox")
