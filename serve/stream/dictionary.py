"""Our zstd dictionary for frames of v2, trained on frames of our own (`python -m tools.train_dictionary`). Its id never changes its meaning."""

from importlib.resources import files

import zstandard

LEVEL = 3


class Dictionary:
    """The dictionary of this release. Used in one thread."""

    def __init__(self) -> None:
        self.raw = (files("serve.stream") / "frames.zstd-dictionary").read_bytes()
        found = zstandard.ZstdCompressionDict(self.raw)
        self.id = found.dict_id()
        self._compressor = zstandard.ZstdCompressor(level=LEVEL, dict_data=found)

    def compress(self, text: bytes) -> bytes:
        """One zstd frame, with the id of the dictionary and the size of the text."""
        return self._compressor.compress(text)
