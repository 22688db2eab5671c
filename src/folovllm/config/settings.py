"""Configuration classes that read arguments, environment variables, `.env` and defaults.

The base class of every configuration class, its source, and the guard against misspelt
variables. What the values mean stands in `folovllm.config`.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, get_args

from pydantic import PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import override

from folovllm.config.sources import (
    LONGEST_SHOWN,
    PREFIX,
    Found,
    abridged,
    filled,
    read_environment,
    read_secret,
    secret_file_variable,
    variable_of,
)
from folovllm.errors import ConfigError

ALLOW_UNKNOWN = f"{PREFIX}ALLOW_UNKNOWN"

MOST_SHOWN = 5
"""Unknown variables that an error names; the others are counted."""

_SIGNS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}

logger = logging.getLogger(__name__)


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
            if is_secret(field):
                found = read_secret(name, found, environment.get(secret_file_variable(name)))
            if found is not None:
                filled(name, found)
                result[name] = found
        return result

    @override
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Pydantic's interface for one field; `__call__` answers for all of them at once."""
        found = self.find().get(field_name)
        return (found.value if found else None), field_name, False


def is_secret(field: FieldInfo) -> bool:
    """Whether the values of a field must not be shown."""
    return SecretStr in (field.annotation, *get_args(field.annotation))


class Settings(BaseSettings):
    """Base of the configuration classes: arguments, then variables, then `.env`, then defaults."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", validate_assignment=True, allow_inf_nan=False
    )

    # The fields that were passed or assigned; the environment decided the others that are set.
    _arguments: frozenset[str] = PrivateAttr(default=frozenset())

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
        self._arguments = frozenset(arguments)

    if not TYPE_CHECKING:  # type checkers would take it for leave to set any attribute

        @override
        def __setattr__(self, name: str, value: object) -> None:
            """Check a value that is assigned later as one that is passed."""
            try:
                super().__setattr__(name, value)
            except ValidationError as error:
                raise ConfigError(_explain(error, type(self), {name: value})) from None
            if name in type(self).model_fields:
                self._arguments |= {name}

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_nul(cls, value: object) -> object:
        """Refuse a character that no name of a file, a model or a server has."""
        if "\0" in (str(value) if isinstance(value, str | PurePath) else ""):
            raise ValueError("it contains a NUL character")
        return value

    @property
    def asked_fields(self) -> frozenset[str]:
        """The names of the fields that were not left to their defaults."""
        return frozenset(self.model_fields_set)

    def origin(self, name: str) -> str:
        """Return where the value of a field comes from, for people.

        Returns:
            "default", "argument block_size", "variable FOLOVLLM_BLOCK_SIZE", or
            ".env:3 FOLOVLLM_BLOCK_SIZE".
        """
        if name not in self.model_fields_set:
            return "default"
        found = None if name in self._arguments else self.find_in_environment().get(name)
        return f"argument {name}" if found is None else found.origin

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
            close = nearest(name, cls.model_fields)
            lines.append(f"{cls.__name__} has no field {abridged(repr(name))}{close}")
        elif detail["type"] == "missing":
            lines.append(f"{name} is required: pass {name}=..., or set {variable_of(name)}")
        else:
            where = f" from {found[name].origin}" if name in found and name not in arguments else ""
            field = cls.model_fields.get(name)
            secret = field and is_secret(field)
            value = "<secret>" if secret else abridged(repr(detail["input"]))
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
    if len(name) > LONGEST_SHOWN:  # comparing takes time by the square of the length
        return ""
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
    unknown = [(name, found) for name, found in environment.items() if name not in known]
    problems = [
        f"{found.origin} is not a variable of FoloVLLM{nearest(name, known)}"
        for name, found in unknown[:MOST_SHOWN]
    ]
    if len(unknown) > MOST_SHOWN:
        problems.append(f"and {len(unknown) - MOST_SHOWN} more")
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
            if is_secret(field):
                yield secret_file_variable(name)


def public_value(value: object) -> object:
    """A value as it may be shown: secrets masked, a path or a `torch.dtype` as its name."""
    if isinstance(value, SecretStr):
        return "********"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value).removeprefix("torch.")
