r"""The grammar of `.env` files: that of python-dotenv, read in linear time.

One expression matches a whole entry, so that a file of hundreds of thousands of lines, most of
which are other programs', takes a fraction of a second. Quotes, `export`, comments, values of
several lines and `${NAME:-default}` mean what they mean to python-dotenv.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

MOST_EXPANDED = 1 << 20
"""Characters that all `${NAME}` of a file together may become: entries can double each other."""

_SPACE = r"[^\S\n]*"
_KEY = r"(?:'(?P<quoted>[^']+)'|(?P<plain>[^=#\s'][^=#\s]*))"
_EXPORT = r"(?:export[^\S\n]+|(?!export[^\S\n]))"
_SINGLE = r"'(?P<single>[^'\\]*(?:\\.[^'\\]*)*)'"
_DOUBLE = r'"(?P<double>[^"\\]*(?:\\.[^"\\]*)*)"'
_BARE = r"(?P<bare>[^\s'\"][^\n]*)"
_END = r"(?:\#[^\n]*)?(?:\n|\Z)"

# No two repetitions of the same characters stand side by side: that would take quadratic time.
_ENTRY = re.compile(
    rf"\s*{_EXPORT}{_KEY}{_SPACE}"
    rf"(?P<equals>={_SPACE}(?:(?:{_SINGLE}|{_DOUBLE}){_SPACE}|{_BARE})?)?{_END}",
    re.DOTALL,
)
_NOTHING = re.compile(r"\s*(?:\#[^\n]*(?:\n|\Z)|\Z)")
_BROKEN = re.compile(
    rf"\s*{_EXPORT}(?:{_KEY}{_SPACE}(?:={_SPACE}(?:{_SINGLE}|{_DOUBLE})?)?)?[^\n]*\n?", re.DOTALL
)
_SPACED_COMMENT = re.compile(r"\s#")
_ESCAPES = {
    **dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True)),
    **{character: character for character in "\\'\""},
}


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a `.env` file.

    Attributes:
        key: its name; of a broken one, what seems to be its name.
        value: its text with quotes and escapes resolved; None without an equals sign.
        line: where it begins, counted from 1.
        is_broken: whether it has no meaning.
    """

    key: str
    value: str | None
    line: int
    is_broken: bool = False


@lru_cache(maxsize=1)
def read_entries(text: str, prefix: str) -> tuple[Entry, ...]:
    """Return the entries whose names begin with a prefix, and those that they refer to.

    Broken entries are among them if their names seem to begin with the prefix. The last text is
    remembered: a command asks for it once for every class of settings.

    Args:
        text: of the file, with newlines as line ends.
        prefix: in capitals; names are compared without regard to case.
    """
    wanted: set[str] = set()
    chosen = []
    for entry in reversed(list(_entries(text))):
        is_ours = entry.key[: len(prefix)].upper() == prefix
        if entry.is_broken:
            chosen += [entry] if is_ours else []
        elif is_ours or entry.key in wanted:
            wanted.update(name for _, _, name, _ in _references(entry.value or ""))
            chosen.append(entry)
    return tuple(chosen[::-1])


def expand(entries: tuple[Entry, ...], environment: Mapping[str, str]) -> Iterator[Entry]:
    """Fill in each `${NAME}`: by what stood above it, then by the environment.

    Args:
        entries: of one file, in their order.
        environment: the variables of the process.

    Raises:
        ValueError: they grow too large.
    """
    values: dict[str, str | None] = {}
    left = MOST_EXPANDED
    for entry in entries:
        if entry.is_broken:
            continue
        value = entry.value
        if value is not None and "${" in value:
            value, used = _filled(value, values, environment, left)
            left -= used
            if left < 0:
                raise ValueError(
                    f"line {entry.line}: what ${{...}} stands for is larger than "
                    f"{MOST_EXPANDED >> 20} MiB in all"
                )
        values[entry.key] = value
        yield replace(entry, value=value)


def _entries(text: str) -> Iterator[Entry]:
    position, line, counted = 0, 1, 0
    while position < len(text):
        if found := _NOTHING.match(text, position):
            position = found.end()
            continue
        found = _ENTRY.match(text, position)
        is_broken = found is None
        found = found or _BROKEN.match(text, position)
        if found is None:  # the expression matches anything, also nothing
            return
        start = position + len(found[0]) - len(found[0].lstrip())
        line, counted = line + text.count("\n", counted, start), start
        if is_broken:
            name = re.match(r"(?:export\s+)?['\"]?([^\s='\"]*)", found[0].lstrip()[:1000])
            yield Entry(name[1] if name else "", None, line, is_broken=True)
        else:
            yield Entry(found["quoted"] or found["plain"], _value(found), line)
        position = max(found.end(), position + 1)


def _value(found: re.Match[str]) -> str | None:
    equals, single, double, bare = found.group("equals", "single", "double", "bare")
    if equals is None:
        return None
    if single is not None:
        return _unescaped(single, "\\'")
    if double is not None:
        return _unescaped(double, "\\'\"abfnrtv")
    if bare is None or (bare[0] == "#" and equals[1] != "#"):  # `KEY= # comment`
        return ""
    comment = _SPACED_COMMENT.search(bare)
    return str(bare[: comment.start()] if comment else bare).rstrip()


def _unescaped(text: str, known: str) -> str:
    if "\\" not in text:
        return text
    return re.sub(rf"\\([{re.escape(known)}])", lambda found: _ESCAPES[found[1]], text)


def _filled(
    value: str, values: Mapping[str, str | None], environment: Mapping[str, str], most: int
) -> tuple[str, int]:
    """The value with its `${NAME}` filled in, and what they became together, in characters.

    It is given up where that is more than `most`.
    """
    pieces, last, used = [], 0, 0
    for start, end, name, default in _references(value):
        known = values[name] if name in values else environment.get(name, default)
        used += len(known or "")
        if used > most:
            break
        pieces += [value[last:start], known or ""]
        last = end
    return "".join([*pieces, value[last:]]), used


def _references(value: str) -> Iterator[tuple[int, int, str, str | None]]:
    """Begin, end, name and default of each `${NAME}` or `${NAME:-default}`.

    An expression would search to the end of the text from every `${` that is never closed.
    """
    start, stop = value.find("${"), -1
    while start >= 0:
        name_at = start + 2
        if stop < name_at:  # otherwise the stop of an earlier `${` is that of this one, too
            found = re.compile(r"[}:]").search(value, name_at)
            if found is None:
                return
            stop = found.start()
        end, default_at = stop, stop
        if value[stop] == ":":
            default_at = stop + 2
            end = value.find("}", default_at) if value.startswith(":-", stop) else -2
        if end == -1:
            return
        if end >= 0:
            default = value[default_at:end] if default_at > stop else None
            yield start, end + 1, value[name_at:stop], default
        start = value.find("${", end + 1 if end >= 0 else name_at)
