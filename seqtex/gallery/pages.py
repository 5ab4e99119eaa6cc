"""Pages of the gallery about a training run and an evaluation."""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.report.charts import loss_curve
from pipeline.report.pages import ASSET, Section, write_page
from schemas.errors import UserError
from schemas.storage import Location
from seqtex.gallery.comparison import evaluation_sections

PICTURE_NAME = re.compile(r"step-(\d+)-(.+)\.png")
"""Name of a validation picture (`training.loop.validation`)."""
PICTURES = 12
"""Most pictures of one mesh, chosen evenly over the run, the last among them."""
MESHES = 24
"""Most meshes with pictures."""


def write_run_page(dataset: Location, run: Path) -> Path:
    """Write the page of a training run: its loss, and for each validation mesh its pictures by step. Raises UserError
    where the folder holds none of them."""
    from training.loop.callbacks import read_losses  # a second, which other pages do not need

    rows = [row for row in read_losses(run / "losses.jsonl") if row.get("loss") is not None]
    pictures = validation_pictures(run / "pictures")
    if not rows and not pictures:
        raise UserError(f"{run}: no losses.jsonl and no pictures; give the folder of --run.directory")
    sections = []
    if rows:
        steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
        text = f"{steps[-1]:,} steps; each step and the running mean, log scale. The last loss is {losses[-1]:.4g}."
        sections.append(Section(title="Training loss", text=text, svg=loss_curve(steps, losses)))
    if pictures:
        text = (
            "A row of each: the image given, generated views and UV map, and the mesh with it from a new viewpoint; "
            "below, the true ones."
        )
        meshes = [(uid, f"{len(shown)}", f"{max(shown):,}") for uid, shown in pictures.items()]
        columns = ("validation mesh", "pictures", "last step")
        sections.append(Section(title="Validation", text=text, columns=columns, rows=meshes, links=ASSET))
    for uid, shown in list(pictures.items())[:MESHES]:
        images = {f"step {step:,}": read_picture(shown[step]) for step in evenly(sorted(shown), PICTURES)}
        sections.append(Section(title=uid, pictures=images, in_a_row=True))
    name = run.absolute().name
    return write_page(
        dataset, page_name("run", name), f"Training run {name}", "Loss and validation pictures.", sections
    )


def validation_pictures(folder: Path) -> dict[str, dict[int, Path]]:
    """List the validation pictures of a run: by uid, then by step."""
    found: defaultdict[str, dict[int, Path]] = defaultdict(dict)
    for path in sorted(folder.glob("*.png")):
        if match := PICTURE_NAME.fullmatch(path.name):
            found[match[2]][int(match[1])] = path
    return dict(found)


def read_picture(path: Path) -> np.ndarray:
    """Read a picture as sRGB. Raises UserError where it cannot be."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it, and run the command again") from error


def evenly(steps: list[int], count: int) -> list[int]:
    """Choose at most `count` of some steps, the first and the last among them."""
    if len(steps) <= count:
        return steps
    return [steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)]


def write_evaluation_page(dataset: Location, file: Path) -> Path:
    """Write the page of an evaluation: means with their intervals, and every mesh, the worst first. Raises UserError
    where the file is not one of `seqtex evaluate --out`."""
    try:
        found = json.loads(file.read_bytes())
        summary = {name: (i["value"], i["low"], i["high"]) for name, i in found["summary"].items()}
        sections = evaluation_sections(summary, [dict(row) for row in found["meshes"]], ASSET)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "give the file that `seqtex evaluate --out` wrote"
        raise UserError(f"{file}: no evaluation ({error}); {remedy}") from error
    name = file.stem
    title = f"Evaluation {name}"
    return write_page(dataset, page_name("evaluation", name), title, f"{len(found['meshes']):,} meshes.", sections)


def page_name(kind: str, name: str) -> str:
    """Return the file name of a page, without characters that mean something in a URL."""
    return f"{kind}-{re.sub('[^A-Za-z0-9_-]+', '-', name)}"
