"""Finding stop strings in a text that comes in pieces."""

from collections.abc import Iterable


class StopStrings:
    """The search for several stop strings in one text.

    The one that is complete first counts, of several that end together the longest: what a
    reader would find who gets one character after another. So the outcome does not depend on
    how the text was cut into tokens; vLLM's (`check_stop_strings` in
    `vllm/v1/engine/detokenizer.py`) depends on that and on the order of the strings.
    """

    __slots__ = ("_include", "_keep", "_stops", "_tail")

    def __init__(self, stops: Iterable[str], include: bool = False) -> None:
        """Search for `stops`; `include` them when the text is cut."""
        self._stops = tuple(stops)
        self._include = include
        self._keep = max((len(stop) for stop in self._stops), default=1) - 1
        self._tail = ""  # of the text so far, all that a stop string may begin in

    def __bool__(self) -> bool:
        """Whether there is anything to search for."""
        return bool(self._stops)

    def push(self, piece: str, *, search: bool = True) -> tuple[str, int] | None:
        """Take the next piece of the text and look for what it completes.

        Args:
            piece: what the text goes on with.
            search: False while nothing may stop it.

        Returns:
            The stop string, and how many of the text's last characters to cut; None without.
        """
        text = self._tail + piece
        match = self._find(text, len(self._tail)) if search else None
        self._tail = text[-self._keep :] if self._keep else ""
        if match is None:
            return None
        end, start, stop = match
        return stop, len(text) - (end if self._include else start)

    def _find(self, text: str, old: int) -> tuple[int, int, str] | None:
        """The first match that ends behind the `old` characters."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = text.find(stop, max(0, old - len(stop) + 1))
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return best

    def held(self) -> int:
        """How many of the text's last characters may be the beginning of a stop string."""
        if self._include:
            return 0
        return max((self._begun(stop) for stop in self._stops), default=0)

    def _begun(self, stop: str) -> int:
        tail = self._tail
        start = tail.find(stop[0], max(0, len(tail) - len(stop) + 1))
        while start >= 0:
            if stop.startswith(tail[start:]):
                return len(tail) - start
            start = tail.find(stop[0], start + 1)
        return 0
