"""Costs of single assets: `OMP_NUM_THREADS=1 python -m benchmarks.costs > benchmarks/asset_costs.csv`.

Processor seconds from the file to the encoded fields, children included, and bytes of the sample. A busy machine does
not count. Assets: made-up ones, and the folder in $SEQTEX_ASSETS, else ../shared/assets.
"""

import argparse
import csv
import resource
import sys
import tempfile
from pathlib import Path

from benchmarks.build import assets
from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.executor.compile_kernels import warm_up
from schemas.codec import encode
from schemas.sample import TextureSample

COLUMNS = ("uid", "outcome", "seconds", "bytes")


def processor_seconds() -> float:
    """Return the processor seconds of this process and of those it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=int, default=53, help="made-up assets, beside the shared ones")
    options = parser.parse_args()
    warm_up()
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(COLUMNS)
    with tempfile.TemporaryDirectory() as name:
        refs = list(assets(options.assets, Path(name)))
        process_asset(refs[0], BuildConfig())  # what is compiled or loaded once
        for ref in refs:
            begun, size = processor_seconds(), 0
            result = process_asset(ref, BuildConfig()).result
            if isinstance(result, TextureSample):
                size = sum(map(len, encode(result).values()))
            outcome = result.regime if isinstance(result, TextureSample) else result.reason
            table.writerow([ref.uid, outcome, f"{processor_seconds() - begun:.3f}", size])
            sys.stdout.flush()


if __name__ == "__main__":
    main()
