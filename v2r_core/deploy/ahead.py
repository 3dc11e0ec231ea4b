"""Items of an iterator ahead of their reader, and in groups."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

ItemT = TypeVar("ItemT")
QUEUE_ITEMS = 16


def groups(items: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    """Lists of `size` items each, in their order; the last one may be shorter."""
    group: list[ItemT] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def ahead(items: Iterable[ItemT]) -> Generator[ItemT, None, None]:
    """Runs an iterator in a thread of its own, a bounded number of items ahead; its exceptions arrive here."""
    ready: queue.Queue[ItemT | BaseException | None] = queue.Queue(QUEUE_ITEMS)
    stop = threading.Event()

    def put(item: ItemT | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            put(error)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
