"""Upload a dataset to a dataset hub with `huggingface_hub`: only files that the repository lacks, the records of the
whole in the last commit. What an interrupted upload has sent is not sent again."""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from pipeline.publish.publication import PublishedFile
from schemas.dataset import PART_NAME, SHARD_NAME
from schemas.errors import UsageError, UserError

AT_ONCE = 16
"""Files between two reports of progress."""
PER_COMMIT = 128
"""Most files in one commit."""
AGAIN = "run the same command again, what was sent is kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """The repository after an upload."""

    url: str
    present: int
    """Files that it had before."""
    sent: int
    sent_bytes: int
    removed: tuple[str, ...]
    """Shards and ledger parts of an earlier state of the dataset."""
    foreign: tuple[str, ...]
    """Files that are none of the dataset's; they stay."""


class Repository:
    """A dataset repository of a hub."""

    def __init__(self, repo: str, endpoint: str | None) -> None:
        """Raises UsageError for a bad name, UserError without a token. Sends no request."""
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise UsageError(f"--repo {repo}: {error}") from error
        if repo.count("/") != 1:
            raise UsageError(f"--repo {repo}: give ORGANISATION/NAME or USER/NAME")
        self.repo = repo
        self._token = get_token() or ""
        self._api = HfApi(endpoint=endpoint, token=self._token)
        if not re.fullmatch("[!-~]+", self._token):
            found = "the token has characters that no token has" if self._token else "no token"
            raise UserError(f"{self._api.endpoint}: {found}; run `hf auth login`, or set HF_TOKEN to a write token")

    @property
    def url(self) -> str:
        return f"{self._api.endpoint}/datasets/{self.repo}"

    def published(self) -> date:
        """Return the day (UTC) on which the repository was created: today, if there is none yet. Raises UserError where
        the hub cannot be asked."""
        with self._explained():
            try:
                found = self._api.dataset_info(self.repo).created_at
            except RepositoryNotFoundError:
                found = None
        return (found or datetime.now(UTC)).date()

    def upload(self, files: Sequence[PublishedFile], private: bool, notify: Callable[[int, int], None]) -> Upload:
        """Make the repository hold `files`, and create it if there is none. notify: gets (files sent, files to send).

        Raises UserError where the hub refuses or cannot be reached, or a public repository is to be private."""
        with disable_progress_bars(), self._explained():  # the command has its own
            self._create(private)
            remote = self._files()
            missing = [file for file in files if not _is_same(file, remote.get(file.path))]
            known = {file.path for file in files}
            removed = sorted(path for path in remote.keys() - known if _is_stale(path))
            self._send(missing, removed, notify)
            if missing or removed:
                self._require_whole(files)
        return Upload(
            url=self.url,
            present=len(files) - len(missing),
            sent=len(missing),
            sent_bytes=sum(file.bytes for file in missing),
            removed=tuple(removed),
            foreign=tuple(sorted(remote.keys() - known - {*removed, ".gitattributes"})),
        )

    def _create(self, private: bool) -> None:
        """Create the repository if there is none. One that exists keeps its visibility, so that has to be checked."""
        try:
            found = self._api.repo_info(self.repo, repo_type="dataset")
        except RepositoryNotFoundError:
            self._api.create_repo(self.repo, repo_type="dataset", private=private or None, exist_ok=True)
            return
        if private and not found.private:
            remedy = "make it private in its settings, choose another --repo, or drop --private"
            raise UserError(f"{self.url}: exists and is public, nothing was sent; {remedy}")

    def _files(self) -> dict[str, RepoFile]:
        """List the files of the repository by path."""
        entries = self._api.list_repo_tree(self.repo, repo_type="dataset", recursive=True)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _send(
        self, missing: Sequence[PublishedFile], removed: Sequence[str], notify: Callable[[int, int], None]
    ) -> None:
        """Commit files group by group, those of the whole last, with the removal of stale files."""
        starts = range(0, len(missing), PER_COMMIT) or ([0] if removed else [])
        for start in starts:
            group = missing[start : start + PER_COMMIT]
            additions = [CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=file.source) for file in group]
            for first in range(0, len(additions), AT_ONCE):
                notify(start + first, len(missing))
                some = additions[first : first + AT_ONCE]
                self._api.preupload_lfs_files(self.repo, some, repo_type="dataset", free_memory=False)
            last = start + PER_COMMIT >= len(missing)
            deletions = [CommitOperationDelete(path_in_repo=path) for path in removed] if last else []
            message = f"Upload {len(group)} files of the dataset" if group else "Remove files of an earlier state"
            self._api.create_commit(self.repo, [*additions, *deletions], commit_message=message, repo_type="dataset")
            notify(start + len(group), len(missing))

    def _require_whole(self, files: Sequence[PublishedFile]) -> None:
        """Raise UserError unless the repository now has every file as it is here."""
        remote = self._files()
        if lost := [file.path for file in files if not _is_same(file, remote.get(file.path))]:
            reason = f"{len(lost)} files are not there as they were sent, the first is {lost[0]}"
            raise UserError(f"{self.url}: {reason}; remove a .gitignore there that excludes them, and {AGAIN}")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise every error of the hub or the network as a UserError with a remedy, and without the token."""
        try:
            yield
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
            if isinstance(cause, OSError) and cause.filename:
                raise cause from error  # a file of this machine
            raise UserError(self._reason(cause).replace(self._token, "***")) from error

    def _reason(self, error: BaseException) -> str:
        """Write the message of an error: place, reason, remedy."""
        endpoint = self._api.endpoint
        if not isinstance(error, HfHubHTTPError):
            if isinstance(error, ValueError):
                return f"{self.url}: refused ({_line(error)}); fix that and {AGAIN}"
            if isinstance(error, RuntimeError):
                remedy = "check the network (for a hub without Xet set HF_HUB_DISABLE_XET=1)"
                return f"{self.url}: the upload failed ({_line(error)}); {remedy} and {AGAIN}"
            return f"{endpoint}: cannot be reached ({_line(error)}); check the network and {AGAIN}"
        status, said = error.response.status_code, _line(error.server_message or error.response.reason_phrase)
        if status == 401:
            return f"{endpoint}: the token is not accepted (401); run `hf auth login`, or set HF_TOKEN to a write token"
        if status in (403, 404):
            remedy = f"use a token that may write to {self.repo.partition('/')[0]}, or another --repo"
            return f"{self.url}: the token may not write there ({status}: {said}); {remedy}"
        return f"{self.url}: the hub answers {status} ({said}); wait and {AGAIN}"


def _is_same(file: PublishedFile, remote: RepoFile | None) -> bool:
    """Return whether the repository has a file with the same bytes."""
    if remote is None or remote.size != file.bytes:
        return False
    return remote.lfs.sha256 == file.sha256 if remote.lfs else remote.blob_id == git_blob_id(file.source)


def git_blob_id(path: Path) -> str:
    """Return the id that git gives a file, which a hub names for small files."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _is_stale(path: str) -> bool:
    """Return whether a file would be read as part of the dataset: the patterns of its card match it."""
    folder, _, name = path.partition("/")
    pattern = {"shards": SHARD_NAME, "ledger": PART_NAME}.get(folder)
    return pattern is not None and pattern.fullmatch(name) is not None


def _line(text: object) -> str:
    return " ".join(str(text).split()) or type(text).__name__
