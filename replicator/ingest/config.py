"""Settings of taking a snapshot."""

from dataclasses import dataclass

from protocol.limits import KIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestConfig:
    """How sources are cut, and how much of them is in memory.

    The sizes of blocks and pieces decide the ids: two sites that cut alike share blocks, and a
    volume whose sizes change is stored once more.
    """

    image_block_bytes: int = 64 * KIB
    """Blocks of images and devices: about what the writes of a virtual machine touch."""
    piece_bytes_min: int = 64 * KIB
    """A file up to this is one piece. Also the grid on which runs of zeros are looked for."""
    piece_bytes_beyond_min: int = 192 * KIB
    """What the average piece is longer than the shortest one: the cutter starts to look only after that."""
    piece_bytes_max: int = 1 * MIB
    batch_bytes: int = 8 * MIB
    """What one trip to a worker thread reads and seals: some 20 ms, two hundred times the cost of the trip."""
    batch_files: int = 256
    batches_in_flight: int = 3
    """One more than the two that keep two cores busy. Each holds up to three times `batch_bytes`."""
    commit_bytes: int = 64 * MIB
    """A flush after so many sealed bytes: what a crash makes us read again, and what is still to be flushed at
    the end, when nothing else is left to do beside it."""
    workers_max: int = 0
    """Processes that read small files for one snapshot. Each takes some 35 MB."""
    worker_from_files: int = 2048
    """Beginning with so many small files that are to be read, a process is worth its start of a tenth of a second."""

    @property
    def image_batch_bytes(self) -> int:
        """The same for an image.

        All of it goes into one long write, and such a write past the page cache costs two milliseconds beside its
        bytes: half as much again at a time saves a twentieth of all, twice as much hardly more.
        """
        return self.batch_bytes * 3 // 2

    @property
    def batches_of_files_in_flight(self) -> int:
        """Each worker has one; of another, blocks are going into the store, and one more waits for a worker."""
        return max(self.batches_in_flight, self.workers_max + 2)
