"""The Hub of the tests keeps what is pushed, byte for byte, and refuses what the real one refuses.

The client's side is `huggingface_hub` itself, and Transformers, in processes of their own.
"""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.hub_server import GITATTRIBUTES, HubServer

MINE, OTHERS = "token-of-me", "token-of-other"
WEIGHTS = bytes(range(256)) * 1200
FOLDER = {"README.md": b"---\nlicense: mit\n---\n# A model\n", "model.safetensors": WEIGHTS, "code/model.py": b"1\n"}

PRELUDE = """
import json, os, sys, time
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.utils import get_session, hf_raise_for_status

api, folder = HfApi(), Path(os.environ["HF_HOME"]) / "pushed"

def error_of(call, *arguments, **options):
    '''Names of the classes of the error that a call raises, its text, and the class of its cause.'''
    try:
        call(*arguments, **options)
    except Exception as error:
        return [[kind.__name__ for kind in type(error).__mro__], str(error), type(error.__cause__).__name__]
    return None
"""


@pytest.fixture
def hub():
    with HubServer({MINE: "me", OTHERS: "other"}) as server:
        yield server


@pytest.fixture
def home(tmp_path) -> Path:
    """A client's cache, with a folder "pushed" to push."""
    for path, content in FOLDER.items():
        target = tmp_path / "pushed" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return tmp_path


def client(hub: HubServer, home: Path, script: str, token: str | None = MINE) -> Any:
    """The `result` of a script that runs in its own process with a user's token."""
    code = f"{PRELUDE}\n{dedent(script)}\nprint(json.dumps(result))"
    process = subprocess.run(
        [sys.executable, "-c", code], env=hub.environment(home, token), capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def uploads(hub: HubServer) -> int:
    return sum(request.startswith("PUT") for request in hub.requests)


def test_a_pushed_folder_comes_back_byte_for_byte(hub, home):
    result = client(
        hub,
        home,
        """
        assert api.create_repo("name").repo_id == "me/name" == api.create_repo("me/name", exist_ok=True).repo_id
        commit = api.upload_folder(repo_id="me/name", folder_path=folder, commit_message="All of it")
        weights = Path(hf_hub_download("me/name", "model.safetensors"))
        result = {
            "user": api.whoami()["name"],
            "commit": commit.oid,
            "sha": api.model_info("me/name").sha,
            "siblings": [sibling.rfilename for sibling in api.model_info("me/name", revision=commit.oid).siblings],
            "files": api.list_repo_files("me/name"),
            "tree": [entry.path for entry in api.list_repo_tree("me/name")],
            "code": [entry.path for entry in api.list_repo_tree("me/name", "code")],
            "sizes": {
                entry.path: [entry.size, entry.lfs is not None]
                for entry in api.get_paths_info("me/name", ["model.safetensors", "code/model.py", "no"])
            },
            "weights": str(weights),
            "all": snapshot_download("me/name"),
            "part": get_session().get(
                f"{api.endpoint}/me/name/resolve/main/code/model.py", headers={"Range": "bytes=1-"}
            ).text,
        }
        """,
    )
    expected = {".gitattributes": GITATTRIBUTES, **FOLDER}
    assert hub.files("me/name") == expected and hub.files("me/name", result["commit"][:8]) == expected
    assert [commit.message for commit in hub.repos["me/name"].commits] == ["initial commit", "All of it"]
    assert result["user"] == "me" and result["commit"] == result["sha"] == hub.repos["me/name"].commits[-1].oid
    assert result["siblings"] == sorted(expected) == sorted(result["files"])
    assert result["tree"] == [".gitattributes", "README.md", "code", "model.safetensors"]
    assert result["code"] == ["code/model.py"] and result["part"] == "\n"
    assert result["sizes"] == {"model.safetensors": [len(WEIGHTS), True], "code/model.py": [2, False]}
    assert Path(result["weights"]).read_bytes() == WEIGHTS
    snapshot = Path(result["all"])
    assert {str(p.relative_to(snapshot)): p.read_bytes() for p in snapshot.rglob("*") if p.is_file()} == expected
    assert uploads(hub) == 1, "only the weights go through LFS"
    assert not any(token in request for request in hub.requests for token in (MINE, OTHERS))


def test_a_second_push_sends_only_what_changed(hub, home):
    client(
        hub,
        home,
        """
        api.create_repo("me/name")
        first = api.upload_folder(repo_id="me/name", folder_path=folder)
        assert api.upload_folder(repo_id="me/name", folder_path=folder).oid == first.oid, "nothing changed"
        (folder / "README.md").write_text("no metadata")
        (folder / "copy.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        api.upload_folder(repo_id="me/name", folder_path=folder)
        result = api.delete_folder("code", "me/name").oid
        api.delete_file("model.safetensors", "me/name")
        """,
    )
    expected = {".gitattributes": GITATTRIBUTES, "README.md": b"no metadata", "copy.safetensors": WEIGHTS}
    assert hub.files("me/name") == expected
    assert len(hub.repos["me/name"].commits) == 5 and uploads(hub) == 1


def test_branches_and_pull_requests_leave_main_as_it_was(hub, home):
    hub.add_repo("me/name", {"a.txt": b"a"})
    others = client(
        hub,
        home,
        """
        commit = api.upload_folder(repo_id="me/name", folder_path=folder, create_pr=True)
        refs = api.list_repo_refs("me/name", include_pull_requests=True)
        result = {
            "commit": [commit.pr_num, commit.pr_revision, commit.oid],
            "branches": {ref.name: ref.target_commit for ref in refs.branches},
            "pull requests": {ref.ref: ref.target_commit for ref in refs.pull_requests},
            "readme": Path(hf_hub_download("me/name", "README.md", revision="refs/pr/1")).read_text(),
        }
        """,
        OTHERS,
    )
    mine = client(
        hub,
        home,
        """
        missing = error_of(api.upload_folder, repo_id="me/name", folder_path=folder, revision="v2")
        api.create_branch("me/name", branch="v2")
        taken = error_of(api.create_branch, "me/name", branch="v2")
        api.create_branch("me/name", branch="v2", exist_ok=True)
        api.upload_folder(repo_id="me/name", folder_path=folder, revision="v2")
        result = {
            "missing": missing,
            "taken": taken,
            "weights": hf_hub_download("me/name", "model.safetensors", revision="v2"),
            "no revision": error_of(hf_hub_download, "me/name", "a.txt", revision="v3"),
            "no entry": error_of(hf_hub_download, "me/name", "model.safetensors"),
        }
        """,
    )
    assert hub.files("me/name") == {"a.txt": b"a"} and len(hub.repos["me/name"].commits) == 1
    assert hub.files("me/name", "v2") == hub.files("me/name", "refs/pr/1") == {"a.txt": b"a", **FOLDER}
    assert mine["missing"][0][0] == mine["no revision"][0][0] == "RevisionNotFoundError"
    assert mine["no entry"][0][0] == "RemoteEntryNotFoundError" and "409" in mine["taken"][1]
    assert Path(mine["weights"]).read_bytes() == WEIGHTS and others["readme"].encode() == FOLDER["README.md"]
    heads = {name: commits[-1].oid for name, commits in hub.repos["me/name"].refs.items()}
    assert others["commit"] == [1, "refs/pr/1", heads["refs/pr/1"]]
    assert others["pull requests"] == {"refs/pr/1": heads["refs/pr/1"]} and others["branches"] == {
        "main": heads["main"]
    }


WRITES = """
result = {
    "whoami": error_of(api.whoami),
    "create": error_of(api.create_repo, "me/new"),
    "taken": error_of(api.create_repo, "me/name"),
    "upload": error_of(api.upload_folder, repo_id="me/name", folder_path=folder),
    "missing": error_of(api.upload_folder, repo_id="me/missing", folder_path=folder),
}
"""


@pytest.mark.parametrize(
    ("token", "errors", "texts"),
    [
        (
            MINE,
            {"taken": "HfHubHTTPError", "missing": "RepositoryNotFoundError"},
            {"taken": "You already created this model repo", "missing": "404 Client Error"},
        ),
        (
            OTHERS,
            dict.fromkeys(("create", "taken", "upload"), "HfHubHTTPError") | {"missing": "RepositoryNotFoundError"},
            {"create": "rights to create a model under the namespace", "upload": "403 Forbidden", "missing": "404"},
        ),
        (
            "wrong",
            dict.fromkeys(("whoami", "create", "taken", "upload", "missing"), "HfHubHTTPError"),
            {"whoami": "Invalid user token", "create": "401", "upload": "Invalid credentials in Authorization header"},
        ),
        (
            None,
            {"whoami": "LocalTokenNotFoundError"}
            | dict.fromkeys(("create", "taken"), "HfHubHTTPError")
            | dict.fromkeys(("upload", "missing"), "RepositoryNotFoundError"),
            {"create": "401", "upload": "401", "missing": "Invalid username or password"},
        ),
    ],
    ids=["owner", "other", "wrong", "none"],
)
def test_who_may_not_write_gets_the_clients_usual_errors(hub, home, token, errors, texts):
    hub.add_repo("me/name", {"a.txt": b"a"})
    result = client(hub, home, WRITES, token)
    assert {name: error[0][0] for name, error in result.items() if error} == errors
    for name, text in texts.items():
        assert text in result[name][1]
    if token == MINE:
        assert set(hub.repos) == {"me/name", "me/new"} and hub.files("me/name") == {"a.txt": b"a", **FOLDER}
    else:
        assert set(hub.repos) == {"me/name"} and hub.files("me/name") == {"a.txt": b"a"}


def test_a_private_repository_is_hidden_from_others(hub, home):
    client(hub, home, "result = api.create_repo('me/secret', private=True).repo_id")
    script = """
    result = {
        "exists": api.repo_exists("me/secret"),
        "errors": [
            error_of(api.model_info, "me/secret"),
            error_of(hf_hub_download, "me/secret", ".gitattributes"),
            error_of(snapshot_download, "me/secret"),
            error_of(api.upload_folder, repo_id="me/secret", folder_path=folder, create_pr=True),
        ],
    }
    """
    for token in (OTHERS, None):
        result = client(hub, home, script, token)
        assert not result["exists"]
        assert [kinds[0] for kinds, *_ in result["errors"]] == ["RepositoryNotFoundError"] * 4
    result = client(hub, home, script)
    assert result == {"exists": True, "errors": [None] * 4} and hub.repos["me/secret"].private


def test_an_upload_that_is_cut_is_sent_again_by_the_client(hub, home):
    hub.add_repo("me/name", {})
    hub.cut_uploads = 1
    client(hub, home, "result = api.upload_folder(repo_id='me/name', folder_path=folder).oid")
    assert hub.files("me/name") == FOLDER and hub.cut_uploads == 0 and uploads(hub) == 2


def test_a_push_that_does_not_get_through_shows_nothing_and_can_be_repeated(hub, home):
    hub.add_repo("me/name", {"a.txt": b"a"})
    push = """
    time.sleep = lambda seconds: None  # the client waits longer before each of its five further attempts
    result = error_of(api.upload_folder, repo_id="me/name", folder_path=folder)
    """
    hub.cut_uploads = 6
    kinds, text, cause = client(hub, home, push)
    assert (kinds[0], text) == ("RuntimeError", "Error while uploading 'model.safetensors' to the Hub.")
    assert cause == "RemoteProtocolError" and uploads(hub) == 6 and not hub.repos["me/name"].objects

    # The client sends a commit once: it cannot know whether one whose answer it did not get was made.
    hub.cut_commits = 1
    kinds, text, _ = client(hub, home, push)
    assert kinds[0] == "RemoteProtocolError" and "TransportError" in kinds and "OSError" not in kinds
    assert text == "Server disconnected without sending a response."
    assert hub.files("me/name") == {"a.txt": b"a"} and len(hub.repos["me/name"].commits) == 1

    hub.requests.clear()
    assert client(hub, home, push) is None
    assert hub.files("me/name") == {"a.txt": b"a", **FOLDER} and uploads(hub) == 0, "the weights were there already"


def test_a_commit_is_made_whole_or_not_at_all(hub, home):
    hub.add_repo("me/name", {"a.txt": b"a"})
    result = client(
        hub,
        home,
        """
        def commit(*operations, **header):
            lines = [{"key": "header", "value": {"summary": "x", **header}}]
            lines += [{"key": "file", "value": {"path": "b.txt", "content": "Yg==", "encoding": "base64"}}, *operations]
            content = b"".join(json.dumps(line).encode() + b"\\n" for line in lines)
            headers = api._build_hf_headers()
            hf_raise_for_status(
                get_session().post(f"{api.endpoint}/api/models/me/name/commit/main", content=content, headers=headers)
            )

        result = [
            error_of(commit, {"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", "oid": "0" * 64}}),
            error_of(commit, {"key": "deletedFile", "value": {"path": "missing"}}),
            error_of(commit, parentCommit="0" * 40),
            error_of(
                api.upload_file, repo_id="me/name", path_in_repo="README.md", path_or_fileobj=b"---\\na: [\\n---\\n"
            ),
        ]
        """,
    )
    assert [error[0][0] for error in result] == [
        "BadRequestError",
        "RemoteEntryNotFoundError",
        "HfHubHTTPError",
        "ValueError",
    ]
    assert "Invalid metadata in README.md" in result[3][1]
    assert hub.files("me/name") == {"a.txt": b"a"} and len(hub.repos["me/name"].commits) == 1


def test_transformers_pushes_a_model_and_loads_it_by_its_id(hub, home):
    result = client(
        hub,
        home,
        """
        import torch
        from transformers import AutoModelForImageClassification, ConvNextV2Config, ConvNextV2ForImageClassification

        torch.manual_seed(0)
        config = ConvNextV2Config(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], num_labels=3)
        model = ConvNextV2ForImageClassification(config).eval()
        pixel_values = torch.randn(2, 3, 32, 32)
        model.push_to_hub("me/tiny", private=True)
        model.push_to_hub("me/tiny", revision="v2")
        with torch.no_grad():
            logits = [
                AutoModelForImageClassification.from_pretrained("me/tiny", revision=revision)(pixel_values).logits
                for revision in (None, "v2")
            ]
            result = [torch.equal(found, model(pixel_values).logits) for found in logits]
        """,
    )
    assert result == [True, True] and hub.repos["me/tiny"].private
    assert set(hub.files("me/tiny")) == {".gitattributes", "README.md", "config.json", "model.safetensors"}


def test_a_clients_environment_is_online_and_has_only_the_token_it_is_given(hub, home, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, "1")
    environment = hub.environment(home, None)
    names = {name for name in environment if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    assert environment["HF_ENDPOINT"] == hub.url and environment["HF_HOME"] == str(home)
    assert {name for name in names if "TOKEN" in name or "OFFLINE" in name or "CACHE" in name} == set()
    assert hub.environment(home, MINE) == environment | {"HF_TOKEN": MINE}
