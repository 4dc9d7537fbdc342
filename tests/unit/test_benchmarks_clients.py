"""The two clients of the benchmarks: what counts as an answer, and that a wrong answer is never counted."""

import contextlib
import socket
import threading

import pytest

from benchmarks import wrk
from benchmarks.client import Answer, NotOk, request
from benchmarks.topics.cold import steps


@contextlib.contextmanager
def answering(*parts):
    """A server for one request that sends these parts, then closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                for part in parts:
                    connection.sendall(part)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join(10)
    assert not thread.is_alive()


def test_an_answer_with_a_length_in_pieces():
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Foreglow-Start: cold\r\nServer-Timing: clone;dur=2.50, run;dur=0.25\r\n\r\n"
    )
    with answering(head[:20], head[20:] + b"he", b"llo") as port:
        answer = request(port, "/x")
    assert (answer.status, answer.body, answer.start) == (200, b"hello", "cold")
    assert answer.steps_ms == {"clone": 2.5, "run": 0.25}
    assert answer.ms > 0


def test_a_chunked_answer():
    with answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=1\r\nde\r\n0\r\n\r\n") as port:
        assert request(port, "/x").body == b"abcde"


def test_a_body_that_ends_early_is_no_answer():
    with (
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello") as port,
        pytest.raises(ConnectionError, match="5 bytes"),
    ):
        request(port, "/x")


def test_only_200_is_an_answer():
    with answering(b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\n\r\nfull") as port, pytest.raises(NotOk, match=r"429.*full"):
        request(port, "/x")


def test_steps_add_up_to_the_whole_request():
    def answer(ms, timing):
        return Answer(200, {"server-timing": timing}, b"", ms)

    found = steps([answer(10, "clone;dur=3, run;dur=1"), answer(12, "clone;dur=3, code;dur=2, run;dur=1")])
    assert found == {"clone": [3, 3], "run": [1, 1], "code": [0, 2], "rest": [6, 6]}


def result(**changed):
    fields = {"requests": 100, "seconds": 2.0, "refused": 0, "broken": 0, "wrong": 0, "p50_ms": 1, "p99_ms": 2} | changed
    numbers = ",".join(f'"{name}":{value}' for name, value in fields.items())
    return "{" + numbers + ',"first_wrong":"502 x"}'


def test_a_clean_run_counts():
    load = wrk.checked(result(), 0.5)
    assert (load.answers, load.rps, load.client_cpu_s) == (100, 50.0, 0.5)


@pytest.mark.parametrize("spoiled", [{"refused": 1}, {"broken": 1}, {"wrong": 1}, {"requests": 0}])
def test_a_run_with_anything_but_200s_does_not(spoiled):
    with pytest.raises(RuntimeError, match=r"of \d+ answers"):
        wrk.checked(result(**spoiled), 0.5)


def test_no_wrk_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(wrk.WrkMissing, match="apt-get install wrk"):
        wrk.run(1, "/", 1, 1)
