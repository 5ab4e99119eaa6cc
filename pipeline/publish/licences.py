"""Decide by licence which samples may be published: a table of the licences that permit it, and counts of a dataset.
A sample is a derivative of its asset (rendered, baked, unwrapped): a licence without derivatives forbids it."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

from pipeline.sources.selection import spdx

NAMED_UIDS = 5
"""Refused samples that a message names, per licence."""


class Use(StrEnum):
    """The use of published samples that a licence permits to others."""

    ANY = "any"
    NONCOMMERCIAL = "noncommercial"


PUBLISHABLE = {
    # public domain
    "CC0-1.0": Use.ANY,
    "CC0": Use.ANY,
    "PDDL-1.0": Use.ANY,
    "Public Domain": Use.ANY,
    "Unlicense": Use.ANY,
    "0BSD": Use.ANY,
    "WTFPL": Use.ANY,
    # Creative Commons
    **{f"CC-BY-{version}": Use.ANY for version in ("2.0", "2.5", "3.0", "4.0")},
    **{f"CC-BY-SA-{version}": Use.ANY for version in ("2.0", "2.5", "3.0", "4.0")},
    **{f"CC-BY-NC-{version}": Use.NONCOMMERCIAL for version in ("2.0", "2.5", "3.0", "4.0")},
    **{f"CC-BY-NC-SA-{version}": Use.NONCOMMERCIAL for version in ("2.0", "2.5", "3.0", "4.0")},
    # Creative Commons in the words of Thingiverse
    "Creative Commons - Public Domain Dedication": Use.ANY,
    "Creative Commons - Attribution": Use.ANY,
    "Creative Commons - Attribution - Share Alike": Use.ANY,
    "Creative Commons - Attribution - Non-Commercial": Use.NONCOMMERCIAL,
    "Creative Commons - Attribution - Non-Commercial - Share Alike": Use.NONCOMMERCIAL,
    # free software, as SPDX ids
    **dict.fromkeys(("MIT", "MIT-0", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "BSL-1.0"), Use.ANY),
    **dict.fromkeys(("MPL-2.0", "EPL-2.0", "EUPL-1.2", "Artistic-2.0", "OFL-1.1", "ODbL-1.0"), Use.ANY),
    **{f"{name}{suffix}": Use.ANY for name in ("GPL-2.0", "GPL-3.0") for suffix in ("", "-only", "-or-later")},
    **{f"LGPL-{version}{suffix}": Use.ANY for version in ("2.1", "3.0") for suffix in ("", "-only", "-or-later")},
    **{f"AGPL-3.0{suffix}": Use.ANY for suffix in ("", "-only", "-or-later")},
    # free software in the words of GitHub and Thingiverse
    "BSD License": Use.ANY,
    'BSD 2-Clause "Simplified" License': Use.ANY,
    'BSD 3-Clause "New" or "Revised" License': Use.ANY,
    "Boost Software License 1.0": Use.ANY,
    "ISC License": Use.ANY,
    "zlib License": Use.ANY,
    "GNU - GPL": Use.ANY,
    "GNU - LGPL": Use.ANY,
    "GNU Lesser General Public License v2.1": Use.ANY,
    "GNU Lesser General Public License v3.0": Use.ANY,
    "GNU Affero General Public License v3.0": Use.ANY,
}
"""Licences that permit to publish derivatives, upper and lower case alike. Whatever is not here is refused."""
_USES = {name.casefold(): use for name, use in PUBLISHABLE.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenceReport:
    """The samples of a dataset by licence."""

    permitted: Counter[str]
    """Samples by licence, any use; `PUBLISHABLE`."""
    noncommercial: Counter[str]
    """Samples by licence, noncommercial use alone; `PUBLISHABLE`."""
    refused: dict[str, list[str]]
    """Uids by licence, those that may not be published."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Return samples by licence, for each of `any`, `noncommercial` and `refused`."""
        refused = {_shown(licence): len(uids) for licence, uids in self.refused.items()}
        return {"any": dict(self.permitted), "noncommercial": dict(self.noncommercial), "refused": refused}

    def obstacles(self) -> Iterator[str]:
        """Yield one line per refused licence: samples, reason, the first uids."""
        for licence, uids in sorted(self.refused.items(), key=lambda item: (-len(item[1]), item[0])):
            more = ", ..." if len(uids) > NAMED_UIDS else ""
            named = f"{', '.join(uids[:NAMED_UIDS])}{more}"
            yield f"{len(uids)} under {_shown(licence)} ({refusal(licence)}): {named}"


def use_of(licence: str) -> Use | None:
    """Return the use that a licence permits, None if it does not permit to publish."""
    return _USES.get(" ".join(spdx(licence).split()).casefold())


def refusal(licence: str) -> str:
    """Return the reason why samples under a licence are refused."""
    words = licence.casefold()
    if not words.strip():
        return "without a licence all rights are reserved"
    if "-nd" in words or "no derivatives" in words or "noderivatives" in words:
        return "no derivatives, and a sample is one"
    return "not in the table of licences that permit publishing"


def licence_report(attribution: pa.Table) -> LicenceReport:
    """Count the samples of `attribution.parquet` by what their licences permit."""
    counts = {use: Counter[str]() for use in Use}
    refused = defaultdict[str, list[str]](list)
    for batch in attribution.select(["uid", "licence"]).to_batches():
        for uid, licence in zip(batch["uid"].to_pylist(), batch["licence"].to_pylist(), strict=True):
            if use := use_of(licence):
                counts[use][licence] += 1
            else:
                refused[licence].append(uid)
    return LicenceReport(permitted=counts[Use.ANY], noncommercial=counts[Use.NONCOMMERCIAL], refused=dict(refused))


def _shown(licence: str) -> str:
    """Write a licence, which comes from strangers, in one line."""
    return " ".join(licence.split()) or "no stated licence"
