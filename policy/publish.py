"""A model's folder to the Hugging Face hub."""

from pathlib import Path

import httpx2  # the client's own: its errors come through
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from policy.errors import UserError, in_one_line

# What the hub's client raises: refusals, no network or none wanted, a name that is none, a file that
# could not be sent.
_FAILED = (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError, RuntimeError)


class Repository:
    """A model repository on the hub, made where it is not there."""

    def __init__(self, name: str, *, public: bool):
        """`public`: as one that is made; one that is there stays as it is. Raises UserError if there is
        no token, no network, or no right to write there."""
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
            raise UserError(f"{name}: not to be had on {self._api.endpoint}: {_told(error)}") from None

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
                f"{self.name}: not uploaded: {_told(error)}; {folder} is whole, and"
                f" `hf upload {self.name} {folder}` sends it"
            ) from None


def _told(error: BaseException) -> str:
    """In one line; of a refusal the server's own words."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        reply = error.response
        words = " ".join((error.server_message or reply.reason_phrase).split())
        return f"{reply.status_code}: {words}"
    return in_one_line(error)
