"""`folovllm config`: the effective configuration, and what an engine makes of it."""

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any

from folovllm.cli.options import (
    add_command,
    engine_options,
    planned_config,
    quieten_log,
    runnable_config,
    say_loading,
)
from folovllm.config import CONFIG_CLASSES, ENGINE_CLASSES, EngineConfig
from folovllm.config.settings import Settings, public_value
from folovllm.config.sources import Found, variable_of
from folovllm.loading.default_model import DEMO_MODEL


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "show the effective configuration with the origin of each value"
    parser = add_command(commands, "config", text)
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.add_argument(
        "--resolved",
        action="store_true",
        help="load the model, and show what would really run with the reason for each value",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the configuration that a command would run with, or what would become of it."""
    return _show_resolved(arguments) if arguments.resolved else _show_configured(arguments)


def _show_configured(arguments: argparse.Namespace) -> int:
    engine = planned_config(arguments)
    engine_parts = [getattr(engine, name) for name in ENGINE_CLASSES]
    others = [cls() for cls in CONFIG_CLASSES if cls not in ENGINE_CLASSES.values()]
    options = engine_options(arguments)
    rows = {type(part).__name__: _rows(part, options) for part in (*engine_parts, *others)}
    if arguments.json:
        _write_json("config", rows)
        return 0
    for title, fields in rows.items():
        table = ((name, str(r["value"]), str(r["origin"])) for name, r in fields.items())
        _print_table(title, table)
    return 0


def _show_resolved(arguments: argparse.Namespace) -> int:
    """Load the model and print the engine's setup.

    Raises:
        ConfigError: the configuration is wrong, or there is no room for the cache.
        ModelLoadError: the model cannot be loaded, or not be served.
    """
    config = runnable_config(arguments)
    quieten_log()
    with say_loading(config.model_config.model):
        # It imports torch, which `folovllm config` alone does without.
        from folovllm.engine.assemble import resolve_setup

        setup = resolve_setup(config)
    reasons = {**setup.reasons, **_default_model(config, arguments)}
    if arguments.json:
        values = setup.as_dict()
        rows = {name: {"value": value, "reason": reasons[name]} for name, value in values.items()}
        _write_json("setup", rows)
    else:
        table = ((name, value, reasons[name]) for name, value, _ in setup.rows())
        _print_table(type(setup).__name__, table)
    return 0


def _default_model(config: EngineConfig, arguments: argparse.Namespace) -> dict[str, str]:
    """Return the reason for a model that nobody asked for: commands pass it as an argument."""
    found = config.model_config.find_in_environment()
    origin = _origin("model", engine_options(arguments), found)
    return {"model": origin} if origin.startswith("default") else {}


def _rows(part: Settings, options: dict[str, Any]) -> dict[str, dict[str, object]]:
    """Value, origin and variable of each field."""
    found = part.find_in_environment()
    return {
        name: {
            "value": public_value(getattr(part, name)),
            "origin": _origin(name, options, found),
            "variable": variable_of(name),
        }
        for name in type(part).model_fields
    }


def _origin(name: str, options: dict[str, Any], found: dict[str, Found]) -> str:
    if name in options:
        return f"argument --{name.replace('_', '-')}"
    if name in found:
        return found[name].origin
    if name == "model":
        return f"default ({DEMO_MODEL})"
    return "default"


def _write_json(name: str, rows: dict[str, Any]) -> None:
    json.dump({"schema": 1, name: rows}, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _print_table(title: str, rows: Iterable[tuple[str, str, str]]) -> None:
    """Aligned columns that are never cut: people grep them and copy from them."""
    table = list(rows)
    widths = [max(len(row[column]) for row in table) for column in (0, 1)]
    sys.stdout.write(f"{title}\n")
    for name, value, origin in table:
        sys.stdout.write(f"  {name:<{widths[0]}}  {value:<{widths[1]}}  {origin}\n")
