"""Further pages of a gallery: what training, evaluation or the demo have to show beside the assets."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, FileSystemLoader

from pipeline.report.images import data_uri
from schemas.storage import Location, refuse_links, workspace, write_file

WEB = Path(__file__).parent / "web"
PICTURE_PX = 512
"""Most height of a picture on a further page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A headed part of a page: text, a table, a chart, pictures; each may be missing."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    uids: bool = False
    """The first cell of each row is the uid of an asset, and links to it."""
    svg: str = ""
    """Trusted markup."""
    pictures: Mapping[str, UInt8[np.ndarray, "height width 3"]] = field(default_factory=dict)
    """Images by caption."""
    in_a_row: bool = False
    """The pictures stand in one row to scroll through, such as those of one mesh during training."""


def report_folder(dataset: Location) -> Path:
    """Return the folder of a dataset's gallery, on this machine. Raises UserError where the dataset holds a link."""
    refuse_links(workspace(dataset))
    return workspace(dataset) / "report"


def page_names(folder: Path) -> list[str]:
    """List the names of the further pages of a gallery."""
    return sorted(path.stem for path in folder.glob("*.html") if path.name != "index.html")


def write_page(dataset: Location, name: str, title: str, summary: str, sections: Sequence[Section]) -> Path:
    """Write a further page of a dataset's gallery, `report/NAME.html`; the index that is written next links to it."""
    shown = [
        asdict(replace(section, pictures={}))
        | {"figures": [(caption, data_uri(picture, PICTURE_PX)) for caption, picture in section.pictures.items()]}
        for section in sections
    ]
    path = report_folder(dataset) / f"{name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, html("page.html", {"title": title, "summary": summary, "sections": shown}))
    return path


def html(template: str, values: dict[str, Any]) -> bytes:
    """Fill in a template. Values may come from strangers and are escaped."""
    environment = Environment(loader=FileSystemLoader(WEB), autoescape=True, trim_blocks=True)
    return environment.get_template(template).render(values).encode()
