"""Where the prompts of `folovllm generate` come from."""

import io
import os

import pytest

from folovllm import ConfigError
from folovllm.cli.prompts import read_prompts, to_engine


@pytest.fixture
def standard_input(monkeypatch):
    """A function that puts bytes into standard input."""

    def put(content):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))

    return put


def write(tmp_path, content, name="prompts.txt"):
    path = tmp_path / name
    path.write_bytes(content.encode())
    return str(path)


def test_arguments():
    assert read_prompts(["a", " b\n"], None) == ["a", " b\n"]


def test_standard_input_is_one_prompt(standard_input):
    standard_input("first\nsecond é\n\n".encode())
    assert read_prompts([], None) == ["first\nsecond é\n"]


def test_standard_input_by_its_name(standard_input):
    standard_input(b"from the pipe\n")
    assert read_prompts(["a", "-"], None) == ["a", "from the pipe"]


def test_a_terminal_is_not_waited_for(monkeypatch):
    master, slave = os.openpty()
    with os.fdopen(slave) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        with pytest.raises(ConfigError, match=r"^no prompt: give one"):
            read_prompts([], None)
    os.close(master)


def test_a_prompt_a_line(tmp_path):
    path = write(tmp_path, '\ufeffone\r\n\n  two\u2028still two \n{"prompt": 1}')
    assert read_prompts([], path) == ["one", "  two\u2028still two ", '{"prompt": 1}']


def test_a_prompt_a_line_of_standard_input(standard_input):
    standard_input(b"one\n\ntwo\n")
    assert read_prompts([], "-") == ["one", "two"]


def test_json_lines(tmp_path):
    path = write(
        tmp_path,
        '{"prompt": "a\\nb"}\n\n{"prompt_token_ids": [1, 2]}\n{"messages": []}\n',
        "p.jsonl",
    )
    assert read_prompts([], path) == [
        {"prompt": "a\nb"},
        {"prompt_token_ids": [1, 2]},
        {"messages": []},
    ]


@pytest.mark.parametrize("line", ["{", '"text"', "{}", '{"promt": "a"}', "[" * 100_000])
def test_what_is_no_prompt_is_named_by_its_line(line, tmp_path):
    path = write(tmp_path, '{"prompt": "a"}\n\n' + line, "p.jsonl")
    with pytest.raises(ConfigError, match=r"p\.jsonl:3 (is no JSON|must be a JSON object)"):
        read_prompts([], path)


@pytest.mark.parametrize(
    ("texts", "file", "message"),
    [
        (["a"], "b", "not both"),
        ([], "nowhere.txt", "nowhere.txt cannot be read: No such file"),
        ([], ".", "cannot be read"),
        (["a", ""], None, "a prompt is empty"),
    ],
)
def test_wrong_use(texts, file, message):
    with pytest.raises(ConfigError, match=message):
        read_prompts(texts, file)


def test_empty_and_unreadable_input(tmp_path, standard_input):
    with pytest.raises(ConfigError, match="has no prompts"):
        read_prompts([], write(tmp_path, "\n \n"))
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(
        ConfigError, match=r"latin cannot be read: it is no UTF-8 text \(byte 4 is none\)"
    ):
        read_prompts([], str(tmp_path / "latin"))
    standard_input(b"caf\xe9")
    with pytest.raises(ConfigError, match="standard input is no text"):
        read_prompts([], None)
    standard_input(b"\n")
    with pytest.raises(ConfigError, match="a prompt is empty"):
        read_prompts([], None)


class ChatLLM:
    """An LLM as far as its chat template goes."""

    def preprocess_chat(self, conversations):
        return [("rendered", conversation) for conversation in conversations]


@pytest.mark.parametrize(
    ("prompt", "chat", "expected"),
    [
        ("a", False, "a"),
        ({"prompt": "a"}, False, {"prompt": "a"}),
        ({"prompt_token_ids": [1]}, True, {"prompt_token_ids": [1]}),
        ("a", True, ("rendered", [{"role": "user", "content": "a"}])),
        ({"prompt": "a"}, True, ("rendered", [{"role": "user", "content": "a"}])),
        ({"messages": ["m"]}, False, ("rendered", ["m"])),
    ],
)
def test_to_engine(prompt, chat, expected):
    assert to_engine(ChatLLM(), prompt, chat=chat) == expected
