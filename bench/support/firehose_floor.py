"""The floor of `bench.firehose`: decoding frames, checking their blocks and encoding the JSON, in a plain loop of Python.

    SLUICE_PURE=1 python -m bench.support.firehose_floor FRAMES      (a pickled list; prints seconds and CPU seconds)

Neither inversion nor signatures, and never the compiled modules, so that ratios of different releases compare.
"""

import json
import pickle
import sys
import time
from pathlib import Path

from bench.support.stack import floor
from flows.firehose.encode import account_value, commit_message, identity_value
from protocol import IS_COMPILED, verify_commit
from protocol.event_stream import Account, Commit, Identity, Sync, decode
from protocol.verify_commit import Verified, verify

TIME = "2026-01-01T00:00:00.000Z"
RELAY = "wss://relay.example"


def main() -> None:
    """Measure the frames of the file."""
    assert not IS_COMPILED
    verify_commit._proof = lambda event, *_: event.data_before  # no inversion
    frames: list[bytes] = pickle.loads(Path(sys.argv[1]).read_bytes())
    now_micros, size = time.time_ns() // 1000, 0
    with floor(len(frames)) as measured:
        for frame in frames:
            event = decode(frame)
            if isinstance(event, Commit | Sync):
                verified = verify(event, now_micros)
                assert isinstance(verified, Verified), verified
                size += len(commit_message(verified, RELAY, TIME).value)
            elif isinstance(event, Account):
                size += len(account_value(event, RELAY, 0, TIME))
            else:
                assert isinstance(event, Identity), event
                size += len(identity_value(event, RELAY, 0, TIME))
    assert size > len(frames)
    print(json.dumps([measured.seconds, measured.cpu_seconds]))


if __name__ == "__main__":
    main()
