"""The poisoning part as users have it: without torch, and without the type checks of tests."""

from robustssm.records import write_json
from tests.reporting import poisoned
from tests.reporting.test_plain_python import run


def test_a_report_of_poisoning_needs_no_torch(tmp_path):
    write_json(tmp_path / "theory.json", poisoned.study("theory").to_dict())
    write_json(tmp_path / "sweep_tie_gap.json", poisoned.sweep().to_dict())
    write_json(tmp_path / "brewing.json", poisoned.brewing().to_dict())
    code = (
        "import json, sys; from pathlib import Path\n"
        "from robustssm.reporting import write_report\n"
        "paths = write_report([Path(sys.argv[1])], Path(sys.argv[2]))\n"
        "print(json.dumps([paths.html.exists(), 'torch' in sys.modules]))"
    )
    assert run(code, str(tmp_path), str(tmp_path / "out")) == [True, False]


def test_damage_is_named_without_the_type_checks_of_tests(tmp_path):
    places = {
        "a": (("summaries", 0, "median"), "much"),
        "b": (("runs", 0, "path", "steps"), None),
        "c": (("runs", 0, "path", "gamma", 1, 0), "low"),
        "d": (("runs", 0, "error", "40"), None),
        "e": (("contrasts", 0, "ratio"), "twice"),
        "f": (("excited_lags",), [1]),
        "g": (("runs", 0, "converged"), "yes"),
    }
    for name, (place, value) in places.items():
        data = poisoned.study(
            contrasts=(poisoned.contrast("special", "ordinary", "stop", 2.0, 1.0, 3.0),)
        ).to_dict()
        inner = data
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        write_json(tmp_path / f"beyond_{name}.json", data)
    code = (
        "import json, sys; from pathlib import Path\n"
        "from robustssm.reporting.poison_load import find\n"
        "studies, damaged = find([Path(sys.argv[1])])\n"
        "print(json.dumps([len(studies), [each.reason for each in damaged]]))"
    )
    usable, reasons = run(code, str(tmp_path))
    assert usable == 0
    expected = ("median", "steps", "gamma", "error.40", "ratio", "excited_lags", "converged")
    for word, reason in zip(expected, reasons, strict=True):
        assert f"{word} must be" in reason


def test_a_published_number_stands_only_beside_the_published_setting():
    from dataclasses import replace

    from robustssm.records.poisoning import PoisonResult
    from robustssm.reporting.poison_names import published

    settings = {"d_state": 10, "scale": 1e-3, "gap": 1.529511602509129e-08, "special_value": 1.0}
    result = PoisonResult(study="theory", settings=settings, length=7, horizon=20, interval="")
    assert published(result, "special") == 0.0500995
    assert published(result, "placebo") is None
    for changed in ({"gap": None}, {"gap": 1e-6}, {"scale": 0.01}, {"d_state": 12}):
        assert published(replace(result, settings=settings | changed), "special") is None
    assert published(replace(result, horizon=40), "special") is None
    assert published(replace(result, length=8), "special") is None
