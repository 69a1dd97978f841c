"""Uploading, against an account that notes what it is asked: nothing leaves the process."""

from types import SimpleNamespace

import pytest
from httpx2 import Request, Response
from huggingface_hub.errors import HfHubHTTPError

from conversion.publishing import hub


class Account:
    """What `Hub` asks of `HfApi`, with files by branch; each of `failures` is the status that an upload ends with."""

    def __init__(self, files=None, failures=()):
        self.files, self.failures = files or {"main": []}, list(failures)
        self.branches, self.uploads = [], []

    def whoami(self):
        return {"name": "me", "orgs": []}

    def create_repo(self, repo_id, **settings):
        assert settings["exist_ok"]

    def create_branch(self, repo_id, branch, repo_type, exist_ok):
        self.branches.append(branch)

    def list_repo_files(self, repo_id, revision=None, repo_type=None):
        return self.files[revision or "main"]

    def upload_folder(self, **settings):
        self.uploads.append(settings)
        if self.failures:
            response = Response(self.failures.pop(0), request=Request("POST", "http://hub"))
            raise HfHubHTTPError("refused", response=response)
        return SimpleNamespace(pr_url=None, commit_url="http://hub/commit")


@pytest.fixture
def account(monkeypatch):
    """A function that has the next `Hub` meet such an account; waiting takes no time."""
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: None)

    def meet(*arguments):
        found = Account(*arguments)
        monkeypatch.setattr(hub, "HfApi", lambda: found)
        return found

    return meet


@pytest.mark.parametrize(("revision", "stale"), [(None, ["metrics.jsonl"]), ("v2", ["conversion.json"])])
def test_files_of_an_earlier_version_are_deleted_of_the_branch_that_is_published_to(account, tmp_path, revision, stale):
    (tmp_path / "config.json").write_text("{}")
    files = {"main": ["config.json", "metrics.jsonl", "LICENSE"], "v2": ["config.json", "conversion.json", "LICENSE"]}
    found = account(files)
    assert hub.Hub(revision=revision, exist_ok=True).upload(tmp_path, "me/x") == "http://hub/commit"
    (upload,) = found.uploads
    assert (upload["revision"], upload["delete_patterns"]) == (revision, stale)
    assert found.branches == ([revision] if revision else [])


@pytest.mark.parametrize("status", [500, 502, 503])
def test_an_upload_is_tried_again_where_the_hub_fails(account, tmp_path, status):
    found = account(None, [status])
    assert hub.Hub().upload(tmp_path, "me/x") == "http://hub/commit" and len(found.uploads) == 2
    found = account(None, [status] * hub.ATTEMPTS)
    with pytest.raises(ValueError, match="the upload failed"):
        hub.Hub().upload(tmp_path, "me/x")
    assert len(found.uploads) == hub.ATTEMPTS


@pytest.mark.parametrize("status", [400, 403, 413])
def test_an_upload_that_is_refused_is_not_tried_again(account, tmp_path, status):
    found = account(None, [status])
    with pytest.raises(ValueError, match="the upload failed"):
        hub.Hub().upload(tmp_path, "me/x")
    assert len(found.uploads) == 1
