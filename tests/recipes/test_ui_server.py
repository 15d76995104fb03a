"""The local page, asked over a real socket: the list, reports, what is refused, and its end by Ctrl-C."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from keepsight.core import UserError
from keepsight.recipes.ui import RunServer, open_server
from keepsight.report.page import JSON, Page, Section, Table, Text

HOSTILE = "<img src=x onerror=alert(1)>"


def write(folder: Path, answer: str) -> None:
    folder.mkdir(parents=True)
    text = Text(text=f"{HOSTILE} inside")
    page = Page(
        version="1",
        kind="tune",
        title="<script>leaves",
        answer=answer,
        sections=(Section(title="One", blocks=(text,)),),
    )
    (folder / JSON).write_text(page.model_dump_json())
    (folder / "report.md").write_text("# leaves")
    (folder / "secret.txt").write_text("secret")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunServer]:
    write(tmp_path / "runs" / "leaves", "The probe is as good.")
    write(tmp_path / "runs" / "<b>'\"& evil", "Odd name.")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / JSON).write_text("{")
    (tmp_path / "secret.txt").write_text("secret")
    with open_server([tmp_path / "runs"]) as opened:
        thread = threading.Thread(target=opened.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


class Answer:
    def __init__(self, server: RunServer, path: str, method: str = "GET", host: str | None = "", **more: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        if host is not None:
            connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
        for name, value in more.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        self.status, self.headers, self.text = response.status, response.headers, response.read().decode()
        connection.close()


def links(server: RunServer) -> dict[str, str]:
    found = re.findall(r'<a href="(run/[^"]+)">([^<]*)</a>', Answer(server, "/").text)
    return {name: f"/{address}" for address, name in found}


def test_the_list_names_all_runs_and_can_be_filtered(server: RunServer, tmp_path: Path) -> None:
    answer = Answer(server, "/")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert 'type="search"' in answer.text
    assert "The probe is as good." in answer.text
    assert "report.json is damaged" in answer.text
    assert "tensorboard --logdir" in answer.text
    assert "&lt;b&gt;&#x27;&quot;&amp; evil" in answer.text
    assert "<b>" not in answer.text
    assert set(links(server)) == {"leaves", "&lt;b&gt;&#x27;&quot;&amp; evil"}
    write(tmp_path / "runs" / "late", "Just finished.")
    assert "Just finished." in Answer(server, "/").text


def test_a_report_is_opened_as_html_json_and_markdown(server: RunServer) -> None:
    for address in links(server).values():
        report = Answer(server, address)
        assert report.status == 200
        assert "&lt;img src=x onerror=alert(1)&gt; inside" in report.text
        assert HOSTILE not in report.text
        policy = report.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        data = Answer(server, address.replace(".html", ".json"))
        assert (data.status, data.headers["Content-Type"]) == (200, "application/json")
        markdown = Answer(server, address.replace(".html", ".md"))
        assert markdown.text == "# leaves"
        assert "sandbox" in markdown.headers["Content-Security-Policy"]
        for answer in (report, data, markdown):
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["X-Frame-Options"] == "DENY"


def test_html_that_lies_in_a_run_is_never_sent(server: RunServer, tmp_path: Path) -> None:
    (tmp_path / "runs" / "leaves" / "report.html").write_text("<script>alert(1)</script>")
    assert "alert(1)</script>" not in Answer(server, links(server)["leaves"]).text


def test_a_report_that_breaks_after_the_list_was_read_is_said(server: RunServer, tmp_path: Path) -> None:
    address = links(server)["leaves"]
    head = '{"version": "1", "kind": "tune", "title": "x", "answer": "y", "sections": [{"title": 3}]}'
    (tmp_path / "runs" / "leaves" / JSON).write_text(head)
    answer = Answer(server, address)
    assert answer.status == 404
    assert "is damaged" in answer.text
    (tmp_path / "runs" / "leaves" / JSON).unlink()
    (tmp_path / "runs" / "leaves" / JSON).symlink_to(tmp_path / "secret.txt")
    assert Answer(server, address).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/run/",
        "/run/leaves/report.html",
        "/run/../secret.txt",
        "/../secret.txt",
        "/run/{key}/../../secret.txt",
        "/run/{key}/..%2f..%2fsecret.txt",
        "/run/{key}/secret.txt",
        "/run/{key}/report.html/../secret.txt",
        "/run/{key}/report.html%00.txt",
        "/run/{key}/report.jsonl",
        "/run/%2e%2e/report.html",
        "/etc/passwd",
        "/run//etc/passwd",
    ],
)
def test_nothing_else_is_served(server: RunServer, path: str) -> None:
    key = links(server)["leaves"].split("/")[2]
    answer = Answer(server, path.replace("{key}", key))
    assert answer.status == 404
    assert "secret" not in answer.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_links_out_of_the_folder_are_refused(server: RunServer, tmp_path: Path) -> None:
    (tmp_path / "runs" / "leaves" / "report.md").unlink()
    (tmp_path / "runs" / "leaves" / "report.md").symlink_to(tmp_path / "secret.txt")
    assert Answer(server, links(server)["leaves"].replace(".html", ".md")).status == 404


def test_other_names_of_this_computer_are_refused(server: RunServer) -> None:
    port = server.server_port
    for host in (
        "evil.example",
        f"evil.example:{port}",
        f"127.0.0.1.evil.example:{port}",
        f"0.0.0.0:{port}",
        None,
        "127.0.0.1",
    ):
        answer = Answer(server, "/", host=host)
        assert answer.status == 421, host
        assert "leaves" not in answer.text
    assert Answer(server, "/", host=f"LOCALHOST:{port}").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(server: RunServer, method: str) -> None:
    answer = Answer(server, "/", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_an_unknown_method_is_refused(server: RunServer) -> None:
    assert Answer(server, "/", "TRACE").status == 501


def test_head_has_no_body(server: RunServer) -> None:
    answer = Answer(server, "/", "HEAD")
    assert (answer.status, answer.text) == (200, "")
    assert int(answer.headers["Content-Length"]) > 1000


def test_only_the_loopback_address_listens(server: RunServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    with pytest.raises(UserError, match="cannot be used"), open_server([Path()], server.server_port):
        pass


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"), open_server([tmp_path / "none"]):
        pass


def test_an_empty_folder_is_a_page_without_a_table(tmp_path: Path) -> None:
    with open_server([tmp_path]) as opened:
        page = opened.runs.page("1")
    assert page.answer.startswith("0 finished runs")
    assert not [b for s in page.sections for b in s.blocks if isinstance(b, Table)]


def test_the_command_says_its_address_and_ends_well_with_ctrl_c(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "leaves", "The probe is as good.")
    # Python leaves an ignored Ctrl-C ignored, as it is in a shell's background jobs; a terminal does not ignore it.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from keepsight.cli import main; main()"
    command = [sys.executable, "-c", program, "ui", str(tmp_path / "runs"), "--no-browser"]
    environment = os.environ | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1])  # type: ignore[index]
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(f"GET / HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.0 200")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
