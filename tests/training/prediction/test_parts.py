"""Parts of answers: what is whole counts, what lies after a gap is done again, other settings begin anew."""

import pytest

from tests.photographs import message_of
from training.prediction import parts
from training.prediction.parts import JsonLines, Parts

RECORD = {"top_k": 1, "eval_scales": [1.0], "masks_dir": None}


def numbered(first, end):
    return [{"image": str(number)} for number in range(first, end)]


def parts_of(folder, **changes):
    return Parts(folder / "a.csv", {**RECORD, **changes}, JsonLines())


def written(folder, *ends):
    """Parts that end at these images."""
    found = parts_of(folder)
    found.begin(overwrite=False)
    for first, end in zip((0, *ends), ends, strict=False):
        found.add(numbered(first, end))
        found.write()
    return found


def test_the_parts_hold_all_answers_in_order_and_say_how_many_there_are(tmp_path):
    assert list(written(tmp_path, 3, 4, 11)) == numbered(0, 11)
    again = parts_of(tmp_path)
    assert not again.starts_anew(overwrite=False) and again.begin(overwrite=False) == 11
    again.add(numbered(11, 13))
    assert list(again) == numbered(0, 11)  # not written yet
    again.write()
    assert list(again) == numbered(0, 13)


def test_an_unfinished_file_is_no_part(tmp_path):
    written(tmp_path, 3)
    (tmp_path / "a.csv.partial/.part-000000000003-000000000009-0.jsonl.1-2.partial").write_text("{")
    assert parts_of(tmp_path).begin(overwrite=False) == 3


def test_what_lies_after_a_gap_is_done_again(tmp_path):
    written(tmp_path, 3, 4, 11).files()[1].unlink()
    again = parts_of(tmp_path)
    assert again.begin(overwrite=False) == 3 and list(again) == numbered(0, 3)


def test_parts_that_overlap_or_that_another_command_has_added_are_no_answers(tmp_path):
    found = written(tmp_path, 3, 4, 11)
    assert len(list(found)) == 11
    first, second, last = found.files()
    last.rename(last.with_name("part-000000000002-000000000009-0.jsonl"))
    assert "must hold each image once" in message_of(lambda: list(found))
    found = written(tmp_path, 3, 4)
    second.with_name("part-000000000004-000000000005-0.jsonl").write_text(first.read_text())
    assert "must hold each image once" in message_of(lambda: list(found))


def test_one_command_at_a_time_has_the_parts(tmp_path):
    first, second = parts_of(tmp_path), parts_of(tmp_path, top_k=2)
    with first.alone():
        first.begin(overwrite=False)
        message = message_of(lambda: second.alone().__enter__())
        assert "`output_file`" in message and "a.csv) must not be in use, but another command" in message
        other = Parts(tmp_path / "b.csv", RECORD, JsonLines())
        with other.alone():
            other.begin(overwrite=False)
    with second.alone():
        second.begin(overwrite=True)  # deletes the parts, and keeps the lock
        assert "must not be in use" in message_of(lambda: first.alone().__enter__())
        second.remove()
    assert list(tmp_path.iterdir()) == [tmp_path / "b.csv.partial"]
    with second.alone():
        pass  # an error before `begin`
    assert not second.folder.exists()


def test_an_output_that_another_command_has_finished_meanwhile_is_not_replaced(tmp_path):
    (tmp_path / "a.csv").write_text("image")
    assert "must not exist yet" in message_of(lambda: parts_of(tmp_path).begin(overwrite=False))
    assert parts_of(tmp_path).begin(overwrite=True) == 0


def test_parts_of_other_settings_go_on_only_if_they_may_be_deleted(tmp_path):
    written(tmp_path, 3)
    other = parts_of(tmp_path, top_k=2)
    message = message_of(lambda: other.begin(overwrite=False))
    assert "but `top_k` was 1 and is 2" in message and "eval_scales" not in message
    assert not parts_of(tmp_path).starts_anew(overwrite=True) and parts_of(tmp_path).begin(overwrite=True) == 3
    assert other.starts_anew(overwrite=True) and not other.starts_anew(overwrite=False)
    assert other.begin(overwrite=True) == 0 and list(other) == []


def test_a_run_that_failed_before_its_first_answer_holds_nothing_back(tmp_path):
    assert parts_of(tmp_path).begin(overwrite=False) == 0
    other = parts_of(tmp_path, top_k=2)
    assert other.starts_anew(overwrite=False) and other.begin(overwrite=False) == 0
    other.add(numbered(0, 3))
    other.write()
    assert "but `top_k` was 2 and is 1" in message_of(lambda: parts_of(tmp_path).begin(overwrite=False))


def test_parts_without_their_record_are_not_continued(tmp_path):
    written(tmp_path, 3)
    (tmp_path / "a.csv.partial/record.json").unlink()
    again = parts_of(tmp_path)
    assert again.starts_anew(overwrite=False) and again.begin(overwrite=False) == 0


@pytest.mark.parametrize(("seconds", "most", "expected"), [(0, 99, [1, 2]), (99, 2, [2]), (99, 99, [])])
def test_a_part_is_written_after_some_time_or_some_answers(seconds, most, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SECONDS_BETWEEN_PARTS", seconds)
    monkeypatch.setattr(parts, "MOST_RECORDS", most)
    found = parts_of(tmp_path)
    found.begin(overwrite=False)
    for number in range(2):
        found.add(numbered(number, number + 1))
    assert [parts.bounds(file)[1] for file in found.files()] == expected


def test_parts_know_how_many_images_are_bad_without_being_read(tmp_path, monkeypatch):
    found = written(tmp_path, 3)
    found.add([{"image": "3", "error": "cannot be read"}, *numbered(4, 6)])
    found.write()
    found.add([{"image": "6", "error": "cannot be read"}])
    assert found.num_bad == 2 and found.num_done == 6
    monkeypatch.setattr(JsonLines, "read", lambda *_: pytest.fail("reads"))
    again = parts_of(tmp_path)
    assert again.begin(overwrite=False) == 6 and again.num_bad == 1
