"""A private sshd on loopback, with keys of its own, for the programs that travel over ssh."""

import os
import subprocess
from pathlib import Path

from bench.peers.base import Subject, free_port, which


class SshSubject(Subject):
    """Has `self.ssh`: the command that reaches the other side."""

    port: int

    def start(self) -> None:
        self.port = free_port()
        for key in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.work / key)]
            subprocess.run(command, check=True)
        (self.work / "authorized").write_bytes((self.work / "user.pub").read_bytes())
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # Where Debian's sshd locks in its unprivileged half.
        config = self.work / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {self.work / 'host'}\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.work / 'authorized'}\nStrictModes no\nPermitRootLogin prohibit-password\n"
        )
        sshd = which("sshd")
        assert sshd is not None
        self.listen(sshd, "-D", "-e", "-f", str(config), port=self.port)

    @property
    def ssh(self) -> str:
        return (
            f"ssh -p {self.port} -i {self.work / 'user'} -o StrictHostKeyChecking=no -o BatchMode=yes "
            f"-o UserKnownHostsFile={self.work / 'known'} -o LogLevel=ERROR -F none"
        )
