"""The explorer's server: who is answered, what is refused, and what its page holds."""

from __future__ import annotations

import contextlib
import io
import re
import socket
import threading

import numpy as np
import pytest
from PIL import Image

from ali_dist.exploration import server as server_module
from ali_dist.exploration.page import build_page
from tests.helpers.explorers import serving
from tests.helpers.trained import CLASSES

Z = [0.1, -0.2, 0.3, 0.4]


def picture(side: int = 20) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(side * side, dtype=np.uint8).reshape(side, side)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/", "/decode", "/nowhere", "/?token=", "/?token=wrong", "/?token=%FF%C3%A9"])
def test_nobody_is_answered_without_the_token(client, method, path):
    status, headers, body = client.request(method, path, b"{}" if method in ("POST", "PUT") else None)
    assert status == 403
    assert client.server.token.encode() not in body
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_a_token_that_is_nearly_right_is_wrong(client):
    token = client.server.token
    assert len(token) >= 32
    for wrong in (token[:-1], token + "x", token.swapcase(), "ä" + token):
        headers = {"X-Ali-Token": wrong.encode().decode("latin-1")}
        assert client.request("GET", "/", headers=headers)[0] == 403
    assert client.request("GET", f"/?token={token}")[0] == 200


def test_tokens_differ(explorer, client):
    with serving(explorer) as other:
        assert other.server.token != client.server.token


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:9999", 200),  # the other end of a tunnel
        ("LOCALHOST:1", 200),
        ("attacker.example", 403),
        ("127.0.0.1.attacker.example", 403),
        ("localhost.attacker.example:80", 403),
        ("0.0.0.0", 403),
        ("", 403),
    ],
)
def test_only_names_of_this_machine_are_answered(client, host, status):
    assert client.request("GET", f"/?token={client.server.token}", headers={"Host": host})[0] == status


@pytest.mark.parametrize("hosts", [[], ["localhost", "attacker.example"]])
def test_a_request_names_its_host_once(client, hosts):
    with socket.create_connection(("127.0.0.1", client.server.server_port), timeout=30) as connection:
        lines = [f"GET /?token={client.server.token} HTTP/1.1", *(f"Host: {host}" for host in hosts), "", ""]
        connection.sendall("\r\n".join(lines).encode())
        assert b" 403 " in connection.makefile("rb").readline()


def test_it_listens_on_loopback_alone(client):
    assert client.server.socket.getsockname()[0] == "127.0.0.1"
    assert client.server.url == f"http://127.0.0.1:{client.server.server_port}/?token={client.server.token}"


def test_the_page_may_run_its_own_script_and_load_nothing(client):
    _, headers, body = client.request("GET", f"/?token={client.server.token}")
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert re.fullmatch(r"'sha256-\S+='", policy["script-src"])
    assert re.fullmatch(r"'sha256-\S+='", policy["style-src"])
    assert (policy["img-src"], policy["connect-src"]) == ("data:", "'self'")
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    page = body.decode()
    assert not re.findall(r"https?://", page)
    assert client.server.token not in page
    assert not re.findall(r"\son[a-z]+=|\sstyle=", page.partition("<body>")[2].partition("<script")[0])


def test_names_of_the_data_put_nothing_into_the_page(explorer, monkeypatch):
    name = "</script><img src=x onerror=alert(1)>\n"
    monkeypatch.setattr(type(explorer.model), "name", name)
    labels = [type(explorer.labels[0])(name, 9, label.vector) for label in explorer.labels]
    monkeypatch.setattr(explorer, "labels", tuple(labels))
    page = build_page(explorer).content.decode()
    assert "<img src=x" not in page
    assert page.count("</script>") == 2
    assert "&lt;/script&gt;&lt;img src=x" in page


def test_every_question_of_the_page_is_answered(client, is_valid_png):
    point = {"z": Z}
    assert is_valid_png(client.post("/decode", point)[1]["image"])
    drawn = client.post("/draw")[1]
    assert (len(drawn["z"]), type(drawn["seed"])) == (4, int)
    status, shown = client.post("/encode", picture())
    assert (status, len(shown["z"]), shown["c"]) == (200, 4, None)
    assert is_valid_png(shown["image"]) == is_valid_png(shown["reconstruction"]) == (256, 256)
    assert 0 < shown["error"] < 1
    assert client.post("/image")[1]["name"] in CLASSES
    assert client.post("/image", {"place": 3})[1]["name"] in CLASSES
    walk = {"first": point, "last": {"z": Z[::-1]}, "steps": 7, "spherical": True}
    assert [is_valid_png(image) for image in client.post("/walk", walk)[1]["images"]] == [(96, 96)] * 7
    neighbors = client.post("/neighbors", point)[1]["neighbors"]
    assert {*neighbors[0]} == {"place", "image", "name", "distance"}


@pytest.mark.parametrize(
    ("path", "content", "sentence"),
    [
        ("/decode", b"{", "The request is no JSON: ask by the page, or as it does."),
        ("/decode", b"[" * 100_000, "The request is no JSON: ask by the page, or as it does."),
        ("/decode", b"[1]", "The request is a list, but must be a JSON object."),
        ("/decode", {"z": [1]}, "The request has 1 numbers as z, but 4 numbers are needed."),
        ("/walk", {"first": {"z": Z}, "steps": 5}, "last is no point, but must be an object with z."),
        ("/image", {"place": "x"}, "place is 'x', but must be the number of an image."),
        ("/image", {"place": -1}, "place is -1, but the images are numbered from 0 to 49."),
        ("/encode", b"GIF89a", "The picture cannot be used (it cannot be decoded as "),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(client, path, content, sentence):
    status, answer = client.post(path, content)
    assert status == 400
    assert answer["error"].startswith(sentence)
    assert answer["error"].count("\n") == 0


def test_what_is_too_long_is_refused_before_it_is_read(client, monkeypatch):
    monkeypatch.setattr(server_module, "MOST_BYTES", 5000)
    token = {"X-Ali-Token": client.server.token}
    assert client.post("/encode", picture())[0] == 200
    for path, length in (("/encode", "5001"), ("/decode", "1000001"), ("/encode", "9" * 5000)):
        with socket.create_connection(("127.0.0.1", client.server.server_port), timeout=30) as connection:
            lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"X-Ali-Token: {token['X-Ali-Token']}"]
            connection.sendall("\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode())
            answer = connection.makefile("rb").read().decode()
        assert " 413 " in answer.splitlines()[0]
        assert "bytes, but at most " in answer


@pytest.mark.parametrize("length", [None, "-1", "²", "1e3"])
def test_a_request_says_its_length(client, length):
    with socket.create_connection(("127.0.0.1", client.server.server_port), timeout=30) as connection:
        lines = ["POST /draw HTTP/1.1", "Host: localhost", f"X-Ali-Token: {client.server.token}"]
        lines += [] if length is None else [f"Content-Length: {length}"]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert b" 411 " in connection.makefile("rb").readline()


def test_there_is_nothing_elsewhere(client):
    token = {"X-Ali-Token": client.server.token}
    assert client.request("GET", "/decode", headers=token)[0] == 404
    assert client.request("GET", "/../etc/passwd", headers=token)[0] == 404
    assert client.post("/nowhere")[0] == 404


def test_a_condition_comes_with_the_picture(by_attributes):
    with serving(by_attributes) as client:
        status, shown = client.post("/encode", picture(), {"X-Ali-Condition": "[1, 0, 1]"})
        assert (status, shown["c"]) == (200, [1, 0, 1])
        for wrong in ("", "[1]", "[1, 0, 1], 2", "x"):
            assert client.post("/encode", picture(), {"X-Ali-Condition": wrong})[0] == 400


def test_without_data_the_page_says_why_and_works(without_data):
    with serving(without_data, "There is no such <folder>.") as client:
        page = client.request("GET", f"/?token={client.server.token}")[2].decode()
        assert "The data could not be read: There is no such &lt;folder&gt;." in page
        assert "because the data could not be read" in page
        assert "any-image" not in page.partition("<script")[0]
        assert client.post("/decode", {"z": Z})[0] == 200
        assert client.post("/image")[0] == 400


def test_many_ask_at_once(client):
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(client.post("/decode", {"z": Z})[0])) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [200] * 12


def test_a_browser_that_hangs_up_leaves_no_word(client, capsys):
    for text in (b"", b"GET", b"POST /decode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\nx"):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", client.server.server_port)) as one:
            one.sendall(text)
    assert client.post("/draw")[0] == 200
    assert capsys.readouterr() == ("", "")
