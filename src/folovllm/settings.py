"""Where a configuration value comes from: arguments, environment variables, `.env`, defaults.

The base class of every configuration class, the one source through which they read the
environment, and the guard against misspelt variables. What the values mean stands in
`folovllm.config`.
"""

import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dotenv import dotenv_values
from dotenv.parser import Binding, Original, parse_stream
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import override

from folovllm.errors import ConfigError

PREFIX = "FOLOVLLM_"
ENV_FILE = f"{PREFIX}ENV_FILE"
ALLOW_UNKNOWN = f"{PREFIX}ALLOW_UNKNOWN"

_SIGNS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A value of the environment, and where it was found.

    Attributes:
        value: the text as it stood there.
        variable: the variable's name.
        file: the `.env` file it stood in; None for a real environment variable.
        line: its line in that file, counted from 1.
    """

    value: str
    variable: str
    file: Path | None = None
    line: int | None = None

    @property
    def origin(self) -> str:
        """For people: `variable FOLOVLLM_DTYPE`, or `.env:3 FOLOVLLM_DTYPE`."""
        if self.file is None:
            return f"variable {self.variable}"
        return f"{self.file}:{self.line} {self.variable}"


def variable_of(field: str) -> str:
    """The environment variable of a configuration field."""
    return PREFIX + field.upper()


def read_environment() -> dict[str, Found]:
    """Every FOLOVLLM_ variable in reach; a real variable wins over one in `.env`.

    Names are compared without regard to case, as pydantic-settings does; where two differ in
    nothing else, the one in capitals counts.

    Raises:
        ConfigError: the `.env` file cannot be read, or a line of it that is ours has no meaning.
    """
    real = {
        name.upper(): Found(os.environ[name], name)
        for name in sorted(os.environ, reverse=True)  # small letters first, overwritten then
        if name.upper().startswith(PREFIX)
    }
    return {**_read_env_file(real.get(ENV_FILE)), **real}


def _read_env_file(named: Found | None) -> dict[str, Found]:
    """The FOLOVLLM_ variables of the `.env` file; keys of other programs are left alone."""
    path = Path(".env")
    if named is not None:
        path = Path(_filled("env_file", named)).expanduser()
    elif not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig") as stream:  # Windows editors put a BOM first
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        source = f"{named.origin} names {path}, which" if named else str(path)
        raise ConfigError(f"{source} cannot be read: {error}") from error
    # Parsed again for the values, in which `${NAME}` is filled in; without the lines that have
    # no meaning, of which python-dotenv would warn each time.
    good = [binding for binding in bindings if not binding.error]
    text = "".join(binding.original.string for binding in good)
    values = dotenv_values(stream=io.StringIO(text))
    _refuse_broken_lines(path, bindings)
    found = {
        binding.key.upper(): Found(
            values[binding.key] or "", binding.key, path, _line_of(binding.original)
        )
        for binding in good
        if binding.key and binding.key.upper().startswith(PREFIX)
    }
    if other := found.get(ENV_FILE):
        raise ConfigError(f"{other.origin} has no effect in the file that is read; remove it")
    return found


def _refuse_broken_lines(path: Path, bindings: Iterable[Binding]) -> None:
    """Refuse a line about a variable of ours that cannot be read, rather than pass over it."""
    for binding in bindings:
        text = binding.original.string.strip()
        name = re.match(rf"(?:export\s+)?['\"]?({PREFIX}\w*)", text, re.IGNORECASE)
        if binding.error and name:
            raise ConfigError(
                f"{path}:{_line_of(binding.original)} {name[1]}: the line cannot be read; write "
                f"{name[1]}=value, with both quotation marks or none"
            )


def _line_of(original: Original) -> int:
    """The line of a `.env` entry; the parser counts the blank lines before it as part of it."""
    text = original.string
    blank = text[: len(text) - len(text.lstrip())]
    return original.line + blank.count("\n")


def _filled(field: str, found: Found) -> str:
    """The value, unless there is none: nobody means an empty one."""
    if not found.value.strip():
        raise ConfigError(
            f"{field}: {found.origin} is set but empty; give it a value, or remove it to take "
            "the default"
        )
    return found.value


class EnvironmentSource(PydanticBaseSettingsSource):
    """The values that a settings class takes from the environment."""

    def __call__(self) -> dict[str, Any]:
        """Field names with their values, for the fields that the environment sets."""
        return {name: found.value for name, found in self.find().items()}

    def find(self) -> dict[str, Found]:
        """Field names with what was found for them, and where.

        Raises:
            ConfigError: a variable is set but empty, or a secret is given twice.
        """
        environment = read_environment()
        result = {}
        for name, field in self.settings_cls.model_fields.items():
            found = environment.get(variable_of(name))
            if _is_secret(field):
                found = _read_secret(name, found, environment.get(secret_file_variable(name)))
            if found is not None:
                _filled(name, found)
                result[name] = found
        return result

    @override
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Pydantic's interface for one field; `__call__` answers for all of them at once."""
        found = self.find().get(field_name)
        return (found.value if found else None), field_name, False


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in (field.annotation, *get_args(field.annotation))


def secret_file_variable(field: str) -> str:
    """The variable that names a file holding the secret, as containers mount them."""
    return variable_of(field) + "_FILE"


def _read_secret(field: str, found: Found | None, named: Found | None) -> Found | None:
    """A secret given by its variable, or by the file that its `_FILE` variable names."""
    if named is None:
        return found
    if found is not None:
        raise ConfigError(
            f"{field}: {found.origin} and {named.origin} are both set; keep one of them"
        )
    path = Path(_filled(field, named)).expanduser()
    try:
        value = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{field}: {named.origin}: the file cannot be read: {error}") from error
    except UnicodeDecodeError:  # its message would show bytes of the secret
        raise ConfigError(f"{field}: {named.origin}: {path} is no UTF-8 text") from None
    if not value:
        raise ConfigError(f"{field}: {named.origin}: the file {path} is empty")
    return replace(named, value=value)


class Settings(BaseSettings):
    """Base of the configuration classes: arguments, then variables, then `.env`, then defaults."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", validate_assignment=True, allow_inf_nan=False
    )

    def __init__(self, **arguments: Any) -> None:
        """Read what the arguments leave open from the environment.

        Raises:
            ConfigError: a value is wrong; the message names field, value, accepted range and,
                for a value of the environment, its variable.
        """
        try:
            super().__init__(**arguments)
        except ValidationError as error:
            raise ConfigError(_explain(error, type(self), arguments)) from None

    if not TYPE_CHECKING:  # type checkers would take it for leave to set any attribute

        @override
        def __setattr__(self, name: str, value: object) -> None:
            """Check a value that is assigned later as one that is passed."""
            try:
                super().__setattr__(name, value)
            except ValidationError as error:
                raise ConfigError(_explain(error, type(self), {name: value})) from None

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments before the environment; pydantic-settings' own sources are not used.

        Ours tells the line of a `.env` entry and reads secrets from files; theirs do not.
        """
        return init_settings, EnvironmentSource(settings_cls)

    @classmethod
    def find_in_environment(cls) -> dict[str, Found]:
        """The fields that the environment sets now, with where each value stands."""
        return EnvironmentSource(cls).find()


def _explain(error: ValidationError, cls: type[Settings], arguments: Mapping[str, Any]) -> str:
    """Pydantic's error as one line a field: what, where from, what was accepted."""
    found = cls.find_in_environment()
    lines = []
    for detail in error.errors():
        name = str(detail["loc"][0]) if detail["loc"] else cls.__name__
        message = detail["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if detail["type"] == "extra_forbidden":
            lines.append(f"{cls.__name__} has no field {name!r}{nearest(name, cls.model_fields)}")
        elif detail["type"] == "missing":
            lines.append(f"{name} is required: pass {name}=..., or set {variable_of(name)}")
        else:
            where = f" from {found[name].origin}" if name in found and name not in arguments else ""
            field = cls.model_fields.get(name)
            value = "<secret>" if field and _is_secret(field) else repr(detail["input"])
            lines.append(f"{name}: got {value}{where}; {message}{_limits(cls, name)}")
    return "\n".join(lines)


def _limits(cls: type[Settings], name: str) -> str:
    """The accepted range of a field with limits: a message of pydantic's tells one at most."""
    schema = cls.model_json_schema()["properties"].get(name, {})
    limits = [
        f"{sign} {kind[key]}"
        for kind in (schema, *schema.get("anyOf", ()))
        for key, sign in _SIGNS.items()
        if key in kind
    ]
    return f" (accepted: {' and '.join(limits)})" if limits else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` for a misspelt name, or nothing when no known one is like it."""
    # Without the prefix, which would make any two variables look alike.
    names = {word.removeprefix(PREFIX): word for word in known}
    close = [names[word] for word in get_close_matches(name.removeprefix(PREFIX), names, n=1)]
    return f"; did you mean {close[0]}?" if close else ""


def check_variables(classes: Iterable[type[Settings]]) -> None:
    """Refuse FOLOVLLM_ variables that none of the settings classes knows.

    A misspelt variable would otherwise be ignored in silence, and its default used.

    Raises:
        ConfigError: there is one, and `FOLOVLLM_ALLOW_UNKNOWN` does not allow it; then it is
            a warning.
    """
    known = set(_known_variables(classes))
    environment = read_environment()
    problems = [
        f"{found.origin} is not a variable of FoloVLLM{nearest(name, known)}"
        for name, found in environment.items()
        if name not in known
    ]
    if not problems:
        return
    allowed = environment.get(ALLOW_UNKNOWN)
    if allowed and allowed.value.lower() in {"1", "true", "t", "yes", "y", "on"}:
        _warn_once("; ".join(problems))
        return
    hint = f"correct or remove it (`folovllm config` lists them all), or set {ALLOW_UNKNOWN}=1"
    raise ConfigError("\n".join([*problems, hint]))


@cache
def _warn_once(message: str) -> None:
    """Commands and each engine check the variables; the same warning again tells nothing new."""
    logger.warning(message)


def _known_variables(classes: Iterable[type[Settings]]) -> Iterator[str]:
    for cls in classes:
        for name, field in cls.model_fields.items():
            yield variable_of(name)
            if _is_secret(field):
                yield secret_file_variable(name)


def public_value(value: object) -> object:
    """A value as it may be shown: secrets masked, a path or a `torch.dtype` as its name."""
    if isinstance(value, SecretStr):
        return "********"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value).removeprefix("torch.")
