"""Variables with our prefix that are not ours: those that Kubernetes and Docker make.

Kubernetes describes every Service of a namespace to every pod in it, and Docker's links describe
the linked container. A Service named `folovllm` or `folovllm-server` gives variables that begin
as ours do. Names alone would let misspelt variables of ours pass, so the values have to be such
as those programs write.
"""

import re
from collections.abc import Mapping
from ipaddress import ip_address

_PROTOCOL = "(?:TCP|UDP|SCTP)"
_PORT = rf"_PORT_\d+_{_PROTOCOL}"
_URL = r"(?:tcp|udp|sctp)://\S+"

_SHAPES = tuple(
    (re.compile(name), re.compile(value, re.IGNORECASE))
    for name, value in (
        (r"\w+_PORT", _URL),
        (rf"\w+{_PORT}(?:_START|_END)?", _URL),
        (rf"\w+{_PORT}_PROTO", _PROTOCOL),
        (rf"\w+{_PORT}_PORT(?:_START|_END)?", r"\d+"),
        (r"\w+_SERVICE_PORT(?:_\w+)?", r"\d+"),
    )
)
"""Names and the values that they have."""

_ADDRESS = re.compile(rf"\w+(?:{_PORT}_ADDR|_SERVICE_HOST)")

_LINK = re.compile(r"/[\w.-]+/[\w.-]+")
"""What Docker's `<ALIAS>_NAME` has: the names of both containers."""


def foreign_variables(variables: Mapping[str, str]) -> set[str]:
    """Return the names of those that Kubernetes or a link of Docker's made.

    Args:
        variables: names that begin with our prefix, and their values.
    """
    aliases = tuple(
        f"{name.removesuffix('_NAME')}_ENV_"
        for name, value in variables.items()
        if name.endswith("_NAME") and _LINK.fullmatch(value)
    )
    found = {name for name, value in variables.items() if _has_shape(name, value)}
    found |= {alias.removesuffix("_ENV_") + "_NAME" for alias in aliases}
    return found | {name for name in variables if aliases and name.startswith(aliases)}


def _has_shape(name: str, value: str) -> bool:
    if _ADDRESS.fullmatch(name):
        return _is_address(value)
    return any(n.fullmatch(name) and v.fullmatch(value) for n, v in _SHAPES)


def _is_address(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return True
