"""Flags of what the preflight saw: gradients that mislead, and functions that are two."""

from robustssm.evaluation.preflight import Preflight
from robustssm.records import Flagged


def flags(seen: Preflight) -> list[Flagged]:
    """Every sign, before any attack, that one which climbs gradients would fail.

    Args:
        seen: What the preflight saw.
    """
    return [*_gradient_flags(seen), *_function_flags(seen)]


def no_gradient(error: str) -> Flagged:
    """The flag of a model on which gradient attacks cannot run, with what it said."""
    text = (
        "The model answers, but attacks that climb a gradient cannot run on it: "
        f"{_shortened(error)} Remove `detach` or `no_grad` from it, choose a kernel with a "
        "backward pass, or use black-box attacks."
    )
    return Flagged(name="no_gradient", message=text)


def _gradient_flags(seen: Preflight) -> list[Flagged]:
    if not seen.differentiable:
        return [no_gradient(seen.error)]
    flags = []
    if seen.non_finite_gradients:
        text = (
            f"{seen.non_finite_gradients} of {seen.examined} examples have a NaN or infinite input "
            "gradient, which attacks read as zero there. Find the operation that makes it: run the "
            "model in float64 and under torch.autograd.detect_anomaly."
        )
        flags.append(Flagged(name="non_finite_gradients", message=text, severity="invalid"))
    texts = {
        "zero_gradients": (
            seen.zero_gradients,
            "have an input gradient of exactly zero, whatever the loss, so a gradient attack "
            "cannot move them: an operation (rounding, a sign, a saturated unit) cuts it. Replace "
            "that operation's backward pass by a smooth one, or add a black-box attack.",
        ),
        "tiny_gradients": (
            seen.tiny_gradients,
            "have an input gradient so small that, by it, crossing the whole range of inputs would "
            "move the logits by less than rounding: units saturate. Attack in float64, smooth the "
            "backward pass, or add a black-box attack.",
        ),
        "saturated_loss": (
            seen.vanished,
            "have a cross-entropy whose gradient is exactly zero although the margin's is not: the "
            "logits are so large that it is lost in rounding. Climb loss='margin' or 'dlr', attack "
            "in float64, or divide the logits by a constant.",
        ),
    }
    for name, (count, text) in texts.items():
        share = count / seen.examined
        if share > 0.01:
            severity = "invalid" if share >= 0.1 else "warning"
            text = f"{count} of {seen.examined} examples {text}"
            flags.append(Flagged(name=name, message=text, severity=severity))
    if 2 * seen.zero_losses > seen.examined and "saturated_loss" not in {f.name for f in flags}:
        text = (
            f"{seen.zero_losses} of {seen.examined} examples have a cross-entropy of exactly zero: "
            "rounding hides the loss, and part of its gradient. Climb loss='margin' or 'dlr' too."
        )
        flags.append(Flagged(name="saturated_loss", message=text))
    return flags


def _function_flags(seen: Preflight) -> list[Flagged]:
    flags = []
    if seen.randomness > seen.tolerance:
        text = (
            "The same inputs gave different logits twice, so attacks climb one draw and are judged "
            "on another. A function that hides a module in train mode does this: pass the module. "
            "For a defence that is random on purpose, average gradients and predictions over draws."
        )
        flags.append(Flagged(name="random_outputs", message=text, severity="invalid"))
    elif seen.batch_dependence > seen.tolerance:
        text = (
            "An example's logits change with the other examples of its batch (by "
            f"{seen.batch_dependence:.1e} of the largest logit), so flags depend on the batch "
            "size. Batch normalisation in train mode does this: pass the module, not a function "
            "around it."
        )
        flags.append(Flagged(name="batch_dependent", message=text, severity="invalid"))
    elif seen.gradient_path > seen.tolerance:
        text = (
            "Logits differ between passes with and without gradients (by "
            f"{seen.gradient_path:.1e} of the largest logit), so attacks climb another function "
            "than the one that is judged. Look for kernels chosen by torch.is_grad_enabled."
        )
        flags.append(Flagged(name="gradient_path", message=text, severity="invalid"))
    elif 2 * seen.contradicted > seen.compared:
        text = (
            f"On {seen.contradicted} of {seen.compared} examples, moving the input changes the "
            "logits otherwise than the gradient says. Part of the model is cut off (`detach`), its "
            "input is quantised, or an operation has a backward pass that is not its own: attacks "
            "are misled. Repair it, or trust black-box and transfer attacks only."
        )
        flags.append(Flagged(name="wrong_gradients", message=text, severity="invalid"))
    if seen.probabilities:
        text = (
            "The outputs are rows of probabilities, not logits: the loss takes their softmax again "
            "and its gradient fades. Return what comes before the softmax."
        )
        flags.append(Flagged(name="probabilities", message=text))
    return flags


def _shortened(text: str, most: int = 300) -> str:
    """Another's message in one line, with a full stop."""
    line = " ".join(text.split())
    line = line if len(line) <= most else f"{line[:most]} ..."
    return line if line.endswith(".") else f"{line}."
