"""casync: content-cut chunks in a store of one file each. To a folder: its way over ssh takes no port and no key."""

from bench.peers.base import Subject


class Casync(Subject):
    name = "casync-local"
    needs = ("casync",)

    def start(self) -> None:
        (self.work / "store").mkdir()

    def copy(self) -> None:
        index = "index.caibx" if self.source.is_file() else "index.caidx"
        self.run("casync", "make", "--without=all", "--with=unix", f"--store={self.work / 'store'}", index,
                 str(self.source), cwd=self.work)  # fmt: skip
