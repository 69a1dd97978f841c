"""Which models the page shows: flags before variables, variables before the file of a Space."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from spaces.app import main
from spaces.settings import EXAMPLES, MODEL, PRETRAINED, TITLE, PageSettings, read_settings

ROOT = Path(__file__).parents[2]


def test_flags_come_before_variables_and_variables_before_the_file(tmp_path):
    file = tmp_path / "space.json"
    file.write_text(json.dumps({MODEL: "file/model", PRETRAINED: "file/pretrained", TITLE: "From the file"}))
    environment = {MODEL: "variable/model", PRETRAINED: ""}
    found = read_settings({}, environment, file)
    assert found == PageSettings("variable/model", "file/pretrained", "From the file")
    found = read_settings({MODEL: "flag/model", TITLE: None}, environment, file)
    assert (found.classifier, found.title) == ("flag/model", "From the file")


def test_folders_of_the_file_lie_beside_it(tmp_path, monkeypatch):
    (tmp_path / "models/classifier").mkdir(parents=True)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/cat.png").touch()
    stored = {MODEL: "models/classifier", PRETRAINED: "me/pretrained", EXAMPLES: "examples"}
    (tmp_path / "space.json").write_text(json.dumps(stored))
    monkeypatch.chdir("/")
    found = read_settings({}, {}, tmp_path / "space.json")
    assert (found.classifier, found.pretrained) == (str(tmp_path / "models/classifier"), "me/pretrained")
    assert found.examples == tmp_path / "examples"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "(both unset) must name a model"),
        ('{"MODEL": 1}', "whose values are texts"),
        ("{", "must be JSON"),
        ('{"MODEL": "me/x", "EXAMPLES": "nowhere"}', "`examples` (=nowhere) must be a folder with pictures"),
    ],
)
def test_settings_that_show_nothing_are_named(tmp_path, text, said):
    (tmp_path / "space.json").write_text(text)
    with pytest.raises(ValueError) as raised:
        read_settings({}, {}, tmp_path / "space.json")
    assert said in str(raised.value)


def test_the_command_says_in_one_line_what_is_missing():
    done = subprocess.run([sys.executable, "-m", "spaces.app"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("python -m spaces.app: error: `MODEL` or `PRETRAINED_MODEL`")
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_and_one_that_is_none_are_named_before_a_model_is_loaded(capsys):
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        for number, said in ((port, "must be free, but another program uses it"), (70000, "between 1 and 65535")):
            with pytest.raises(SystemExit) as raised:
                main(["--classifier", "nobody/nothing", "--port", str(number)])
            assert raised.value.code == 2
            assert f"`--port` (={number}) must be" in (printed := capsys.readouterr().err) and said in printed
