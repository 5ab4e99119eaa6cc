"""The dataset card: `README.md` of a dataset, written from its records. Its front matter is what dataset hubs read."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.dataset.features import feature_lines, kinds_of
from schemas.dataset import DatasetInfo, LedgerPart, config_hash
from schemas.ledger import Counts, Status, counts_of
from schemas.plan import ShardJob
from schemas.sample import Regime

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
"""Samples below each, in the words of dataset hubs."""
HUB_LICENCES = frozenset(
    {"apache-2.0", "cc0-1.0", "mit"}
    | {f"cc-{terms}-4.0" for terms in ("by", "by-sa", "by-nc", "by-nd", "by-nc-sa", "by-nc-nd")}
)
"""Licences that the hubs' front matter knows, as lower-case SPDX ids."""
MARKDOWN = re.compile(r"([\\`*_\[\]|~$:@])")
"""Characters that could make markup of a name in a table: code, emphasis, links, cells, formulas, mentions."""


@dataclass(kw_only=True)
class CardFacts:
    """The facts on a dataset card, gathered job by job."""

    counts: Counts = field(default_factory=Counts)
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Samples by name and licence of their source."""
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Assets by status, regime and reason."""
    caption_levels: set[str] = field(default_factory=set)
    """Names under which samples have captions beside the one."""
    shards: int = 0
    bytes: int = 0

    def add(self, job: ShardJob, part: LedgerPart) -> None:
        """Add a job and its ledger."""
        self.counts += counts_of(part.outcomes)
        for ref, outcome in zip(job.refs, part.outcomes, strict=True):
            if outcome.status is Status.ACCEPTED:
                self.sources[ref.source.name or "unnamed", ref.source.licence or "not stated"] += 1
                self.caption_levels.update(ref.captions)
            if outcome.reason:
                self.reasons[str(outcome.status), str(outcome.regime or ""), str(outcome.reason)] += 1
        self.shards += len(part.shards)
        self.bytes += sum(shard.bytes for shard in part.shards)

    def licences(self) -> Counter[str]:
        """Count samples by licence."""
        counts: Counter[str] = Counter()
        for (_, licence), samples in self.sources.items():
            counts[licence] += samples
        return counts


def dataset_card(info: DatasetInfo, facts: CardFacts) -> str:
    """Write the dataset card: front matter in YAML, then content, terms, exclusions, origin, reading and limits."""
    sections = [
        _front_matter(info, facts),
        _contents(info, facts),
        _terms(facts),
        _excluded(facts),
        _origin(info),
        _reading(facts),
        _limits(info),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _front_matter(info: DatasetInfo, facts: CardFacts) -> list[str]:
    """Write the YAML from our own words; of names from outside, those of captions alone enter it, quoted."""
    known = sorted({licence.lower() for licence in facts.licences()})
    samples = facts.counts.textured + facts.counts.mv_only
    size = next((words for limit, words in SIZES if samples < limit), "n>10M")
    lines = ["---", "pretty_name: SeqTex Forge dataset"]
    if known and HUB_LICENCES.issuperset(known):
        lines += ["license:", *(f"- {licence}" for licence in known)]
    else:
        lines += ["license: other", "license_name: per-sample", "license_link: README.md#terms"]
    lines += ["task_categories:", "- image-to-3d", "- text-to-3d", "size_categories:", f"- {size}"]
    lines += ["tags:", *(f"- {tag}" for tag in ("3d", "texture", "multi-view", "webdataset", "seqtex"))]
    regimes = [regime for regime in Regime if getattr(facts.counts, regime.value)]
    lines += ["configs:"] if regimes else []
    for name in regimes:
        lines += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: shards/{name}-*.tar"]
    lines += ["dataset_info:"] if regimes else []
    for name in regimes:
        kinds = kinds_of(name, info.config, facts.caption_levels)
        lines += [f"- config_name: {name}", "  features:", *feature_lines(kinds, "  ")]
    return [*lines, "---"]


def _contents(info: DatasetInfo, facts: CardFacts) -> list[str]:
    counts = facts.counts
    views, uv = info.config["views"]["resolution"], info.config["uv"]["resolution"]
    return [
        "# SeqTex Forge dataset",
        "",
        "Views and UV texture maps of 3D assets, for training SeqTex: a mesh texture as the last frame of a video.",
        "",
        f"{counts.textured + counts.mv_only} samples from {info.planned} assets in {facts.shards} shards "
        f"({facts.bytes / 1e6:.1f} MB).",
        "",
        f"- `textured`: {counts.textured} samples, views of {views} x {views} and UV maps of {uv} x {uv}",
        f"- `mv_only`: {counts.mv_only} samples, views of {views} x {views} alone",
        f"- cameras: {_cameras(info.config)}",
    ]  # fmt: skip


def _cameras(config: dict[str, Any]) -> str:
    """Describe the rig with numbers and names of ours alone."""
    rig = config.get("rig", {})
    lens = "parallel projection" if rig.get("orthographic") or rig.get("name") == "ortho6" else ""
    lens = lens or f"field of view {float(rig.get('fov_y_deg', 0)):.1f} degrees"
    jitter = any(rig.get(f"jitter_{kind}_deg") for kind in ("azimuth", "elevation", "fov"))
    light = config["views"].get("lit", "none")
    lit = "" if light == "none" else f", lit views ({light}) beside the unlit ones"
    return f"rig `{rig.get('name')}`, {lens}{', varied from asset to asset' if jitter else ''}{lit}"


def _terms(facts: CardFacts) -> list[str]:
    rows = [
        (as_text(name), as_text(licence), str(samples)) for (name, licence), samples in sorted(facts.sources.items())
    ]
    return [
        "## Terms",
        "",
        "Every sample has the licence of its asset. Title, author, licence and page of every sample are in its `json`",
        "and in `attribution.parquet`.",
        "",
        *_table(("source", "licence", "samples"), rows),
    ]


def _excluded(facts: CardFacts) -> list[str]:
    counts = facts.counts
    rows = [
        (f"`{status}`", f"`{regime}`" if regime else "", f"`{reason}`", str(assets))
        for (status, regime, reason), assets in sorted(facts.reasons.items())
    ]
    return [
        "## Excluded assets",
        "",
        f"{counts.rejected} assets were rejected, {counts.failed} failed; {counts.mv_only} samples have views alone.",
        "Every planned asset has one row in `ledger/*.parquet`, with its reason and its measurements.",
        "",
        *_table(("status", "regime", "reason", "assets"), rows),
    ]


def _origin(info: DatasetInfo) -> list[str]:
    return [
        "## How it was built",
        "",
        f"- by seqtex-forge {info.code_version}, schema version {info.schema_version}",
        f"- configuration {config_hash(info.config)[:16]}, in full in `dataset.json`; rasteriser "
        f"`{info.config.get('rasterizer')}`",
        f"- plan {info.plan_sha256[:16]}: the same assets and configuration give the same shards, byte for byte",
        "- `croissant.json` describes the files for machines and names the sha256 of every shard",
    ]


READING = (
    "## Reading it",
    "",
    "Every field is a standard file: JSON, WebP, PNG, .npz. The views of a sample are one strip, first view on top; UV",
    "maps have v = 1 in row 0. What is missing is -1 or an empty text. PATH is the folder of this dataset.",
    "",
    "```python",
    "from datasets import load_dataset",
    "",
    'dataset = load_dataset("PATH", "REGIME", split="train", streaming=True)',
    "```",
    "",
    "Positions are 16-bit grey images of three planes, x above y above z; 0 is outside the mask. Normals are RGB",
    "images of round(127 n) + 128, black outside. A reader that converts every image to 8 bits, as webdataset's",
    "`rgb8` does, loses the positions.",
    "",
    "```python",
    "import glob, io, json",
    "import numpy as np",
    "import webdataset as wds",
    "from PIL import Image",
    "",
    'for sample in wds.WebDataset(sorted(glob.glob("PATH/shards/REGIME-*.tar")), shardshuffle=False):',
    '    meta = json.loads(sample["json"])',
    '    rgb = np.array(Image.open(io.BytesIO(sample["rgb.webp"])))',
    '    planes = np.array(Image.open(io.BytesIO(sample["position.png"])))',
    "    planes = planes.reshape(3, -1, planes.shape[1]).transpose(1, 2, 0)",
    "    position = np.where(planes > 0, (planes - 32768.0) / 32767, 0)  # Z up, in [-1, 1]",
    "```",
    "",
    "The ledger, one row per asset with every measurement:",
    "",
    "```python",
    "import pandas",
    "",
    'ledger = pandas.read_parquet("PATH/ledger")',
    "```",
    "",
    "`index.json` is an index for random access (`pip install wids`). Where SeqTex Forge is installed, from its own",
    "repository, `seqtex.Dataset(PATH)` and `seqtex.webdataset(urls)` give decoded arrays, and `seqtex verify PATH`",
    "checks hashes, counts and samples: a shard counts only if a ledger part names it.",
)
"""Instructions for reading a dataset with plain tools; REGIME stands for one that it has."""
NO_MATERIALS = "- Roughness, metalness, normal maps and emission are not in the UV maps."
MATERIALS = (
    "- Materials are metallic, roughness, shading normals and emitted light, as files have them: glossy coats, sheen,\n"
    "  transmission and occlusion are not held."
)
LIMITS = (
    "## Known limits",
    "",
    "- Colours are base colours without light, 8 bits a channel. Light that an artist painted into a texture stays in",
    "  it; `baked_light` in the ledger is a suspicion of that.",
    NO_MATERIALS,
    "- Skinned assets stand as they are at rest; nothing moves.",
    "- A map is only as good as its round trip: `round_trip_psnr` says how well views from the map match the source.",
    "- Captions are those of the source, unchecked.",
)


def _limits(info: DatasetInfo) -> list[str]:
    return [MATERIALS if line == NO_MATERIALS and info.config.get("materials") else line for line in LIMITS]


def _reading(facts: CardFacts) -> list[str]:
    regime = Regime.MV_ONLY if facts.counts.mv_only and not facts.counts.textured else Regime.TEXTURED
    return [line.replace("REGIME", regime) for line in READING]


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return ["None."]
    return [_line(header), _line(("---",) * len(header)), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def as_text(name: str) -> str:
    """Escape a name from outside: one line, none of it markup."""
    flat = " ".join(name.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKDOWN.sub(r"\\\1", flat)
