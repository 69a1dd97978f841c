"""From a folder to the Hub and back: one commit, a card without a blank, models that load without this package."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from huggingface_hub import ModelCard, ModelCardData, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from safetensors.torch import load_file, save_file

from conversion.publish import main as publish
from conversion.publishing.card import render_card
from conversion.publishing.publication import Publication
from conversion.publishing.staging import check_folder, stage
from hf_convnextv2 import (
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    create_image_processor,
)
from tests.hub_server import HubServer
from tests.photographs import write_folder
from tests.small_models import WITHOUT_THE_PACKAGE, awake, small_config, small_convmae_config, small_fcmae_config
from training.run.output import OutputFolder
from training.settings.scripts import FinetuneSettings

MINE, OTHERS = "token-of-me", "token-of-other"
CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def hub():
    with HubServer({MINE: "me", OTHERS: "other"}) as server:
        yield server


NAMES = {"id2label": {i: f"class {i}" for i in range(5)}, "label2id": None}


@dataclass(frozen=True)
class Family:
    """Small models of a family, and what is published of them: with code if Transformers has no such models."""

    create_classifier: Callable[[], Any]
    create_pretraining: Callable[[], Any]
    needs_code: bool
    module: str  # where its classes come from, elsewhere
    stages: tuple[str, str]  # of a backbone


FAMILIES = {
    "convnextv2": Family(
        lambda: ConvNextV2ForImageClassification(small_config(**NAMES)),
        lambda: ConvNextV2ForPreTraining(small_fcmae_config()),
        needs_code=False,
        module="transformers.models.convnextv2.modeling_convnextv2",
        stages=("stage2", "stage4"),
    ),
    "convmae": Family(
        lambda: ConvMAEForImageClassification(small_convmae_config(**NAMES)),
        lambda: ConvMAEForPreTraining(small_convmae_config()),
        needs_code=True,
        module="transformers_modules.",
        stages=("stage1", "stage3"),
    ),
}
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def classifier_of(family: Family, folder: Path) -> Path:
    """The folder that a fine-tuning run leaves, with what does not belong on the Hub."""
    return leave_run(folder, awake(family.create_classifier()), "finetune")


def pretrained_of(family: Family, folder: Path) -> Path:
    """The folder that a pre-training run leaves."""
    return leave_run(folder, awake(family.create_pretraining()), "pretrain")


@pytest.fixture
def classifier(tmp_path) -> Path:
    return classifier_of(FAMILIES["convnextv2"], tmp_path / "classifier")


@pytest.fixture
def pretrained(tmp_path) -> Path:
    return pretrained_of(FAMILIES["convnextv2"], tmp_path / "pretrain")


def leave_run(folder: Path, model, run: str) -> Path:
    model.save_pretrained(folder)
    create_image_processor(model.config).save_pretrained(folder)
    settings = {"run": run, "dataset_name": "ILSVRC/imagenet-1k", "eval_split": "validation", "train_split": "train"}
    settings |= {"base_learning_rate": 1.5e-4, "seed": 0, "output_dir": "/home/someone/secret"}
    (folder / "training_config.json").write_text(json.dumps(settings))
    (folder / "all_results.json").write_text(json.dumps({"eval_accuracy": 0.75, "train_loss": 0.5}))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    Image.new("RGB", (8, 8)).save(folder / "loss_curves.png")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1/optimizer.bin").write_text("state")
    (folder / "notes.txt").write_text("mine")
    return folder


def run(hub: HubServer, home: Path, *command: object, token: str | None = MINE, code: int = 0) -> str:
    """What a command prints that ends with this code, with a user's token on the local Hub."""
    environment = {**hub.environment(home, token), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=300, cwd=CHECKOUT
    )
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed
    assert MINE not in printed and OTHERS not in printed
    return printed


def elsewhere(hub: HubServer, home: Path, script: str, *arguments: object) -> str:
    """What a script prints in a process that cannot import this package, with the Hub of the test and no checkout."""
    environment = {**hub.environment(home, None), "OMP_NUM_THREADS": "1"}
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_THE_PACKAGE + script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=home,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- What is published ------------------------------------------------------------------------------------------------

LOAD_CLASSIFIER = """
import sys, torch
from PIL import Image
from transformers import AutoBackbone, AutoImageProcessor, AutoModelForImageClassification, pipeline
name, photograph, output, needs_code, *stages = sys.argv[1:]
trust = {"trust_remote_code": True} if needs_code == "True" else {}
processor = AutoImageProcessor.from_pretrained(name)
pixel_values = processor(Image.open(photograph), return_tensors="pt").pixel_values
with torch.no_grad():
    model = AutoModelForImageClassification.from_pretrained(name, **trust)
    backbone = AutoBackbone.from_pretrained(name, out_features=stages, **trust)
    answers = pipeline("image-classification", model=name, **trust)(photograph)
    maps = backbone(pixel_values).feature_maps
    found = {"pixel_values": pixel_values, "logits": model(pixel_values).logits, "maps": maps, "answers": answers}
torch.save(found, output)
print(type(model).__module__, type(backbone).__module__)
"""


@torch.no_grad()
@EACH_FAMILY
def test_a_published_classifier_answers_as_before_without_this_package(tmp_path, hub, family):
    classifier = classifier_of(family, tmp_path / "classifier")
    printed = run(hub, tmp_path / "home", "-m", "conversion.publish", classifier, "--repo_id", "me/name")
    assert "Published: " in printed
    assert [commit.message for commit in hub.repos["me/name"].commits[1:]] == ["Upload model"]
    files = hub.files("me/name")
    code = {name for name in files if name.endswith(".py")}
    assert bool(code) == family.needs_code == ("trust_remote_code=True" in files["README.md"].decode())
    assert set(files) - code == {
        ".gitattributes", "README.md", "all_results.json", "config.json", "loss_curves.png", "metrics.jsonl",
        "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    for name in ("model.safetensors", "loss_curves.png", *([] if family.needs_code else ["config.json"])):
        assert files[name] == (classifier / name).read_bytes()
    photograph = tmp_path / "chelsea.png"
    Image.fromarray(skimage.data.chelsea()).save(photograph)
    arguments = ("me/name", photograph, tmp_path / "answers.pt", family.needs_code, *family.stages)
    printed = elsewhere(hub, tmp_path / "other", LOAD_CLASSIFIER, *arguments)
    assert [name.startswith(family.module) for name in printed.split()] == [True, True]
    answers = torch.load(tmp_path / "answers.pt")
    model = type(family.create_classifier()).from_pretrained(classifier)
    outputs = model(answers["pixel_values"], output_hidden_states=True)
    torch.testing.assert_close(answers["logits"], outputs.logits, rtol=0, atol=1e-5)
    norm = torch.nn.functional.layer_norm
    numbers = [int(stage.removeprefix("stage")) for stage in family.stages]
    for map, hidden in zip(answers["maps"], (outputs.hidden_states[number] for number in numbers), strict=True):
        expected = norm(hidden.permute(0, 2, 3, 1), hidden.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)
        torch.testing.assert_close(map, expected, rtol=0, atol=1e-4)
    scores = dict(zip((f"class {i}" for i in range(5)), outputs.logits[0].softmax(-1).tolist(), strict=True))
    for answer in answers["answers"]:
        assert answer["score"] == pytest.approx(scores[answer["label"]], abs=1e-5)


LOAD_PRETRAINED = """
import sys, torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining
name, batch, output, encoder, needs_code = sys.argv[1:]
batch, trust = torch.load(batch), {"trust_remote_code": True} if needs_code == "True" else {}
config = AutoConfig.from_pretrained(name, trust_remote_code=True)
model = AutoModelForPreTraining.from_pretrained(name, trust_remote_code=True)
AutoImageProcessor.from_pretrained(name)
encoder = AutoModel.from_pretrained(encoder, **trust)
try:
    AutoModelForPreTraining.from_pretrained(name, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise SystemExit("remote code ran without being trusted")
with torch.no_grad():
    outputs = model(**batch)
    features = encoder(batch["pixel_values"]).last_hidden_state
torch.save({"loss": outputs.loss, "logits": outputs.logits, "features": features}, output)
model.save_pretrained("again")
torch.save(AutoModelForPreTraining.from_pretrained("./again", trust_remote_code=True)(**batch).loss, "loss.pt")
print(type(config).__name__, type(model).__module__.split(".")[0], type(encoder).__module__)
"""


@torch.no_grad()
@EACH_FAMILY
def test_a_published_pretraining_model_carries_its_code_and_its_encoder_what_it_needs(tmp_path, hub, family):
    """ConvMAE's code comes along unasked, and has the encoder; ConvNeXt V2's is one of Transformers, without code."""
    pretrained = pretrained_of(family, tmp_path / "pretrain")
    flags = () if family.needs_code else ("--with_code",)
    run(hub, tmp_path / "home", "-m", "conversion.publish", pretrained, "--repo_id", "name", *flags)
    encoder = "me/name" if family.needs_code else "me/name-encoder"
    assert set(hub.repos) == {"me/name", encoder}
    model = type(family.create_pretraining()).from_pretrained(pretrained)
    num_cells = (64 // model.config.cell_size) ** 2
    batch = {"pixel_values": torch.randn(2, 3, 64, 64), "noise": torch.rand(2, num_cells)}
    torch.save(batch, tmp_path / "batch.pt")
    home = tmp_path / "other"
    arguments = ("me/name", tmp_path / "batch.pt", tmp_path / "outputs.pt", encoder, family.needs_code)
    printed = elsewhere(hub, home, LOAD_PRETRAINED, *arguments)
    assert printed.split()[:2] == [type(model.config).__name__, "transformers_modules"]
    assert printed.split()[2].startswith(family.module)
    found, expected = torch.load(tmp_path / "outputs.pt"), model(**batch)
    torch.testing.assert_close(found["loss"], expected.loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(found["logits"], expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.load(home / "loss.pt"), expected.loss, rtol=0, atol=1e-6)
    features = model.base_model(batch["pixel_values"]).last_hidden_state
    torch.testing.assert_close(found["features"], features, rtol=0, atol=1e-4)

    cards = {name: hub.files(name)["README.md"].decode() for name in hub.repos}
    if not family.needs_code:
        assert f"https://huggingface.co/{encoder}" in cards["me/name"]
        assert "https://huggingface.co/me/name)" in cards[encoder]
    assert "trust_remote_code=True" in cards["me/name"]
    assert "auto_map" not in json.loads((pretrained / "config.json").read_text())
    assert any(name.endswith(".py") for name in hub.files(encoder)) == family.needs_code
    if family.needs_code:
        return
    # A classifier made of it must not point to code that its own repository lacks.
    (tmp_path / "cloned").mkdir()
    for name, content in hub.files("me/name").items():
        (tmp_path / "cloned" / name).write_bytes(content)
    fine_tuned = type(family.create_classifier()).from_pretrained(tmp_path / "cloned")
    assert not hasattr(fine_tuned.config, "auto_map")


@pytest.mark.parametrize("kind", ["incomplete", "another size"])
def test_a_convmae_folder_that_is_not_complete_is_not_published(kind, tmp_path):
    folder = leave_run(tmp_path / "run", ConvMAEForPreTraining(small_convmae_config()), "pretrain")
    weights = load_file(folder / "model.safetensors")
    name = "convmae.encoder.stages.2.layers.0.attn.qkv.weight"
    weights[name] = weights[name][:, :-1].contiguous()
    if kind == "incomplete":
        del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit: 1 (missing|of the wrong shape)"):
        check_folder(folder)


def test_cards_are_complete_and_the_front_matter_is_the_hubs(tmp_path, hub, classifier, pretrained):
    for folder, name in ((classifier, "me/classifier"), (pretrained, "me/pretrained")):
        run(hub, tmp_path / "home", "-m", "conversion.publish", folder, "--repo_id", name, "--license", "mit")
    for repo_id in hub.repos:
        card = hub.files(repo_id)["README.md"].decode()
        assert not any(blank in card for blank in ("None", "{{", "{%", "More Information", "/home/someone", "TODO"))
        assert f'"{repo_id}"' in card, "the code in the card must name the repository"
        file = tmp_path / "README.md"
        file.write_text(card)
        metadata = metadata_load(file) or {}
        data = ModelCardData(**metadata)
        assert ModelCard(card).data.to_dict() == data.to_dict()
        assert data.license == "mit" and data.library_name == "transformers" and data.pipeline_tag and data.tags
        if repo_id == "me/classifier":
            name, (result,) = model_index_to_eval_results(metadata["model-index"])
            assert (name, result.metric_type, result.metric_value) == ("classifier", "accuracy", 0.75)
            assert (result.dataset_type, result.dataset_split) == ("ILSVRC/imagenet-1k", "validation")
        if repo_id == "me/pretrained-encoder":
            assert data.base_model == "me/pretrained"


def test_a_dry_run_writes_the_card_lists_the_files_and_asks_nobody(tmp_path, hub, pretrained):
    printed = run(
        hub, tmp_path / "home", "-m", "conversion.publish", pretrained, "--repo_id", "me/x", "--dry_run", token=None
    )
    assert hub.requests == [] and (pretrained / "README.md").exists()
    for file in ("model.safetensors", "README.md", "config.json", "loss_curves.png", "me/x-encoder"):
        assert file in printed
    assert "notes.txt" not in printed and "optimizer.bin" not in printed


def dry_run(folder: Path, *flags: str) -> None:
    publish([str(folder), "--dry_run", *flags])


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], ["me/x", "me/x-encoder"]),
        (["--encoder_repo_id", "me/other"], ["me/x", "me/other"]),
        (["--skip_encoder"], ["me/x"]),
        (["--create_pr"], ["me/x"]),
        (["--create_pr", "--encoder_repo_id", "me/other"], ["me/x", "me/other"]),
    ],
    ids=str,
)
def test_a_pretraining_models_encoder_goes_where_it_is_said_to_go(pretrained, capsys, flags, names):
    dry_run(pretrained, "--repo_id", "me/x", *flags)
    listed = [line.removesuffix(":") for line in capsys.readouterr().out.splitlines() if line.startswith("me/")]
    assert listed == names
    card = (pretrained / "README.md").read_text()
    assert all((name in card) is (name in names) for name in ("me/x", "me/x-encoder", "me/other"))


def test_a_copy_of_a_repository_with_code_is_published_without_it_unless_asked(tmp_path, pretrained):
    """Of a map to code that is not there, `AutoModel` would make an error."""
    copy = stage(pretrained, tmp_path / "copy", Publication("me/x", with_code=True))
    assert "auto_map" in json.loads((copy / "config.json").read_text()) and list(copy.glob("*.py"))
    plain = stage(copy, tmp_path / "plain", Publication("me/x"))
    assert "auto_map" not in json.loads((plain / "config.json").read_text()) and not list(plain.glob("*.py"))


def test_a_card_that_somebody_has_edited_is_published_as_it_is(tmp_path, classifier):
    dry_run(classifier, "--repo_id", "me/x")
    own = "---\nlicense: mit\n---\n# My own words\n"
    (classifier / "README.md").write_text(own)
    dry_run(classifier, "--repo_id", "me/x")
    assert (stage(classifier, tmp_path / "staged", Publication("me/x")) / "README.md").read_text() == own
    assert (classifier / "README.md").read_text() == own
    with pytest.raises(ValueError, match="a card of your own is not changed"):
        stage(classifier, tmp_path / "other", Publication("me/x", license="apache-2.0"))


def test_a_private_repository_a_pull_request_and_a_branch(tmp_path, hub, classifier):
    many = "import json, sys; from conversion.publish import main; [main(flags) for flags in json.loads(sys.argv[1])]"
    calls = [
        ["--private"],
        ["--create_pr", "--commit_message", "Better", "--license", "mit"],
        ["--revision", "v2", "--license", "openrail"],
    ]
    commands = [[str(classifier), "--repo_id", "me/x", *flags] for flags in calls]
    run(hub, tmp_path / "home", "-c", many, json.dumps(commands))
    repo = hub.repos["me/x"]
    assert repo.private
    assert repo.refs["refs/pr/1"][-1].message == "Better"
    licenses = {"main": b"license: unknown", "v2": b"license: openrail", "refs/pr/1": b"license: mit"}
    assert all(license in hub.files("me/x", name)["README.md"] for name, license in licenses.items())
    assert len(repo.commits) == 2, "main has the first commit alone"


def test_a_dry_run_in_a_copy_of_a_repository_keeps_what_only_the_card_knows(tmp_path, classifier):
    copy = stage(classifier, tmp_path / "copy", Publication("me/x"))
    card = (copy / "README.md").read_text()
    dry_run(copy, "--repo_id", "me/y")
    assert (copy / "README.md").read_text() == card and "## Recipe" in card


def test_what_is_made_of_the_official_weights_stays_under_their_licence(classifier):
    settings = json.loads((classifier / "training_config.json").read_text())
    settings |= {"model_name_or_path": "facebook/convnextv2-tiny-1k-224", "local": [], "license": "cc-by-nc-4.0"}
    (classifier / "training_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="that of the official weights stays"):
        render_card(classifier, Publication("me/x", license="apache-2.0"))
    config = {"output_dir": "o", "dataset_name": "d", "model_name_or_path": "facebook/convnextv2-tiny-1k-224"}
    assert OutputFolder(FinetuneSettings(**config)).license() == "cc-by-nc-4.0"
    with pytest.raises(ValueError, match="`license`"):
        OutputFolder(FinetuneSettings(**config, license="mit")).license()


def test_what_a_dry_run_wrote_does_not_stick(tmp_path, pretrained):
    """Also for a folder of `save_pretrained` alone, whose card has nothing else to be made of."""
    (pretrained / "training_config.json").unlink()
    dry_run(pretrained, "--repo_id", "me/wrong")
    publication = Publication("me/right", "me/other", license="mit", with_code=True)
    card = (stage(pretrained, tmp_path / "staged", publication) / "README.md").read_text()
    assert "me/wrong" not in card and "license: mit" in card and "trust_remote_code=True" in card and "me/other" in card


def test_what_began_as_a_path_stays_one_wherever_it_is_published(classifier):
    """Of a run started elsewhere with relative paths, and from weights that are not for commercial use."""
    settings = json.loads((classifier / "training_config.json").read_text())
    paths = {"dataset_name": "data/cats", "model_name_or_path": "out/tiny", "license": "cc-by-nc-4.0"}
    settings |= {**paths, "local": ["dataset_name", "model_name_or_path"]}
    (classifier / "training_config.json").write_text(json.dumps(settings))
    card = render_card(classifier, Publication("me/x"))
    assert "data/cats" not in card and "out/tiny" not in card and "`cats`" in card and "`tiny`" in card
    assert "license: cc-by-nc-4.0" in card and "base_model" not in card


def test_an_upload_that_got_half_way_goes_on_with_the_same_command(tmp_path, hub, pretrained):
    script = """
import sys
from conversion.publishing import hub
from conversion import publish
upload = hub.Hub.upload
def broken(self, folder, repo_id, message=None):
    if repo_id.endswith("-encoder"):
        raise ValueError("broken")
    return upload(self, folder, repo_id, message)
hub.Hub.upload = broken
publish.main(sys.argv[1:])
"""
    run(hub, tmp_path / "home", "-c", script, pretrained, "--repo_id", "me/x", code=2)
    assert set(hub.repos) == {"me/x"}
    run(hub, tmp_path / "home", "-m", "conversion.publish", pretrained, "--repo_id", "me/x")
    assert set(hub.repos) == {"me/x", "me/x-encoder"}


def test_an_earlier_versions_weights_do_not_stay(tmp_path, hub, classifier):
    mine = {"img/loss_curves.png": b"p", "handler.py": b"h", "LICENSE": b"l"}
    old = {"conversion.json": b"{}", "modeling_fcmae.py": b"1", "model.safetensors.index.json": b"{}"}
    hub.add_repo("me/x", {**mine, **old, "model-00001-of-00002.safetensors": b"old"})
    run(hub, tmp_path / "home", "-m", "conversion.publish", classifier, "--repo_id", "me/x", "--exist_ok")
    files = set(hub.files("me/x"))
    assert {*mine, "model.safetensors"} <= files and not set(old) & files
    assert not {"model-00001-of-00002.safetensors", "model.safetensors.index.json"} & files


def test_training_pushes_its_result_in_one_commit(tmp_path, hub):
    data = write_folder(tmp_path / "data", {"train": 4})
    flags = "--model_size atto --image_size 32 --max_train_steps 2 --per_device_train_batch_size 4 --num_workers 0"
    command = ["training/pretrain.py", "--dataset_name", data, "--output_dir", tmp_path / "out", *flags.split()]
    pushed = ["--push_to_hub", "true", "--hub_model_id", "name", "--patch_size", "2", "--hub_private_repo", "true"]
    printed = run(hub, tmp_path / "home", *command, *pushed, token=None, code=1)
    assert "No token for the Hub" in printed and not (tmp_path / "out").exists()
    run(hub, tmp_path / "home", *command, *pushed)
    assert set(hub.repos) == {"me/name", "me/name-encoder"} and all(repo.private for repo in hub.repos.values())
    assert len(hub.repos["me/name"].commits) == 2
    assert {"reconstructions.png", "loss_curves.png", "README.md"} <= set(hub.files("me/name"))


# --- What is refused --------------------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


REFUSED = [
    (None, "me/x", [], "No token for the Hub: log in with `hf auth login`, or set HF_TOKEN."),
    ("wrong", "me/x", [], "The Hub does not accept the token (HTTP 401)"),
    (MINE, "other/x", [], "`--repo_id` (=other/x) must be yours, but you are me"),
    (MINE, "me/taken", [], "`--repo_id` (=me/taken) is taken: it holds 1 files"),
    (MINE, "me/another", [], "`--repo_id` (=me/another) is taken: it holds 1 files"),
    (MINE, "me/not a name", [], "must be a name such as me/name"),
    (MINE, "me/new", ["--create_pr"], "`--repo_id` (=me/new) must exist for --create_pr"),
    (MINE, "me/x", ["--with_code"], "`--with_code` is for pre-training models"),
    (MINE, "me/taken", ["--revision", "main"], "`--repo_id` (=me/taken) is taken"),
    (MINE, "me/taken", ["--revision", "v1"], "`--repo_id` (=me/taken) is taken"),
    (MINE, "me/x", ["--skip_encoder"], "`--skip_encoder` must be left out for a classifier"),
    (MINE, "me/taken", ["--private", "--exist_ok"], "is public, and --private does not change that"),
]
REFUSE = """
import contextlib, io, json, os, sys
from conversion.publish import main
folder, *cases = sys.argv[1:]
answers = []
for token, repo_id, flags, _ in map(json.loads, cases):
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({} if token is None else {"HF_TOKEN": token})
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main([folder, "--repo_id", repo_id, *flags])
        except SystemExit as end:
            answers.append([end.code, printed.getvalue().replace(str(token), "A TOKEN")])
print(json.dumps(answers))
"""


def test_who_may_not_publish_is_told_so_and_nothing_changes(tmp_path, hub, classifier):
    taken = hub.add_repo("me/taken", {"config.json": b"{}"})
    taken.refs["v1"] = list(taken.commits)
    hub.add_repo("me/another", {"model.safetensors": b"the weights of another model"})
    before = snapshot(classifier)
    answers = json.loads(run(hub, tmp_path / "home", "-c", REFUSE, classifier, *map(json.dumps, REFUSED)))
    for (code, printed), (*_, said) in zip(answers, REFUSED, strict=True):
        *listed, error = printed.splitlines()
        assert code == 2 and said in error and "A TOKEN" not in printed and "Traceback" not in printed, printed
        assert all(line.startswith(("  ", "me/", "other/")) for line in listed)
    assert set(hub.repos) == {"me/taken", "me/another"} and set(hub.files("me/taken")) == {"config.json"}
    assert hub.files("me/another")["model.safetensors"] == b"the weights of another model"
    assert snapshot(classifier) == before


@pytest.mark.parametrize(
    "broken", ["config.json", "preprocessor_config.json", "model.safetensors", "a weight", "a class"]
)
def test_a_folder_that_is_not_complete_is_not_published(classifier, capsys, broken):
    if broken == "a weight":
        whole = (classifier / "model.safetensors").read_bytes()
        (classifier / "model.safetensors").write_bytes(whole[:-10])
    elif broken == "a class":
        config = json.loads((classifier / "config.json").read_text())
        (classifier / "config.json").write_text(
            json.dumps({**config, "id2label": {"0": "only"}, "label2id": {"only": 0}})
        )
    else:
        (classifier / broken).unlink()
    with pytest.raises(SystemExit) as end:
        publish([str(classifier), "--repo_id", "me/x", "--dry_run"])
    printed = capsys.readouterr().err
    said = {"a weight": "is damaged", "a class": "classifier.weight (5, 32) instead of (1, 32)"}
    assert end.value.code == 2 and said.get(broken, "must hold") in printed
    assert not (classifier / "README.md").exists()


def test_a_connection_that_breaks_once_is_tried_again(tmp_path, hub, classifier):
    hub.cut_uploads = hub.cut_commits = 1
    printed = run(hub, tmp_path / "home", "-m", "conversion.publish", classifier, "--repo_id", "me/x")
    assert "Published" in printed and len(hub.repos["me/x"].commits) == 2
    assert hub.cut_uploads == hub.cut_commits == 0
    assert hub.files("me/x")["model.safetensors"] == (classifier / "model.safetensors").read_bytes()


QUICK = "import time, sys; time.sleep = lambda s: None; from conversion.publish import main; main(sys.argv[1:])"


@pytest.mark.parametrize("fault", ["cut_uploads", "cut_commits"])
def test_a_connection_that_breaks_for_good_leaves_no_half_of_a_model(tmp_path, hub, classifier, fault):
    """And the same command works once the connection does."""
    setattr(hub, fault, 10**6)
    before = snapshot(classifier)
    printed = run(hub, tmp_path / "home", "-c", QUICK, classifier, "--repo_id", "me/x", code=2)
    assert "`--repo_id` (=me/x): the upload failed" in printed and "Nothing of it is visible" in printed
    assert "Traceback" not in printed
    assert set(hub.files("me/x")) == {".gitattributes"} and snapshot(classifier) == before
    setattr(hub, fault, 0)
    run(hub, tmp_path / "home", "-m", "conversion.publish", classifier, "--repo_id", "me/x")
    assert "README.md" in hub.files("me/x")


def test_a_hub_that_is_not_there_is_said(tmp_path, hub, classifier):
    environment = hub.environment(tmp_path / "home", MINE)
    hub.__exit__(None, None, None)
    command = [sys.executable, "-c", QUICK, str(classifier), "--repo_id", "me/x"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=CHECKOUT)
    assert done.returncode == 2 and "The Hub was not reached" in done.stderr and "Traceback" not in done.stderr
