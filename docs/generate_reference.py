"""Write what the documentation says of the configuration, from the configuration classes.

`python docs/generate_reference.py` (or `nox -s docs`) renews the tables of the two READMEs and
`env/.env.example`. With `--check` nothing is written, and the exit code is 1 when one is stale.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from folovllm.config import CONFIG_CLASSES
from folovllm.config.settings import is_secret
from folovllm.config.sources import ENV_FILE, secret_file_variable, variable_of

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from folovllm.config.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
TRANSLATIONS = Path("docs/configuration.zh-CN.json")
BEGIN, END = "<!-- configuration:begin -->", "<!-- configuration:end -->"
WIDTH = 98

HEADER = f"""\
# Settings of FoloVLLM: each line is an environment variable with its default. To set one, take
# away the "#" before its name. Real environment variables win over this file, and arguments win
# over both. An empty value is refused: leave a line commented out to take the default.
#
# A secret may stand in a file of its own, as containers mount it: the variable's name with _FILE
# holds the path then. Set one of the two.
#
# {ENV_FILE}, a real variable, names another file to read instead of `.env`.
#
# Written by `nox -s docs` from src/folovllm/config/fields.py.
"""

Translate = Callable[[str], str]


class GenerationError(Exception):
    """The reference cannot be generated; the message says what to add."""


def generate() -> dict[Path, str]:
    """Every generated file, by its path from the root, with what it has to contain.

    Raises:
        GenerationError: a text has no translation, or a page has lost its markers.
    """
    pages: dict[Path, Translate] = {
        Path("README.md"): str,
        Path("README.zh-CN.md"): _translator(),
    }
    contents = {page: _renewed(page, translate) for page, translate in pages.items()}
    return {**contents, Path("env/.env.example"): env_example()}


def _renewed(page: Path, translate: Translate) -> str:
    """A page with its table as the classes have it now."""
    text = (ROOT / page).read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise GenerationError(f"{page} lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{table(translate)}\n{END}{after}"


def _translator() -> Translate:
    texts: dict[str, str] = json.loads((ROOT / TRANSLATIONS).read_text(encoding="utf-8"))

    def translate(text: str) -> str:
        try:
            return texts[text]
        except KeyError:
            raise GenerationError(f"{TRANSLATIONS} has no translation of {text!r}") from None

    return translate


def table(translate: Translate = str) -> str:
    """The configuration table in Markdown, one part a class."""
    heads = "| {} | {} | {} |".format(*map(translate, ("variable", "default", "meaning")))
    parts = []
    for cls in CONFIG_CLASSES:
        rows = [_row(name, field, translate) for name, field in cls.model_fields.items()]
        title = translate("**`{}`**: {}").format(cls.__name__, translate(_summary(cls)))
        parts.append("\n".join(["", title, "", heads, "| --- | --- | --- |", *rows]))
    return "\n".join(parts) + "\n"


def _row(name: str, field: FieldInfo, translate: Translate) -> str:
    meaning = translate(_description(field))
    if choices := _choices(field):
        meaning += translate(" ({})").format(choices)
    if is_secret(field):
        by_file = translate(" (or `{}` with the path of a file)")
        meaning += by_file.format(secret_file_variable(name))
    value = _default(field)
    shown = f"`{value}`" if value else translate("required" if field.is_required() else "unset")
    return f"| `{variable_of(name)}` | {shown} | {meaning} |"


def env_example() -> str:
    """`env/.env.example`: every variable once, commented out, with its meaning and default."""
    lines, seen = [HEADER], {"env_file"}  # which names this file, and cannot stand in it
    for cls in CONFIG_CLASSES:
        lines.append(f"\n# ---- {cls.__name__}: {_summary(cls)}\n")
        for name, field in cls.model_fields.items():
            if name not in seen:  # max_model_len is in two classes
                seen.add(name)
                lines.extend(_example_lines(name, field))
    return "\n".join(lines)


def _example_lines(name: str, field: FieldInfo) -> Iterator[str]:
    choices = _choices(field)
    text = _description(field) + (f" ({choices})" if choices else "")
    yield from (f"# {line}" for line in textwrap.wrap(text, WIDTH))
    yield f"#{variable_of(name)}={_default(field)}"
    if is_secret(field):
        yield f"#{secret_file_variable(name)}="
    yield ""


def _summary(cls: type[Settings]) -> str:
    return (cls.__doc__ or "").splitlines()[0]


def _description(field: FieldInfo) -> str:
    return field.description or ""


def _choices(field: FieldInfo) -> str:
    """The accepted words of a field; empty when its description has them all."""
    words = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if all(word in _description(field) for word in words):
        return ""
    return ", ".join(f"`{word}`" for word in words)


def _default(field: FieldInfo) -> str:
    """The default as one would write it in `.env`; empty when it is none, or this machine's."""
    if field.is_required() or field.default_factory or field.default is None:
        return ""
    return str(field.default)


def main(argv: list[str] | None = None) -> int:
    """Write or check the generated files; 0 when all is well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if one is stale")
    check = parser.parse_args(argv).check
    try:
        contents = generate()
    except GenerationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    stale = [path for path, text in contents.items() if _read(ROOT / path) != text]
    for path in stale:
        if check:
            sys.stderr.write(f"{path} is stale: run `nox -s docs`\n")
        else:
            (ROOT / path).parent.mkdir(exist_ok=True)
            (ROOT / path).write_text(contents[path], encoding="utf-8")
            sys.stdout.write(f"wrote {path}\n")
    return 1 if check and stale else 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
