"""Every bound of the protocol and of the format, each with its reason.

A limit here is part of the specification: both sides may rely on it. Limits that are one
node's own business live in that part's config.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

BLOCK_BODY_MAX: Final = 4 * MIB
"""Largest body of a block. A receiver must hold one whole block to verify it, times the blocks in flight."""

CONTROL_FRAME_MAX: Final = 256 * KIB
"""Largest frame of msgpack. Dense msgpack unpacks to some 75 times its size in Python objects
(measured), so this bounds a hostile frame to about 20 MiB of memory."""

BLOCKS_FRAME_MAX: Final = BLOCK_BODY_MAX + 64 * KIB
"""Largest frame of raw sealed blocks: it must be able to hold one largest block and its header."""

BLOCKS_FRAME_GOAL: Final = 1 * MIB
"""A sender fills a frame with blocks up to about this size: one write of a mebibyte costs little more
than one of 64 KiB, and a repair never waits behind more than this on a busy link."""

STREAM_CREDIT: Final = 8 * MIB
"""What a stream may send before its receiver grants more. Enough for 640 Mbit/s at 100 ms; a receiver
on a longer or fatter path grants more, sooner."""

STREAMS_MAX: Final = 64
"""Streams that one side may have open at once. A node opens a handful; more is a fault or an attack."""

WANT_BLOCKS_MAX: Final = 4096
"""Ids in one request: 128 KiB of digests, under `CONTROL_FRAME_MAX`."""

HAVE_ROOTS_MAX: Final = 64
"""Roots that a receiver offers as a base: enough for months of dailies."""

DIFF_FRAME_GOAL: Final = 128 * KIB
"""A sender closes a difference message at about this size; the receiver works on it while the next travels."""

TEXT_MAX: Final = 4 * KIB
"""Names, addresses, reasons."""

LIST_MAX: Final = 16 * KIB
"""Elements of any list in a message."""

ENTRY_MAX: Final = 160 * KIB
"""One tree entry, with its extended attributes (Linux allows 64 KiB a value) and chunk list."""

SNAPSHOT_RECORD_MAX: Final = 64 * KIB
"""A signed snapshot record with its names and tags."""

SITE_RECORD_MAX: Final = 8 * KIB
"""A signed site record: a key, a name, and some addresses."""

SUMMARY_CELLS_MAX: Final = 40 * KIB
"""Cells in one message: 200 KiB at 5 bytes each, under `CONTROL_FRAME_MAX`."""

HANDSHAKE_S: Final = 10.0
"""From the first byte of a connection to its hello. An honest peer needs three round trips."""

HEARTBEAT_S: Final = 5.0
"""A ping at least this often on an idle link."""

SILENCE_S: Final = 20.0
"""A link that brought nothing for this long is dead: four heartbeats, and under the promised 30 s."""

SUMMARY_CELLS_GOAL: Final = 32 * KIB
"""Cells a sender puts in one message: with their two-byte checks 224 KiB, under `CONTROL_FRAME_MAX`."""

SUMMARY_SAMPLES_MAX: Final = 16
"""Sampled levels in an opening summary: every second one from 9 to 39, enough for 10^12 blocks."""

SUMMARY_LEVEL_MAX: Final = 56
"""The deepest level of a summary. There is nothing to gain below: the cells of 10^12 honest blocks are
single at level 42, and crowding one cell at level 56 costs 2^56 hashes a block."""

SUMMARY_TURN_CELLS_MAX: Final = 4 * MIB
"""Cells that one side may say before the other answers: 20 MiB, kept until the turn is whole. A million
differences need half of it; a side that would need more sends the ids instead."""

SUMMARY_TURN_LIST_MAX: Final = 16 * MIB
"""Short ids in one turn: 80 MiB. That is the full list of 16 million blocks, a tebibyte of 64 KiB ones;
beyond, a scope has to be reconciled in parts."""

SUMMARY_TURNS_MAX: Final = 6
"""Turns of one attempt, three round trips: what bounds a session against a peer that never agrees."""

SUMMARY_MARKS_MAX: Final = 1 * MIB
"""Yes-or-no answers in one message: a bitmap of 128 KiB, under `CONTROL_FRAME_MAX`."""

SUMMARY_UNKNOWN_SLACK: Final = 16
SUMMARY_UNKNOWN_CELLS_SHARE: Final = 5
"""Of the suffixes that a peer asks for after cells without checks, so many, and one for so many cells, may be none
of ours: a cell with one block of ours and two of theirs looks like a single one of theirs. That is 0.5 % of the
cells at the load we aim at, and at most 15 % at any load. More is a peer that guesses."""

SUMMARY_UNKNOWN_CHECKED_SHARE: Final = 100
"""The same for asks after cells with checks, for so many asks: there an honest one fails once in 65,000 times."""

SUMMARY_TURN_MESSAGES_MAX: Final = 1024
"""Messages in one turn. The largest turn that the other bounds allow takes 800; without this one,
many small answers would cost far more memory than they say."""

ROOTS_MAX: Final = 4096
"""Scopes in one heartbeat: 160 KiB, under `CONTROL_FRAME_MAX`. A site with more volumes tells of the first ones."""
