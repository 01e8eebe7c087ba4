"""Poisons for a classifier, beside their controls: every arm over several seeds, in pairs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from robustssm.core.config import to_dict
from robustssm.core.errors import violation
from robustssm.core.placement import Placement
from robustssm.core.rng import Streams
from robustssm.data.base import Splits
from robustssm.poisoning.brewing import ReadingOrder, reading_order, tail_energy, tokens_of
from robustssm.poisoning.brewing_differences import differences
from robustssm.poisoning.brewing_record import BrewedGroups, fingerprint
from robustssm.poisoning.gradient_matching import Brewed, Progress, brew
from robustssm.poisoning.study import Clock
from robustssm.poisoning.targets import Targets, choose_targets, judged
from robustssm.poisoning.victim import Arm, Trained, Victim, shares, signs, train
from robustssm.records.brewing import ArmRecord, BrewedRecord, BrewingResult
from robustssm.records.files import read_json, write_json


def brewing_study(
    victim: Victim,
    seeds: Sequence[int],
    *,
    data_dir: Path | None = None,
    placement: Placement | None = None,
    directory: Path | None = None,
    progress: Progress | None = None,
) -> BrewingResult:
    """Brews and trains every arm for every seed, and compares them seed by seed.

    Args:
        victim: All settings.
        seeds: Each draws the shares of the data, the targets, the model and the poisons anew.
        data_dir: Where files of the data set are looked for.
        placement: Device and precision of training; None: the best device present.
        directory: Where finished arms and groups of poisons are kept, so that a call that was
            killed goes on where it was; None: nowhere.
        progress: Told what is under way, and which share of that is done.

    Raises:
        ValueError: If settings and data do not fit, or the directory is of another study.
    """
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ValueError(violation("`seeds`", "be one or more different numbers", tuple(seeds)))
    if directory is not None:
        _claim(directory, victim)
    clock, placement = Clock(), placement or Placement()
    arms: list[ArmRecord] = []
    brewed: dict[str, list[tuple[BrewedRecord, ...]]] = {}
    orders: list[ReadingOrder] = []
    for seed in seeds:
        place = None if directory is None else directory / f"seed_{seed}"
        one = _Seed(victim, seed, _read(victim, seed, data_dir), placement, place, progress)
        found, groups = one.run()
        arms += found
        orders.append(one.order)
        for arm, records in groups.items():
            brewed.setdefault(arm, []).append(records)
    return BrewingResult(
        settings=to_dict(victim),
        seeds=tuple(seeds),
        arms=tuple(arms),
        brewed={arm: tuple(groups) for arm, groups in brewed.items()},
        differences=differences(arms),
        uniform_tail=math.sqrt(float(orders[0].tail().double().mean())),
        remarks=_remarks(victim, arms),
        wall_seconds=clock.wall_seconds,
        cpu_seconds=clock.cpu_seconds,
    )


@dataclass(eq=False)
class _Seed:
    """One seed of a study."""

    victim: Victim
    seed: int
    splits: Splits
    placement: Placement
    place: Path | None
    progress: Progress | None

    def run(self) -> tuple[list[ArmRecord], Mapping[str, tuple[BrewedRecord, ...]]]:
        """Every arm of this seed, the clean one first."""
        streams, victim = Streams(self.seed), self.victim
        self.shares = shares(self.splits.train, victim, noise=streams.noise("shares"))
        clean = self._train("clean", None, streams)
        self.order = reading_order(
            self.splits.shape, ramp=victim.brewing.ramp, tokens=tokens_of(clean.model)
        )
        model = clean.model
        if victim.surrogate == "other":
            other = Streams(streams.noise("surrogate").seed())
            model = self._train("surrogate", None, other).model
        targets = choose_targets(
            model, self.splits.test, victim.brewing, noise=streams.noise("targets")
        )
        arms, groups = [self._judged("clean", clean, targets)], {}
        for arm in victim.arms:
            if arm == "clean":
                continue
            added, brewed = self._added(arm, model, targets)
            trained = self._train(arm, added, streams, level=clean.train_loss)
            record = self._judged(arm, trained, targets)
            arms.append(record if arm == "duplicated" else self._with_delta(record, added))
            if brewed:
                groups[arm] = brewed
        return arms, groups

    def _added(
        self, arm: Arm, model: nn.Module, targets: Targets
    ) -> tuple[Tensor, tuple[BrewedRecord, ...]]:
        """What an arm has of its own: one row for each base example, in their order."""
        base, noise = self.shares.base, Streams(self.seed).noise("brewing")
        if arm == "duplicated":
            return base.x, ()
        if arm == "noise":
            return signs(base.x, self.victim.brewing, noise=noise.fork("signs")), ()
        settings = self.victim.brewing
        if arm == "unregularised":  # from the same starts as with the regulariser
            settings = replace(settings, tail=0.0)
        kept = None
        if self.place is not None:
            mark = fingerprint(model, base, targets, settings, noise)
            kept = BrewedGroups(self.place / arm / "groups", mark)
        brewed = brew(
            model,
            base,
            targets,
            settings,
            noise=noise,
            done=() if kept is None else kept.read(),
            finished=None if kept is None else kept.write,
            progress=self._told(f"brewing, {arm}"),
        )
        return _laid_out(brewed, base.x), tuple(each.record for each in brewed)

    def _train(
        self, name: str, added: Tensor | None, streams: Streams, level: float | None = None
    ) -> Trained:
        told = self._told(f"training, {name}")
        return train(
            self.victim,
            self.shares.arm(added, base_kept=self.victim.base_kept),
            num_classes=self.splits.num_classes,
            streams=streams,
            placement=self.placement,
            level=level,
            keep=None if self.place is None else self.place / name / "trained",
            progress=lambda share: told("", share),
        )

    def _judged(self, arm: Arm, trained: Trained, targets: Targets) -> ArmRecord:
        losses, correct = judged(trained.model, self.splits.test, batch_size=512)
        shared, _ = judged(trained.model, self.shares.both, batch_size=512)
        aimed = torch.zeros(len(correct), dtype=torch.bool)
        aimed[targets.rows] = True
        if aimed.all():
            raise ValueError(
                violation(
                    "`Brewing(targets=...)`",
                    "leave test examples that are no targets, as the headline is about these",
                    f"{len(targets.rows)} of {len(correct)}",
                )
            )
        high = correct[targets.rows[targets.high_loss]]
        return ArmRecord(
            seed=self.seed,
            arm=arm,
            examples=trained.examples,
            epochs=trained.epochs,
            steps=trained.steps,
            train_loss=trained.train_loss,
            shared_loss=float(shared.mean()),
            matched=trained.matched,
            accuracy=float(correct[~aimed].double().mean()),
            target_accuracy=float(correct[aimed].double().mean()),
            high_loss_accuracy=float(high.double().mean()) if len(high) else None,
            test_accuracy=float(correct.double().mean()),
            test_loss=float(losses[~aimed].mean()),
            correct=_flags(correct[~aimed]),
            correct_targets=_flags(correct[aimed]),
        )

    def _with_delta(self, record: ArmRecord, added: Tensor) -> ArmRecord:
        delta = added.double() - self.shares.base.x.double()
        return replace(
            record, largest=float(delta.abs().max()), tail_energy=tail_energy(delta, self.order)
        )

    def _told(self, doing: str) -> Progress:
        def told(_: str, share: float) -> None:
            if self.progress is not None:
                self.progress(f"seed {self.seed}: {doing}", share)

        told("", 0.0)
        return told


def _read(victim: Victim, seed: int, data_dir: Path | None) -> Splits:
    splits = victim.dataset.read(data_dir=data_dir, noise=Streams(seed).noise("split"))
    if tuple(victim.brewing.threat.bounds) != tuple(splits.bounds):
        raise ValueError(
            violation(
                "`brewing.threat.bounds`",
                f"be the range of the data, {list(splits.bounds)}",
                list(victim.brewing.threat.bounds),
            )
        )
    return splits


def _claim(directory: Path, victim: Victim) -> None:
    """Writes down what the directory is for, or refuses one that is for something else."""
    path, own = directory / "victim.json", to_dict(victim)
    if not path.exists():
        write_json(path, own)
    elif read_json(path) != own:
        raise ValueError(
            f"{directory} must be new or hold this very study; its victim.json has other settings. "
            "Use another directory."
        )


def _laid_out(brewed: Sequence[Brewed], x: Tensor) -> Tensor:
    """The poisons, in the rows of their base examples."""
    laid = x.clone()
    for each in brewed:
        laid[each.base] = each.x.to(laid)
    return laid


def _flags(correct: Tensor) -> str:
    return "".join("1" if right else "0" for right in correct.tolist())


def _remarks(victim: Victim, arms: Sequence[ArmRecord]) -> tuple[str, ...]:
    said = []
    late = sorted({f"{arm.arm} (seed {arm.seed})" for arm in arms if not arm.matched})
    if late:
        said.append(
            f"These arms did not come down to the clean arm's training loss within "
            f"{victim.epochs + victim.extra_epochs} epochs: {', '.join(late)}."
        )
    if victim.base_kept and set(victim.arms) - {"clean"}:
        said.append(
            "Poisons are added to the data, so every arm but the clean one has more examples and "
            "steps than that; the arm 'duplicated' shows what this alone does."
        )
    if victim.surrogate == "same":
        said.append(
            "Poisons were brewed on the clean arm's model, whose initial draw the victim shares: "
            "more than an attacker would know."
        )
    said.append("Targets are test examples, as published; the headline accuracy leaves them out.")
    return tuple(said)
