"""What a pattern leaves out."""

import pytest

from replicator.ingest.filters import Filters


@pytest.mark.parametrize(
    ("pattern", "path", "is_out"),
    [
        ("*.tmp", b"x.tmp", True),
        ("*.tmp", b"a/b/x.tmp", True),
        ("*.tmp", b"x.tmpl", False),
        ("*.tmp", b".tmp", True),
        ("/x", b"x", True),
        ("/x", b"a/x", False),
        ("a/x", b"a/x", True),
        ("a/x", b"b/a/x", False),
        ("a/*", b"a/b/c", False),
        ("a/**", b"a/b/c", True),
        ("a/**/c", b"a/c", True),
        ("a/**/c", b"a/b/b/c", True),
        ("**/c", b"c", True),
        ("x?", b"x\n", True),
        ("x?", b"x/", False),
        ("[a-c]", b"b", True),
        ("[!a-c]", b"b", False),
        ("a.c", b"abc", False),
        ("[", b"[", True),
        ("# note", b"# note", False),
        ("", b"", False),
        ("\udcff", b"\xff", True),
    ],
)
def test_a_pattern_matches_as_documented(pattern: str, path: bytes, is_out: bool) -> None:
    assert Filters([pattern]).leaves_out(path, is_directory=False) is is_out


def test_a_slash_at_the_end_means_folders_only() -> None:
    filters = Filters(["cache/"])
    assert filters.leaves_out(b"a/cache", is_directory=True)
    assert not filters.leaves_out(b"a/cache", is_directory=False)


def test_the_last_pattern_that_matches_decides() -> None:
    filters = Filters(["*.log", "!keep.log"])
    assert filters.leaves_out(b"a.log", is_directory=False)
    assert not filters.leaves_out(b"keep.log", is_directory=False)
