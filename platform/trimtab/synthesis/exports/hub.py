"""Sending a finished dataset folder to the Hugging Face Hub, when asked to and never else."""

from __future__ import annotations

from trimtab.config import InputError
from trimtab.console import say
from trimtab.files import AnyPath, local_folder

REMEDY = "see that HF_TOKEN (or `hf auth login`) may write there and the network is up, then give the same command"


def check_repository(repository: str) -> None:
    """Refuse a name that no repository of the Hub can have.

    Raises:
        InputError: naming the rule.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError("push_to", repository, f"is no repository id ({error})", "write it as owner/name") from error


def push(folder: AnyPath, repository: str, private: bool) -> str:
    """Send the files of a folder to a dataset repository, which is made if need be. Returns the commit's address.

    Files that the repository already has are not sent again.

    Raises:
        InputError: the Hub can't be reached or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    say(f"  sending {folder} to {repository} ({'private' if private else 'public'}, unless it is there already)")
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        with local_folder(folder) as files:
            commit = api.upload_folder(
                repo_id=repository, repo_type="dataset", folder_path=files, commit_message="trimtab export"
            )
    except Exception as error:  # the client's errors, those of its HTTP library and of xet have no common base
        why = " ".join(str(error).split())[:300]
        problem = f"was not reached or refuses ({type(error).__name__}: {why}); {folder} is complete"
        raise InputError("push_to", repository, problem, REMEDY) from error
    say(f"  sent: {commit.commit_url}")
    return str(commit.commit_url)
