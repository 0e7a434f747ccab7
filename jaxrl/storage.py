"""Mirrors of runs and pipelines, in another folder or in S3.

A mirror has the same layout as the folder. A checkpoint is mirrored as a whole: in S3, a file
NAME.complete.json, which is written last, lists its files with their sizes and SHA-256; without it
the checkpoint does not exist for anyone who reads the mirror. All other files are mirrored one by
one. Mirroring happens in a thread and never stops training: what fails is tried again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from jaxrl.errors import UserError, reason, tell
from jaxrl.files import replacing

S3 = "s3://"
COMPLETE = ".complete.json"
CHECKPOINT = re.compile(
    r"(?:.*/)?(?:checkpoints|best)/\d+\Z"
)  # a folder that is mirrored as a whole
LEFT_OUT = re.compile(r"(?:\.lock|\.writable|damaged|.*\.part(?:\..*)?|.*orbax-checkpoint-tmp.*)\Z")
EVERY = 5.0  # seconds between two looks for new checkpoints
WAITS = (1.0, 60.0)  # seconds until a failed attempt is repeated: at first, and at most
PATIENCE = 60.0  # seconds without success after which the end of a run no longer waits


class Store(Protocol):
    """A place that holds a mirror.

    Attributes:
      place: its name, for messages.
    """

    place: str

    def files(self) -> dict[str, str]:
        """SHA-256 of the single files, by name; "" where it is not known."""

    def checkpoints(self) -> list[str]:
        """Names of the complete checkpoints, such as "best/1000"."""

    def put_file(self, name: str, path: Path) -> None: ...

    def put_checkpoint(self, name: str, folder: Path) -> None: ...

    def remove_checkpoint(self, name: str) -> None: ...

    def get_file(self, name: str, path: Path) -> None: ...

    def get_checkpoint(self, name: str, folder: Path, *, only_policy: bool) -> None: ...


class Failed(Exception):
    """Something could not be read or written; it may succeed later."""


def open_store(location: str) -> Store:
    """The store at a location: a folder, or s3://bucket/prefix.

    Raises:
      UserError: the location cannot be one, or a library is missing.
    """
    if location.startswith(S3):
        return S3Store(location)
    if re.match(r"\w+://", location):
        raise UserError(f"storage: got {location!r}, expected a folder, or s3://bucket/prefix")
    return FolderStore(Path(location))


class FolderStore:
    """A mirror in a folder, such as that of a network disk."""

    def __init__(self, folder: Path):
        self.folder, self.place = folder, str(folder)

    def files(self) -> dict[str, str]:
        with _failing(self.place):
            return {name: _sha256(path) for name, path in _scan(self.folder)[0].items()}

    def checkpoints(self) -> list[str]:
        with _failing(self.place):
            return list(_scan(self.folder)[1])

    def put_file(self, name: str, path: Path) -> None:
        with _failing(self.place), _into(self.folder / name) as part:
            shutil.copyfile(path, part)

    def put_checkpoint(self, name: str, folder: Path) -> None:
        with _failing(self.place):
            part = self.folder / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(folder, part)
            self.remove_checkpoint(name)
            part.rename(self.folder / name)

    def remove_checkpoint(self, name: str) -> None:
        with _failing(self.place):
            if (self.folder / name).exists():
                shutil.rmtree(self.folder / name)

    def get_file(self, name: str, path: Path) -> None:
        with _failing(self.place), _into(path) as part:
            shutil.copyfile(self.folder / name, part)

    def get_checkpoint(self, name: str, folder: Path, *, only_policy: bool) -> None:
        with _failing(self.place):
            shutil.copytree(self.folder / name, folder)


class S3Store:
    """A mirror in S3, or in a server that speaks its language (AWS_ENDPOINT_URL). Credentials come
    from boto3's own sources: the environment, ~/.aws, or the machine's role."""

    def __init__(self, location: str):
        bucket, _, prefix = location.removeprefix(S3).partition("/")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            raise UserError(
                "storage: expected s3://bucket/prefix, where a bucket has 3 to 63 of the "
                "characters a-z, 0-9, '.', '-'"
            )
        self.bucket, self.prefix = bucket, prefix.strip("/")
        self.place = f"{S3}{bucket}/{self.prefix}"
        try:
            import boto3
            from boto3.s3.transfer import TransferConfig
            from botocore.config import Config
        except ImportError as error:
            raise UserError(
                "storage: S3 needs boto3, which is not installed; run `pip install 'jaxrl[aws]'`"
            ) from error
        retries: Any = {"mode": "standard", "max_attempts": 3}
        config = Config(retries=retries, connect_timeout=10, read_timeout=60)
        try:
            self._client = boto3.client("s3", config=config)
        except Exception as error:  # of several kinds, about the configuration
            raise UserError(f"storage: {reason(error)}") from error
        self._transfer = TransferConfig(max_concurrency=4)

    def files(self) -> dict[str, str]:
        return {
            name: self._stored(name)[1]
            for name in self._names()
            if not name.endswith(COMPLETE) and not self._is_in_checkpoint(name)
        }

    def checkpoints(self) -> list[str]:
        return [n.removesuffix(COMPLETE) for n in self._names() if n.endswith(COMPLETE)]

    def put_file(self, name: str, path: Path) -> None:
        # A copy is sent: the file itself may grow meanwhile.
        with _failing(self.place), tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            shutil.copyfile(path, copy)
            self._put(name, copy, _sha256(copy))

    def put_checkpoint(self, name: str, folder: Path) -> None:
        with _failing(self.place):
            content: dict[str, dict[str, Any]] = {
                str(path.relative_to(folder)): {
                    "size": path.stat().st_size,
                    "sha256": _sha256(path),
                }
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            marker = f"{name}{COMPLETE}"
            if marker in self._names(marker):
                self._delete([marker])
            for file, facts in content.items():
                key = f"{name}/{file}"
                if self._stored(key) != (facts["size"], facts["sha256"]):
                    self._put(key, folder / file, facts["sha256"])
            body = json.dumps({"files": content}).encode()
            self._client.put_object(Bucket=self.bucket, Key=self._key(marker), Body=body)

    def remove_checkpoint(self, name: str) -> None:
        with _failing(self.place):
            self._delete([f"{name}{COMPLETE}"])
            self._delete(self._names(f"{name}/"))

    def get_file(self, name: str, path: Path) -> None:
        with _failing(self.place), _into(path) as part:
            self._client.download_file(self.bucket, self._key(name), str(part))
            digest = self._stored(name)[1]
            if digest and _sha256(part) != digest:
                raise Failed(f"{self.place}/{name}: contents differ from what was sent")

    def get_checkpoint(self, name: str, folder: Path, *, only_policy: bool) -> None:
        with _failing(self.place):
            key = self._key(f"{name}{COMPLETE}")
            body = self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            for file, facts in json.loads(body)["files"].items():
                if only_policy and file.startswith(("train/", "replay/")):
                    continue
                path = folder / file
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise Failed(f"{self.place}/{name}: has a file outside of its folder: {file}")
                with _into(path) as part:
                    self._client.download_file(self.bucket, self._key(f"{name}/{file}"), str(part))
                    if part.stat().st_size != facts["size"] or _sha256(part) != facts["sha256"]:
                        raise Failed(
                            f"{self.place}/{name}/{file}: contents differ from what was sent"
                        )

    def _is_in_checkpoint(self, name: str) -> bool:
        """Whether a file belongs to a checkpoint, complete or not."""
        parts = name.split("/")
        return any(CHECKPOINT.match("/".join(parts[:i])) for i in range(1, len(parts)))

    def _names(self, start: str = "") -> list[str]:
        """Names of the objects whose name begins with `start`."""
        with _failing(self.place):
            root = f"{self.prefix}/" if self.prefix else ""
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=root + start
            )
            return [
                item["Key"].removeprefix(root)
                for page in pages
                for item in page.get("Contents", ())
            ]

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _stored(self, name: str) -> tuple[int, str]:
        """Size and SHA-256 of an object; (-1, "") if it does not exist."""
        from botocore.exceptions import ClientError

        try:
            head = self._client.head_object(Bucket=self.bucket, Key=self._key(name))
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
                return -1, ""
            raise
        facts = {key.lower(): value for key, value in head["Metadata"].items()}
        return head["ContentLength"], facts.get("sha256", "")

    def _put(self, name: str, path: Path, digest: str) -> None:
        self._client.upload_file(
            str(path),
            self.bucket,
            self._key(name),
            ExtraArgs={"Metadata": {"sha256": digest}, "ChecksumAlgorithm": "SHA256"},
            Config=self._transfer,
        )

    def _delete(self, names: list[str]) -> None:
        for name in names:
            self._client.delete_object(Bucket=self.bucket, Key=self._key(name))


# -- mirroring ------------------------------------------------------------------------


class Mirror:
    """Keeps a mirror of a folder up to date, in a thread, until `close`.

    Args:
      folder: the folder of a run or a pipeline.
      store: the place of the mirror.
    """

    def __init__(self, folder: Path, store: Store):
        self.folder, self.store = folder, store
        self._sent: dict[str, str] | None = None  # SHA-256 of the files there; None: not known yet
        self._there: set[str] = set()  # checkpoints there
        self._seen: dict[str, tuple[float, int]] = {}  # (time, size) of files when they were sent
        self._ending = threading.Event()
        self._is_behind = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self, patience: float = PATIENCE) -> bool:
        """Ends the thread, and brings the mirror up to date; returns whether that has succeeded.

        Args:
          patience: seconds after which attempts that fail are given up.
        """
        self._ending.set()
        self._thread.join()
        return self.finish(patience)

    def finish(self, patience: float = PATIENCE) -> bool:
        """Brings the mirror up to date; returns whether that has succeeded."""
        deadline, wait = time.monotonic() + patience, WAITS[0]
        while not self.update():
            if time.monotonic() + wait > deadline:
                tell(
                    f"{self.store.place} is not complete; when it can be reached again, run: "
                    f"python -m jaxrl.mirror {self.folder} {_parent(self.store.place)}"
                )
                return False
            time.sleep(wait)
            wait = min(2 * wait, WAITS[1])
        return True

    def _work(self) -> None:
        wait, known = EVERY, set[str]()
        while not self._ending.wait(wait):
            local = set(_scan(self.folder)[1])
            if local == known and not self._is_behind:
                continue
            if self.update():
                wait, known = EVERY, local
            else:
                wait = min(max(2 * wait, WAITS[0]), WAITS[1])

    def update(self) -> bool:
        """Sends what is new and removes checkpoints that were deleted; returns whether that has
        succeeded. Says when the place can no longer be reached, and when it can again."""
        try:
            self._update()
        except Failed as error:
            if not self._is_behind:
                tell(f"storage: {error}; training goes on, and this is tried again")
            self._is_behind = True
            return False
        if self._is_behind:
            tell(f"storage: {self.store.place} is up to date again")
        self._is_behind = False
        return True

    def _update(self) -> None:
        if self._sent is None:
            self._there, self._sent = set(self.store.checkpoints()), self.store.files()
        files, checkpoints = _scan(self.folder)
        for name, folder in checkpoints.items():
            if name not in self._there:
                with _vanishing(folder):  # deleted by the run, which has newer ones
                    self.store.put_checkpoint(name, folder)
                    self._there.add(name)
        for name, path in files.items():
            with _vanishing(path):
                facts = path.stat()
                state = (facts.st_mtime, facts.st_size)
                if self._seen.get(name) == state:
                    continue
                digest = _sha256(path)
                if self._sent.get(name) != digest:
                    self.store.put_file(name, path)
                    self._sent[name] = digest
                self._seen[name] = state
        for name in self._there - set(checkpoints):
            self.store.remove_checkpoint(name)
            self._there.discard(name)


@contextlib.contextmanager
def mirrored(folder: Path, location: str | None, *, is_new: bool) -> Iterator[None]:
    """Context manager that mirrors a folder to LOCATION/<name of the folder> while it is open.

    Args:
      folder: the folder of a run or a pipeline.
      location: a folder, or s3://bucket/prefix; None: does nothing.
      is_new: whether the mirror must not exist yet.

    Raises:
      UserError: the location cannot be used, or holds another run of that name.
    """
    if location is None:
        yield
        return
    store = open_store(join(location, folder))
    if is_new:
        try:
            taken = store.files() or store.checkpoints()
        except Failed as error:
            raise UserError(f"storage: {error}") from error
        if taken:
            raise UserError(
                f"storage: {store.place} already holds a run; continue it with --resume "
                f"{store.place}, or choose another --storage or --out"
            )
    mirror = Mirror(folder, store)
    mirror.start()
    try:
        yield
    finally:
        mirror.close()


def join(location: str, folder: Path) -> str:
    """The place of a folder's mirror at a location."""
    return f"{location.rstrip('/')}/{folder.resolve().name}"


def _parent(place: str) -> str:
    return place.rpartition("/")[0]


# -- reading --------------------------------------------------------------------------


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address in S3. (As a `Path` it has lost one of its slashes.)"""
    return str(path).startswith(("s3:/", S3))


def fetch(location: str, folder: Path, *, only_policy: bool = False) -> None:
    """Copies a mirror into a folder that does not exist yet; after an error it still does not.

    Args:
      location: address of a run, a pipeline, or a folder in one of them.
      folder: the folder.
      only_policy: leave out the parts of checkpoints that only training needs.

    Raises:
      UserError: there is nothing, or it cannot be read.
    """
    store = open_store(location)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        checkpoints, files = store.checkpoints(), store.files()
        if not checkpoints and not files:
            raise UserError(f"{location}: there is no run")
        for name in checkpoints:
            store.get_checkpoint(name, part / name, only_policy=only_policy)
        for name in files:
            store.get_file(name, part / name)
        part.rename(folder)
    except Failed as error:
        raise UserError(str(error)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def local(path: str | Path) -> Path:
    """A path that can be read: for an address in S3, that of a copy without what only training
    needs, which is made anew.

    Raises:
      UserError: there is nothing at the address, or it cannot be read.
    """
    if not is_remote(path):
        return Path(path)
    location = _address(path)
    name = location.removeprefix(S3).strip("/")
    folder = Path(tempfile.gettempdir()) / f"jaxrl-mirrors-{os.getuid()}" / name
    match = re.fullmatch(r"(.*)/((?:checkpoints|best)/\d+)", name)
    root, only = (match[1], match[2]) if match else (name, None)
    folder = folder if only is None else folder.parent.parent
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fetch(f"{S3}{root}", folder, only_policy=True)
    return folder if only is None else folder / only


def resumed(path: str | Path) -> Path:
    """The folder of a run to continue: for an address in S3, checkpoints/<name>, with a complete
    copy of what is there.

    Raises:
      UserError: there is nothing at the address, or the folder exists.
    """
    if not is_remote(path):
        return Path(path)
    location = _address(path)
    folder = Path("checkpoints") / location.rstrip("/").rpartition("/")[2]
    if folder.exists():
        raise UserError(
            f"--resume {location}: {folder} exists already; continue it with --resume {folder}, or "
            "move it away"
        )
    folder.parent.mkdir(exist_ok=True)
    fetch(location, folder)
    return folder


def _address(path: str | Path) -> str:
    return S3 + re.sub(r"s3:/+", "", str(path))


def _scan(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Single files, and complete checkpoints, of a folder by their names."""
    files: dict[str, Path] = {}
    checkpoints: dict[str, Path] = {}

    def look(inside: Path, start: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for entry in sorted(os.scandir(inside), key=lambda entry: entry.name):
                name = f"{start}{entry.name}"
                if LEFT_OUT.match(entry.name):
                    continue
                if entry.is_dir() and CHECKPOINT.match(name):
                    checkpoints[name] = Path(entry.path)
                elif entry.is_dir():
                    look(Path(entry.path), f"{name}/")
                elif entry.is_file():
                    files[name] = Path(entry.path)

    look(folder, "")
    return files, checkpoints


@contextlib.contextmanager
def _into(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        yield part


@contextlib.contextmanager
def _vanishing(path: Path) -> Iterator[None]:
    """Ignores errors about a file or folder that does not exist any more."""
    try:
        yield
    except (Failed, OSError):
        if path.exists():
            raise


@contextlib.contextmanager
def _failing(place: str) -> Iterator[None]:
    """Turns all errors of reading and writing into `Failed`."""
    try:
        yield
    except (Failed, KeyboardInterrupt):
        raise
    except Exception as error:  # of many kinds, from the network and from boto3
        raise Failed(f"{place}: {reason(error)}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
