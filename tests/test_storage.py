"""Mirrors of runs, in a folder and on a server that speaks S3's language."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import boto3
import pytest
import yaml

from jaxrl import pipelines, storage, strict_yaml, training
from jaxrl.commands import evaluate, mirror, pipeline, train
from jaxrl.errors import UserError
from jaxrl.runs import load_policy
from jaxrl.storage import FolderStore, Mirror, S3Store
from tests.test_checkpoint import assert_same
from tests.test_pipeline import SMALL

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret-example"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with the bucket "bucket": its port, and the folder in which it keeps its objects."""
    folder, port = tmp_path_factory.mktemp("s3"), free_port()
    (folder / "bucket").mkdir()
    program = Path(sys.executable).parent / "rclone"
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", ",".join(KEYS.values()), folder]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet)
    deadline = time.monotonic() + 30
    while not answers(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    yield port, folder
    process.kill()
    process.wait()


@pytest.fixture
def s3(server, monkeypatch, tmp_path):
    """Points boto3 to the server; returns the folder of the bucket's objects, which is empty."""
    port, folder = server
    point_to(monkeypatch, port)
    for page in client().get_paginator("list_objects_v2").paginate(Bucket="bucket"):
        for item in page.get("Contents", ()):
            client().delete_object(Bucket="bucket", Key=item["Key"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(storage, "EVERY", 0.05)
    monkeypatch.setattr(storage, "WAITS", (0.05, 0.2))
    return folder / "bucket"


def point_to(monkeypatch, port):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")


def client():
    return boto3.client("s3")


def make_files(folder, sizes):
    for i, (name, size) in enumerate(sizes.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(size) if i else b"x" * size)


def contents(folder):
    """Bytes of all files of a folder, without those that a mirror leaves out, and without those
    that the server itself makes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        made = name.endswith((".lock", storage.COMPLETE)) or ".rclone_temp" in name
        if path.is_file() and not made:
            found[name] = path.read_bytes()
    return found


CHECKPOINTS = {
    "config.yaml": 20,
    "checkpoints/100/train/a": 3000,
    "checkpoints/100/policy/b": 70_000,
    "best/50/policy/c": 10,
    ".lock": 5,
    "checkpoints/200.orbax-checkpoint-tmp/x": 9,
}


@pytest.fixture(params=["folder", "s3"])
def store(request, s3, tmp_path):
    """A store, and the folder in which its files are."""
    if request.param == "s3":
        return S3Store("s3://bucket/a/run"), s3 / "a/run"
    return FolderStore(tmp_path / "mirror/run"), tmp_path / "mirror/run"


def test_a_mirror_follows_the_folder(store, tmp_path):
    place, there = store
    run = tmp_path / "run"
    make_files(run, CHECKPOINTS)
    assert Mirror(run, place).finish()
    expected = {n: b for n, b in contents(run).items() if "tmp" not in n}
    assert contents(there) == expected and len(expected) == 4
    # A newer checkpoint replaces the oldest one, and a file grows.
    make_files(run, {"config.yaml": 30, "checkpoints/300/train/a": 100})
    shutil.rmtree(run / "checkpoints/100")
    assert Mirror(run, place).finish()
    assert contents(there) == {n: b for n, b in contents(run).items() if "tmp" not in n}
    assert sorted(place.checkpoints()) == ["best/50", "checkpoints/300"]
    copy = tmp_path / "copies/run"
    copy.parent.mkdir()
    storage.fetch(place.place, copy)
    assert contents(copy) == contents(there)


def test_what_is_there_is_not_sent_again(s3, tmp_path, monkeypatch):
    """An uploader that is killed in the middle of a checkpoint leaves nothing that can be read as
    one; the next one sends only the rest."""
    run = tmp_path / "run"
    sizes = {f"checkpoints/100/train/{i}": 1000 + i for i in range(6)}
    make_files(run, sizes)
    sent, real = [], S3Store._put

    def put(self, name, path, digest):
        if len(sent) == 4:
            raise KeyboardInterrupt  # as a kill: nothing handles it
        sent.append(name)
        real(self, name, path, digest)

    monkeypatch.setattr(S3Store, "_put", put)
    with pytest.raises(KeyboardInterrupt):
        Mirror(run, S3Store("s3://bucket/run")).update()
    assert S3Store("s3://bucket/run").checkpoints() == []
    assert S3Store("s3://bucket/run").files() == {}
    with pytest.raises(UserError, match="there is no run"):
        storage.fetch("s3://bucket/run", tmp_path / "copy")
    monkeypatch.setattr(S3Store, "_put", real)
    counted = []
    monkeypatch.setattr(
        S3Store, "_put", lambda self, *args: (counted.append(args[0]), real(self, *args))
    )
    assert Mirror(run, S3Store("s3://bucket/run")).finish()
    assert sorted([*sent, *counted]) == sorted(sizes)
    assert contents(s3 / "run") == contents(run)
    # Another checkpoint of the same step replaces it.
    make_files(run, {"checkpoints/100/train/3": 50})
    store = S3Store("s3://bucket/run")
    store.put_checkpoint("checkpoints/100", run / "checkpoints/100")
    assert contents(s3 / "run") == contents(run)


class Proxy:
    """Passes connections on to a server, until so many bytes have gone through it; then it cuts
    them, and refuses others until `mended`."""

    def __init__(self, port, limit):
        self.target, self.left, self.port = port, limit, free_port()
        self.cut = threading.Event()
        self.mended = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            if self.cut.is_set() and not self.mended.is_set():
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self.target))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self.copy, args=pair, daemon=True).start()

    def copy(self, source, target):
        try:
            while data := source.recv(65536):
                self.left -= len(data)
                if self.left < 0 and not self.mended.is_set():
                    self.cut.set()
                    break
                target.sendall(data)
        except OSError:
            pass
        for side in (source, target):
            side.close()


def test_a_lost_connection_is_caught_up(server, s3, tmp_path, monkeypatch, capfd):
    proxy = Proxy(server[0], 600_000)
    point_to(monkeypatch, proxy.port)
    run = tmp_path / "run"
    make_files(run, {f"checkpoints/100/train/{i}": 200_000 for i in range(10)})
    place = Mirror(run, S3Store("s3://bucket/run"))
    place.start()
    assert proxy.cut.wait(20)
    make_files(run, {"checkpoints/200/train/0": 1000, "progress.csv": 7})
    deadline = time.monotonic() + 60
    while not place._is_behind and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not (s3 / "run/checkpoints/100.complete.json").exists()
    proxy.mended.set()
    assert place.close()
    assert contents(s3 / "run") == contents(run)
    said = capfd.readouterr().err
    assert "training goes on, and this is tried again" in said
    assert "s3://bucket/run is up to date again" in said
    for secret in KEYS.values():
        assert secret not in said


def test_a_mirror_that_stays_behind_is_said(s3, tmp_path, capfd, monkeypatch):
    make_files(tmp_path / "run", {"config.yaml": 10})
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    place = Mirror(tmp_path / "run", S3Store("s3://bucket/run"))
    assert not place.finish(patience=0.1)
    said = capfd.readouterr().err
    assert f"run: python -m jaxrl.mirror {tmp_path}/run s3://bucket" in said


def test_damaged_contents_are_not_read(s3, tmp_path):
    run = tmp_path / "run"
    make_files(run, CHECKPOINTS)
    assert Mirror(run, S3Store("s3://bucket/run")).finish()
    good = (run / "checkpoints/100/policy/b").read_bytes()
    for wrong in (good[:-1], good[:-1] + bytes([good[-1] ^ 1])):
        client().put_object(Bucket="bucket", Key="run/checkpoints/100/policy/b", Body=wrong)
        with pytest.raises(UserError, match="policy/b: contents differ from what was sent"):
            storage.fetch("s3://bucket/run", tmp_path / "copy")
        assert not list(tmp_path.glob("*copy*"))
    evil = json.dumps({"files": {"../../evil": {"size": 1, "sha256": ""}}}).encode()
    key = "run/checkpoints/100.complete.json"
    client().put_object(Bucket="bucket", Key=key, Body=evil)
    with pytest.raises(UserError, match="has a file outside of its folder"):
        storage.fetch("s3://bucket/run", tmp_path / "copy")


# -- runs -----------------------------------------------------------------------------


def settings(tmp_path, steps=256):
    (tmp_path / "s.yaml").write_text(strict_yaml.dump(SMALL | {"total_timesteps": steps}))
    return ["--config", str(tmp_path / "s.yaml")]


def test_a_run_goes_on_from_its_mirror(s3, tmp_path, capfd):
    """What is resumed from S3 on another machine equals a run that stayed where it was."""
    here = [*settings(tmp_path), "--storage", "s3://bucket/runs", "--out", "there/run"]
    assert train.main(here) == 0
    assert contents(s3 / "runs/run") == contents(tmp_path / "there/run")
    longer = ["--total_timesteps", "512"]
    assert train.main(["--resume", "s3://bucket/runs/run", *longer]) == 0
    assert train.main(["--resume", "there/run", *longer]) == 0
    one, two = (load_policy(f"{p}/run/checkpoints") for p in ("there", "checkpoints"))
    assert_same(one.params, two.params)
    with pytest.raises(UserError, match="checkpoints/run exists already; continue it with"):
        train.main(["--resume", "s3://bucket/runs/run"])
    with pytest.raises(UserError, match="already holds a run; continue it with --resume s3://b"):
        train.main([*here[:-1], "other/run"])
    capfd.readouterr()
    for address in ("runs/run", "runs/run/checkpoints/512"):
        assert evaluate.main([f"s3://bucket/{address}", "--episodes", "3"]) == 0
    assert "checkpoints/512, 3 episodes" in capfd.readouterr().out
    copy = storage.local("s3://bucket/runs/run")
    assert not list(copy.rglob("train"))
    new = [*settings(tmp_path), "--init_from", "s3://bucket/runs/run", "--out", "new"]
    assert train.main(new) == 0
    text = "".join(path.read_text() for path in Path("there/run").glob("*.yaml"))
    assert not any(secret in text for secret in KEYS.values())


def test_a_run_without_its_mirror_is_trained_to_the_end(s3, tmp_path, monkeypatch, capfd):
    out = [*settings(tmp_path), "--storage", "s3://bucket/runs", "--out", "run"]
    real, calls = S3Store._put, []

    def failing(self, name, path, digest):
        calls.append(name)
        if len(calls) < 8:
            raise ConnectionError("the cable is out")
        real(self, name, path, digest)

    monkeypatch.setattr(S3Store, "_put", failing)
    assert train.main(out) == 0
    assert "the cable is out; training goes on" in capfd.readouterr().err
    assert contents(s3 / "runs/run") == contents(tmp_path / "run")


def test_a_pipeline_goes_on_from_its_mirror(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines.Pipeline, "_write_page", lambda self: None)
    settings(tmp_path)
    rows = [
        {"name": name, "config": "s.yaml", "use_previous_checkpoint": name == "b"}
        for name in ("a", "b")
    ]
    (tmp_path / "p.yaml").write_text(strict_yaml.dump({"name": "p", "sessions": rows}))
    given = ["--config", "p.yaml", "--use-s3", "--s3-bucket", "bucket"]
    real = training.train

    def breaks(config, resume=None, callbacks=()):
        if config.train.init_from:
            raise KeyboardInterrupt
        return real(config, resume, callbacks)

    monkeypatch.setattr(training, "train", breaks)
    with pytest.raises(KeyboardInterrupt):
        pipeline.main(given)
    shutil.move("checkpoints", "lost")
    monkeypatch.setattr(training, "train", real)
    assert pipeline.main([*given, "--resume"]) == 0
    state = json.loads((s3 / "p/pipeline_state.json").read_text())
    assert state["sessions_completed"] == ["a", "b"]
    assert yaml.safe_load((s3 / "p/b/config.yaml").read_text())["init_from"] == "checkpoints/p/a"
    with pytest.raises(UserError, match="give both, or none of the two"):
        pipeline.main(["--config", "p.yaml", "--use-s3"])


# -- mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("gs://bucket/x", "got 'gs://bucket/x/run', expected a folder, or s3://bucket/prefix"),
        ("s3://key:secret@bucket/x", "expected s3://bucket/prefix, where a bucket has"),
        ("s3://UPPER/x", "expected s3://bucket/prefix, where a bucket has"),
        ("s3://no-such-bucket/x", "The specified bucket does not exist"),
    ],
)
def test_locations_that_cannot_be_used(s3, tmp_path, location, message, capfd):
    with pytest.raises(UserError, match=message) as error:
        train.main([*settings(tmp_path), "--storage", location, "--out", "run"])
    assert "secret" not in str(error.value)


def test_without_boto3(s3, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UserError, match=r"run `pip install 'jaxrl\[aws\]'`"):
        storage.open_store("s3://bucket/x")


def test_the_command(s3, tmp_path, capsys):
    make_files(tmp_path / "run", CHECKPOINTS)
    assert mirror.main(["run", "s3://bucket/x"]) == 0
    assert "s3://bucket/x/run is up to date" in capsys.readouterr().out
    assert (s3 / "x/run/best/50.complete.json").exists()
    for arguments, message in (
        (["run"], "expected FOLDER and LOCATION, got 1"),
        (["nowhere", "s3://bucket/x"], "nowhere: no such folder"),
    ):
        with pytest.raises(UserError, match=message):
            mirror.main(arguments)
