"""A CAR that lies in a file, indexed as a spooled download is: by its places."""

import os

from protocol.car import CarIndex, file_reader


def index_file(fd: int) -> CarIndex:
    """Index the whole file; the descriptor must stay open as long as the index is used."""
    index = CarIndex(file_reader(fd))
    while chunk := os.pread(fd, 1 << 20, index.size):
        index.feed(chunk)
    index.finish()
    return index
