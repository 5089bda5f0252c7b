"""How long a thread waits for an event, without a device."""

from __future__ import annotations

from types import SimpleNamespace

from benchmarks.overhead.wake_latency import table, waited, waits_of


def test_a_wait_is_from_the_launch_until_the_thread_goes_on() -> None:
    at = [1.0]

    def step(name: str, seconds: float) -> None:
        told.append(name)
        at[0] += seconds

    told: list[str] = []
    event = SimpleNamespace(
        record=lambda: step("record", 0.001), synchronize=lambda: step("synchronize", 0.006)
    )
    found = waited(lambda: step("launch", 0.002), event, lambda: at[0])
    assert told == ["launch", "record", "synchronize"]
    assert abs(found - 0.009) < 1e-12


def test_the_table_has_each_way_in_milliseconds() -> None:
    row = waits_of("sleeps", 2.0, [n / 1000.0 for n in range(1, 20)])
    assert (row.tenth, row.median, row.ninth) == (0.002, 0.01, 0.018)
    assert table([row]).splitlines()[-1] == "| sleeps | 2 | 19 | 2.000, 10.000, 18.000 |"
