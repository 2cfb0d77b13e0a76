"""Puts results into Swift's data items at little cost to the main thread, many times a second."""

from __future__ import annotations

import ctypes
import gc
import typing

if typing.TYPE_CHECKING:
    from nion.data import DataAndMetadata
    from nion.swift.model import DataItem


def put(
    item: DataItem.DataItem, xdata: DataAndMetadata.DataAndMetadata, *, keep_date: bool = False
) -> None:
    """Replace the contents of an item. On the main thread.

    One notification is sent instead of one for each property. Swift's lists are ordered by date: with its
    old date the item keeps its place in all of them, which otherwise costs the main thread more than the
    result itself.
    """
    with item.data_item_changes():
        item.set_xdata(xdata, item.data_modified if keep_date else None)


def date(items: typing.Iterable[DataItem.DataItem | None]) -> None:
    """Give items that are done with their true date."""
    for item in items:
        if item is not None and not item._closed and item.xdata is not None:
            put(item, item.xdata)


class Unwritten:
    """Keeps items off the disk while they change many times a second. On the main thread.

    Swift writes an item at every change of it, temporary or not, unless a transaction holds it: so it does
    with a scan's own image while it is scanned. At the end each item is written once.
    """

    def __init__(self, items: typing.Iterable[DataItem.DataItem | None]) -> None:
        self.__transactions = [
            item._document_model.item_transaction(item)
            for item in items
            if item is not None and item._document_model is not None
        ]

    def close(self) -> None:
        """Let them be written."""
        transactions, self.__transactions = self.__transactions, []
        for transaction in transactions:
            transaction.close()


def give_back_memory() -> None:
    """Return what has been freed to the system, where the C library keeps it (glibc's does).

    Arrays of some MB that come and go at each frame leave holes between longer-lived objects; nothing is
    lost, but a session of hours would seem to grow. Takes some milliseconds; never on the main thread.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)


class CalmCollector:
    """Python's garbage collector, kept from going through everything that Swift and torch have made.

    That takes up to half a second of the main thread, every few seconds of a live scan, and finds nothing:
    these objects stay. What is made from now on is collected as ever.
    """

    _holders: typing.ClassVar[int] = 0

    def __init__(self) -> None:
        self.__held = True
        if not CalmCollector._holders:
            gc.freeze()
        CalmCollector._holders += 1

    def close(self) -> None:
        """Everything is collected again, when no other live scan is running."""
        if self.__held:
            self.__held = False
            CalmCollector._holders -= 1
            if not CalmCollector._holders:
                gc.unfreeze()
