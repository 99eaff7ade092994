"""A bank's file on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from tccd.errors import BankError


def download(repo_id: str, file: str, revision: str | None) -> Path:
    """The local copy of a repository's file.

    Raises:
        BankError: the hub has no such repository, revision or file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, file, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise BankError(
            f"{repo_id} is no local path, and {file} can't be had from such a hub repository"
            f"{f' at revision {revision}' if revision else ''}: {error}"
        ) from error


def upload(
    data: bytes,
    file: str,
    repo_id: str,
    revision: str | None,
    private: bool | None,
    token: str | None,
    commit_message: str,
) -> str:
    """Upload a file, making the repository where needed; the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(
        api.upload_file(
            path_or_fileobj=data,
            path_in_repo=file,
            repo_id=repo_id,
            revision=revision,
            commit_message=commit_message,
        )
    )
