"""Options that several commands share, and defaults that depend on the dataset that a command line names."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import config_from_dict, recorded_config
from pipeline.dataset.state import differences
from pipeline.executor.scheduler import RunConfig
from pipeline.filter.rules import FilterConfig
from pipeline.sandbox.child import LimitsConfig
from pipeline.unwrap.unwrap import UnwrapConfig
from schemas.dataset import read_dataset_json
from schemas.errors import UserError
from schemas.storage import Location, location
from seqtex.cli.terminal.console import log_event


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """Processes, cluster and schedule of a build."""

    workers: int = 1
    """Processes on this machine."""
    address: str | None = None
    """Join this Ray cluster (every node must see the datasets and the assets) instead of working here."""
    run: RunConfig = field(default_factory=RunConfig)
    """Resources and schedule of the jobs of a build."""


@dataclass(frozen=True, kw_only=True)
class ThresholdOptions:
    """Thresholds that may differ from those of the build; the others stay as the dataset was built."""

    filter: FilterConfig = field(default_factory=FilterConfig)
    """Thresholds."""
    unwrap: UnwrapConfig = field(default_factory=UnwrapConfig)
    """Limits on layouts, as far as the ledger shows their effect."""


UNNAMED = "unnamed"
"""Stand-in for a program that is not known yet."""
SECTIONS = tuple(ThresholdOptions.__dataclass_fields__)
"""Sections of a build's configuration that can be compared by a ledger alone."""


def named_dataset(arguments: Sequence[str]) -> Location | None:
    """Return the first argument behind the command that is a dataset. Arguments behind an option, which may be its
    value, come last; errors are left to the parser."""
    pairs = pairwise(arguments)
    for _, word in sorted(pairs, key=lambda pair: pair[0].startswith("-") and "=" not in pair[0]):
        with suppress(UserError, OSError):
            if not word.startswith("-") and ((place := location(word)) / "dataset.json").is_file():
                return place
    return None


def leaves(cfg: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of a dataclass of dataclasses."""
    for f in fields(cfg):
        value = getattr(cfg, f.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value


def recorded_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options that the dataset which a command line names was built with, none if it names none. Programs
    and servers are not among them, nor limits above the defaults: those come from the command line alone."""
    dataset = named_dataset(arguments)
    if dataset is None:
        return {}
    recorded = recorded_config(dataset, read_dataset_json(dataset), python=UNNAMED)
    machine = ("blender.python", "objaverse.")
    limits = {f"limits.{name}": most for name, most in leaves(LimitsConfig())}
    known = {name: value for name, value in leaves(recorded) if not name.startswith(machine)}
    return known | {name: min(known[name], most) for name, most in limits.items()}


def threshold_options(arguments: Sequence[str]) -> ThresholdOptions:
    """Return the thresholds of the dataset that a command line names, the defaults if it names none."""
    dataset = named_dataset(arguments)
    return ThresholdOptions() if dataset is None else built_thresholds(dataset)


def built_thresholds(dataset: Location) -> ThresholdOptions:
    """Read the thresholds in `dataset.json`. Raises UserError if another version wrote them."""
    config = read_dataset_json(dataset).config
    try:
        return config_from_dict(ThresholdOptions, {name: config.get(name, {}) for name in SECTIONS})
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{dataset / 'dataset.json'}: thresholds of another version of this program ({error}); build it again"
        ) from error


def only_thresholds(arguments: Sequence[str]) -> list[str]:
    """Reduce a `--config` file, which may be one of `seqtex build`, to its thresholds, and log its other settings that
    differ from the dataset's."""
    words = list(arguments)
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag != "--config" or not (equals or index + 1 < len(words)):
            continue
        sections = _read_sections(Path(value if equals else words[index + 1]))
        if sections is None:
            continue  # the parser reports what is wrong with it
        if (dataset := named_dataset(words)) is not None:
            _log_the_rest(sections, read_dataset_json(dataset).config)
        kept = json.dumps({name: sections[name] for name in SECTIONS if name in sections})
        words[index if equals else index + 1] = f"--config={kept}" if equals else kept
    return words


def _read_sections(path: Path) -> dict[str, Any] | None:
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None


def _log_the_rest(sections: dict[str, Any], config: dict[str, Any]) -> None:
    """Log the settings of a file whose effect a ledger alone does not show."""
    rest = {name: value for name, value in sections.items() if name in config and name not in SECTIONS}
    names = [name for name, _, given in differences(config, config | rest) if given is not None]
    if names:
        log_event("not_applied", settings=names, detail="they need a build into a new folder")
