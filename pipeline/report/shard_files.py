"""The gallery's files of one shard, in a folder that appears whole or not at all."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.report.sample_files import FORM, draw_stored
from schemas.dataset import ShardRecord, shard_path
from schemas.errors import UserError
from schemas.shards import read_samples
from schemas.storage import Location

KEY_FILE = "key.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """A shard to draw, and the samples that the gallery shows of it."""

    dataset: Location
    shard: ShardRecord
    uids: tuple[str, ...]
    folder: Path
    """Receives the files."""
    supersample: int
    """Samples per pixel along each axis of the dataset's views."""

    def key(self) -> str:
        """Return a text that is equal for equal files."""
        parts = (str(FORM), str(self.supersample), self.shard.sha256, *self.uids)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def done(self) -> bool:
        """Return whether the files are there and up to date."""
        path = self.folder / KEY_FILE
        return path.is_file() and path.read_text() == self.key()


def draw_shard(task: ShardTask) -> str | None:
    """Write the folder of a shard. Returns the problem of a shard that cannot be read."""
    beside = task.folder.with_name(f".{task.folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    path = shard_path(task.dataset, task.shard.name)
    wanted = set(task.uids)
    try:
        for uid, fields in read_samples(task.dataset, task.shard):
            if uid in wanted:
                files = draw_stored(fields, task.supersample)
                (beside / f"{uid}.webp").write_bytes(files.thumbnail)
                (beside / f"{uid}.js").write_bytes(files.script)
                wanted.remove(uid)
    except UserError as error:
        shutil.rmtree(beside)
        return str(error)
    except (OSError, ValueError) as error:
        shutil.rmtree(beside)
        return f"{path}: cannot be read ({error}); run `seqtex verify {task.dataset}`"
    (beside / KEY_FILE).write_text(task.key())
    shutil.rmtree(task.folder, ignore_errors=True)
    beside.replace(task.folder)
    return f"{path}: lacks {len(wanted)} samples; run `seqtex repair {task.dataset}`" if wanted else None
