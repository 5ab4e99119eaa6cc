"""The files of a published dataset: those that its records name, its card with a contact sheet, and nothing else."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pipeline.dataset.attribution import FILE as ATTRIBUTION
from pipeline.dataset.croissant import FILES as RECORDS
from pipeline.dataset.croissant import as_json
from pipeline.publish.contact_sheet import contact_sheet
from pipeline.publish.licences import LicenceReport, licence_report
from pipeline.publish.local_paths import local_paths
from schemas.dataset import LedgerPart, part_path, read_ledger, read_parquet, shard_path
from schemas.errors import UserError
from schemas.storage import file_sha256, write_file

CARD, CROISSANT = "README.md", "croissant.json"
CONTACT_SHEET = "contact_sheet.webp"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """A file of the published dataset."""

    path: str
    """Relative to the repository's root."""
    source: Path
    """The file of this machine with its bytes."""
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The licences of a dataset, and the paths of this machine in its records."""

    licences: LicenceReport
    local_paths: list[str]


def permitted(dataset: Path, include_restricted: bool, include_paths: bool) -> Findings:
    """Return the licences and local paths of a dataset that may be published.

    Raises UserError naming everything that stands against it and the option that includes it nevertheless."""
    licences = licence_report(read_parquet(dataset / ATTRIBUTION))
    paths = local_paths(dataset, read_ledger(dataset))
    lines = []
    if licences.refused and not include_restricted:
        count = sum(map(len, licences.refused.values()))
        lines += [f"{count} samples have licences that do not permit to publish them:"]
        lines += [f"  {line}" for line in licences.obstacles()]
        lines += ["build without them, or add --include_restricted if you have the right to publish them"]
    if paths and not include_paths:
        lines += ["it holds paths of this machine, which name users and folders:", *(f"  {line}" for line in paths)]
        lines += ["add --include_paths to publish them as they are"]
    if lines:
        raise UserError(f"{dataset}: not published, nothing was sent\n" + "\n".join(lines))
    return Findings(licences=licences, local_paths=paths)


def published_files(dataset: Path, repo: str, published: Callable[[], date], folder: Path) -> list[PublishedFile]:
    """List the files of a verified dataset in the order of their upload: shards, ledger, then the records of the whole,
    its card last. The card of the repository, the Croissant metadata with the day of publication, and the contact sheet
    are written to `folder`. published: asked for that day once every other file is there.

    Raises UserError where a file is missing."""
    parts = read_ledger(dataset)
    sheet = contact_sheet(dataset, parts)
    write_file(folder / CARD, published_card(_text(dataset / CARD), repo, sheet is not None).encode())
    prepared = [CROISSANT, CARD]
    if sheet is not None:
        write_file(folder / CONTACT_SHEET, sheet)
        prepared = [CROISSANT, CONTACT_SHEET, CARD]
    files = list(_jobs_files(dataset, parts))
    files += [_file(name, dataset / name) for name in RECORDS]
    croissant = _text(dataset / CROISSANT)
    write_file(folder / CROISSANT, published_croissant(croissant, published()))
    return files + [_file(name, folder / name) for name in prepared]


def _jobs_files(dataset: Path, parts: Sequence[LedgerPart]) -> Iterator[PublishedFile]:
    """Yield every shard, then every ledger part."""
    for shard in (shard for part in parts for shard in part.shards):
        path = shard_path(dataset, shard.name)
        yield PublishedFile(path=f"shards/{shard.name}", source=path, bytes=shard.bytes, sha256=shard.sha256)
    for part in parts:
        path = part_path(dataset, part.job)
        yield _file(f"ledger/{path.name}", path)


def _file(name: str, source: Path) -> PublishedFile:
    _require(source)
    return PublishedFile(path=name, source=source, bytes=source.stat().st_size, sha256=file_sha256(source))


def _text(path: Path) -> str:
    _require(path)
    return path.read_text(errors="replace")


def _require(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: missing; run `seqtex repair {path.parent}`, which writes it again")


def published_card(card: str, repo: str, with_sheet: bool) -> str:
    """Return a dataset's card with the contact sheet below its title, and how to download the dataset at its end."""
    download = (
        "## Download",
        "",
        "```",
        f"hf download {repo} --repo-type dataset --local-dir forge",
        "seqtex verify forge",
        "```",
        "",
        f"`load_dataset` also takes `{repo}` in place of PATH.",
    )
    lines = card.rstrip("\n").split("\n")
    if with_sheet:
        title = next((number for number, line in enumerate(lines) if line.startswith("# ")), len(lines) - 1)
        lines[title + 1 : title + 1] = ["", f"![The first view of some samples]({CONTACT_SHEET})"]
    return "\n".join([*lines, "", *download]) + "\n"


def published_croissant(croissant: str, published: date) -> bytes:
    """Return a dataset's Croissant metadata with the day of its publication, which a build leaves out: equal datasets
    have equal files."""
    return as_json(json.loads(croissant) | {"datePublished": published.isoformat()})
