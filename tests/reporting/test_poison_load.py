"""Which files are results of the poisoning laboratory, and what becomes of damaged ones."""

import json

import pytest

from robustssm.records import write_json
from robustssm.reporting import poison_load, write_report
from robustssm.reporting.load import load
from tests.reporting import poisoned
from tests.reporting.synthetic import write_run


def save(path, result):
    write_json(path, result.to_dict())
    return path


def test_finds_files_wherever_they_lie_and_leaves_others_alone(tmp_path):
    save(tmp_path / "poison" / "mine.json", poisoned.study())
    save(tmp_path / "deep" / "er" / "sweep_tie_gap.json", poisoned.sweep())
    save(tmp_path / "deep" / "renamed.json", poisoned.brewing())
    write_json(tmp_path / "deep" / "settings.json", {"study": 3})
    (tmp_path / "deep" / "notes.json").write_text("{")
    (tmp_path / "deep" / "list.json").write_text("[1]")
    studies, damaged = poison_load.find([tmp_path])
    names = ["deep/er/sweep_tie_gap.json", "deep/renamed.json", "poison/mine.json"]
    assert [study.name for study in studies] == names
    assert damaged == ()


def test_gives_back_what_was_written(tmp_path):
    made = poisoned.study(runs=(poisoned.run("ordinary", 0, float("inf"), response=()),))
    (study,), _ = poison_load.find([save(tmp_path / "theory.json", made)])
    assert study.result == made
    brewed = poisoned.brewing()
    (study,), _ = poison_load.find([save(tmp_path / "b.json", brewed)])
    assert study.result == brewed


@pytest.mark.parametrize(
    "where", ["poison/anything.json", "theory.json", "sweep_x.json", "brewing_2.json"]
)
@pytest.mark.parametrize("content", ["{", "[]", '{"study": "theory", "runs": [], "sweep": []}'])
def test_what_should_be_a_result_and_is_none_is_listed(tmp_path, where, content):
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    studies, (left,) = poison_load.find([tmp_path])
    assert studies == ()
    assert left.name == where
    assert left.state == "damaged"
    assert str(tmp_path) not in left.reason, "no path of this machine is in a page"


@pytest.mark.parametrize(
    "place, value",
    [
        (("summaries", 0, "median"), "much"),
        (("runs", 1, "train_mse"), None),
        (("runs", 0, "path", "steps"), None),
        (("length",), "six"),
    ],
)
def test_words_where_numbers_must_be_are_damage(tmp_path, place, value):
    data = poisoned.study().to_dict()
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    write_json(tmp_path / "beyond.json", data)
    studies, (left,) = poison_load.find([tmp_path])
    assert studies == ()
    assert str(place[-1]) in left.reason


def test_a_file_that_is_given_twice_counts_once(tmp_path):
    path = save(tmp_path / "poison" / "theory.json", poisoned.study("theory"))
    studies, _ = poison_load.find([path, tmp_path, path.parent])
    assert [study.name for study in studies] == ["theory.json"]


def test_results_in_the_folder_of_a_run_are_found_and_its_own_files_are_not(tmp_path):
    run = write_run(tmp_path / "run")
    save(run / "poison" / "brewing.json", poisoned.brewing())
    found = load([tmp_path])
    assert [each.name for each in found.finished] == ["run"]
    assert [each.name for each in found.studies] == ["run/poison/brewing.json"]


def test_a_folder_of_results_needs_no_run(tmp_path):
    save(tmp_path / "poison" / "theory.json", poisoned.study("theory"))
    write_report([tmp_path / "poison"], tmp_path / "out")
    assert (tmp_path / "out" / "report.html").exists()


def test_nothing_to_report_says_why(tmp_path):
    path = tmp_path / "theory.json"
    path.write_text(json.dumps({"study": "theory"}))
    with pytest.raises(ValueError, match=r"theory\.json is damaged: .* no result"):
        load([path])
    with pytest.raises(ValueError, match="not a directory"):
        load([tmp_path / "theory.csv"])
