"""Further pages of a gallery: what training, evaluation or the demo have to show beside the assets."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from pipeline.report.images import data_uri, webp
from schemas.storage import Location, refuse_links, workspace, write_file

WEB = Path(__file__).parent / "web"
PICTURE_PX = 512
"""Most height of a picture on a further page."""
ASSET = "index.html#open="
"""URL of an asset in its gallery, before its uid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFile:
    """A picture that lies in a file beside its page, which a browser loads when it comes into sight."""

    url: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A headed part of a page: text, a table, a chart, pictures; each may be missing."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    links: str = ""
    """Beginning of the URL that the first cell of each row links to, which ends with the cell: `ASSET` for uids,
    `#` for sections with an `anchor` of that name; empty: no links."""
    anchor: str = ""
    """Name of the section in URLs."""
    more: Mapping[str, str] = field(default_factory=dict)
    """URLs of other pages by their names."""
    legend: bool = False
    """The text is followed by the colours of errors (`pipeline.report.images.error_colors`)."""
    svg: str = ""
    """Trusted markup."""
    pictures: Mapping[str, UInt8[np.ndarray, "height width c"] | PictureFile] = field(default_factory=dict)
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
    return _write(report_folder(dataset) / f"{name}.html", title, summary, sections, home="index.html")


def write_alone(folder: Path, title: str, summary: str, sections: Sequence[Section]) -> Path:
    """Write a page without a gallery, `index.html` in a folder of its own. Raises UserError where that holds a link."""
    refuse_links(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "gallery.css", (WEB / "gallery.css").read_bytes())
    return _write(folder / "index.html", title, summary, sections, home="")


def store_picture(folder: Path, name: str, image: UInt8[np.ndarray, "height width c"]) -> PictureFile:
    """Write a picture of a page in `folder`, as `pictures/NAME.webp`."""
    path = folder / "pictures" / f"{name}.webp"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, webp(image, PICTURE_PX))
    with Image.open(path) as written:
        return PictureFile(url=f"pictures/{path.name}", width=written.width, height=written.height)


def _write(path: Path, title: str, summary: str, sections: Sequence[Section], home: str) -> Path:
    shown = [
        asdict(replace(section, pictures={}))
        | {"figures": [(caption, _attributes(picture)) for caption, picture in section.pictures.items()]}
        for section in sections
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, html("page.html", {"title": title, "summary": summary, "sections": shown, "home": home}))
    return path


def _attributes(picture: UInt8[np.ndarray, "height width c"] | PictureFile) -> dict[str, Any]:
    """Return the attributes of a picture's element."""
    if isinstance(picture, PictureFile):
        return {"src": picture.url, "width": picture.width, "height": picture.height, "loading": "lazy"}
    return {"src": data_uri(picture, PICTURE_PX)}


def html(template: str, values: dict[str, Any]) -> bytes:
    """Fill in a template. Values may come from strangers and are escaped."""
    environment = Environment(loader=FileSystemLoader(WEB), autoescape=True, trim_blocks=True)
    environment.filters["of"] = lambda number, noun: f"{number:,} {noun}{'' if number == 1 else 's'}"
    return environment.get_template(template).render(values).encode()
