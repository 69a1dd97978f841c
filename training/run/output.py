"""The output folder of a run: checked and created before training, filled after it, uploaded on request."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from conversion.files import partial_path, read_json, write_json
from conversion.model_folder import RESULTS, SETTINGS
from conversion.publish import publish
from conversion.publishing.hub import Hub
from conversion.publishing.hub_ids import is_hub_id
from conversion.publishing.licenses import OFFICIAL_LICENSE, inherited_license
from conversion.publishing.pretraining import FROM_FCMAE, starts_from_fcmae
from training.machine.disk import writing
from training.run.checkpoints import LOGS, numbered_folders
from training.settings.checks import check
from training.settings.scripts import TrainingSettings

CARD = "README.md"  # the last file of a finished run
SOURCES = ("dataset_name", "model_name_or_path", "teacher_name_or_path")  # settings that name a folder or a repository


class OutputFolder:
    """The folder that a run writes into."""

    def __init__(self, settings: TrainingSettings) -> None:
        self.record, self.hub, self.start = settings.record(), settings.hub, settings.model
        self.path = Path(settings.run.output_dir)
        self.overwrite = settings.run.overwrite_output_dir
        self.resume_from = settings.checkpoints.resume_from_checkpoint

    def check(self) -> None:
        """Raise if the folder holds other files, or an earlier run that is neither resumed nor to be overwritten.

        Raise as well if the result may not have the licence asked for, or could not be pushed to the Hub.
        """
        self.license()
        self.check_writable()
        # A run that was killed while writing its first file leaves a .partial file only: that does not count as a run.
        held = [path for path in self.path.iterdir() if path.suffix != ".partial"] if self.path.is_dir() else []
        if held and not self.overwrite:
            self.check_taken_up()
        self.check_hub()

    def check_writable(self) -> None:
        """Raise if the folder cannot be created or written to."""
        existing = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        effective = {"effective_ids": True} if os.access in os.supports_effective_ids else {}
        writable = os.access(existing, os.W_OK | os.X_OK, **effective)
        check("output_dir", self.path, writable, f"be writable, but {existing} is not")

    def check_taken_up(self) -> None:
        """Raise unless the folder holds a run of the same script, and that run is to be resumed."""
        if not self.holds_run():
            raise ValueError(
                f"`output_dir` (={self.path}) must be empty or hold a run of this script, but it holds something else. "
                "`--overwrite_output_dir` writes into it all the same."
            )
        if self.resume_from is None:
            raise ValueError(
                f"`output_dir` (={self.path}) must not hold an earlier run. Take it up again with "
                "`--resume_from_checkpoint latest`, or start afresh with `--overwrite_output_dir`."
            )

    def check_hub(self) -> None:
        """Raise if the result could not be pushed: no token, a wrong token, or another user's namespace."""
        if not self.hub.push_to_hub or self.hub.hub_model_id is None:
            return
        hub = Hub(exist_ok=True, private=self.hub.hub_private_repo)
        name = hub.full_name(self.hub.hub_model_id)
        for repo_id in (name, f"{name}-encoder") if self.record.task == "pretrain" else (name,):
            hub.check(repo_id)

    def license(self) -> str:
        """The licence of the trained weights: the one asked for, else the licence of the initial weights."""
        asked, inherited = self.hub.license, inherited_license(self.start.model_name_or_path, self.start.model_revision)
        allowed = inherited != OFFICIAL_LICENSE or asked in (None, OFFICIAL_LICENSE)
        check("license", asked, allowed, f"be {inherited}, as that of `model_name_or_path`")
        return asked or inherited

    def holds_run(self) -> bool:
        """Whether a run of the same script has written its settings into the folder."""
        try:
            marker = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False
        return isinstance(marker, dict) and marker.get("run") == self.record.task

    def claim(self) -> None:
        """Create the folder and write the run's settings.

        Unless the run resumes, delete the checkpoints and logs of an earlier run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / RESULTS).unlink(missing_ok=True)  # without this file, the run counts as unfinished
        for name in ("final", "checkpoint-", SETTINGS, RESULTS, CARD, *LOGS):
            for left in self.path.glob(f".{name}*.partial"):  # left by a run that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        if self.resume_from is None and self.holds_run():
            for checkpoint in (*numbered_folders(self.path), *self.path.glob("superseded-checkpoint-*")):
                shutil.rmtree(checkpoint)
            for log in LOGS:
                (self.path / log).unlink(missing_ok=True)
        write_json(self.path / SETTINGS, {**self.notes(), **self.record.values, "license": self.license()})

    def notes(self) -> dict[str, Any]:
        """For the model card: which settings are paths on this machine, and which settings the result depends on."""
        values = self.record.values
        local = [name for name in SOURCES if values.get(name) and not is_hub_id(values[name])]
        local += [name for name in values.get("mixed_dataset_names") or [] if not is_hub_id(name)]
        notes: dict[str, Any] = {"run": self.record.task, "local": local, "recipe": self.record.recipe}
        base = self.start.model_name_or_path
        if base is not None:
            notes["start"] = read_json(Path(base) / "config.json").get("model_type")
            notes[FROM_FCMAE] = starts_from_fcmae(base, self.start.model_revision)
        return notes

    def holds_all(self, max_steps: int) -> bool:
        """Whether `--resume_from_checkpoint latest` is set and the folder already holds the finished run."""
        if self.resume_from != "latest" or not (self.path / CARD).is_file():
            return False
        return read_json(self.path / RESULTS).get("total_steps") == max_steps

    def push(self) -> None:
        """Upload the folder if asked to. The encoder of a pre-training model also gets a repository of its own."""
        repo_id, private = self.hub.hub_model_id, self.hub.hub_private_repo
        if not self.hub.push_to_hub or repo_id is None:
            return
        try:
            publish(self.path, repo_id, private=private, exist_ok=True)
        except ValueError as error:
            again = f"python -m conversion.publish {self.path} --repo_id {repo_id} --exist_ok"
            again += " --private" if private else ""
            raise SystemExit(f"{error}\nThe model is complete in {self.path}. To publish it: {again}") from error


def save_model(folder: Path, model: PreTrainedModel, processor: Any, results: dict[str, Any]) -> None:
    """Write weights, configuration, image processor and all_results.json to a temporary folder, then move them."""
    with partial_path(folder / "final") as partial:
        with writing(folder, partial):
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
            write_json(partial / RESULTS, results)
        # all_results.json comes last: it marks the run as finished.
        for file in sorted(partial.iterdir(), key=lambda file: (file.name == RESULTS, file.name)):
            os.replace(file, folder / file.name)
