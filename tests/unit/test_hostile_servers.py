"""Whatever a server answers, its readers say so in one sentence, soon and in bounded memory."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import DENSE
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console
from test_hostile_files import SNAPSHOT

from vllm_nfp import scrape, watch
from vllm_nfp.cli import main
from vllm_nfp.draft.recommend import server_version
from vllm_nfp.draft.sources import COUNTERS, SourceError, from_samples, live_acceptance
from vllm_nfp.metrics.collector import families_of
from vllm_nfp.web import UrlError, metrics_address


def exposition(*snapshots: object) -> str:
    class Families:
        def collect(self) -> Iterator[object]:
            return families_of(snapshots)  # type: ignore[arg-type]

    registry = CollectorRegistry()
    registry.register(Families())  # type: ignore[arg-type]
    return generate_latest(registry).decode()


GOOD = exposition(SNAPSHOT) + "".join(
    f'{name}{{engine="0",model_name="m"{place}}} 4.0\n'
    for name, place in ((COUNTERS[0], ""), (COUNTERS[1], ""), (COUNTERS[2], ',position="0"'))
)
FIND = (Phase.explicit, Phase.generate)  # what fails is short enough as it is
ODD = ("", "\0", '"', "{", "}", "\\", "\n", " NaN", "+Inf", "-1", "1e999", "=", ",", "#", "[/red]",
       "\x1b]0;x\7", "9" * 5000, "²", 'x="y",', "# TYPE x histogram\nx 1\n", "\ud7ff")  # fmt: skip


def read_everything(text: str) -> None:
    """All readers of a scrape; any error but the declared ones fails the test."""
    with suppress(scrape.ScrapeError):
        reading = watch.read(text)
        console = Console(file=StringIO(), width=200)
        console.print(watch.render(reading, None, 0.1))
        console.print(watch.render(reading, reading, 0.1, "problem"))
    try:
        samples = scrape.find_samples(text, COUNTERS)
    except scrape.ScrapeError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 500
        return
    with suppress(SourceError):
        from_samples(samples, "the server")
    with suppress(SourceError):
        live_acceptance(samples)


SECRET_URLS = [
    "http://user:hunter2@127.0.0.1:1",
    "http://user:a/hunter2@127.0.0.1:1",
    "http://user:a@hunter2@127.0.0.1:1",
    "https://:hunter2@127.0.0.1:1/metrics",
    "user:hunter2@127.0.0.1:1",
    "ftp://user:hunter2@127.0.0.1:1",
]


def test_a_good_scrape_is_read() -> None:
    assert watch.read(GOOD).engines[0].drafting is not None
    read_everything(GOOD)


@settings(max_examples=200, phases=FIND)
@given(st.data())
def test_any_change_of_a_scrape_is_read_or_refused(data: st.DataObject) -> None:
    text = GOOD
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(text)))
        length = data.draw(st.sampled_from((0, 1, 3, 20, 200)))
        text = text[:where] + data.draw(st.sampled_from(ODD)) + text[where + length :]
    read_everything(text)


@settings(max_examples=100, phases=FIND)
@given(st.data())
def test_any_label_or_value_of_a_scrape_is_read_or_refused(data: st.DataObject) -> None:
    lines = GOOD.splitlines()
    at = data.draw(st.sampled_from([i for i, line in enumerate(lines) if not line.startswith("#")]))
    head, _, value = lines[at].rpartition(" ")
    odd = data.draw(st.sampled_from(("", "x", "-3", "1.5", "9" * 400, "[red]", "\x1b[2J", "٣")))
    if data.draw(st.booleans()):
        labels = head.split('"')
        labels[data.draw(st.integers(0, len(labels) // 2 - 1)) * 2 + 1] = odd
        lines[at] = '"'.join(labels) + f" {value}"
    else:
        lines[at] = f"{head} {odd or 'NaN'}"
    if data.draw(st.booleans()):
        del lines[data.draw(st.integers(0, len(lines) - 1))]
    read_everything("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("vllm_nfp_state 1\n", "the probe's metrics lack 'model_name'"),
        (GOOD.replace("vllm_nfp_positions_lower{", "x{"), "the probe's metrics lack"),
        (GOOD.replace('batch_size="8"', 'batch_size="eight"'), "label: 'eight' is no count"),
        (GOOD.replace('engine="0"', "engine=0"), "not in Prometheus' text format"),
        (GOOD.replace('"m"} 0.0', '"m"} +Inf'), "is not a finite number"),
        (GOOD.replace('"m"} 4.0', '"m"} NaN'), "is not a finite number"),
    ],
)  # fmt: skip
def test_the_sentence_names_what_is_wrong(text: str, sentence: str) -> None:
    with pytest.raises(scrape.ScrapeError, match=sentence):
        watch.read(text)


Answer = Callable[[socket.socket], None]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server that takes connections and answers each as told."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        ended = threading.Event()

        def run() -> None:
            while not ended.is_set():
                with suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(5)
                        connection.recv(4096)
                        answer(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            thread.join(5)


def says(content: bytes) -> Answer:
    return lambda connection: connection.sendall(content)


def drips(connection: socket.socket) -> None:
    """A byte now and then, for longer than anybody should wait."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(100):
        connection.sendall(b"#")
        time.sleep(0.05)


def floods(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(80):
        connection.sendall(b"#" * (1 << 20))


ANSWERS = {
    "nothing": says(b""),
    "no HTTP": says(b"SSH-2.0-OpenSSH\r\n"),
    "a long header": says(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"),
    "many headers": says(b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 500 + b"\r\n"),
    "a body cut off": says(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n# HELP"),
    "a file": says(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"),
    "itself": says(b"HTTP/1.1 302 Found\r\nLocation: /metrics\r\nContent-Length: 0\r\n\r\n"),
    "odd chunks": says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "an error": says(b"HTTP/1.1 500 Oops\r\n\r\n"),
    "other bytes": says(b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe\0\0"),
    "drips": drips,
    "floods": floods,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_server_of_any_kind_is_refused_in_time(answer: Answer) -> None:
    with serving(answer) as url:
        begun = time.monotonic()
        with pytest.raises(scrape.ScrapeError):
            scrape.parse(scrape.fetch(url, timeout_seconds=1.0))
        assert time.monotonic() - begun < 20
        assert server_version(url) is None


@pytest.mark.timeout(60)
@pytest.mark.parametrize("answer", ["no HTTP", "a file", "other bytes"])
@pytest.mark.parametrize(
    "command",
    [["table", "{}"], ["watch", "{}", "--once"], ["recommend", "{}", "--acceptance", "0.8"]],
    ids=["table", "watch", "recommend"],
)
def test_a_command_says_one_sentence_and_ends_with_code_2(command: list[str], answer: str) -> None:
    with serving(ANSWERS[answer]) as url:
        result = CliRunner().invoke(main, [word.format(url) for word in command])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")


def without_end(head: bytes, again: bytes, pause: float = 0.05) -> Answer:
    """The same bytes again and again, until the client has gone or should have."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        end = time.monotonic() + 15
        while time.monotonic() < end:
            connection.sendall(again)
            time.sleep(pause)

    return answer


def redirects_late(connection: socket.socket) -> None:
    time.sleep(0.25)
    place = b"/metrics?%d" % time.monotonic_ns()
    connection.sendall(
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + place + b"\r\n\r\n"
    )


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "status": without_end(b"HTTP/1.1 200 O", b"K"),
    "header": without_end(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "headers": without_end(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n", 0.2),
    "interim answers": without_end(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0.0),
    "body": without_end(b"HTTP/1.1 200 OK\r\n\r\n", b"#"),
    "chunks": without_end(CHUNKED, b"1\r\n#\r\n"),
    "size of a chunk": without_end(CHUNKED + b"1;", b"x"),
    "trailers": without_end(CHUNKED + b"0\r\n", b"X: x\r\n"),
    "many trailers": without_end(CHUNKED + b"0\r\n", b"X: x\r\n" * 1000, 0.0),
    "error's headers": without_end(b"HTTP/1.1 500 Oops\r\nX: ", b"x"),
    "redirections": redirects_late,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("answer", ENDLESS.values(), ids=ENDLESS)
def test_no_part_of_an_answer_is_read_without_end(answer: Answer) -> None:
    """Each packet comes before the socket's own timeout, which then begins anew."""
    with serving(answer) as url:
        begun = time.monotonic()
        with pytest.raises(scrape.ScrapeError, match=r"did not end within 1\.2 s|timed out"):
            scrape.fetch(url, timeout_seconds=0.4)
        assert 0.8 < time.monotonic() - begun < 5


ADDRESSES = {
    "http://h": "http://h/metrics",
    "HTTP://h:1/": "http://h:1/metrics",
    "https://[::1]:8000/metrics/": "https://[::1]:8000/metrics",
    "http://h/behind/a/proxy": "http://h/behind/a/proxy/metrics",
}


@pytest.mark.parametrize(("url", "address"), ADDRESSES.items())
def test_the_address_of_the_metrics_is_made_from_that_of_the_server(url: str, address: str) -> None:
    assert metrics_address(url) == address


NO_ADDRESSES = [
    "", "h:8000", "ftp://h", "file:///etc/passwd", "http://", "http:///metrics", "http://:8000",
    "http://[::1", "http://h:x", "http://h:99999", "http://h:-1", "http://h:0",
    " http://h", "http://h\r\nX: y", "http://h/\x1b[31m", "http://h/a b", "http://h?token=hunter2", "http://h/metrics#hunter2",
    "http://" + "h" * 100_000 + ":x",
    *SECRET_URLS,
]  # fmt: skip


@pytest.mark.parametrize("url", NO_ADDRESSES, ids=lambda url: f"{url[:40]!r}")
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(UrlError) as refusal:
        metrics_address(url)
    sentence = str(refusal.value)
    assert "hunter2" not in sentence
    assert sentence.isprintable() and len(sentence) < 600
    assert "leave it out" in sentence or "give one like http://localhost:8000" in sentence


@pytest.mark.parametrize("url", SECRET_URLS)
@pytest.mark.parametrize(
    "command",
    [
        ["table", "{}"],
        ["watch", "{}", "--once"],
        ["recommend", "{}", "--acceptance", "0.8"],
        ["recommend", "{}", "--acceptance", "0.8", "--batch-sizes", "1"],
        ["recommend", "--predicted", "{m}", "--hardware", "H100-SXM", "--acceptance-from", "{}"],
        ["report", "{}"],
        ["compare", "{}", "{}"],
        ["predict", "{}", "--hardware", "H100-SXM"],
        ["predict", "{m}", "--hardware", "{}"],
        ["calibrate", "--from-samples", "{}"],
    ],
    ids=" ".join,
)
def test_no_password_in_a_url_is_shown(command: list[str], url: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DENSE))
    words = [word.format(url, m=tmp_path) for word in command]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "hunter2" not in result.output
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_no_server_leads_to_another_kind_of_server() -> None:
    """An FTP server would be asked, at whatever address the first one likes."""
    with socket.create_server(("127.0.0.1", 0)) as ftp:
        ftp.settimeout(0.5)
        place = b"ftp://127.0.0.1:%d/metrics" % ftp.getsockname()[1]
        with (
            serving(says(b"HTTP/1.1 302 Found\r\nLocation: " + place + b"\r\n\r\n")) as url,
            pytest.raises(scrape.ScrapeError, match="a redirection to 'ftp://"),
        ):
            scrape.fetch(url, timeout_seconds=1.0)
        with pytest.raises(TimeoutError):
            ftp.accept()


def test_the_file_that_a_server_redirects_to_is_not_read() -> None:
    with serving(ANSWERS["a file"]) as url, pytest.raises(scrape.ScrapeError, match="file:"):
        scrape.fetch(url)


NAMES = [
    "[/bold]",
    "[link=http://evil]x[/link]",
    "\x1b[2J\x1b]0;title\x07",
    "a" * 10_000,
    "\u202ex",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", [["table"], ["watch", "--once"]], ids=["table", "watch"])
def test_a_served_name_cannot_steer_the_terminal(command: list[str], name: str) -> None:
    text = GOOD.replace('model_name="m"', f'model_name="{name}"')
    text = text.replace('module="model"', f'module="{name}"')
    body = text.encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with serving(says(reply)) as url:
        shown = CliRunner().invoke(main, [*command, url])
        as_json = CliRunner().invoke(main, [*command, url, "--json"])
    assert shown.exit_code == 0, shown.output
    assert not {"\x1b", "\x07", "\u202e"} & set(shown.output)
    assert "http://evil" in shown.output or "evil" not in name
    assert json.loads(as_json.output)["engines"][0]["model_name"] == name
