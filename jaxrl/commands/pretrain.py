"""`python -m jaxrl.pretrain`: train an image encoder before a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxrl import cli
from jaxrl.commands.train import print_rows
from jaxrl.errors import UserError, tell
from jaxrl.files import check_writable, write_text
from jaxrl.options import merge

USAGE = """\
usage: python -m jaxrl.pretrain --config FILE [--SETTING VALUE ...]

Trains an autoencoder of the images that a task observes, and writes its encoder. The task's
setting `encoder` names it: a policy then observes the encoder's code, and not the image.

  --config FILE    read settings from a YAML file, such as configs/depth_encoder.yaml
  --env.SETTING VALUE
                   a setting of the task
  --help           print this text and all settings

Written into the folder --out: encoder.npz, progress.csv, tensorboard/, result.json, and
report.html with pictures of images and what their codes say about them.
"""


def main(argv: list[str]) -> int:
    positionals, flags, settings = cli.parse(argv, {"config": True, "help": False}, settings=True)
    if positionals:
        raise UserError(f"unexpected argument {positionals[0]!r}; give settings as --KEY VALUE")
    if flags.get("help"):
        print(USAGE)
    else:
        cli.start_jax()
    from jaxrl.config import read_yaml, resolve
    from jaxrl.options import build, describe
    from jaxrl.pretraining import PretrainConfig, pretrain

    values = merge(read_yaml(flags["config"]) if flags.get("config") else {}, settings)
    task_values: dict[str, Any] = {
        key: values.pop(key) for key in ("env", "eval_overrides") if key in values
    }
    config = build(PretrainConfig, values)
    if flags.get("help"):
        print_rows(describe(PretrainConfig, default=config))
        return 0
    run = resolve(task_values, platform="none")
    folder = Path(config.out or f"encoders/{run.task.replace(':', '-')}")
    if (folder / "encoder.npz").exists():
        raise UserError(f"out: {folder} already holds an encoder; choose another --out")
    check_writable(folder / "encoder.npz")
    result = pretrain(config, run.env, run.eval_env, folder, tell)
    _write(folder, config, run, result)
    unit = f" {config.unit}" if config.unit else ""
    print(
        f"error on images that were not learned: {result['rmse']:.4g}{unit} (of the mean image: "
        f"{result['rmse_of_the_mean_image']:.4g}{unit}), {result['seconds'] / 60:.1f} min\n"
        f"written to {folder}/; a task observes codes with --env.encoder {folder}"
    )
    return 0


def _write(folder: Path, config: Any, run: Any, result: dict[str, Any]) -> None:
    """Writes result.json and, if Matplotlib is installed, report.html."""
    from jaxrl.options import to_dict
    from jaxrl.runs import hardware, write_json

    pictures = result.pop("originals"), result.pop("reconstructions")
    settings = {"env": run.to_dict()["env"], **to_dict(config)}
    del settings["out"]
    write_json(folder / "result.json", result | {"settings": settings, "hardware": hardware()})
    try:
        from jaxrl.reporting import encoder_page

        write_text(folder / "report.html", encoder_page.page(folder, config, result, *pictures))
    except UserError as error:  # without Matplotlib
        tell(f"no report: {error}")
