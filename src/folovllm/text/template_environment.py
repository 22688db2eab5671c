"""The Jinja environment that chat templates are written for: that of transformers.

A template must render to the same text as with `tokenizer.apply_chat_template`. That compiles
with `transformers.utils.chat_template_utils`, which takes a second and 60 MB to import; the
process that renders (see `template_worker`) needs Jinja alone and starts in 0.1 s. What the
environment adds to Jinja's sandbox is repeated here: loop controls, `{% generation %}`,
`raise_exception`, `strftime_now`, a `tojson` that escapes no HTML, and a `dict` and a `namespace`
without a way out of the sandbox. `tests/unit/text/test_chat_parity.py` compares the two.
"""

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

FILE_NAME = "<chat template>"
"""What tracebacks call the file that a template is compiled from."""


class RefusedMessagesError(TemplateError):
    """A template called `raise_exception`: it does not take these messages."""


class GenerationBlocks(Extension):
    """`{% generation %}`: marks what an assistant said, for training. It is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Make a call of the block: names that are set in it stay in it, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _render(self, _context: nodes.EvalContext, caller: Any) -> str:
        return str(caller())


class PlainNamespace(Namespace):
    """A `namespace` that takes no name with a leading underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        """Take the first values. As in Jinja, even `self` is a name that a template may use."""
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        """Set `{% set namespace.name = value %}`."""
        _check_name(name)
        Namespace.__setitem__(self, name, value)


class DictMaker:
    """`dict` in a template: makes dicts, and has no attributes of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Return a new dict."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Return a dict of some keys with one value."""
        return dict.fromkeys(*args)


def make_environment() -> ImmutableSandboxedEnvironment:
    """Return the environment; nothing that a template does changes it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=DictMaker(),
        namespace=PlainNamespace,
    )
    return environment


def compile_template(environment: ImmutableSandboxedEnvironment, source: str) -> Template:
    """Compile a template so that an error's traceback has the template's own lines.

    Raises:
        TemplateSyntaxError: it is no valid Jinja.
    """
    code = environment.compile(source, filename=FILE_NAME)
    return Template.from_code(environment, code, environment.make_globals(None))


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name with a leading underscore, got {name!r}")


def _raise_exception(message: object) -> NoReturn:
    raise RefusedMessagesError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - local time is what templates want


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
