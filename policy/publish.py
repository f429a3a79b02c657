"""Uploads a model's folder to the Hugging Face hub."""

from pathlib import Path

import httpx2  # the client's own: its errors come through
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from policy.errors import UserError, in_one_line

# What the hub's client raises: refusals, no network or offline mode, an invalid name, a file that could
# not be sent.
_FAILED = (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError, RuntimeError)


class Repository:
    """A model repository on the hub, created if it does not exist."""

    def __init__(self, name: str, *, public: bool):
        """`public`: of a repository that is created; an existing one stays as it is. Raises UserError
        if there is no token, no network, or no right to write there."""
        self.name = name
        token = get_token()
        if token is None:
            raise UserError(
                f"{name}: no token for the Hugging Face hub: set HF_TOKEN to one that may write"
                " (https://huggingface.co/settings/tokens)"
            )
        self._api = HfApi(token=token)
        try:
            self.url = str(self._api.create_repo(name, private=not public, exist_ok=True))
        except _FAILED as error:
            raise UserError(
                f"{name}: not available on {self._api.endpoint}: {_reason(error)}"
            ) from None

    def upload(self, folder: Path, message: str) -> None:
        """All files of a folder; what else is there stays. Raises UserError if that fails: the
        folder stays as it is."""
        try:
            self._api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                commit_message=message,
            )
        except _FAILED as error:
            raise UserError(
                f"{self.name}: not uploaded: {_reason(error)}; {folder} is whole, and"
                f" `hf upload {self.name} {folder}` sends it"
            ) from None


def _reason(error: BaseException) -> str:
    """The error in one line; for a refusal the server's own message."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        reply = error.response
        words = " ".join((error.server_message or reply.reason_phrase).split())
        return f"{reply.status_code}: {words}"
    return in_one_line(error)
