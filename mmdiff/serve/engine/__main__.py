"""`python -m mmdiff.serve.engine FD OPTIONS`: the engine process, as the server starts it."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Sequence

from mmdiff.errors import MMDiffError
from mmdiff.serve.engine import ipc
from mmdiff.serve.engine.messages import Unloadable, encode


def main(argv: Sequence[str]) -> None:
    # meant for the server, which ends this process when it is drained
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=int(argv[0]))
    try:
        # its import alone tells that a package is too old
        from mmdiff.serve.engine.process import load_engine

        engine = load_engine(sock, json.loads(argv[1]))
    except MMDiffError as error:
        ipc.send(sock, encode(Unloadable(str(error))))
        sys.exit(2)
    engine.run()


if __name__ == "__main__":
    main(sys.argv[1:])
