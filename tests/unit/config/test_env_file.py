"""The grammar of `.env` files; the values were checked against python-dotenv 1.2."""

import time

import pytest

from folovllm.config.env_file import MOST_EXPANDED, expand, read_entries

ENVIRONMENT = {"OUT": "outer", "F_GIVEN": "given"}


def parse(text):
    """Names and values of the entries that begin with F_."""
    found = expand(read_entries(text, "F_"), ENVIRONMENT)
    return {each.key: each.value for each in found if each.key.upper().startswith("F_")}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("F_X", None),
        ("F_X=", ""),
        ("F_X= # comment", ""),
        ("F_X=#value", "#value"),
        ("F_X=a#b", "a#b"),
        ("F_X=a # b", "a"),
        ("F_X = a b  \t", "a b"),
        ("export  F_X=a", "a"),
        ("'F_X'=a", "a"),
        ("F_X='a' # b", "a"),
        ("F_X='a'#b", "a"),
        ("F_X='a\\'b\\n'", "a'b\\n"),
        (r'F_X="a\"b\n\\\q"', 'a"b\n\\\\q'),
        ('F_X="a\nb"', "a\nb"),
        ("F_X='${OUT}'", "outer"),
        ("F_X=${OUT}/${F_GIVEN}/${NONE}/", "outer/given//"),
        ("F_X=${NONE:-default}", "default"),
        ("F_X=${OUT:-default}", "outer"),
        ("F_X=${NONE:-${OUT}}", "${OUT}"),
        ("F_X=${NONE:x}${", "${NONE:x}${"),
        ("F_X=$OUT", "$OUT"),
        ("A=1\nB=${A}2\nF_X=${B}3\nA=4", "123"),
        ("A\nF_X=${A:-default}", ""),
        ("F_X=${A}\nA=later", ""),
        ("OUT=inner\nF_X=${OUT}", "inner"),
        ("export =1\nF_X=a", "a"),
        ("A='x' y\nF_X=a", "a"),
        ('A="open\nF_X=a', "a"),
        ("# 'comment\nF_X=a", "a"),
    ],
)
def test_values(text, value):
    assert parse(text) == {"F_X": value}


def test_a_name_inside_a_value_of_another_program():
    assert parse("A='\nF_X=1\n'\nB=\"\nF_Y=2\n\"\n") == {}


def test_lines():
    entries = read_entries("\n\nF_A=1\n# x\nB='\n\n'\n\n  F_C=2\nF_D 3\n", "F_")
    assert [(each.key, each.line, each.is_broken) for each in entries] == [
        ("F_A", 3, False),
        ("F_C", 9, False),
        ("F_D", 10, True),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"K{number}=value\n" for number in range(200_000)),
        "".join(f"F_K{number}=${{K}}\n" for number in range(50_000)),
        "F_X=" + "x" * 10_000_000,
        "F_X=" + " " * 1_000_000 + "'",
        "F_X" + " " * 1_000_000 + "'",
        "F_X=a" + " \t" * 500_000 + "#",
        "F_X='" + "\\x" * 500_000,
        "F_X=" + "${" * 500_000,
        "F_X=" + "${" * 500_000 + ":}",
        "F_X=" + "${x:-" * 500_000,
        "A B\n" * 200_000,
        "A='x\n" * 200_000,
        'A="\\\n' * 200_000,
        "'" * 1_000_000,
        "\n" * 1_000_000 + "x x",
        "export " * 200_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_time_grows_with_the_length_alone(text):
    start = time.process_time()
    parse(text)
    assert time.process_time() - start < 8  # a tenth of that on an idle machine


def test_values_that_double_each_other():
    lines = ["A0=x"] + [f"A{n}=${{A{n - 1}}}${{A{n - 1}}}" for n in range(1, 60)]
    with pytest.raises(ValueError, match=r"line \d+: what \$\{\.\.\.\} stands for is larger"):
        parse("\n".join([*lines, "F_X=${A59}"]))
    assert parse("\n".join([*lines, "F_X=1"])) == {"F_X": "1"}
    assert len(parse("F_X=" + "x" * (MOST_EXPANDED + 1) + "${OUT}")["F_X"]) > MOST_EXPANDED
