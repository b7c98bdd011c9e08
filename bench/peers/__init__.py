"""Other people's software, doing the same work in the same run: what is ours worth beside it?

Each file is one program as a `Subject`: entering it starts what has to listen, with keys and
folders of its own; `copy` brings the source to the other side, durable there when it returns.
What is not installed is left out and said so.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.peers.base import Subject
from bench.peers.borg import BorgSsh
from bench.peers.casync import Casync
from bench.peers.restic import ResticLocal, ResticTls
from bench.peers.rsync import RsyncDaemon, RsyncSsh
from bench.peers.syncthing import Syncthing

PEERS: Final[dict[str, type[Subject]]] = {
    peer.name: peer for peer in (RsyncSsh, RsyncDaemon, ResticTls, BorgSsh, Casync, Syncthing)
}


def open_peers(names: Sequence[str], work: Path, source: Path) -> list[Subject]:
    """Those of `names` that this machine has."""
    return [PEERS[name](work / name, source) for name in names if PEERS[name].missing() == ""]


__all__ = ["PEERS", "ResticLocal", "Subject", "open_peers"]
