"""Numbers as people write and read them."""

import re
from typing import Final

from replicator.core.errors import UsageError

_SIZES: Final = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4,
                 "ki": 1024, "mi": 1024**2, "gi": 1024**3, "ti": 1024**4}  # fmt: skip
_SPANS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_size(text: str) -> int:
    """Bytes in `10`, `4k`, `1.5GiB`, `20MB`. Raises `UsageError`."""
    count = _count(text)
    if count is None:
        raise UsageError(f"{text!r} is not a size.", hint="Write it like 500MB, 4GiB or 65536.")
    return count


def _count(text: str) -> int | None:
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?)?b?\s*", text, re.IGNORECASE)
    return int(float(found[1]) * _SIZES[(found[2] or "").lower()]) if found else None


def parse_rate(text: str) -> int:
    """Bytes a second in `20MB/s`, `100Mbit/s` or `100Mbps`; `0` or `none` is no limit. Raises `UsageError`."""
    plain = text.strip()
    if plain.lower() in ("none", "unlimited"):
        return 0
    # The case of one letter is a factor of eight: Mbps are bits, MBps are bytes.
    in_bits = re.fullmatch(r"(.*?)(?:bit(?:/s|ps)?|bps)", plain) or re.fullmatch(r"(?i)(.*?)bit(?:/s|ps)?", plain)
    count = _count(in_bits[1] if in_bits else re.sub(r"(?i)(/s|ps)$", "", plain))
    if count is None:
        raise UsageError(f"{plain!r} is not a rate.", hint="Write it like 20MB/s, 100Mbit/s or none.")
    if in_bits:
        return max(1, count // 8) if count else 0  # Never round a limit down to "no limit".
    return count


def parse_span(text: str) -> float:
    """Seconds in `30s`, `5m`, `1h`, `7d`, `2w` or `1h30m`. Raises `UsageError`."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([smhdw])", text.strip().lower())
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != text.strip().lower():
        raise UsageError(f"{text!r} is not a span of time.", hint="Write it like 30s, 15m, 1h, 7d or 1h30m.")
    return sum(float(number) * _SPANS[unit] for number, unit in parts)


def format_size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(round(count, 0 if unit == "B" else 1)) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def counted(count: int, noun: str) -> str:
    """`1 block`, `2 blocks`: for nouns that take an s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def format_span(seconds: float) -> str:
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return _with(f"{days}d", f"{hours}h" if hours else "")
    if hours:
        return _with(f"{hours}h", f"{minutes:02}m" if minutes else "")
    return _with(f"{minutes}m", f"{left:02}s" if left else "")


def _with(whole: str, part: str) -> str:
    """What was asked for as `30d` is shown as it was asked for."""
    return f"{whole} {part}" if part else whole
