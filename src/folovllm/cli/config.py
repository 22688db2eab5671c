"""`folovllm config`: the effective configuration, and where each value comes from."""

import argparse
import json
import sys
from typing import Any

from folovllm.cli.options import add_command, engine_options, planned_config
from folovllm.config import CONFIG_CLASSES, ENGINE_CLASSES
from folovllm.config.settings import Settings, public_value
from folovllm.config.sources import Found, variable_of
from folovllm.loading.default_model import DEMO_MODEL


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "show the effective configuration with the origin of each value"
    parser = add_command(commands, "config", text)
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the configuration that a command would run with."""
    engine = planned_config(arguments)
    engine_parts = [getattr(engine, name) for name in ENGINE_CLASSES]
    others = [cls() for cls in CONFIG_CLASSES if cls not in ENGINE_CLASSES.values()]
    options = engine_options(arguments)
    rows = {type(part).__name__: _rows(part, options) for part in (*engine_parts, *others)}
    if arguments.json:
        json.dump({"schema": 1, "config": rows}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print_table(rows)
    return 0


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


def _print_table(rows: dict[str, dict[str, dict[str, object]]]) -> None:
    """Aligned columns that are never cut: people grep them and copy from them."""
    for title, fields in rows.items():
        table = [(name, str(row["value"]), str(row["origin"])) for name, row in fields.items()]
        widths = [max(len(row[column]) for row in table) for column in (0, 1)]
        sys.stdout.write(f"{title}\n")
        for name, value, origin in table:
            sys.stdout.write(f"  {name:<{widths[0]}}  {value:<{widths[1]}}  {origin}\n")
