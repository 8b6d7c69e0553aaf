"""The shared pool: every chunk once, errors reach the caller, nested calls end."""

import threading

import pytest

from worldstereo._core import parallel as _parallel


@pytest.mark.parametrize("threads", ["1", "2", "7"])
@pytest.mark.parametrize("n", [0, 1, 2, 101])
def test_every_chunk_is_done_once(n, threads, monkeypatch):
    monkeypatch.setenv("WORLDSTEREO_THREADS", threads)
    done = [0] * n

    def work(i: int) -> None:
        done[i] += 1

    _parallel.parallel_for(n, work)
    assert done == [1] * n


def test_the_first_error_reaches_the_caller():
    def work(i: int) -> None:
        if i == 5:
            raise KeyError("five")

    with pytest.raises(KeyError, match="five"):
        _parallel.parallel_for(50, work)


def test_nested_and_simultaneous_calls_end():
    total = []
    lock = threading.Lock()

    def leaf(i: int) -> None:
        with lock:
            total.append(i)

    def session() -> None:
        _parallel.parallel_for(7, lambda _: _parallel.parallel_for(11, leaf))

    sessions = [threading.Thread(target=session) for _ in range(5)]
    for thread in sessions:
        thread.start()
    for thread in sessions:
        thread.join(30)
    assert len(total) == 5 * 7 * 11


@pytest.mark.parametrize(("n", "pieces"), [(0, 3), (5, 3), (5, 9), (12, 4)])
def test_spans_cover_a_range(n, pieces):
    covered = [i for start, stop in _parallel.spans(n, pieces) for i in range(start, stop)]
    assert covered == list(range(n))
    assert len(_parallel.spans(n, pieces)) <= pieces
