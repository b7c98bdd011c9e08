"""The extended attributes of a path, as far as the system shows them to us."""

import errno
import os
from typing import Final

from protocol.limits import ENTRY_MAX

_ATTRIBUTES_MAX: Final = ENTRY_MAX - 8 * 1024
"""What an entry has room for, beside its fixed fields, its pieces and a link's target."""

Attributes = tuple[tuple[bytes, bytes], ...]
Complaint = OSError | str
"""Why some of them are left out."""


def read_attributes(where: int | bytes) -> tuple[Attributes, list[Complaint]]:
    """Of an open file or of a path, which is not followed if it is a link."""
    try:
        names = os.listxattr(where, follow_symlinks=isinstance(where, int))
    except OSError as error:
        return (), [] if error.errno in (errno.ENOTSUP, errno.EPERM, errno.EACCES) else [error]
    if not names:
        return (), []
    pairs: list[tuple[bytes, bytes]] = []
    complaints: list[Complaint] = []
    for name in sorted(map(os.fsencode, names)):
        try:
            pairs.append((name, os.getxattr(where, name, follow_symlinks=isinstance(where, int))))
        except OSError as error:
            if error.errno != errno.ENODATA:
                complaints.append(f"attribute {os.fsdecode(name)}: {error.strerror}")
    if sum(len(name) + len(value) + 8 for name, value in pairs) > _ATTRIBUTES_MAX:
        complaints.append("its extended attributes are larger than an entry may be")
        return (), complaints
    return tuple(pairs), complaints
