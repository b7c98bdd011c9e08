"""What a test of the mesh has one site ask another, and run by itself."""

from protocol.messages.registry import Message
from protocol.wire.frames import Lane
from replicator.core.progress import Progress
from replicator.jobs.replicate import SyncJobs
from replicator.jobs.runner import JobContext
from tests.support.nodes import Site


def context(**args: object) -> JobContext:
    return JobContext("job", "sync", dict(args), Progress(clock=lambda: 0.0))


def syncs_of(site: Site) -> SyncJobs:
    return site.living._relations.syncs


async def ask(asker: Site, server: Site, request: Message) -> list[object]:
    """Everything that the server answers."""
    link = await asker.link_to(server)
    answers: list[object] = []
    async with link.open(request, lane=Lane.CONTROL) as stream:
        while (item := await stream.receive()) is not None:
            answers.append(item)
    return answers
