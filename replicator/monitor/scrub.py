"""How the promise of the scrub stands: oldest proof, share that is fresh enough, when this pass will end."""

from typing import Any

from replicator.jobs.parts import Parts
from replicator.repair.pace import Forecast, forecast
from replicator.repair.scrub import PART_BYTES, standing_of


def scrub_forecast(parts: Parts) -> Forecast | None:
    """When the present pass will be complete and when it should be; None before the first and between two."""
    if parts.scrubber.is_between_passes:
        return None
    now_ns = parts.clock.now_ns()
    standing = standing_of(parts.scrubber, now_ns=now_ns)
    return forecast(parts.scrub_promise, standing, now_ns=now_ns, part_bytes=PART_BYTES)


def scrub_page(parts: Parts, *, with_segments: bool) -> dict[str, Any]:
    """Everything that is known of it, as plain values; times are ages or spans in seconds."""
    now_ns, scrubber, promise = parts.clock.now_ns(), parts.scrubber, parts.scrub_promise
    ages = parts.store.ages()
    # What was proven in the future was proven by a clock that has been set back since: it proves nothing.
    seen = [(one, (now_ns - t) / 1e9) for one in ages if (t := one.verified_ns) is not None and t <= now_ns]
    known_bytes = sum(one.known_bytes for one in ages)
    fresh_bytes = sum(one.known_bytes for one, age_s in seen if age_s <= promise.every_s)
    ahead = scrub_forecast(parts)
    now = scrubber.pass_now
    page: dict[str, Any] = {
        "every_s": promise.every_s,
        "rate_bytes_max": promise.rate_bytes_max,
        "stage": "between passes" if scrubber.is_between_passes else now.stage,
        "pass_began_s": round((now_ns - now.started_ns) / 1e9, 3) if now.started_ns else None,
        "pass_ended_s": round((now_ns - now.ended_ns) / 1e9, 3) if now.ended_ns else None,
        "pass_read_bytes": now.read_bytes,
        "pass_left_bytes": 0 if scrubber.is_between_passes else scrubber.left_bytes,
        "complete_at_ns": None if ahead is None else ahead.ends_ns,
        "complete_in_s": None if ahead is None else round((ahead.ends_ns - now_ns) / 1e9, 3),
        "due_in_s": None if ahead is None else round((ahead.due_ns - now_ns) / 1e9, 3),
        "is_late": ahead is not None and ahead.is_late,
        "segments_count": len(ages),
        "segments_never_read": len(ages) - len(seen),
        "oldest_verified_s": round(max(age_s for _, age_s in seen), 3) if seen else None,
        "share_verified": round(fresh_bytes / known_bytes, 4) if known_bytes else 1.0,
        "soft_errors": parts.store.statistics().soft_errors,
        "findings": scrubber.findings if with_segments else len(scrubber.findings),
        "findings_unmended": sum(not one["is_mended"] for one in scrubber.findings),
    }
    if with_segments:
        verified = {one.number: round(age_s, 3) for one, age_s in seen}
        page["segments"] = [
            {"segment": one.number, "known_bytes": one.known_bytes, "verified_s": verified.get(one.number)}
            for one in ages
        ]
    return page
