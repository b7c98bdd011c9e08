"""What people get wrong, through the real program: a sentence that names the thing, a next step, an exit code.

`run_cli` fails a test if a traceback is printed anywhere, so none of these may print one.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.ids import SiteId
from replicator.net.pairing import PairingCode
from tests.support.nodes import (
    PROGRAM,
    Node,
    become_peers,
    eventually,
    free_port,
    run_cli,
    started,
    tree_of,
    write_tree,
)
from tests.support.words import expect, expect_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mistakes")


@pytest.fixture(scope="module")
def home(folder: Path) -> Iterator[Node]:
    """A node with one volume and one snapshot, which no mistake may harm."""
    node = Node(folder / "home", "home")
    with started(node):
        node.protect(write_tree(folder / "data", files=4, size=5000), name="data")
        node.job("snapshot", tags=[])
        yield node
        assert node.process is not None and node.process.poll() is None, "some mistake took the node down"
        assert "Traceback" not in node.log() and "link.bug" not in node.log()
        target = folder / "at the end"
        assert node.cli("restore", "data", str(target)).code == 0
        assert tree_of(target) == tree_of(folder / "data")


@pytest.fixture(scope="module")
def cabin(folder: Path, home: Node) -> Iterator[Node]:
    node = Node(folder / "cabin", "cabin")
    with started(node):
        yield node


# -- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        (("frobnicate",), 64, "frobnicate"),
        (("pair", "join"), 64, "code"),
        (("status", "--nope"), 64, "--nope"),
        (("audit", "--limit", "many"), 64, "many"),
        (("protect", "{data}", "--every", "5 minutes"), 64, "5 minutes"),
        (("protect", "{data}", "--every", "1h", "--keep", "24x"), 64, "24x"),
        (("protect", "{data}", "--every", "99999999999999w"), 64, "every"),
        (("protect", "{data}", "--keep", "24h"), 64, "--every"),
        (("protect", "{data}", "--kind", "tape"), 64, "tape"),
        (("protect", "{data}", "--kind", "image"), 64, "folder"),
        (("protect", "/no/such/path", "--kind", "tree"), 66, "/no/such/path"),
        (("protect", "{data}", "--to", "atlantis"), 66, "atlantis"),
        (("sync", "add", "--to", "atlantis"), 66, "atlantis"),
        (("sync", "run", "nothing"), 66, "no such sync"),
        (("pair", "revoke", "atlantis"), 66, "atlantis"),
        (("pair", "join", "rp1-nonsense"), 64, "pairing code"),
        (("pair", "invite", "--minutes", "60"), 64, "10 minutes"),
        (("snapshot", "create", "nothing"), 66, "nothing"),
        (("snapshot", "show", "?"), 66, "?"),
        (("snapshot", "show", ""), 66, "''"),
        (("snapshot", "show", "../status"), 66, "../status"),
        (("snapshot", "delete", "abcdef0123"), 66, "abcdef0123"),
        (("snapshot", "show", "data", "no/such/folder"), 66, "no/such/folder"),
        (("restore", "abcdef0123", "{folder}/x"), 66, "abcdef0123"),
        (("verify", "abcdef0123"), 66, "abcdef0123"),
        (("snapshot", "delete", "ab"), 66, "4 digits"),
        (("throttle", "--out", "fast"), 64, "fast"),
        (("gc", "--grace", "soon"), 64, "soon"),
        (("jobs", "show", "nojob"), 66, "jobs list"),
        (("jobs", "cancel", "nojob"), 66, "nojob"),
        (("up", "--detach"), 75, "running already"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named_and_nothing_happens(
    home: Node, folder: Path, words: tuple[str, ...], code: int, names: str
) -> None:
    filled = [word.format(data=folder / "data", folder=folder) for word in words]
    said = run_cli(*filled, state=home.root)
    assert said.code == code, said
    assert names in said.text, said
    assert said.out == "", "errors go to stderr"


def test_with_json_an_error_is_one_value_on_stdout(home: Node) -> None:
    error = expect_json(home.cli("snapshot", "show", "atlantis", "--json"), 66, "not_found")
    assert "atlantis" in error["message"] and "data" in error["hint"]
    expect_json(home.cli("frobnicate", "--json"), 64, "usage")


def test_a_path_that_is_not_text_can_be_protected_listed_and_restored_alone(home: Node, folder: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/\xff"))
    (odd / os.fsdecode(b"in\xfe")).mkdir(parents=True)
    (odd / os.fsdecode(b"in\xfe") / "file").write_bytes(b"found")
    (odd / "other").write_bytes(b"other")
    said = home.cli("protect", str(odd))
    assert said.code == 0 and "\\xff (tree)" in said.out, said
    assert home.cli("snapshot", "create", "\\xff").code == 0
    assert "file" in home.cli("snapshot", "show", "\\xff", os.fsdecode(b"in\xfe")).out
    target = Path(os.fsdecode(os.fsencode(folder) + b"/back\xfd"))
    said = home.cli("restore", "\\xff", str(target), "--only", os.fsdecode(b"in\xfe/file"))
    assert said.code == 0 and "back\\xfd" in said.out, said
    assert (target / os.fsdecode(b"in\xfe") / "file").read_bytes() == b"found"
    assert not (target / "other").exists()
    said = home.cli("protect", str(odd / "gone"))
    assert said.code == 66 and "\\xff/gone" in said.text, said
    said = home.cli("protect", str(odd), "--exclude", os.fsdecode(b"\xff"))
    assert said.code == 64 and "UTF-8" in said.text and "every_s" not in said.text, said


def test_a_name_that_would_give_orders_to_the_terminal_is_shown_as_escapes(home: Node, folder: Path) -> None:
    evil = write_tree(folder / "evil\x1b[31m", files=1, size=10)
    (evil / "two\nlines\x1b]0;title\x07").write_bytes(b"x")
    assert home.cli("protect", str(evil), "--name", "evil\x1b[2J").code == 0
    assert home.cli("snapshot", "create", "evil\x1b[2J").code == 0
    texts = [
        home.cli(*words)
        for words in (
            ("snapshot", "show", "evil\x1b[2J"), ("status",), ("snapshot", "list"), ("protect", str(evil)),
            ("restore", "evil\x1b[2J", str(folder / "evil-back"), "--dry-run"), ("snapshot", "show", "no\x1b[2J"),
        )
    ]  # fmt: skip
    assert all("\x1b" not in said.out + said.err and "\x07" not in said.out for said in texts), texts
    assert "two\\nlines\\x1b]0;title" in texts[0].out
    listing = home.cli("snapshot", "show", "evil\x1b[2J", "--json").json["listing"]
    assert listing[-1]["name"] == "two\nlines\x1b]0;title\x07", "programs get it as it is"


def test_a_source_that_can_never_be_one_is_refused_at_once(home: Node, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    for path in (str(folder / "pipe"), "/dev/null"):
        expect(home.cli("protect", path), 66, path, "neither a folder, a file nor a block device")
    expect(home.cli("protect", ""), 64, "empty")
    expect(home.cli("restore", "data", ""), 64, "empty")
    (folder / "way in").symlink_to(home.root)
    for inside in (home.root, home.root / "store", home.root / "identity.key", folder / "way in"):
        expect(home.cli("protect", str(inside)), 64, "node's own folder")
    expect(home.cli("restore", "data", str(home.root / "store"), "--overwrite"), 64, "node's own folder")
    refused = {"pipe", "null", "home", "store", "identity.key", "way in"}
    assert refused.isdisjoint(one["name"] for one in home.client.get("/v1/volumes"))


def test_closed_streams_and_a_terminal_that_knows_ascii_only_are_no_bugs(home: Node, folder: Path) -> None:
    write_tree(folder / "ascii", files=1, size=10)
    (folder / "ascii" / "ünï").write_bytes(b"x")
    assert home.cli("protect", str(folder / "ascii")).code == 0
    assert home.cli("snapshot", "create", "ascii").code == 0
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = f"{PROGRAM[0]} -m {PROGRAM[2]} snapshot show ascii --state {home.root}"
    for redirect, code in (("", 0), (">&-", 0), ("2>&-", 0), (">&- 2>&-", 0), (">/dev/full", 74)):
        done = subprocess.run(f"{command} {redirect}", shell=True, env=environment, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr, (redirect, done)
        if not redirect:
            assert "\\xfcn\\xef" in done.stdout


def test_what_is_no_longer_protected_is_left_out_of_a_snapshot_of_everything(tmp_path: Path) -> None:
    node = Node(tmp_path / "home", "home")
    with started(node):
        for name in ("kept", "ended", "never"):
            assert node.cli("protect", str(write_tree(tmp_path / name, files=1, size=10))).code == 0
        assert node.cli("snapshot", "create", "kept", "ended").code == 0
        for name in ("ended", "never"):
            assert node.cli("unprotect", name).code == 0
        assert [one["volume"] for one in node.cli("snapshot", "create", "--json").json["snapshots"]] == ["kept"]
        assert [one["name"] for one in node.status()["volumes"]] == ["kept", "ended"], "nothing was taken of `never`"
        assert node.cli("snapshot", "create", "ended").code == 0, "by name it still can be"
        assert node.cli("protect", str(tmp_path / "ended")).code == 0
        assert len(node.cli("snapshot", "create", "--json").json["snapshots"]) == 2


def test_where_there_is_no_node_one_is_told_so_and_not_to_start_it(folder: Path) -> None:
    expect(run_cli("status", state=folder / "no such"), 69, "There is no node", "replicator init")


def test_what_the_environment_says_of_certificates_is_no_business_of_the_command_line(home: Node) -> None:
    environment = {**os.environ, "SSL_CERT_FILE": "/no/such/file", "HTTP_PROXY": "http://127.0.0.1:1"}
    command = [*PROGRAM, "status", "--state", str(home.root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done


# -- pairing ----------------------------------------------------------------------------------


def test_codes_that_are_mistyped_used_dead_or_from_elsewhere_each_say_so(home: Node, cabin: Node, folder: Path) -> None:
    text = home.cli("pair", "invite").out.strip()
    code = PairingCode.parse(text)
    mistyped = text[:20] + ("a" if text[20] != "a" else "b") + text[21:]
    expect(cabin.cli("pair", "join", mistyped), 64, "not a whole pairing code")
    expect(home.cli("pair", "join", text), 64, "this node's own")

    other = PairingCode(code.addresses, code.inviter, bytes(16), code.secret)
    expect(cabin.cli("pair", "join", str(other)), 77, "does not know this pairing code", "pair invite")
    nobody = PairingCode((f"127.0.0.1:{free_port()}",), code.inviter, code.invite_id, code.secret)
    expect(cabin.cli("pair", "join", str(nobody)), 69, "does not answer")
    somebody_else = PairingCode(code.addresses, SiteId(bytes(32)), code.invite_id, code.secret)
    assert cabin.cli("pair", "join", str(somebody_else)).code == 77

    wrong = PairingCode(code.addresses, code.inviter, code.invite_id, bytes(16))
    for _ in range(4):
        with pytest.raises(Exception, match="wrong"):
            cabin.client.post("/v1/pair/join", {"code": str(wrong)})
    expect(cabin.cli("pair", "join", str(wrong)), 77, "The pairing code is wrong")
    expect(cabin.cli("pair", "join", text), 77, "too many wrong tries")
    assert home.status()["peers"] == []

    text = home.client.post("/v1/pair/invite", {})["code"]
    assert cabin.cli("pair", "join", text).code == 0
    third = Node(folder / "third", "third")
    with started(third):
        expect(third.cli("pair", "join", text), 77, "used already")
    assert [peer["name"] for peer in home.status()["peers"]] == ["cabin"]


# -- sources and targets ----------------------------------------------------------------------


def test_a_source_that_has_gone_fails_by_name_and_works_again_once_it_is_back(home: Node, folder: Path) -> None:
    gone = write_tree(folder / "gone", files=2, size=100)
    home.protect(gone)
    gone.rename(folder / "elsewhere")
    said = home.cli("snapshot", "create", "gone")
    assert said.code == 66 and str(gone) in said.text, said
    (folder / "elsewhere").rename(gone)
    assert home.cli("snapshot", "create", "gone").code == 0


def test_a_restore_onto_something_that_differs_asks_before_it_replaces(home: Node, folder: Path) -> None:
    target = folder / "mine"
    target.mkdir()
    (target / "file-0001").write_bytes(b"mine, and precious")
    said = home.cli("restore", "data", str(target))
    assert said.code in (1, 66) and "file-0001" in said.text, said
    assert (target / "file-0001").read_bytes() == b"mine, and precious"
    assert home.cli("restore", "data", str(target), "--overwrite").code == 0
    assert tree_of(target) == tree_of(folder / "data")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_that_may_not_be_read_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    data = write_tree(tmp_path / "data", files=3, size=100)
    (data / "secret").write_bytes(b"root's")
    (data / "secret").chmod(0o600)
    node = Node(tmp_path / "state", "plain")
    subprocess.run(["chown", "-R", "65534:65534", str(node.root)], check=True)
    with started():
        node.start(prefix=("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"))
        try:
            node.protect(data)
            said = node.cli("snapshot", "create")
            assert said.code == 1 and "secret" in said.text and "ermission" in said.text, said
            target = tmp_path / "back"
            target.mkdir(mode=0o777)
            target.chmod(0o777)
            node.job("restore", snapshot="data", target=str(target / "data"), overwrite=False)
            back = tree_of(target / "data")
            assert back == {name: body for name, body in tree_of(data).items() if name != "secret"}
            assert [one["skipped"] for one in node.status()["volumes"]] == [1]
            assert "left out: 1" in node.cli("status").out, "also of snapshots that nobody saw being taken"
            other = ("setpriv", "--reuid", "65533", "--regid", "65533", "--clear-groups")
            command = [*other, *PROGRAM, "status", "--state", str(node.root)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 69 and "This user may not speak to the node" in done.stderr, done
        finally:
            node.kill()
            node.client.close()


def test_a_source_that_vanishes_while_it_is_read_ends_in_a_sentence(home: Node, folder: Path) -> None:
    big = write_tree(folder / "vanishing", files=600, size=20_000)
    home.protect(big)
    child = subprocess.Popen(
        [*PROGRAM, "snapshot", "create", "vanishing", "--json", "--state", str(home.root)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    eventually(lambda: any(job["kind"] == "snapshot" for job in home.status()["jobs"]) or child.poll() is not None)
    shutil.rmtree(big)
    out, err = child.communicate(timeout=60)
    assert child.returncode in (0, 1, 66) and "Traceback" not in err, (out, err)
    json.loads(out)


def test_a_duplicate_request_for_the_same_promise_changes_it_and_makes_no_second_volume(
    home: Node, cabin: Node, folder: Path
) -> None:
    if not home.status()["peers"]:
        become_peers(home, cabin)
    data = str(write_tree(folder / "promised", files=1, size=10))
    for every in ("1h", "2h"):
        assert home.cli("protect", data, "--every", every, "--keep", "3", "--to", "cabin").code == 0
    page = home.status()
    [volume] = [one for one in page["volumes"] if one["name"] == "promised"]
    assert volume["protection"]["every_s"] == 7200
    assert len([one for one in page["syncs"] if one["volume"] == "promised"]) == 1


def test_a_second_node_on_the_same_state_is_told_who_has_it(home: Node) -> None:
    assert home.process is not None
    expect(home.cli("up"), 75, str(home.process.pid))
