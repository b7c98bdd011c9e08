"""rsync: over ssh, and in clear text to its own daemon."""

import os
from pathlib import Path

from bench.peers.base import Subject, free_port
from bench.peers.ssh import SshSubject


def _arguments(source: Path) -> tuple[str, ...]:
    # An image is changed in place, as its users advise; a tree is mirrored with all that we keep of one as well.
    return ("-a", "--inplace", "--no-whole-file") if source.is_file() else ("-aHAX", "--delete")


def _from(source: Path) -> str:
    return str(source) if source.is_file() else f"{source}/"


class RsyncSsh(SshSubject):
    """`rsync -e ssh`: one copy, encrypted on the way, no history."""

    name = "rsync-ssh"
    needs = ("rsync", "ssh", "sshd", "ssh-keygen")

    def copy(self) -> None:
        target = f"127.0.0.1:{self.work / 'copy'}"
        self.run("rsync", *_arguments(self.source), "-e", self.ssh, _from(self.source), target)


class RsyncDaemon(Subject):
    """`rsync rsync://`: one copy, in clear text, no history."""

    name = "rsync-clear"
    needs = ("rsync",)

    def start(self) -> None:
        self.port = free_port()
        (self.work / "copy").mkdir()
        config = self.work / "rsyncd.conf"
        config.write_text(
            f"use chroot = no\naddress = 127.0.0.1\n[copy]\npath = {self.work / 'copy'}\nread only = no\n"
            f"uid = {os.geteuid()}\ngid = {os.getegid()}\n"
        )
        self.listen("rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={self.port}", port=self.port)

    def copy(self) -> None:
        self.run("rsync", *_arguments(self.source), _from(self.source), f"rsync://127.0.0.1:{self.port}/copy/")
