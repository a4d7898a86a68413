"""`resume=auto` of sample, nll and evaluate: with what it goes on, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from diffcli.commands.partial import Partial, Rows, chunks, save_chunks

POINTS = ("sample", "network=exact", "data=mixture", "n=40", "batch_size=16", "steps=1", "sampler=ddim")


@pytest.fixture
def stopped(monkeypatch):
    """stopped(cli, *words): the command ends by Ctrl-C when 16 rows are there."""

    def run(cli, *words):
        append = Partial.append

        def appended(self, **columns):
            append(self, **columns)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Partial, "append", appended)
            done = cli(*words)
        assert done.code == 130, done.err
        return done

    return run


def test_rows_are_those_of_the_array_and_torn_ones_are_not_counted(tmp_path):
    x = np.random.default_rng(0).normal(size=(10, 2, 3)).astype(np.float32)
    rows = Partial(tmp_path, 10, {"x": "x.npy"})
    for part in (x[:4], x[4:8]):
        rows.append(x=part, k=np.arange(len(part)))
    rows.close()
    with (tmp_path / "partial/k.npy").open("ab") as file:
        file.write(b"torn")
    with (tmp_path / "partial/x.npy").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    again = Partial(tmp_path, 10, {"x": "x.npy"})
    assert again.rows == 7 and again.columns == ["x", "k"]
    again.keep(4)
    again.append(x=x[4:], k=np.arange(6))
    found = again["x"]
    assert isinstance(found, Rows) and found.shape == (10, 2, 3)
    assert np.array_equal(found[:], x) and np.array_equal(found[3:5], x[3:5]) and len(found[8:20]) == 2
    assert np.array_equal(np.concatenate(list(chunks(found, 3))), x)
    assert again["k"][:].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    again.finish()
    again.remove()
    np.save(tmp_path / "saved.npy", x)
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()
    save_chunks(tmp_path / "parts.npy", 10, chunks(x, 3))
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()
    assert not (tmp_path / "partial").exists()


def test_rows_begun_in_another_number_or_without_all_columns_are_none(tmp_path):
    rows = Partial(tmp_path, 10)
    rows.append(x=np.zeros(3), y=np.zeros(3))
    rows.close()
    shutil.copytree(tmp_path / "partial", tmp_path / "kept")
    for harm in ("number", "column", "list"):
        shutil.rmtree(tmp_path / "partial", ignore_errors=True)
        shutil.copytree(tmp_path / "kept", tmp_path / "partial")
        if harm != "number":
            (tmp_path / "partial" / ("y.npy" if harm == "column" else "columns.json")).unlink()
        assert Partial(tmp_path, 11 if harm == "number" else 10).rows == 0
        assert not (tmp_path / "partial").exists()


REFUSED = {
    "setting": (("seed=3",), "seed was 0, is now 3"),
    "group": (("sampler=heun",), "sampler._target_ was"),
    "number": (("n=41",), "n was 40, is now 41"),
}


def test_another_setting_or_file_is_refused_by_its_name(cli, tmp_path, stopped):
    np.savez(tmp_path / "mix.npz", weights=[1.0], means=np.zeros((1, 2)), covs=np.eye(2)[None])
    words = (*POINTS, "network.file=mix.npz", "out=s")
    done = stopped(cli, *words)
    assert "16 of 40 samples are in s/partial; to go on: the same command with out=s resume=auto" in done.err
    before = {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()}
    for more, sentence in REFUSED.values():
        done = cli(*words, *more, "resume=auto")
        assert done.code == 2 and sentence in done.err, done.err
    np.savez(tmp_path / "mix.npz", weights=[1.0], means=np.ones((1, 2)), covs=np.eye(2)[None])
    done = cli(*words, "resume=auto")
    assert done.code == 2 and "another network.file: its content has changed" in done.err
    assert cli(*words).code == 2  # without resume=auto it is another run that would be lost
    for other in ("nll network=exact data=mixture", "sample network=exact data=mixture resume=soon"):
        assert cli(*other.split(), "out=s", *([] if "soon" in other else ["resume=auto"])).code == 2
    assert before == {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()}
    done = cli(*words, "overwrite=true")
    assert done.code == 0 and "going on" not in done.out
    assert not (tmp_path / "s/partial").exists()


def test_a_checkpoint_counts_by_its_content(cli, tmp_path, stopped):
    train = ("train", "network=kde", "sde=ve", "data=moons", "preview.every=0")
    for name, n in (("a", 50), ("b", 60)):
        assert cli(*train, f"data.n={n}", f"out={name}").code == 0
    words = ("sample", "n=40", "batch_size=16", "steps=1", "sampler=ddim", "out=s")
    (tmp_path / "m.ckpt").write_bytes((tmp_path / "a/checkpoints/last.ckpt").read_bytes())
    stopped(cli, *words, "ckpt=m.ckpt")
    (tmp_path / "m.ckpt").write_bytes((tmp_path / "b/checkpoints/last.ckpt").read_bytes())
    done = cli(*words, "ckpt=m.ckpt", "resume=auto")
    assert done.code == 2 and "another ckpt: its content has changed" in done.err
    done = cli(*words, "ckpt=a/checkpoints/last.ckpt", "resume=auto")
    assert done.code == 0 and "going on at sample 16 of 40" in done.out, done.err


def test_where_nothing_is_there_it_begins(cli, tmp_path):
    assert cli(*POINTS, "resume=auto").code == 2  # without out= there is nowhere to look
    done = cli(*POINTS, "resume=auto", "out=new")
    assert done.code == 0 and "going on" not in done.out
    record = json.loads((tmp_path / "new/run.json").read_text())
    (tmp_path / "new/run.json").write_text(json.dumps(record | {"status": "running"}))  # killed before its first row
    (tmp_path / "new/samples.npy").unlink()
    done = cli(*POINTS, "resume=auto", "out=new")
    assert done.code == 0 and "going on" not in done.out, done.err
    assert len(np.load(tmp_path / "new/samples.npy")) == 40


@pytest.mark.parametrize("more", [("trajectory=true",), ("label=all",), ("start=noise.npy",)])
def test_what_goes_with_the_samples_is_there_as_if_nothing_had_happened(cli, tmp_path, stopped, more):
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).normal(size=(40, 2)))
    assert cli(*POINTS, *more, "out=whole").code == 0
    stopped(cli, *POINTS, *more, "out=s")
    done = cli(*POINTS, *more, "out=s", "resume=auto")
    assert done.code == 0 and "going on at sample 16 of 40" in done.out, done.err
    names = {p.name for p in Path("whole").iterdir()} - {"run.json"}
    assert names == {p.name for p in Path("s").iterdir()} - {"run.json"}
    for name in names:
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_job_that_its_scheduler_starts_again_goes_on_without_being_told(cli, tmp_path, stopped, monkeypatch):
    whole = cli(*POINTS, "out=whole")
    assert whole.code == 0, whole.err
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    stopped(cli, *POINTS, "out=run")
    twice = cli(*POINTS, "out=run")  # typed once more in the same allocation
    assert (twice.code, "already holds a run" in twice.err) == (2, True)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert cli(*POINTS, "out=run", "resume=never").code == 2
    again = cli(*POINTS, "out=run")
    assert again.code == 0, again.err
    assert "going on at sample 16 of 40" in again.out
    assert (tmp_path / "run/samples.npy").read_bytes() == (tmp_path / "whole/samples.npy").read_bytes()
    monkeypatch.setenv("SLURM_JOB_ID", "8")  # another job, whose own restart says nothing of this run
    assert cli(*POINTS, "out=run").code == 2
