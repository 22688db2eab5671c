from hypothesis import given, strategies as st

from folovllm.text.stop_strings import StopStrings

STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)
PIECES = st.lists(st.text("abc", max_size=4), max_size=12)


def brute_force(text: str, stops: list[str], first: int) -> tuple[str, int, int] | None:
    """The stop string, its start and its end, found character by character."""
    for end in range(first + 1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return stop, end - len(stop), end
    return None


def stream(pieces, stops, include, first_searched):
    """What a reader gets, piece by piece, and the stop string."""
    search = StopStrings(stops, include)
    text, shown, first = "", 0, 0
    for n, piece in enumerate(pieces):
        text += piece
        if n < first_searched:
            first = len(text)
        match = search.push(piece, search=n >= first_searched)
        if match is not None:
            stop, surplus = match
            return text[: len(text) - surplus], shown, stop, first
        held = search.held()
        assert shown <= len(text) - held, "what was given out is held back"
        shown = len(text) - held
        # Not one character more than needed.
        ends = [text[-k:] for k in range(1, len(text) + 1)]
        possible = [e for e in ends for stop in stops if len(e) < len(stop) and stop.startswith(e)]
        assert held == (0 if include else max(map(len, possible), default=0))
    return text, shown, None, first


@given(PIECES, STOPS, st.booleans(), st.integers(0, 4))
def test_agrees_with_a_search_character_by_character(pieces, stops, include, first_searched):
    text, shown, stop, first = stream(pieces, stops, include, first_searched)
    expected = brute_force("".join(pieces), stops, first)
    if expected is None:
        assert (text, stop) == ("".join(pieces), None)
    else:
        wanted, start, end = expected
        assert (text, stop) == ("".join(pieces)[: end if include else start], wanted)
    assert shown <= len(text), "a cut text was given out"


def test_nothing_to_search_for():
    search = StopStrings([])
    assert not search
    assert search.held() == 0


def test_the_first_complete_one_wins_in_whatever_order():
    assert StopStrings(["abcd", "bc"]).push("abcd") == ("bc", 3)
    assert StopStrings(["bc", "abc"]).push("abc") == ("abc", 3)
    assert StopStrings(["abc", "bc"], include=True).push("abcd") == ("abc", 1)
