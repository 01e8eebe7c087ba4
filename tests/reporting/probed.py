"""Probe results with numbers that are chosen and not measured, as probes of a run leave them."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

from robustssm.records import Axis, ProbeResult, Quantity, StepRecord, write_json
from tests.reporting.synthetic import result, write_run

LAYERS, POSITIONS, STATES, FREQUENCIES = 2, 64, 16, 24
PARTS = ("ssm", "ads", "linear", "attention", "gate", "norm", "residual")
HAS = {
    "s4": ("ssm", "linear", "norm", "residual"),
    "dss": ("ssm", "linear", "norm", "residual"),
    "s5": ("ssm", "linear", "norm", "residual"),
    "mega": ("ssm", "attention", "gate", "linear", "norm", "residual"),
    "mamba": ("ssm", "gate", "linear", "norm", "residual"),
}
CHANGE = {
    "ssm": 0.8,
    "ads": -0.5,
    "linear": -0.4,
    "attention": -0.7,
    "gate": 0.2,
    "norm": -0.2,
    "residual": 0.1,
}


def axis(name: str, labels: Sequence[object] | int) -> Axis:
    return Axis(
        name=name, labels=tuple(map(str, range(labels) if isinstance(labels, int) else labels))
    )


def quantity(
    name: str, axes: Sequence[Axis], value: Callable[..., float | None], **more
) -> Quantity:
    places = product(*(each.labels for each in axes))
    return Quantity(
        name=name,
        text=f"{name.replace('_', ' ')} in words",
        axes=tuple(axes),
        values=tuple(value(*place) for place in places),
        **more,
    )


def of(probe: str, *quantities: Quantity, remarks: tuple[str, ...] = ()) -> ProbeResult:
    settings = {"probe": {"name": probe}, "examples": 64}
    return ProbeResult(probe=probe, settings=settings, quantities=quantities, remarks=remarks)


def feature_shift(has: Sequence[str], factor: float = 1.0) -> ProbeResult:
    """Changes that grow with the factor; the SSM's on training data by a hundred times more."""
    axes = [axis("split", ("train", "test")), axis("layer", LAYERS), axis("component", PARTS)]

    def change(metric: float):
        def value(split: str, layer: str, part: str) -> float | None:
            if part not in has:
                return None
            size = CHANGE[part] * (1 + 0.1 * int(layer)) * metric
            if part == "ssm":
                size *= factor
            return size * (1.0 if split == "train" else 0.8)

        return value

    def companion(base: float):
        return lambda split, layer, part: base if part in has else None

    wide = [axes[0], axes[1], axis("position", POSITIONS)]
    return of(
        "feature_shift",
        quantity("kl_change", axes, change(1.0), unit="1", claim="c"),
        quantity("mse_change", axes, change(0.7), unit="1", claim="c"),
        quantity("relative_before", axes, companion(0.1), unit="1"),
        quantity("relative_after", axes, companion(0.1 * factor), unit="1"),
        quantity(
            "shift_map",
            wide,
            lambda s, la, t: factor * (1 + int(la)) * (1 + math.sin(int(t) / 9)) * 0.05 + 0.01,
        ),
        remarks=("mse and kl follow the scale of the features.",),
    )


def error_bounds(factor: float = 1.0, *, violated: bool = False) -> ProbeResult:
    axes = [axis("layer", LAYERS)]

    def times(by: float):
        return lambda layer: by * factor * (1 + int(layer))

    return of(
        "error_bounds",
        quantity("exact", axes, times(3.0)),
        quantity("measured", axes, times(3.01)),
        quantity("upper_l1", axes, times(40.0), bounds="exact", side="upper"),
        quantity("upper_hinf", axes, times(9.0), bounds="exact", side="upper"),
        quantity("lower_mean", axes, times(0.4), bounds="exact", side="lower"),
        quantity("exact_without_skip", axes, times(2.5)),
        quantity("printed_upper", axes, times(0.0 if violated else 700.0)),
        quantity("printed_lower", axes, times(0.01)),
        quantity("printed_upper_false", axes, lambda layer: 1.0 if violated else 0.25),
    )


def error_growth(factor: float = 1.0, *, terms: bool = False) -> ProbeResult:
    axes = [axis("layer", LAYERS), axis("position", POSITIONS)]
    names = ("growth", "input_shift")
    if terms:
        names += ("frozen_by_position", "shift_by_position", "cross_by_position")
    return of(
        "error_growth",
        *(
            quantity(
                name,
                axes,
                lambda la, t, n=at: (
                    factor * (1 + n) * (1 - math.exp(-(int(t) + 1) / 12)) / (1 + int(la))
                ),
            )
            for at, name in enumerate(names)
        ),
    )


def spectrum(factor: float = 1.0) -> ProbeResult:
    states = axis("checkpoint", ("initial", "best"))
    axes = [states, axis("layer", LAYERS), axis("state", STATES)]

    def radius(checkpoint: str, layer: str, n: str) -> float:
        shrink = 0.97 if checkpoint == "initial" else 0.97 - 0.05 * factor / 3
        return shrink - 0.01 * int(n) * (1 + int(layer)) / 2

    def angle(n: str) -> float:
        return math.pi * (int(n) - STATES / 2 + 0.5) / STATES * 1.8

    frequencies = axis("frequency", [f"{at / (FREQUENCIES - 1):.4f}" for at in range(FREQUENCIES)])
    return of(
        "spectrum",
        quantity("eigenvalue_real", axes, lambda c, la, n: radius(c, la, n) * math.cos(angle(n))),
        quantity("eigenvalue_imag", axes, lambda c, la, n: radius(c, la, n) * math.sin(angle(n))),
        quantity(
            "gain_max",
            [*axes[:2], frequencies],
            lambda c, la, f: (
                (1.5 if c == "best" else 1.0) * factor / (0.05 + float(f)) / (1 + int(la))
            ),
        ),
        quantity("spectral_radius", axes[:2], lambda c, la: radius(c, la, "0")),
        quantity(
            "memory_horizon",
            [*axes[:2], axis("statistic", ("median", "largest"))],
            lambda c, la, s: (30.0 if s == "median" else 60.0) + 5 * int(la),
        ),
        quantity("effective_rank", axes[:2], lambda c, la: 6.5 + factor),
    )


def write_probes(path: Path, results: Mapping[str, ProbeResult] | Sequence[ProbeResult]) -> Path:
    named = results if isinstance(results, Mapping) else {each.probe: each for each in results}
    (path / "probes").mkdir(exist_ok=True)
    for name, each in named.items():
        write_json(path / "probes" / f"{name}.json", each.to_dict())
    return path


def all_probes(layer: str, factor: float, *, scaled: bool = False) -> tuple[ProbeResult, ...]:
    has = (*HAS[layer], "ads") if scaled else HAS[layer]
    found = (feature_shift(has, factor), error_growth(factor, terms=layer == "mamba"))
    if layer == "mamba":  # its recurrence depends on the input
        return found
    return (*found, error_bounds(factor, violated=layer == "dss"), spectrum(factor))


def write_history(path: Path, epochs: int, at: float, *, adversarial: bool) -> None:
    """Curves of whole counts of 200 examples; the gap between the splits grows with `at`."""
    lines = []
    for epoch in range(1, epochs + 1):
        t = epoch / epochs
        values = {}
        for split, kind in product(("train", "validation", "test"), ("", "adversarial_")):
            if split == "train" and kind and not adversarial:
                continue
            top = (0.97 if not kind else 0.7 if adversarial else 0.05) - 0.03 * at
            gap = 0.0 if split == "train" else (0.05 + 0.02 * at) * t
            rate = max(0.01, (1 - math.exp(-(3 + at) * t)) * top - gap * (2 if kind else 1))
            values[f"{split}_{kind}accuracy"] = round(200 * rate) / 200
            values[f"{split}_{kind}loss"] = -math.log(rate)
        lines.append(StepRecord(kind="epoch", epoch=epoch, step=epoch, values=values).to_line())
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def write_grid(root: Path, *, seeds: Sequence[int] = (0,), scaled: bool = False) -> Path:
    """Five structures by three methods, with probes whose factor lowers robust accuracy."""
    methods = {"standard": 0.02, "pgd_training": 0.6, "trades": 0.65}
    variants = [(layer, None) for layer in HAS]
    if scaled:
        variants += [
            (layer, {"form": "scale", "activation": kind})
            for layer in ("s4", "dss")
            for kind in ("relu", "sigmoid", "tanh")
        ]
    for at, (layer, scaling) in enumerate(variants):
        for (method, rate), seed in product(methods.items(), seeds):
            factor = (1 + 0.4 * at) * (40 if (layer, method) == ("mamba", "trades") else 1)
            factor *= 1 + 0.15 * seed
            robust = rate * (1 - 0.06 * at) - 0.005 * seed * (rate > 0.1)
            name = f"{layer}{'_' + scaling['activation'] if scaling else ''}_{method}_{seed}"
            write_run(
                root / name,
                layer=layer,
                scaling=scaling,
                method=method,
                seed=seed,
                epochs=12,
                best_epoch=9,
                splits=("train", "validation", "test"),
                best=result(0.9, {"pgd-10": robust}),
                last=result(0.9, {"pgd-10": robust * 0.9}),
                monitor={"train": 200, "test": 200, "every": 1},
            )
            write_history(root / name, 12, at + 0.3 * seed, adversarial=rate > 0.1)
            write_probes(root / name, all_probes(layer, factor, scaled=scaling is not None))
    return root
