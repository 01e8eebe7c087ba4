"""Every study of poisoning as a section: notes, tables, figures; and the sweeps together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from robustssm.records.poisoning import PoisonResult
from robustssm.reporting import poison_figures, poison_notes, poison_paths, sweep_figures
from robustssm.reporting import poison_names as said
from robustssm.reporting import poison_tables as tables
from robustssm.reporting.base import Block, Facts, Figure, Fold, Notes, Paragraph, Section

Results = Sequence[PoisonResult]


def sections(results: Results) -> Iterator[Section]:
    """One section for each kind of study.

    Args:
        results: With runs.
    """
    kinds: dict[str, list[PoisonResult]] = {}
    for result in results:
        kinds.setdefault(result.study, []).append(result)
    order = [*said.STUDIES, *(kind for kind in kinds if kind not in said.STUDIES)]
    first, place = 1, 1
    for kind in [kind for kind in order if kind in kinds]:
        blocks: list[Block] = []
        for result in kinds[kind]:
            notes, marks = poison_notes.of(result, first)
            blocks += _study(result, place, Notes(notes=tuple(notes)), marks)
            first, place = first + len(notes), place + 1
        title = f"Poisoning: {said.STUDIES.get(kind, kind)}"
        yield Section(name=f"poison-{places(kind)}", title=title, blocks=tuple(blocks))


def places(text: str) -> str:
    """A name for a place in the page: letters, digits and dashes."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)


def _study(
    result: PoisonResult, place: int, notes: Notes, marks: Mapping[str, tuple[str, ...]]
) -> Iterator[Block]:
    if notes.notes:
        yield notes
    if result.summaries:
        yield tables.conditions(result, marks)
    compared = tables.contrasts(result)
    if compared is not None:
        yield compared
    if result.remarks:
        yield Paragraph(text=" ".join(result.remarks))
    yield from _figures(result, place)
    yield Fold(
        name=f"poison-runs-{place}",
        summary=f"Every run and all settings: {said.study(result)}",
        blocks=(tables.seeds(result), Facts(items=tuple(_facts(result)))),
    )


def _figures(result: PoisonResult, place: int) -> Iterator[Figure]:
    name = said.study(result)
    if result.summaries:
        horizons = list(dict.fromkeys((result.horizon, 2 * result.length)))
        horizons = [h for h in horizons if all(str(h) in run.error for run in result.runs)]
        yield Figure(
            name=f"poison-errors-{place}",
            title=f"Generalisation error by condition, {name}",
            caption=(
                f"{name}: generalisation error over {_listed(horizons)} lags, a dot per seed, "
                "hollow where training did not converge; a dot at the right edge with a tip is "
                "infinite."
            ),
            panels=tuple(poison_figures.errors(result, horizon) for horizon in horizons),
        )
    if poison_figures.has_matched(result):
        yield Figure(
            name=f"poison-matched-{place}",
            title=f"Error at equal training loss, {name}",
            caption=(
                f"{name}: generalisation error read where the training loss first came below a "
                "level; thick: median over the runs that got there. A cross is where a run of the "
                "headline comparison stopped: arms whose crosses stand at other training losses "
                "are not compared like with like."
            ),
            panels=(poison_figures.matched(result),),
        )
    seed = poison_paths.middle_seed(result)
    if seed is not None:
        yield Figure(
            name=f"poison-paths-{place}",
            title=f"|a|, effective rank and gamma during training, {name}",
            caption=(
                f"{name}, seed {seed}, that whose poisoned error is the median. Gamma 0 pushes all "
                "states alike; where it is 0 the states grow one after another. Thin grey lines "
                f"are {_thin(result)}."
            ),
            panels=(poison_paths.over_time(result, seed),),
            wide=True,
        )
    if seed is not None and result.teacher_response:
        lag = ", from lag 1 on, as lag 0 is not learned" * poison_figures.first_lag(result)
        yield Figure(
            name=f"poison-responses-{place}",
            title=f"Impulse responses, {name}",
            caption=(
                f"{name}: impulse responses of students and of their teacher{lag}. Grey: lags that "
                f"training sequences of length {result.length} reach. Beyond four times the "
                f"teacher's largest response they are cut off; thick is seed {seed}."
            ),
            panels=tuple(
                poison_figures.responses(result, arm, seed)
                for arm in poison_figures.ARMS
                if result.of(arm)
            ),
        )


def _thin(result: PoisonResult) -> str:
    if result.study == "theory":
        return (
            "gammas of higher order. Time is not to scale: the points of the solver stand at equal "
            "distances, as the flow stands still for long and then moves at once"
        )
    return "the ranks of other seeds, and gammas of higher order"


def sweeps(results: Results) -> Iterator[Block]:
    """A figure for each sweep, its numbers in a fold.

    Args:
        results: With rows of sweeps.
    """
    order = list(said.SWEEPS)

    def rank(result: PoisonResult) -> int:
        what = result.study.removeprefix("sweep_")
        return order.index(what) if what in order else len(order)

    for place, result in enumerate(sorted(results, key=rank), 1):
        told = poison_notes.sweep_note(result)
        yield Figure(
            name=f"poison-sweep-{place}",
            title=said.study(result),
            caption=(
                f"{said.study(result)}, {_around(result)}: generalisation error, a dot per seed, "
                f"line through the medians with their intervals. {told}"
            ).strip(),
            panels=(sweep_figures.sweep(result),),
        )
        yield Fold(
            name=f"poison-sweep-rows-{place}",
            summary=f"Numbers: {said.study(result)}",
            blocks=(tables.sweep(result), Facts(items=tuple(_facts(result)))),
        )


def _around(result: PoisonResult) -> str:
    centre = result.settings.get("around")
    what = result.study.removeprefix("sweep_")
    default = "beyond" if what in ("count", "position") else "theory"
    name = said.STUDIES.get(str(centre or default), str(centre))
    return f"around \N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}"


def _facts(result: PoisonResult) -> Iterator[tuple[str, str]]:
    for key, value in result.settings.items():
        yield key, _told(value)
    yield "seconds", f"{result.wall_seconds:.1f} ({result.cpu_seconds:.1f} of the processor)"
    for key, value in result.provenance.items():
        yield key, _told(value)


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_told(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_told(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))
