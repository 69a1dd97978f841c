"""Uploading to the Hub in one commit, with every refusal said in one line and no token in any of them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from httpx2 import HTTPError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from conversion.command_line import first_line
from conversion.files import sha256
from conversion.model_folder import CARD
from conversion.publishing.hub_ids import check_repo_id
from conversion.publishing.staging import is_ours

ATTEMPTS = 3
NO_MODEL = {".gitattributes", CARD}  # what an empty repository may hold


class Hub:
    """The account of this machine's token; the settings hold for every upload.

    Args:
        repo_type: "model", or "space" for Spaces of gradio.
        is_ours: whether a file of a repository is one that a publication writes, by its name.
    """

    def __init__(
        self,
        *,
        create_pr: bool = False,
        revision: str | None = None,
        private: bool = False,
        exist_ok: bool = False,
        repo_type: Literal["model", "space"] = "model",
        is_ours: Callable[[str], bool] = is_ours,
    ):
        self.create_pr, self.revision, self.private, self.exist_ok = create_pr, revision, private, exist_ok
        self.repo_type, self.is_ours = repo_type, is_ours
        self.api = HfApi()
        try:
            account = self.api.whoami()
        except LocalTokenNotFoundError as error:
            raise ValueError("No token for the Hub: log in with `hf auth login`, or set HF_TOKEN.") from error
        except HfHubHTTPError as error:
            raise ValueError(
                f"The Hub does not accept the token ({_status(error)}): log in anew with `hf auth login`."
            ) from error
        except UnicodeError as error:
            raise ValueError("The token for the Hub is not one: it has letters that none has.") from error
        except (OSError, HTTPError) as error:
            raise ValueError(f"The Hub was not reached: {first_line(error)}") from error
        self.name: str = account["name"]
        self.namespaces = {self.name, *(organisation["name"] for organisation in account.get("orgs", []))}

    def full_name(self, repo_id: str) -> str:
        """`me/name` of `name`; raises if it is no valid name."""
        check_repo_id(repo_id)
        return repo_id if "/" in repo_id else f"{self.name}/{repo_id}"

    def check(self, repo_id: str, weights: Path | None = None) -> None:
        """Raise if the repository belongs to somebody else, or already holds another model than these weights."""
        if repo_id.split("/")[0] not in self.namespaces and not self.create_pr:
            raise ValueError(
                f"`--repo_id` (={repo_id}) must be yours, but you are {self.name}. --create_pr proposes a change."
            )
        try:
            info = self.api.repo_info(repo_id, repo_type=self.repo_type)
            branches = [branch.name for branch in self.api.list_repo_refs(repo_id, repo_type=self.repo_type).branches]
        except RepositoryNotFoundError as error:
            if self.create_pr:
                raise ValueError(f"`--repo_id` (={repo_id}) must exist for --create_pr.") from error
            return
        except (HTTPError, OSError) as error:
            raise ValueError(f"`--repo_id` (={repo_id}) could not be looked up: {first_line(error)}") from error
        if self.private and not info.private:
            raise ValueError(
                f"`--repo_id` (={repo_id}) is public, and --private does not change that: do it on its page."
            )
        is_new_branch = self.revision is not None and self.revision not in branches
        if self.exist_ok or self.create_pr or is_new_branch:
            return
        stored = set(self._files(repo_id)) - NO_MODEL
        if weights is not None and weights.name in stored and self._holds(repo_id, weights):
            return  # an earlier try got so far
        if stored:
            raise ValueError(
                f"`--repo_id` (={repo_id}) is taken: it holds {len(stored)} files. Choose another name, or commit a "
                "new version on top of them with --exist_ok (or --create_pr, or another --revision)."
            )

    def is_private_model(self, repo_id: str) -> bool:
        """Whether a model on the Hub is private; raises if it is not there for this account."""
        try:
            return bool(self.api.model_info(repo_id).private)
        except RepositoryNotFoundError as error:
            raise ValueError(f"The model {repo_id} is not on the Hub, or not for {self.name}.") from error
        except (HTTPError, OSError) as error:
            raise ValueError(f"The model {repo_id} could not be looked up: {first_line(error)}") from error

    def upload(self, folder: Path, repo_id: str, message: str | None = None) -> str:
        """Upload a folder in one commit, trying again where the connection breaks; return the commit's address."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._upload(folder, repo_id, message or "Upload model")
            except (OSError, HTTPError, RuntimeError) as error:
                status = getattr(getattr(error, "response", None), "status_code", None)
                again = status is None or status >= 500
                if not again or attempt == ATTEMPTS:
                    raise ValueError(
                        f"`--repo_id` (={repo_id}): the upload failed ({first_line(error)}). Nothing of it is visible "
                        "there; the same command tries again."
                    ) from error
                print(f"The connection broke ({first_line(error)}): trying again.", flush=True)
                time.sleep(attempt)
        raise AssertionError("unreachable")

    def _upload(self, folder: Path, repo_id: str, message: str) -> str:
        if not self.create_pr:
            settings: dict[str, Any] = {"space_sdk": "gradio"} if self.repo_type == "space" else {}
            kind: dict[str, Any] = {"repo_type": self.repo_type, "exist_ok": True}
            self.api.create_repo(repo_id, private=self.private or None, **kind, **settings)
            if self.revision is not None:
                self.api.create_branch(repo_id, branch=self.revision, **kind)
        commit = self.api.upload_folder(
            repo_id=repo_id,
            repo_type=self.repo_type,
            folder_path=folder,
            commit_message=message,
            revision=self.revision,
            create_pr=self.create_pr,
            delete_patterns=self._stale(folder, repo_id),
        )
        return commit.pr_url or commit.commit_url

    def _holds(self, repo_id: str, weights: Path) -> bool:
        """Whether these very weights are there."""
        (there,) = self.api.get_paths_info(repo_id, [weights.name], revision=self.revision, repo_type=self.repo_type)
        return isinstance(there, RepoFile) and there.lfs is not None and there.lfs.sha256 == sha256(weights)

    def _stale(self, folder: Path, repo_id: str) -> list[str]:
        """Files of an earlier version: loaded or read beside the new ones, they would tell of another model."""
        there = self._files(repo_id)
        return [name for name in there if self.is_ours(name) and not (folder / name).exists()]

    def _files(self, repo_id: str) -> list[str]:
        return self.api.list_repo_files(repo_id, revision=self.revision, repo_type=self.repo_type)


def _status(error: HfHubHTTPError) -> str:
    return f"HTTP {error.response.status_code}" if error.response is not None else "no answer"
