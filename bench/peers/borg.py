"""Borg over ssh: content-cut, LZ4, with history. Not encrypted at rest, as ours is not."""

import itertools

from bench.peers.ssh import SshSubject


class BorgSsh(SshSubject):
    name = "borg"
    needs = ("borg", "ssh", "sshd", "ssh-keygen")

    def start(self) -> None:
        super().start()
        self._numbers = itertools.count()
        self._repository = f"ssh://127.0.0.1{self.work / 'repository'}"
        self.run("borg", "init", "--encryption=none", self._repository)

    def copy(self) -> None:
        archive = f"{self._repository}::run-{next(self._numbers)}"
        self.run("borg", "create", archive, self.source.name, cwd=self.source.parent)

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "BORG_RSH": self.ssh, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
