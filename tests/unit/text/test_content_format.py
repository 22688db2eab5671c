import pytest

from folovllm.text.content_format import detect_content_format
from folovllm.text.template_environment import make_environment
from tests.unit.text.templates import HONEST


def detect(template):
    return detect_content_format(make_environment().parse(template))


@pytest.mark.parametrize("name", HONEST)
def test_real_templates(name):
    expected = "openai" if name in ("gemma_3", "qwen_3_vl") else "string"
    assert detect(HONEST[name]) == expected


LOOP = "{% for part in {content} %}{{ part.text }}{% endfor %}"


def loop(content):
    return LOOP.replace("{content}", content)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}" + loop("m.content") + "{% endfor %}",
        "{% for m in messages %}" + loop("m['content']") + "{% endfor %}",
        "{% for m in messages %}" + loop("m.get('content')") + "{% endfor %}",
        "{% for m in messages[1:] %}" + loop("m.content") + "{% endfor %}",
        "{% for m in messages if m.role %}" + loop("m.content | list") + "{% endfor %}",
        "{% for m in messages %}{% set c = m.content %}" + loop("c") + "{% endfor %}",
        "{% set c = messages[0].content %}" + loop("c[1:]"),
        "{% set all = messages[1:] if x else messages %}{% for m in all %}"
        + loop("m.content or []")
        + "{% endfor %}",
        "{% for m in messages %}" + loop("m.content | selectattr('type')") + "{% endfor %}",
        "{% macro show(c) %}" + loop("c") + "{% endmacro %}"
        "{% for m in messages %}{{ show(m.content) }}{% endfor %}",
        "{% macro show(m) %}" + loop("m.content") + "{% endmacro %}"
        "{% for each in messages %}{{ show(m=each) }}{% endfor %}",
        "{% set ns = namespace(c=[]) %}{% for m in messages %}{% set ns.c = m.content %}"
        + loop("ns.c")
        + "{% endfor %}",
        "{% set ns = namespace(all=messages) %}{% for m in ns.all %}"
        + loop("m.content")
        + "{% endfor %}",
        "{% for m in messages %}{% with c = m.content %}" + loop("c") + "{% endwith %}{% endfor %}",
        "{% for i in range(9) %}{% set m = messages[i] %}" + loop("m.content") + "{% endfor %}",
        "{% for m in messages %}{% set r, c = m.role, m.content %}" + loop("c") + "{% endfor %}",
        loop("messages[-1].content"),
    ],
)
def test_parts(template):
    assert detect(template) == "openai"


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{{ messages }}",
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% for c in m.tool_calls %}{{ c.content }}{% endfor %}{% endfor %}",
        (
            "{% for m in messages %}{% for c in m['tool_calls'] %}{% for x in c.content %}"
            "{% endfor %}{% endfor %}{% endfor %}"
        ),
        "{% for m in messages %}{% for s in m.content.split() %}{{ s }}{% endfor %}{% endfor %}",
        loop("tools.content"),
        "{% for d in documents %}" + loop("d.content") + "{% endfor %}",
        "{% set c = c %}{% set a = b %}{% set b = a %}" + loop("c"),
    ],
)
def test_text(template):
    assert detect(template) == "string"
