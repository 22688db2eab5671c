"""Whether a chat template wants a message's content as text or as a list of parts.

Templates for text models write `{{ message.content }}`; templates for models that see images as
well iterate over `[{"type": "text", "text": ...}]`. Each loses or garbles the other's form, and
Jinja says nothing: an attribute that is missing is an empty text. As in vLLM
(`vllm/renderers/hf.py`, `_detect_content_format`) the template's syntax tree tells: one that
iterates over the content of a message wants parts. Beyond vLLM's rule, content is followed
through names, namespaces and the parameters of macros.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from jinja2 import nodes

if TYPE_CHECKING:
    from folovllm.text.messages import ContentFormat

_KEY = "content"


def detect_content_format(template: nodes.Template) -> "ContentFormat":
    """Return the form of content that a template wants, from its syntax tree."""
    return "openai" if _Flow(template).iterates_over_content() else "string"


class _Flow:
    """Which names of a template hold messages, and which hold a message's content.

    Scopes are not told apart: a name counts wherever it is used, as in vLLM.
    """

    def __init__(self, template: nodes.Template) -> None:
        self._template = template
        self._messages = {"messages"}  # names of the list, or of one message of it
        self._contents: set[str] = set()
        self._macros = {macro.name: macro for macro in template.find_all(nodes.Macro)}
        self._follow()

    def iterates_over_content(self) -> bool:
        """Whether a loop goes over the content of a message."""
        loops = self._template.find_all(nodes.For)
        return any(self._is_content(loop.iter) for loop in loops)

    def _follow(self) -> None:
        """Add names until nothing new is found; each round adds one, so that it ends."""
        edges = list(self._edges())
        count = -1
        while count != len(self._messages) + len(self._contents):
            count = len(self._messages) + len(self._contents)
            for name, value in edges:
                if self._is_content(value):
                    self._contents.add(name)
                elif self._is_message(value):
                    self._messages.add(name)

    def _edges(self) -> Iterator[tuple[str, nodes.Node]]:
        """Yield each name that takes a value, with the value."""
        for assign in self._template.find_all(nodes.Assign):
            yield from _targets(assign.target, assign.node)
        for loop in self._template.find_all(nodes.For):
            # Of a loop over messages each is one; a loop over content settles the question.
            yield from _targets(loop.target, loop.iter)
        for with_ in self._template.find_all(nodes.With):
            for target, value in zip(with_.targets, with_.values, strict=True):
                yield from _targets(target, value)
        for call in self._template.find_all(nodes.Call):
            yield from self._arguments(call)

    def _arguments(self, call: nodes.Call) -> Iterator[tuple[str, nodes.Node]]:
        macro = self._macros.get(call.node.name) if isinstance(call.node, nodes.Name) else None
        if macro is not None:
            parameters = [parameter.name for parameter in macro.args]
            yield from zip(parameters, call.args, strict=False)
            yield from ((keyword.key, keyword.value) for keyword in call.kwargs)

    def _is_message(self, node: nodes.Node | None) -> bool:
        """Whether it is the list of messages, a part of it or one of them."""
        if isinstance(node, nodes.Getitem) and not _is_text(node.arg):
            return self._is_message(node.node)
        return self._reaches(node, self._messages, self._is_message)

    def _is_content(self, node: nodes.Node | None) -> bool:
        """Whether it is the content of a message, or a part of that."""
        if (owner := _owner(node)) is not None:
            return self._is_message(owner)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return self._is_content(node.node)
        return self._reaches(node, self._contents, self._is_content)

    def _reaches(
        self, node: nodes.Node | None, names: set[str], test: Callable[[nodes.Node | None], bool]
    ) -> bool:
        """Look through what hands a value on: names, filters, `or`, `+` and conditions."""
        if (name := _name(node)) is not None:
            return name in names
        if isinstance(node, nodes.Filter):
            return test(node.node)
        if isinstance(node, nodes.CondExpr):
            return test(node.expr1) or test(node.expr2)
        if isinstance(node, (nodes.Or, nodes.And, nodes.Add)):
            return test(node.left) or test(node.right)
        return False


def _owner(node: nodes.Node | None) -> nodes.Node | None:
    """Return what the content is read of: `m.content`, `m['content']` or `m.get('content')`."""
    if isinstance(node, nodes.Getattr) and node.attr == _KEY:
        return node.node
    if isinstance(node, nodes.Getitem) and _is_text(node.arg, _KEY):
        return node.node
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        is_get = node.node.attr == "get" and node.args and _is_text(node.args[0], _KEY)
        return node.node.node if is_get else None
    return None


def _is_text(node: nodes.Node, text: str | None = None) -> bool:
    if not isinstance(node, nodes.Const) or not isinstance(node.value, str):
        return False
    return text is None or node.value == text


def _name(node: nodes.Node | None) -> str | None:
    """Return the name of a value: its own, or `namespace.name`."""
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.NSRef):
        return f"{node.name}.{node.attr}"
    if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
        return f"{node.node.name}.{node.attr}"
    return None


def _targets(target: nodes.Node, value: nodes.Node) -> Iterator[tuple[str, nodes.Node]]:
    """Yield the names of an assignment, each with its value."""
    name = _name(target)
    if name is None:
        if isinstance(target, nodes.Tuple) and isinstance(value, nodes.Tuple):
            for each, its in zip(target.items, value.items, strict=False):
                yield from _targets(each, its)
        return
    yield name, value
    if isinstance(value, nodes.Call) and _name(value.node) == "namespace":
        for keyword in value.kwargs:
            yield f"{name}.{keyword.key}", keyword.value
