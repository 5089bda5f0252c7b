"""Whatever a server answers, its readers say so in one sentence, soon and in bounded memory."""

from __future__ import annotations

import gzip
import itertools
import json
import re
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

from vllm_nfp import watch
from vllm_nfp.cli import main
from vllm_nfp.cli.watch_view import render
from vllm_nfp.draft import server as draft_server
from vllm_nfp.draft.server import from_samples, server_version
from vllm_nfp.draft.server_drafts import COUNTERS, live_acceptance
from vllm_nfp.draft.sources import SourceError
from vllm_nfp.metrics.families import families_of
from vllm_nfp.results import exposition as text_format
from vllm_nfp.results import fetching, scrape
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
    with suppress(fetching.ScrapeError):
        reading = watch.read(text)
        console = Console(file=StringIO(), width=200)
        console.print(render(reading, None, 0.1))
        console.print(render(reading, reading, 0.1, "problem"))
    try:
        samples = scrape.find_samples(text, COUNTERS)
    except fetching.ScrapeError as error:
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
        (GOOD.replace('basis="measured"', 'basis="guessed"'), "guessed. is not a valid Basis"),
        (GOOD.replace('engine="0"', "engine=0"), "not in Prometheus' text format"),
        (GOOD.replace('"m"} 0.0', '"m"} +Inf'), "is not a finite number"),
        (GOOD.replace('"m"} 4.0', '"m"} NaN'), "is not a finite number"),
    ],
)  # fmt: skip
def test_the_sentence_names_what_is_wrong(text: str, sentence: str) -> None:
    with pytest.raises(fetching.ScrapeError, match=sentence):
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
    for _ in range(2000):
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


REFUSALS = {
    "nothing": r"closed connection without response|reset by peer",
    "no HTTP": "BadStatusLine",
    "a long header": "LineTooLong",
    "many headers": "got more than 100 headers",
    "a body cut off": "has no NFP probe",
    "a file": "Redirection to url 'file:",
    "itself": "HTTP Error 302: .* infinite loop",
    "odd chunks": r"IncompleteRead|invalid literal",
    "an error": "HTTP Error 500",
    "other bytes": "bytes that are no text",
    "drips": r"did not end within 3 s",
    "floods": "is larger than",
}
"""What is said of each; a server that was not reached would be refused as well."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ANSWERS)
def test_a_server_of_any_kind_is_refused_in_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_server, "VERSION_LIMIT_SECONDS", 1.0)
    with serving(ANSWERS[name]) as url:
        begun = time.monotonic()
        with pytest.raises(fetching.ScrapeError, match=REFUSALS[name]):
            scrape.parse(fetching.fetch(url, timeout_seconds=1.0))
        assert time.monotonic() - begun < 60
        begun = time.monotonic()
        assert server_version(url) is None
        assert time.monotonic() - begun < 60


@pytest.mark.timeout(300)
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
    assert re.search(REFUSALS[answer], line)


COMMANDS = {
    "table": ["table"],
    "watch": ["watch", "--once"],
    "recommend": ["recommend", "--acceptance", "0.8"],
}


def estimates(**labels: int) -> str:
    """A server's metrics with so many values of each label, in all combinations; 1 if not given."""
    counts = {"module": 1, "batch_size": 1, "context": 1, "epsilon": 1, **labels}
    lines = ['vllm_nfp_state{engine="0",model_name="m",state="steady"} 1.0\n']
    for values in itertools.product(*map(range, counts.values())):
        point = dict(zip(counts, values, strict=True))
        shown = "".join(f',{name}="{value + 1}"' for name, value in point.items())
        for last in ("", "_lower", "_upper", "_at_limit"):
            lines.append(f'vllm_nfp_positions{last}{{engine="0",model_name="m"{shown}}} 1.0\n')
    return "".join(lines)


def replies(body: bytes, *headers: str) -> Answer:
    lines = ("HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", "")
    return says("\r\n".join(lines).encode() + body)


def refused(command: str, answer: Answer) -> str:
    """The only line that a command prints of a server that it refuses."""
    with serving(answer) as url:
        result = CliRunner().invoke(main, [*COMMANDS[command], url])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_reading_ends_with_the_time_for_the_answer(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics that take longer to read than is left are refused, whoever has sent them."""
    given = []

    def nearly_over(timeout_seconds: float = 10.0) -> float:
        given.append(timeout_seconds)
        return time.monotonic() - 0.001

    body = estimates().encode()
    monkeypatch.setattr(fetching, "get", lambda *_: body)
    monkeypatch.setattr(fetching, "deadline", nearly_over)
    line = refused(command, replies(body))
    assert "the metrics are too large to be read in time" in line
    assert given == [5.0 if command == "watch" else 10.0]


def test_the_time_for_an_answer_begins_before_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that has used up the time leaves none for what it has sent."""
    now = [1000.0]

    def slow(_: str) -> str:
        now[0] += 31.0
        return estimates()

    monkeypatch.setattr(fetching, "fetch", slow)
    monkeypatch.setattr(text_format.time, "monotonic", lambda: now[0])
    result = CliRunner().invoke(main, ["table", "http://x"])
    assert result.exit_code == 2
    assert "too large to be read in time" in result.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("command", COMMANDS)
def test_300_000_estimates_are_refused_in_time(command: str) -> None:
    body = estimates(batch_size=75_000).encode()
    assert len(body) > 30e6
    begun = time.monotonic()
    refused(command, replies(body))
    assert time.monotonic() - begun < 60.0  # 30 s, and what a busy machine adds


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("label", "most"), [("batch_size", 16), ("context", 16), ("epsilon", 8), ("positions", 64)]
)
def test_more_values_than_settings_allow_are_refused(command: str, label: str, most: int) -> None:
    if label == "positions":
        lines = (
            'vllm_nfp_module_latency_seconds{engine="0",model_name="m",module="model",'
            f'batch_size="1",context="1",positions="{n + 1}"}} 1.0\n'
            for n in range(most + 1)
        )
        text = estimates() + "".join(lines)  # fmt: skip
    else:
        text = estimates(**{label: most + 1})
    line = refused(command, replies(text.encode()))
    assert f"has more than {most} values of {label}, which no settings allow" in line


def test_as_many_values_as_settings_allow_are_shown() -> None:
    with serving(replies(estimates(batch_size=16, context=16, epsilon=8).encode())) as url:
        shown = CliRunner().invoke(main, ["table", url, "--epsilon", "8"])
        as_json = CliRunner().invoke(main, ["table", url, "--json"])
        watched = CliRunner().invoke(main, ["watch", "--once", url])
    assert shown.exit_code == as_json.exit_code == watched.exit_code == 0
    assert sum(line.split()[:1] == ["1"] for line in shown.output.splitlines()) == 256
    assert len(json.loads(as_json.output)["rows"]) == 2048


def test_more_estimates_than_can_be_drawn_are_refused_and_told_as_json() -> None:
    body = estimates(module=17, batch_size=16, context=16, epsilon=1).encode()
    assert "4352 estimates do not fit a table of 4096 rows" in refused("table", replies(body))
    assert "4352 estimates at one tolerance" in refused("watch", replies(body))
    with serving(replies(body)) as url:
        result = CliRunner().invoke(main, ["table", url, "--json"])
    assert len(json.loads(result.output)["rows"]) == 4352


def test_engines_without_number_are_refused() -> None:
    lines = (f'vllm_nfp_state{{engine="{n}",model_name="m",state="steady"}} 1.0\n'
             for n in range(1025))  # fmt: skip
    assert "1025 engines, more than 1024" in refused("table", replies("".join(lines).encode()))


def test_a_line_without_end_is_refused_before_it_is_taken_apart() -> None:
    labels = ",".join(f'a{n}="x"' for n in range(200_000))
    line = refused("table", replies(f"vllm_nfp_state{{{labels}}} 1\n".encode()))
    assert "a line of more than 65536 characters" in line


PACKED = gzip.compress(GOOD.encode())


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (PACKED, ("Content-Encoding: gzip",)),
        (PACKED, ("Content-Encoding: X-GZip",)),
        (PACKED, ()),
        (PACKED, ("Content-Type: application/gzip",)),
        (gzip.compress(GOOD[:50].encode()) + gzip.compress(GOOD[50:].encode()), ()),
        (GOOD.encode(), ("Content-Encoding: identity",)),
    ],
    ids=["named", "named otherwise", "not named", "a file", "two members", "not packed"],
)
def test_packed_answers_are_unpacked(body: bytes, headers: tuple[str, ...]) -> None:
    with serving(replies(body, *headers)) as url:
        assert fetching.fetch(url) == GOOD


def test_the_version_of_a_server_may_be_packed_too() -> None:
    with serving(replies(gzip.compress(b'{"version": "0.32.0"}'))) as url:
        assert server_version(url) == "0.32.0"


BRACE = gzip.compress(b"#", mtime=0x5B20227B)
"""The parser quotes a part of it that is printable."""
BOMB = gzip.compress(b"#" * (65 << 20))


@pytest.mark.parametrize(
    ("body", "headers", "why"),
    [
        (PACKED[:-20], (), "its gzip data end too early"),
        (PACKED[:40] + b"\0\0\0\0" + PACKED[44:], (), "its gzip data are damaged"),
        (GOOD.encode(), ("Content-Encoding: gzip",), "its gzip data are damaged"),
        (PACKED, ("Content-Encoding: br",), "it is packed as 'br', not as gzip"),
        (PACKED, ("Content-Encoding: gzip, gzip",), "it is packed as 'gzip, gzip', not as gzip"),
        (BOMB, (), f"is larger than {64 << 20} bytes"),
        (gzip.compress(PACKED), (), "they hold bytes that are no text"),
        (gzip.compress(BRACE), (), "they hold bytes that are no text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), (), "they hold bytes that are no text"),
        (b'vllm_nfp_state{engine="0"} \xff\x1b[2J\n', (), "they hold bytes that are no text"),
    ],
    ids=["cut", "damaged", "not packed", "brotli", "twice named", "a bomb", "twice",
         "twice, with a brace", "picture", "escapes"],
)  # fmt: skip
@pytest.mark.parametrize("command", COMMANDS)
def test_bytes_that_are_no_metrics_are_named_and_not_printed(
    command: str, body: bytes, headers: tuple[str, ...], why: str
) -> None:
    line = refused(command, replies(body, *headers))
    assert why in line
    assert line.isascii() and line.isprintable()
    assert "\\x" not in line and "\\ufffd" not in line


def test_unpacking_ends_with_the_time_for_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that hold nothing grow no output that a bound could stop."""
    with pytest.raises(OSError, match="took too long"):
        fetching._unpacked(gzip.compress(b"") * 1000, "", 1 << 20, time.monotonic() - 1.0)


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
        with pytest.raises(fetching.ScrapeError, match=r"did not end within 1\.2 s|timed out"):
            fetching.fetch(url, timeout_seconds=0.4)
        assert 0.8 < time.monotonic() - begun < 20, "a busy machine may be slow, but it ends"


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
            pytest.raises(fetching.ScrapeError, match="a redirection to 'ftp://"),
        ):
            fetching.fetch(url, timeout_seconds=1.0)
        with pytest.raises(TimeoutError):
            ftp.accept()


def test_the_file_that_a_server_redirects_to_is_not_read() -> None:
    with serving(ANSWERS["a file"]) as url, pytest.raises(fetching.ScrapeError, match="file:"):
        fetching.fetch(url)


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


def test_a_long_answer_of_other_metrics_is_read_in_time() -> None:
    """35 MB of vLLM's histograms took longer than the time that the commands wait."""
    state = 'vllm_nfp_state{engine="0",model_name="m",state="steady"} 1'
    row = 'vllm:e2e_bucket{engine="0",model_name="m",le="%d"} 1'
    drafts = 'vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 7'
    text = "\n".join([*(row % i for i in range(600_000)), state, drafts, ""])
    assert len(text) > 30_000_000
    begun = time.process_time()
    found = scrape.find_samples(text, ["vllm:spec_decode_num_drafts_total"], time.monotonic() + 60)
    assert time.process_time() - begun < 6.0
    assert found["vllm:spec_decode_num_drafts_total"][0][1] == 7.0
    assert found["vllm_nfp_state"][0][0]["state"] == "steady"
