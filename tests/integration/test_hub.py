"""A hub id, fetched by a fresh process from a model hub on this machine."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "c" * 40
SCRIPT = """
import sys
from folovllm import ModelConfig, ModelLoader, ModelLoadError
try:
    loader = ModelLoader(ModelConfig(model=sys.argv[1]))
    model, tokenizer = loader.load_model_and_tokenizer("cpu")
    print(sorted(path.name for path in loader.checkpoint.folder.iterdir()))
    print(model.num_parameters(), tokenizer("the cat")["input_ids"])
except ModelLoadError as error:
    print("ModelLoadError:", error)
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download needs."""

    folder: Path
    requests: list[tuple[str, str | None]]

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        self.requests.append((self.path, self.headers.get("Authorization")))
        path = self.path.partition("?")[0]
        if path.startswith(("/api/models/gated/", "/gated/")):
            return self.send(403, b"{}", body, {"X-Error-Code": "GatedRepo"})
        if re.fullmatch(r"/api/models/tiny/model(/revision/\w+)?", path):
            names = [{"rfilename": name} for name in self.files()]
            info = {"id": "tiny/model", "sha": COMMIT, "siblings": names, "tags": []}
            return self.send(200, json.dumps(info).encode(), body)
        if path.startswith(f"/api/models/tiny/model/tree/{COMMIT}"):
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in self.files().items()
            ]
            return self.send(200, json.dumps(rows).encode(), body)
        found = re.fullmatch(r"/tiny/model/resolve/\w+/(.+)", path)
        if found and found[1] in self.files():
            data = self.files()[found[1]]
            etag = hashlib.sha256(data).hexdigest()
            return self.send(200, data, body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        code = "EntryNotFound" if found else "RepoNotFound"
        return self.send(404, b"{}", body, {"X-Error-Code": code})

    def files(self):
        files = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        copies = {"original/model.safetensors": b"a copy", "consolidated.safetensors": b"a copy"}
        return {**files, **copies, "notes.bin": b"x"}

    def send(self, status, data, body, headers=()):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(save_tiny):
    handler = type("TinyHub", (Hub,), {"folder": save_tiny(), "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def load_in_fresh_process(endpoint, model, home, **variables):
    environment = {name: value for name, value in os.environ.items() if "HF_" not in name}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, model],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_hub_id_is_fetched_and_loaded(hub, tmp_path):
    endpoint, handler = hub
    output = load_in_fresh_process(endpoint, "tiny/model", tmp_path / "home")
    names, loaded = output.splitlines()
    assert "model.safetensors" in names
    assert not {"original", "consolidated.safetensors", "notes.bin"} & set(eval(names))
    assert loaded.endswith("[0, 1]")

    # The second time the files are there, also without the hub.
    fetched = len([path for path, _ in handler.requests if "/resolve/" in path])
    again = load_in_fresh_process(endpoint, "tiny/model", tmp_path / "home", HF_HUB_OFFLINE="1")
    assert again == output
    assert len([path for path, _ in handler.requests if "/resolve/" in path]) == fetched


def test_the_access_token_reaches_the_hub(hub, tmp_path):
    endpoint, handler = hub
    load_in_fresh_process(endpoint, "tiny/model", tmp_path / "home", FOLOVLLM_HF_TOKEN="hf_secret")
    assert "Bearer hf_secret" in [token for _, token in handler.requests]


def test_an_unknown_id(hub, tmp_path):
    output = load_in_fresh_process(hub[0], "no/such", tmp_path / "home")
    assert "no/such" in output
    assert "no folder" in output


def test_a_gated_model(hub, tmp_path):
    output = load_in_fresh_process(hub[0], "gated/model", tmp_path / "home")
    assert "FOLOVLLM_HF_TOKEN" in output


def test_an_unreachable_hub(tmp_path):
    output = load_in_fresh_process("http://127.0.0.1:9", "tiny/model", tmp_path / "home")
    assert "tiny/model" in output
    assert "network" in output
