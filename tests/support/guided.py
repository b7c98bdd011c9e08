"""Coverage-guided fuzzing of every decoder: the first byte chooses one, the rest is its input.

    scripts/fuzz --guided 600

Needs Atheris, which comes as the extra `fuzz`. What is found becomes an example of `tests/property/test_decoders.py`.
"""

import sys

import atheris

with atheris.instrument_imports(include=["protocol", "replicator"]):
    from tests.support.decoders import DECODERS, feed

_NAMES = tuple(DECODERS)


def one_input(data: bytes) -> None:
    if data:
        feed(_NAMES[data[0] % len(_NAMES)], data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
