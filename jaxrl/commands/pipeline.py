"""`python -m jaxrl.pipeline`: train several sessions in sequence."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from jaxrl import cli
from jaxrl.errors import UserError

USAGE = """\
usage: python -m jaxrl.pipeline --config FILE [--resume | --start-from NAME] [--output-dir DIR]

Trains the sessions of a pipeline in sequence. A session is a run of jaxrl.train, which can begin
with the policy of an earlier session, is judged by its success criteria, and is tried again with
other settings if it does not meet them.

  --config FILE      the pipeline (YAML; example: configs/pipeline.yaml)
  --resume           continue the pipeline where it was interrupted; without --config, the
                     pipeline in --output-dir
  --start-from NAME  begin again with the session NAME, and with what the sessions before it have
                     trained; what was trained by it and by later ones is moved to DIR/earlier
  --output-dir DIR   folder of the pipeline; default: checkpoints/<name of the pipeline>
  --platform local   where sessions run; "local" is the only choice
  --use-s3           keep a mirror of the pipeline in S3, in the bucket of --s3-bucket; with
                     --resume, a pipeline that is not in DIR is copied from there first
  --s3-bucket NAME   name of the bucket
  --dry_run          check everything, print the sessions, and exit
  --help             print this text and the settings of a pipeline

Written into DIR: a run's folder for each session, pipeline_state.json, pipeline_report.json, and
pipeline_report.html.
"""

FLAGS = {
    "config": True,
    "resume": False,
    "start-from": True,
    "output-dir": True,
    "platform": True,
    "use-s3": False,
    "s3-bucket": True,
    "dry_run": False,
    "help": False,
}


def main(argv: list[str]) -> int:
    positionals, flags, _ = cli.parse(argv, FLAGS)
    if positionals:
        raise UserError(f"unexpected argument {positionals[0]!r}; expected --config FILE")
    if flags.get("help"):
        return _help()
    if flags.get("platform", "local") != "local":
        raise UserError(f"--platform: got {flags['platform']!r}, expected local")
    if flags.get("resume") and flags.get("start-from"):
        raise UserError("--resume, --start-from: give one of the two")
    if bool(flags.get("use-s3")) != bool(flags.get("s3-bucket")):
        raise UserError("--use-s3, --s3-bucket: give both, or none of the two")
    platform = cli.start_jax()
    from jaxrl import pipelines, storage

    config, folder = _find(flags)
    location = f"s3://{flags['s3-bucket']}" if flags.get("use-s3") else config.storage.location
    if flags.get("dry_run"):
        for session in pipelines.plan(config, platform):
            print(session)
        return 0
    begun = (folder / pipelines.STATE).exists()
    if flags.get("resume") and location and not begun:
        storage.fetch(storage.join(location, folder), folder)
        begun = True
    pipeline = pipelines.Pipeline(
        config,
        folder,
        platform=platform,
        resume=bool(flags.get("resume")),
        start_from=flags.get("start-from"),
    )
    with contextlib.closing(pipeline), storage.mirrored(folder, location, is_new=not begun):
        return pipeline.run()


def _find(flags: dict[str, Any]) -> tuple[Any, Path]:
    """The pipeline, and its folder."""
    from jaxrl import pipelines

    out = Path(flags["output-dir"]) if flags.get("output-dir") else None
    path = flags.get("config")
    if not path and flags.get("resume") and out:
        path = out / pipelines.COPY
    if not path:
        raise UserError("expected --config FILE (see --help)")
    config = pipelines.read(path)
    return config, out or Path("checkpoints") / config.name


def _help() -> int:
    from jaxrl import pipelines
    from jaxrl.commands.train import print_rows
    from jaxrl.options import describe

    print(USAGE)
    for title, cls in (
        ("Settings of a pipeline:", pipelines.PipelineConfig),
        ("Settings of a session, an item of `sessions`:", pipelines.SessionConfig),
        ("Settings of a retry, an item of `retries`:", pipelines.RetryConfig),
    ):
        print(title)
        print_rows(describe(cls))
    return 0
