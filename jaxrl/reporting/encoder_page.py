"""A page about the pretraining of an image encoder."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.logs import columns, readable
from jaxrl.logs.sinks import read_csv
from jaxrl.options import flatten, to_dict
from jaxrl.reporting import pages


def page(
    folder: Path,
    config: Any,
    result: dict[str, Any],
    originals: np.ndarray,
    reconstructions: np.ndarray,
) -> str:
    """The HTML page.

    Args:
      folder: folder with progress.csv.
      config: settings of the pretraining.
      result: errors and seconds, from `pretrain`.
      originals, reconstructions: [N, H, W, C] images with values from 0 to 1.
    """
    pages.need_matplotlib()
    unit = f" {config.unit}" if config.unit else ""
    facts = [
        ["error on images that were not learned", f"{result['rmse']:.4g}{unit}"],
        ["error of the mean image", f"{result['rmse_of_the_mean_image']:.4g}{unit}"],
        ["images learned", f"{result['images']:,}"],
        ["seconds", readable(result["seconds"])],
    ]
    settings = [[html.escape(k), html.escape(str(v))] for k, v in flatten(to_dict(config)).items()]
    return pages.document(
        f"Encoder {folder.name}",
        [
            f"<h1>Encoder {html.escape(folder.name)}</h1>",
            pages.table(["root mean square error", ""], facts),
            pages.plots("Learning", _curves(folder, unit)),
            pages.plots(
                "Images, and what their codes say", [_pictures(originals, reconstructions)]
            ),
            "<h2>Settings</h2>" + pages.table(["setting", "value"], settings, kind="texts"),
        ],
    )


def _curves(folder: Path, unit: str) -> list[str]:
    rows, _ = read_csv(folder / "progress.csv")
    images = []
    for name, title, label in (
        ("eval/rmse", "Error on images that were not learned", f"RMSE{unit and f' ({unit[1:]})'}"),
        ("loss", "Loss", "squared error / variance"),
    ):
        figure, axis = pages.axes(title, label, "images")
        axis.plot([float(r[columns.STEPS]) for r in rows], [float(r[name]) for r in rows])
        axis.set_yscale("log")
        images.append(pages.image(figure, title))
    return images


def _pictures(originals: np.ndarray, reconstructions: np.ndarray) -> str:
    """Rows: images, reconstructions, and ten times their difference; a column for each image and,
    unless they are three colours, for each channel."""
    from matplotlib.figure import Figure

    def tiles(images: np.ndarray) -> list[np.ndarray]:
        if images.shape[-1] == 3:
            return list(np.clip(images, 0, 1))
        return [image[..., c] for image in images for c in range(image.shape[-1])]

    rows = [tiles(originals), tiles(reconstructions), tiles(reconstructions - originals)]
    count = len(rows[0])
    figure = Figure(figsize=(1.1 * count, 3.4), layout="constrained")
    for axes, images, label in zip(
        figure.subplots(3, count, squeeze=False),
        rows,
        ("image", "from its code", "difference x 10"),
        strict=True,
    ):
        for axis, image in zip(axes, images, strict=True):
            signed = label.startswith("difference")
            low, high, colors = (-0.1, 0.1, "RdBu") if signed else (0.0, 1.0, "gray")
            shown = 0.5 + 5 * image if signed and image.ndim == 3 else image
            axis.imshow(
                np.clip(shown, 0, 1) if shown.ndim == 3 else shown, colors, vmin=low, vmax=high
            )
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(label, fontsize=8)
    return pages.image(figure, "images and reconstructions")
