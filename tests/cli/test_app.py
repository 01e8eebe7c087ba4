"""The command line as a user meets it: help, lists, a run, a report, and errors that repair."""

import contextlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustssm.cli import app as cli
from robustssm.ops.kernels import native
from tests.experiment.small import SMALL

SET = [word for item in SMALL.items() for word in ("--set", "=".join(item))]


def call(*arguments):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_help_names_every_verb():
    shown = call("--help").output
    for verb in ("list", "show", "run", "evaluate", "probe", "report", "demo", "doctor"):
        assert verb in shown
        assert call(verb, "--help").exit_code == 0


def test_list_knows_recipes_tiers_and_parts():
    assert "mnist14" in call("list").output
    assert "digits.s4_ads_relu_trades" in call("list", "digits").output
    assert "pgd_released" in call("list", "attacks").output
    assert "mamba" in call("list", "layer").output
    with pytest.raises(ValueError, match=r"No kind is called 'atack'. Did you mean 'attack'\?"):
        call("list", "atack")


def test_show_prints_the_settings_with_overrides():
    shown = json.loads(call("show", "digits.s4_trades", "--set", "objective.beta=3").output)
    assert shown["objective"]["beta"] == 3.0


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    result = call("run", "digits.s5_pgd", "--out", out, *SET, "--device", "cpu", "--seed", "3")
    assert "pgd-3x2" in result.output
    return out


def test_run_leaves_what_it_promises(run_directory):
    record = json.loads((run_directory / "evaluation.json").read_text())
    assert {"clean_accuracy", "attacks", "flags", "counts", "intervals"} <= record.keys()
    recipe = json.loads((run_directory / "recipe.json").read_text())
    assert recipe["recipe"] == "digits.s5_pgd"
    assert recipe["overrides"]["seed"] == "3"
    assert recipe["experiment"]["seed"] == 3
    assert json.loads(call("show", run_directory).output) == recipe["experiment"]


def test_evaluate_again(run_directory, tmp_path):
    result = call(
        "evaluate", run_directory, "--set", 'attacks=["fgsm"]', "--out", tmp_path / "e.json"
    )
    assert "fgsm" in result.output
    assert (tmp_path / "e.json").exists()


def test_probe_writes_what_it_found_and_says_what_is_not_covered(run_directory):
    result = call("probe", run_directory, "--probe", "spectrum", "--n", 8, "--device", "cpu")
    assert result.exit_code == 0
    assert "memory_horizon" in result.output and "8 examples of test" in result.output
    assert (run_directory / "probes" / "spectrum.json").exists()
    with pytest.raises(ValueError, match=r"No probe is called 'spectrm'. Did you mean 'spectrum'"):
        call("probe", run_directory, "--probe", "spectrm")


def test_a_probe_that_does_not_cover_a_run_does_not_stop_at_it(tmp_path, monkeypatch):
    def measure(directory, **_):
        covered = directory.name != "mamba"
        return ({"error_bounds": None} if covered else {}), {} if covered else {"error_bounds": "-"}

    monkeypatch.setattr("robustssm.experiment.probe_run", measure)
    runs = [tmp_path / name for name in ("s4", "mamba", "s5")]
    for run in runs:
        run.mkdir()
    result = call("probe", *runs, "--probe", "error_bounds", "--quiet")
    written = [name for name in ("s4", "mamba", "s5") if f"{name}/probes/" in result.output]
    assert written == ["s4", "s5"] and result.exit_code == 2


def test_report_writes_html_and_markdown(run_directory, tmp_path):
    result = call("report", run_directory, "--out", tmp_path)
    paths = [line for line in result.output.split() if line.startswith(str(tmp_path))]
    assert len(paths) == 5 and all(Path(path).exists() for path in paths)
    assert "S5" in (tmp_path / "report.md").read_text()


def test_doctor_checks_every_layer():
    result = call("doctor")
    assert result.exit_code == 0, result.output
    for name in ("s4", "dss", "s5", "mega", "mamba"):
        assert f"layer: {name}" in result.output
    assert "cpu kernels" in result.output and "triton kernels" in result.output


def test_doctor_without_compiled_kernels_is_content(monkeypatch):
    missing = native.State(None, 0, "No compiled CPU kernels. Reinstall.")
    monkeypatch.setattr(native, "state", lambda: missing)
    result = call("doctor")
    assert result.exit_code == 0, result.output
    assert "No compiled CPU kernels" in result.output


@pytest.mark.parametrize("damage, status", [((), 0), (("v4.so: it is cut off.",), 1)])
def test_doctor_with_a_damaged_library_is_not(monkeypatch, damage, status):
    state = native.State(None, 0, "No compiled CPU kernels.", damage)
    monkeypatch.setattr(native, "state", lambda: state)
    assert call("doctor").exit_code == status


@pytest.mark.parametrize("verb", ["run", "evaluate", "demo"])
def test_keeping_memory_is_asked_for(monkeypatch, verb, tmp_path):
    kept = []
    monkeypatch.setattr("robustssm.core.allocator.keep_freed_memory", lambda: kept.append(verb))
    monkeypatch.setattr("robustssm.cli.demo.run_demo", lambda *a, **k: 0)
    arguments = {
        "run": [verb, "digits.none", "--out", tmp_path / "run"],
        "evaluate": [verb, tmp_path / "no-run"],
        "demo": [verb, "--out", tmp_path / "demo"],
    }[verb]
    for option in ([], ["--keep-memory"]):
        with contextlib.suppress(ValueError, OSError):  # there is no such recipe, no such run
            call(*arguments, *option)
        assert kept == [verb] * len(option)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "digits.s4_trads"], r"No recipe is called .* Did you mean 'digits.s4_trades'\?"),
        (["show", "digits.s4_trades", "--set", "objective.betta=3"], "Did you mean 'beta'"),
        (["show", "digits.s4_trades", "--set", "objective.beta"], "must be KEY=VALUE"),
        (["show", "digits.s4_trades", "--set", "epochs=0"], "must be greater than or equal to 1"),
        (["show", "digits.s4_trades", "--set", "epochs=many"], "must be a valid integer"),
        (["show", "digits.s4_trades", "--set", "model.layer=s44"], "No layer is called 's44'"),
        (["show", "digits.s4_trades", "--set", 'attacks=["pdg"]'], "Did you mean 'pgd'"),
        (
            ["show", "digits.s4_trades", "--set", "attacks.5.steps=1"],
            "must have an index from 0 to 1",
        ),
        (["run", "digits.s4_trades", "--device", "cuda:x"], "No device is called 'cuda:x'"),
        (["evaluate", "no/such/run"], "must be a run directory"),
    ],
)
def test_errors_repair(arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        call(*arguments)


def test_a_missing_data_file_says_what_to_put_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte"):
        call("run", "mnist14.s4_standard", "--data-dir", tmp_path, "--out", tmp_path / "run")


def test_main_turns_errors_into_a_message_and_status_2(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["robustssm", "show", "digits.nothing_standard"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "No recipe is called 'digits.nothing_standard'" in capsys.readouterr().err
