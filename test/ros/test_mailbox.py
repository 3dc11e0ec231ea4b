"""The mailbox keeps the newest item, counts what it replaced, and never blocks the sender."""

from __future__ import annotations

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from v2r_ros.mailbox import Mailbox


def test_newest_item_wins_and_drops_are_counted() -> None:
    box: Mailbox[int] = Mailbox()
    assert [box.put(item) for item in range(5)] == [False, True, True, True, True]
    assert box.take() == 4
    assert (box.received, box.dropped) == (5, 4)


def test_taken_items_are_not_dropped() -> None:
    box: Mailbox[int] = Mailbox()
    for item in range(5):
        box.put(item)
        assert box.take() == item
    assert box.dropped == 0


def test_take_times_out_with_none() -> None:
    assert Mailbox[int]().take(timeout=0.01) is None


def test_close_wakes_a_waiting_taker() -> None:
    box: Mailbox[int] = Mailbox()
    got: list[int | None] = [0]
    taker = threading.Thread(target=lambda: got.__setitem__(0, box.take()))
    taker.start()
    box.close()
    taker.join(timeout=2.0)
    assert not taker.is_alive()
    assert got == [None]
    assert box.closed


def test_slow_taker_always_gets_the_newest_at_that_moment() -> None:
    box: Mailbox[int] = Mailbox()
    stop = threading.Event()

    def produce() -> None:
        item = 0
        while not stop.is_set():
            box.put(item)
            item += 1
            time.sleep(0.0005)

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        for _ in range(5):
            time.sleep(0.01)
            before = box.received
            item = box.take()
            assert item is not None
            assert item >= before - 1
    finally:
        stop.set()
        producer.join()


@given(st.lists(st.booleans(), max_size=60))
def test_every_item_is_taken_dropped_or_waiting(moves: list[bool]) -> None:
    box: Mailbox[int] = Mailbox()
    taken = 0
    for number, put in enumerate(moves):
        if put:
            box.put(number)
        elif box.take(timeout=0) is not None:
            taken += 1
    waiting = box.take(timeout=0) is not None
    assert box.received == taken + box.dropped + waiting
