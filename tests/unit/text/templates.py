"""Chat templates as real checkpoints have them, shortened, and templates that nobody should have."""

# ruff: noqa: E501 - a template is one line where a line break would be in its text

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA_3 = """\
{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'}}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] " + (tools | tojson) + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

GEMMA_2 = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

GEMMA_3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""

QWEN_2_5 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN_3_VL = """\
{%- macro render_content(content, count) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for item in content %}
            {%- if 'text' in item %}{{- item.text }}{%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- set text = render_content(message.content, true) %}
    {{- '<|im_start|>' + message.role + '\\n' + text + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

EVERYTHING = """\
{%- for message in messages %}
    {%- if message.role == 'skip' %}{% continue %}{% endif %}
    {%- if message.role == 'stop' %}{% break %}{% endif %}
    {%- generation %}{% set inner = 1 %}{{ message.content }}{% endgeneration %}
    {{- inner is defined }}{{ message | tojson(indent=2, sort_keys=true) }}
    {{- message.thinking }}|{{ message.reasoning_content }}|{{ message.nothing }}
{%- endfor %}
{{ documents | tojson }} {{ documents is defined }} {{ tools is defined }} {{ tools }}
{{ strftime_now('%Y-%m') }} {{ dict(a=1, b='é<&>') | tojson }} {{ dict.fromkeys(['x'], 2) }}
{%- set ns = namespace(self=1, n=0) %}{% for x in range(3) %}{% set ns.n = ns.n + x %}{% endfor %}
{{ ns.n }} {{ ns.self }} {{ enable_thinking }} {{ (names or ['-', '-'])[1] }} {{ bos_token }}{{ eos_token }}
{{ ['b', 'a'] | sort | join('-') }} {{ '%s %d' | format('x', 3) }} {{ 'abc'[::-1] }} {{ 7 // 2 }}
   {% if true %}
   indented
   {% endif %}
end
"""

HONEST = {
    "chatml": CHATML,
    "llama_3": LLAMA_3,
    "mistral": MISTRAL,
    "gemma_2": GEMMA_2,
    "gemma_3": GEMMA_3,
    "qwen_2_5": QWEN_2_5,
    "qwen_3_vl": QWEN_3_VL,
    "everything": EVERYTHING,
}

_GROW = "{% set ns = namespace(x={start}) %}{% for _ in range(99999) %}{% set ns.x = {next} %}{% endfor %}{{{{ ns.x {end} }}}}"


def _grow(start: str, following: str, end: str = "| length") -> str:
    """A value that is made larger from round to round."""
    text = _GROW.replace("{start}", start).replace("{next}", following)
    return text.replace("{end}", end).replace("{{{{", "{{").replace("}}}}", "}}")


_FOR = "{% for x in range(99999) %}"
_END = "{% endfor %}"

HOSTILE = {
    # Loops
    "three loops": _FOR * 3 + _END * 3,
    "three loops with output": _FOR * 3 + "{{ x }}" + _END * 3,
    "six loops": _FOR * 6 + "{% set y = x %}" + _END * 6,
    "a loop over a billion": "{% for x in range(10**9) %}{% endfor %}",
    "a loop over products": "{% for x in [1] * 10**9 %}{% endfor %}",
    "a loop over text": "{% for x in 'a' * 10**9 %}{% endfor %}",
    "a cycler": _FOR * 3 + "{% set c = cycler('a', 'b') %}{{ c.next() }}" + _END * 3,
    "a joiner": "{% set j = joiner(',' * 10**6) %}" + _FOR * 2 + "{{ j() }}" + _END * 2,
    "words": "{{ lipsum(n=10**7) }}",
    "a loop that is filtered": _FOR * 2
    + "{% for y in range(99999) if y < 0 %}{% endfor %}"
    + _END * 2,
    "continue for ever": _FOR * 3 + "{% continue %}" + _END * 3,
    # Recursion
    "a macro of itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "two macros": "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that doubles": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a macro with a caller": "{% macro f() %}{{ caller() }}{% call f() %}x{% endcall %}{% endmacro %}{% call f() %}x{% endcall %}",
    "a recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a recursive loop of two": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a block of itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "brackets": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "parentheses": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "conditions": "{% if a %}" * 5000 + "{% endif %}" * 5000,
    "nots": "{{ " + "not " * 50_000 + "1 }}",
    "sums": "{{ " + "1 + " * 50_000 + "1 }}",
    "a long chain of filters": "{{ 1 " + "| abs " * 20_000 + "}}",
    "minuses": "{{ " + "-" * 50_000 + "1 }}",
    # Memory
    "a product of text": "{{ 'a' * 10**10 }}",
    "a product of a list": "{{ [1] * 10**9 }}",
    "a product of a tuple": "{{ ((1,) * 10**9) | length }}",
    "doubled text": _grow("'aaaaaaaa'", "ns.x + ns.x"),
    "joined text": _grow("'aaaaaaaa'", "ns.x ~ ns.x"),
    "doubled lists": _grow("[1]", "ns.x + ns.x"),
    "replaced text": _grow("'aa'", "ns.x.replace('a', 'aaaa')"),
    "the filter replace": _grow("'aa'", "ns.x | replace('a', 'aaaa')"),
    "the filter join": _grow("'aaaa'", "[ns.x, ns.x] | join(ns.x)"),
    "the method join": _grow("'aaaa'", "ns.x.join([ns.x, ns.x, ns.x])"),
    "format of itself": _grow("'aaaa'", "'%s%s' | format(ns.x, ns.x)"),
    "percent of itself": _grow("'aaaa'", "'%s%s' % (ns.x, ns.x)"),
    "braces of itself": _grow("'aaaa'", "'{0}{0}{0}'.format(ns.x)"),
    "a wider indent": _grow("'a\\nb'", "ns.x | indent(ns.x | length)"),
    "quoted JSON": _grow("'\"'", "ns.x | tojson"),
    "percent signs": _grow("'%'", "ns.x | urlencode"),
    "much output": _FOR * 2 + "{{ 'a' * 1000 }}" + _END * 2,
    "much in a block": "{% set t %}" + _FOR * 2 + "{{ 'a' * 1000 }}" + _END * 2 + "{% endset %}",
    "a text of a million, a million times": "{% set a = 'a' * 10**6 %}"
    + _FOR * 2
    + "{{ a }}"
    + _END * 2,
    "center": "{{ 'a' | center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "expandtabs": "{{ ('\\t' * 1000).expandtabs(10**8) }}",
    "indent": "{{ 'a\\nb' | indent(10**10) }}",
    "wordwrap": "{{ ('a ' * 10**7) | wordwrap(1, wrapstring='a' * 10**6) }}",
    "tojson": "{{ {'a': 1} | tojson(indent=10**10) }}",
    "a width of printf": "{{ '%10000000000d' | format(1) }}",
    "a precision of printf": "{{ '%.2000000000f' % 1.5 }}",
    "a width from a star": "{{ '%*d' | format(10**9, 1) }}",
    "a width of braces": "{{ '{:>10000000000}'.format(1) }}",
    "a nested width of braces": "{{ '{:{w}}'.format(1, w=10**10) }}",
    "batch": "{{ [1] | batch(10**10, 'x') | list }}",
    "slice": "{{ [1] | slice(10**9, 'x') | list }}",
    "many ranges": "{% set ns = namespace(x=[]) %}"
    + _FOR
    + "{% set ns.x = ns.x + [range(99999) | list] %}"
    + _END,
    "the list of products": "{{ (range(99999) | list) * 99999 }}",
    "fromkeys": "{{ dict.fromkeys(range(10**9)) }}",
    "growing dicts": "{% set ns = namespace(x={}) %}"
    + _FOR * 2
    + "{% set ns.x = dict(ns.x, **{'k' ~ x ~ loop.index: 'a' * 9999}) %}"
    + _END * 2,
    "many names": _FOR * 2 + "{% set ns = namespace(a='a' * 10**6) %}" + _END * 2,
    # Long operations in C
    "a power": "{{ 9 ** 999999999 }}",
    "a tower of powers": "{{ (9 ** 9) ** (9 ** 9) }}",
    "a product of large numbers": _grow("7", "ns.x * ns.x", "| string"),
    "the digits of a number": "{{ (10 ** 4000) | string | int ** 5000 }}",
    "lists that hold each other": _grow("[1]", "[ns.x, ns.x]", "| string"),
    "a comparison of such lists": "{% set a = namespace(x=[1], y=[1]) %}{% for _ in range(60) %}{% set a.x = [a.x, a.x] %}{% set a.y = [a.y, a.y] %}{% endfor %}{{ a.x == a.y }}",
    "such lists as JSON": "{% set a = namespace(x=[1]) %}{% for _ in range(60) %}{% set a.x = [a.x, a.x] %}{% endfor %}{{ a.x | tojson }}",
    "such lists printed": "{% set a = namespace(x=[1]) %}{% for _ in range(60) %}{% set a.x = [a.x, a.x] %}{% endfor %}{{ a.x | pprint }}",
    "the hash of such tuples": "{% set a = namespace(x=(1,)) %}{% for _ in range(60) %}{% set a.x = (a.x, a.x) %}{% endfor %}{{ {a.x: 1} }}",
    "a deep list": _grow("[1]", "[ns.x]", "| string"),
    "a deep list as JSON": _grow("[1]", "[ns.x]", "| tojson"),
    "searches": "{% set a = 'a' * 10**6 %}" + _FOR + "{{ a.find('a' * 5000 ~ 'b') }}" + _END,
    "membership": "{% set a = range(99999) | list %}" + _FOR * 2 + "{{ -1 in a }}" + _END * 2,
    "sorting": "{% set a = range(99999) | list %}"
    + _FOR
    + "{{ (a | sort(reverse=x % 2 == 0))[0] }}"
    + _END,
    "grouping": "{% set a = range(99999) | list %}"
    + _FOR
    + "{{ (a | groupby('real')) | length }}"
    + _END,
    "sums of texts": "{{ ([['a'] * 9999] * 9999) | sum(start=[]) | length }}",
    "unique": "{{ range(99999) | map('string') | list * 1000 | unique | list | length }}",
    "titles": "{% set a = 'a ' * 10**6 %}" + _FOR + "{{ (a | title)[0] }}" + _END,
    # What is missing, wrong or forbidden
    "include": "{% include 'a' %}",
    "import": "{% import 'a' as a %}",
    "from import": "{% from '/etc/passwd' import a %}",
    "extends": "{% extends 'a' %}",
    "division": "{{ 1 / 0 }}",
    "modulo": "{{ 1 % 0 }}",
    "a name that is missing": "{{ a.b }}",
    "a key that is missing": "{{ messages[99].content }}",
    "a missing filter": "{{ 1 | nothing }}",
    "a missing test": "{{ 1 is nothing }}",
    "types": "{{ 1 + 'a' }}",
    "a call of text": "{{ 'a'() }}",
    "a wrong argument": "{{ 'a'.replace() }}",
    "an unhashable key": "{{ {[1]: 2} }}",
    "unpacking": "{% for a, b in [1] %}{% endfor %}",
    "a float of text": "{{ [1] | sum('a') }}",
    "JSON of what is none": "{{ range | tojson }}",
    "a round of text": "{{ 'a' | round }}",
    "an index of a list": "{{ ['a', 'b'].index('c') }}",
    "encodings": "{{ 'é'.encode('ascii') }}",
    "a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a class by attr": "{{ ('' | attr('__class__')).mro() }}",
    "a class by format": "{{ '{0.__class__.__mro__}'.format('') | length + [] }}",
    "a namespace's own": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "a list that changes": "{{ messages.append(1) }}",
    "a dict that changes": "{{ messages[0].update(a=1) }}",
    "a refusal": "{{ raise_exception('no') }}",
    "a long refusal": "{{ raise_exception('no' * 10**7) }}",
    "nothing closed": "{% for x in y %}",
    "nothing opened": "{% endfor %}",
    "half a tag": "{{",
    "a wrong tag": "{% nothing %}",
    "a null": "{{ \x00 }}",
    "two blocks of one name": "{% block a %}{% endblock %}{% block a %}{% endblock %}",
    "a name that is no name": "{% set 1 = 2 %}",
    "generation not closed": "{% generation %}",
    "a number of a million digits": "{{ " + "9" * 1_000_000 + " }}",
    "a debug tag": "{% debug %}",
}
"""Each must end in a `ValueError`, soon and without much memory."""

HARMLESS = {
    "escapes": _grow("'&'", "ns.x | escape | string"),
    "a shift by powers": "{{ 2 ** 10**10 // 3 }}",
    "a pattern of tags": "{{ ('<' * 200_000) | striptags }}",
    "links": "{{ ('http://a.' * 200_000) | urlize }}",
    "globals": "{{ raise_exception.__globals__ }}",
}
"""They look hostile, and render within the limits."""
