"""Checkpoints that are damaged or made by hand: each loads to exactly the right tensors or is refused by a sentence, exit 3."""

import io
import os
import random
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch

from diffcli import checkpoint
from diffcli.cli import main
from diffcli.errors import CheckpointError, UsageError

TINY = ("data=moons", "trainer.max_steps=2", "batch_size=16", "network.width=8", "network.blocks=1", "optim.warmup=0")
EXPECTED = "exactly the right tensors, or a sentence and exit 3"
FUZZED = 300


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """last.ckpt of a training of two steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *TINY, "preview.every=0", "checkpoint.every=1", f"out={folder}"]) == 0
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def content(trained):
    return torch.load(trained, weights_only=True)


def same(a, b):
    """Whether two contents are equal to the last bit, in type and order too."""
    if type(a) is not type(b):
        return False
    if torch.is_tensor(a):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))
        )
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def outcome(path, content):
    """ "whole" or "refused"; everything else fails the test."""
    try:
        found = checkpoint.read(path, None)
    except CheckpointError as error:
        assert error.exit_code == 3
        assert error.message.isprintable(), error.message
        return "refused"
    assert same(found, content)
    return "whole"


# --- fuzzed files


def flip(data, rng, members):
    """One to four bits anywhere."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_in_headers(data, rng, members):
    """A bit of a member's local header, or of the archive's directory."""
    directory = data.index(b"PK\x01\x02")
    start = rng.choice([m.header_offset for m in members] + [directory] * 4)
    length = len(data) - directory if start == directory else 60
    data[start + rng.randrange(min(length, len(data) - start))] ^= 1 << rng.randrange(8)


def flip_in_weights(data, rng, members):
    member = rng.choice([m for m in members if "/data/" in m.filename and m.file_size])
    at = data.index(member.filename.encode(), member.header_offset) + len(member.filename)
    at += struct.unpack("<H", data[member.header_offset + 28 : member.header_offset + 30])[0]
    data[at + rng.randrange(member.file_size)] ^= 1 << rng.randrange(8)


def truncate(data, rng, members):
    del data[rng.randrange(len(data)) :]


def zero(data, rng, members):
    """A hole, as a file system leaves it behind a crash."""
    start, length = rng.randrange(len(data)), rng.choice((1, 16, 512, 4096))
    data[start : start + length] = bytes(len(data[start : start + length]))


def splice(data, rng, members):
    """A block of the file in the place of another one, of the same length or not."""
    length = rng.randrange(1, 2000)
    a, b = rng.randrange(len(data)), rng.randrange(len(data))
    data[a : a + length] = data[b : b + rng.choice((length, length, rng.randrange(1, 2000)))]


def swap(data, rng, members):
    """The bytes of two members of the same size, where they lie."""
    sized = {}
    for m in members:
        sized.setdefault(m.file_size, []).append(m)
    a, b = rng.sample(rng.choice([group for group in sized.values() if len(group) > 1]), 2)

    def place(m):
        extra = struct.unpack("<H", data[m.header_offset + 28 : m.header_offset + 30])[0]
        start = m.header_offset + 30 + len(m.filename) + extra
        return slice(start, start + m.file_size)

    data[place(a)], data[place(b)] = data[place(b)], data[place(a)]


def insert(data, rng, members):
    at = rng.choice((0, len(data), rng.randrange(len(data))))
    data[at:at] = rng.randbytes(rng.choice((1, 22, 64)))


def edit_header(data, rng, members):
    """A field of the directory set to an extreme value."""
    entry = rng.choice([i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02"])
    offset, size = rng.choice(((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)))
    data[entry + offset : entry + offset + size] = rng.choice((b"\0", b"\xff", b"\x01")) * size


def edit_end(data, rng, members):
    """A field of the records that end the archive."""
    at = rng.randrange(1, 99)
    data[-at] = rng.choice((0, 1, 255, rng.randrange(256)))


DAMAGES = (flip, flip_in_headers, flip_in_weights, truncate, zero, splice, swap, insert, edit_header, edit_end)


def test_fuzzed_files(trained, content, tmp_path, injected):
    rng, path, found = random.Random(7), tmp_path / "fuzzed.ckpt", {}
    whole, members = trained.read_bytes(), zipfile.ZipFile(trained).infolist()
    assert outcome(trained, content) == "whole"
    for i in range(FUZZED):
        damage, data = DAMAGES[i % len(DAMAGES)], bytearray(whole)
        while data == whole:  # two members that were swapped may be equal
            damage(data, rng, members)
        path.write_bytes(data)
        found.setdefault(damage.__name__, []).append(outcome(path, content))
    for name in ("flip_in_weights", "truncate", "swap", "insert"):
        assert set(found[name]) == {"refused"}, name
    assert sum(map(len, found.values())) == FUZZED
    injected(
        "damaged checkpoint files (fuzzed)",
        EXPECTED,
        n=FUZZED,
        survived=FUZZED,
        stock="torch.load: 30 of 30 flips in weights loaded",
    )


def test_stock_torch_load_swallows_flips(trained, content, tmp_path):
    """The control: the same flips, read by torch.load alone, are other weights without a word."""
    rng, path, swallowed = random.Random(7), tmp_path / "flipped.ckpt", 0
    whole, members = trained.read_bytes(), zipfile.ZipFile(trained).infolist()
    for _ in range(30):
        data = bytearray(whole)
        flip_in_weights(data, rng, members)
        path.write_bytes(data)
        swallowed += not same(torch.load(path, weights_only=True), content)
        assert outcome(path, content) == "refused"
    assert swallowed == 30


# --- files made by hand


def rewritten(whole, change=None, compress=zipfile.ZIP_STORED, order=None, more=()):
    """The archive anew, with its checksums right: members changed by name, reordered, added."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(target, "w", compress) as new:
        members = [(m.filename, old.read(m.filename)) for m in old.infolist()]
        for name, data in [*(order(members) if order else members), *more]:
            new.writestr(name, (change or {}).get(name.partition("/")[2], lambda x: x)(data))
    return target.getvalue()


def bomb(whole):
    """A tenth of a MB that would be 64 MB."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new, new.open("a/data.pkl", "w") as member:
        for _ in range(64):
            member.write(bytes(2**20))
    return target.getvalue()


def lying_size(whole):
    """A directory that promises an uncompressed terabyte."""
    data = bytearray(whole)
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 28] = struct.pack("<LL", 0xFFFFFFF0, 0xFFFFFFF0)
    return bytes(data)


def twice(whole):
    """Two pickles, of which zipfile and torch might take different ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pickled = name(whole, "data.pkl")
        return rewritten(whole, more=[(pickled, zipfile.ZipFile(io.BytesIO(whole)).read(pickled))])


def name(whole, end):
    return next(n for n in zipfile.ZipFile(io.BytesIO(whole)).namelist() if n.endswith(end))


def _longer(pickled):
    at = pickled.index(b"X\x03\x00\x00\x00cpu")
    at = pickled.index(b"K", at)  # BININT1: the number of elements
    return pickled[:at] + b"J" + struct.pack("<i", 10**9) + pickled[at + 2 :]


def overlapping(whole):
    """Two members whose bytes are the same place."""
    data = bytearray(whole)
    entries = [i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02"]
    data[entries[1] + 42 : entries[1] + 46] = data[entries[0] + 42 : entries[0] + 46]
    return bytes(data)


BY_HAND = {
    "empty": lambda whole: b"",
    "one byte": lambda whole: b"P",
    "text": lambda whole: b"weights\n" * 100,
    "an empty archive": lambda whole: b"PK\x05\x06" + bytes(18),
    "an archive of text": lambda whole: rewritten(whole, order=lambda members: [("a/readme", b"hello")]),
    "a legacy pickle": lambda whole: legacy(),
    "an array": lambda whole: array(),
    "a program before the archive": lambda whole: b"#!/bin/sh\necho hello\n" + whole,
    "another archive behind": lambda whole: whole + whole,
    "a comment": lambda whole: whole[:-2] + struct.pack("<H", 4) + b"more",
    "compressed": lambda whole: rewritten(whole, compress=zipfile.ZIP_DEFLATED),
    "a bomb": bomb,
    "a lying size": lying_size,
    "two members of one name": twice,
    "members in another folder": lambda whole: rewritten(whole, more=[("other/data.pkl", b"\x80\x02}.")]),
    "members that overlap": overlapping,
    "a storage larger than its bytes": lambda whole: rewritten(whole, {"data.pkl": _longer}),
    "no pickle": lambda whole: rewritten(whole, order=lambda ms: [m for m in ms if not m[0].endswith("data.pkl")]),
    "half a pickle": lambda whole: rewritten(whole, {"data.pkl": lambda x: x[: len(x) // 2]}),
    "a member missing": lambda whole: rewritten(whole, order=lambda ms: [m for m in ms if not m[0].endswith("data/0")]),
    "a member cut": lambda whole: rewritten(whole, {"data/0": lambda x: x[:-4]}),
    "a deep pickle": lambda whole: rewritten(whole, {"data.pkl": lambda x: b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."}),
    "a pickle of one number": lambda whole: rewritten(whole, {"data.pkl": lambda x: b"\x80\x02K\x01."}),
    "a memo out of range": lambda whole: rewritten(whole, {"data.pkl": lambda x: b"\x80\x02}r\xff\xff\xff\x7f."}),
}  # fmt: skip


def legacy():
    target = io.BytesIO()
    torch.save({"format": 1}, target, _use_new_zipfile_serialization=False)
    return target.getvalue()


def array():
    target = io.BytesIO()
    np.save(target, np.zeros(3))
    return target.getvalue()


def test_files_made_by_hand(trained, content, tmp_path, injected):
    whole, path = trained.read_bytes(), tmp_path / "made.ckpt"
    assert rewritten(whole) != whole
    path.write_bytes(rewritten(whole))
    assert outcome(path, content) == "whole"  # what is refused below is not refused for having been written anew
    for case, make in BY_HAND.items():
        path.write_bytes(make(whole))
        assert outcome(path, content) == "refused", case
    injected("checkpoints made by hand", EXPECTED, n=len(BY_HAND), survived=len(BY_HAND))


def test_a_bomb_is_not_inflated(tmp_path, monkeypatch):
    def inflated(*args, **options):
        raise AssertionError("read")

    path = tmp_path / "bomb.ckpt"
    path.write_bytes(bomb(b""))
    assert path.stat().st_size < 2**20
    monkeypatch.setattr("diffcli.untrusted.archive.torch.load", inflated)
    monkeypatch.setattr("diffcli.untrusted.archive.zipfile.ZipFile.testzip", inflated)
    with pytest.raises(CheckpointError, match="compressed"):
        checkpoint.read(path)


def test_what_is_no_file(tmp_path, trained, monkeypatch, injected):
    """A pipe is not waited for, a device not read."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (
        tmp_path / "pipe",
        tmp_path / "folder",
        tmp_path / "loop",
        "/dev/zero",
        "/dev/null",
        "x" * 300,
        trained / "x",
    ):
        with pytest.raises((CheckpointError, UsageError)) as refusal:
            checkpoint.read(path)
        assert refusal.value.message.isprintable()
    (tmp_path / "link").symlink_to(trained)
    assert checkpoint.read(tmp_path / "link")

    def denied(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(
        "diffcli.untrusted.archive.os.open", denied
    )  # not to be had by chmod where the tests run as root
    with pytest.raises(CheckpointError, match="Permission denied"):
        checkpoint.read(trained)
    injected(
        "a pipe, a folder, a device, a loop of links, no permission for a checkpoint", "a sentence", n=8, survived=8
    )


def test_what_is_checked_is_what_is_read(trained, content, tmp_path, monkeypatch, injected):
    """The file is replaced between the check and the reading."""
    import diffcli.untrusted.archive as archive

    path, check = tmp_path / "x.ckpt", archive._check
    path.write_bytes(trained.read_bytes())
    other = bytearray(trained.read_bytes())
    flip_in_weights(other, random.Random(1), zipfile.ZipFile(trained).infolist())

    def checked(file, where):
        check(file, where)
        (tmp_path / "new").write_bytes(other)
        os.replace(tmp_path / "new", path)

    monkeypatch.setattr(archive, "_check", checked)
    assert same(checkpoint.read(path), content)
    injected("a checkpoint replaced between check and use", "what was checked is what is read")
