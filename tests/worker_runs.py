"""What the workers of `tests/unit/serve/test_workers.py` run; the processes import it by its name."""

import os
import signal
import time
from pathlib import Path

from llmrec.errors import UserError
from llmrec.serve.workers import Peers, supervise


def serve(peers: Peers, patient: bool, folder: Path) -> None:
    """Tell the own id and wait. What `folder` holds says how it goes wrong."""
    if (folder / "hangs").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"{peers.own}-{os.getpid()}").write_text(str(patient))
    if (folder / "wrong").exists():
        raise UserError("--port x: is wrong.")
    if (folder / "dies").exists():
        os._exit(7)
    peers.report(1)
    while True:
        time.sleep(0.05)


def main(folder: str) -> None:
    try:
        supervise(serve, 2, Path(folder))
    except UserError as error:
        raise SystemExit(str(error)) from None
