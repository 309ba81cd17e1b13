"""What the workers of `tests/unit/serve/test_workers.py` run; the processes import it by its name."""

import os
import signal
import time
from pathlib import Path

from llmrec.errors import UserError
from llmrec.serve.workers import Peers, supervise


def serve(peers: Peers, patient: bool, folder: Path) -> None:
    """Tell the own id and wait. What `folder` holds says how it goes wrong."""
    (folder / f"{peers.own}-{os.getpid()}").write_text(str(patient))
    if (folder / "wrong").exists():
        raise UserError("--model x: is wrong.")
    if (folder / "dies").exists():
        os._exit(7)
    peers.report(1)
    if (folder / "hangs").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(0.05)


def main(folder: str) -> None:
    try:
        supervise(serve, 2, Path(folder))
    except UserError as error:
        raise SystemExit(str(error)) from None
