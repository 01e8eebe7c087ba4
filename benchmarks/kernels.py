"""How much faster are convolution kernels made, forward and backward, than from full tables?

python -m benchmarks.kernels [--s4 CHECKOUT] [--length 1024] [--channels 128] [--state 64] [--quick]

S4's kernel against naive Cauchy quotients in torch and, given a checkout, the official code without
its CUDA extension; S4D's against the table of exponentials; then the two products by themselves.
All are compared with the tables in float64.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks import peers, plain
from benchmarks.harness import Candidate, Comparison, gradients
from benchmarks.report import Report, arguments
from robustssm.core.rng import Noise
from robustssm.layers.s4 import S4, S4Config
from robustssm.layers.s4d import S4D, S4DConfig
from robustssm.ops.structured import cauchy_generating_function, vandermonde_product

TOLERANCE = 2e-4
PEER_TOLERANCE = 5e-3
"""Of float32 tables: quotients near the last frequency and large phases lose digits."""
PEER_LOOSE = {"log_dt": 0.1, "z": 0.05}
"""Their gradients sum terms that grow with the lag, and nearly cancel."""

Parameters = Mapping[str, Tensor]


def main(argv: Sequence[str] | None = None) -> dict:
    """Measures and returns what is printed as JSON."""
    parsed = arguments(
        __doc__,
        argv,
        add=(
            ("--length", {"type": int, "default": 1024}),
            ("--channels", {"type": int, "default": 128}),
            ("--state", {"type": int, "default": 64}),
        ),
    )
    if parsed.tiny:
        parsed.length, parsed.channels, parsed.state = 16, 4, 4
    report = Report("convolution kernels, forward and backward", parsed)
    for make in (s4, s4d, cauchy, vandermonde):
        report.add(make(parsed, report))
    return report.finish()


def s4(parsed: argparse.Namespace, report: Report) -> Comparison:
    """S4's kernel. Table code trains C (I - A^L); its own gradients are compared with float64."""
    noise, length = Noise(0), parsed.length
    config = S4Config(d_state=parsed.state)
    layer = config.build(d_model=parsed.channels, length=length, noise=noise)
    g = noise.fork("g").normal(parsed.channels, length)
    mine = {name: p for name, p in layer.named_parameters() if name != "D"}
    leaves = _copies(mine)
    with torch.no_grad():
        a, P, _, C = _system(layer, leaves)
        C = plain.truncated(a, P, C, leaves["log_dt"].double().exp(), length)
        leaves["C"].copy_(torch.view_as_real(C))

    def table(values: Parameters) -> Tensor:
        return plain.s4_kernel(*_system(layer, values), values["log_dt"].exp(), length)

    def exact() -> dict[str, Tensor]:
        """In float64 as a function of C itself."""
        wide = _copies(mine, torch.float64)
        a, P, B, C = _system(layer, wide)
        dt = wide["log_dt"].exp()
        kernel = plain.s4_kernel(a, P, B, plain.truncated(a, P, C, dt, length), dt, length)
        return gradients(kernel, wide, g.double())

    official = []
    try:
        code = peers.official_s4(parsed.s4)
        official.append(_official(code.SSMKernelDPLR, layer, leaves, table, g))
    except peers.NotHere as why:
        report.not_here(why)
    return Comparison(
        what="S4 kernel, forward and backward",
        shape=_shape(parsed),
        candidates=(
            Candidate(
                name="robustssm",
                run=lambda: gradients(layer.kernel(length), mine, g),
                expected=exact,
                tolerance=TOLERANCE,
            ),
            _table("naive Cauchy in torch", table, leaves, g),
            *official,
        ),
    )


def _official(
    kernel: Callable[..., torch.nn.Module],
    layer: S4,
    leaves: Parameters,
    table: Callable[[Parameters], Tensor],
    g: Tensor,
) -> Candidate:
    """The official code's kernel with the parameters of the table."""
    channels, length = g.shape
    made = kernel(d_model=channels, d_state=layer.config.d_state, l_max=length, n_ssm=1)
    ours = {"inv_dt": "log_dt", "A_imag": "frequency", "B": "B", "P": "P", "C": "C"}
    theirs = dict(made.named_parameters())
    with torch.no_grad():
        for name, our in ours.items():
            value = -leaves[our] if name == "A_imag" else leaves[our]
            theirs[name].copy_(value.reshape(theirs[name].shape))
        theirs["A_real"].copy_(layer.log_decay).requires_grad_(False)
        made.get_buffer("l_kernel").fill_(length)  # its C is already that of this length
    named = {our: theirs[name] for name, our in ours.items()}

    def results() -> dict[str, Tensor]:
        found = gradients(made(L=length)[0][0], named, g)
        found["d frequency"] = -found["d frequency"]
        return {
            key: value.reshape(leaves[key[2:]].shape) if key != "output" else value
            for key, value in found.items()
        }

    return Candidate(
        name="official S4, naive",
        run=lambda: gradients(made(L=length)[0], named, g[None]),
        results=results,
        expected=lambda: _exact_table(table, leaves, g),
        tolerance=PEER_TOLERANCE,
        loose=PEER_LOOSE,
    )


def s4d(parsed: argparse.Namespace, report: Report) -> Comparison:
    """S4D's kernel, S4D-Lin, zero-order hold."""
    del report
    noise, length = Noise(1), parsed.length
    layer = S4DConfig(d_state=parsed.state).build(
        d_model=parsed.channels, length=length, noise=noise
    )
    assert isinstance(layer, S4D)
    g = noise.fork("g").normal(parsed.channels, length)
    mine = {name: p for name, p in layer.named_parameters() if name != "D"}
    leaves = _copies(mine)

    def table(values: Parameters) -> Tensor:
        a = torch.complex(-values["log_decay"].exp(), values["frequency"])
        C = torch.view_as_complex(values["C"])
        return plain.s4d_kernel(a, C, values["log_dt"].exp(), length)

    return Comparison(
        what="S4D kernel, forward and backward",
        shape=_shape(parsed),
        candidates=(
            Candidate(
                name="robustssm",
                run=lambda: gradients(layer.kernel(length), mine, g),
                expected=lambda: _exact_table(table, leaves, g),
                tolerance=TOLERANCE,
            ),
            _table("table of exponentials in torch", table, leaves, g),
        ),
    )


def cauchy(parsed: argparse.Namespace, report: Report) -> Comparison:
    """The generating function alone, with respect to all that enters it."""
    del report
    noise, length = Noise(2), parsed.length
    layer = S4Config(d_state=parsed.state, ssm_copies=None).build(
        d_model=parsed.channels, length=length, noise=noise
    )
    a, P, B, C = (v.detach() for v in _system(layer, dict(layer.named_parameters())))
    values = {"a": a, "P": P, "B": B, "C": C, "dt": layer.log_dt.detach().exp()}
    leaves = _copies(values)
    size = (parsed.channels, length // 2 + 1)
    g = torch.complex(noise.fork("re").normal(*size), noise.fork("im").normal(*size))

    def table(v: Parameters) -> Tensor:
        return plain.s4_spectrum(v["a"], v["P"], v["B"], v["C"], v["dt"], length)

    def ours() -> dict[str, Tensor]:
        v = leaves
        made = cauchy_generating_function(v["a"], v["P"], v["B"], v["C"], v["dt"], length)
        return gradients(made, leaves, g)

    return Comparison(
        what="Cauchy generating function, forward and backward",
        shape=_shape(parsed),
        candidates=(
            Candidate(
                name="robustssm",
                run=ours,
                expected=lambda: _exact_table(table, leaves, g),
                tolerance=2e-3,
            ),
            _table("naive Cauchy in torch", table, leaves, g),
        ),
    )


def vandermonde(parsed: argparse.Namespace, report: Report) -> Comparison:
    """The sum of exponentials alone, with respect to coefficients and exponents."""
    del report
    noise, length = Noise(3), parsed.length
    size = (parsed.channels, parsed.state // 2)
    frequency = torch.pi * torch.arange(size[1])
    dt = noise.fork("dt").uniform(size[0], 1, low=-7, high=-2.5).exp()
    c = torch.complex(noise.fork("re").normal(*size), noise.fork("im").normal(*size))
    z = dt * torch.complex(torch.full(size, -0.5), frequency.expand(size))
    leaves = _copies({"c": c, "z": z})
    g = noise.fork("g").normal(size[0], length)

    def ours() -> dict[str, Tensor]:
        base = leaves["z"].to(torch.complex128).exp()
        return gradients(vandermonde_product(leaves["c"], base, length), leaves, g)

    def table(v: Parameters) -> Tensor:
        return plain.exponential_kernel(v["c"], v["z"], length)

    return Comparison(
        what="Vandermonde product, forward and backward",
        shape=_shape(parsed),
        candidates=(
            Candidate(
                name="robustssm",
                run=ours,
                expected=lambda: _exact_table(table, leaves, g),
                tolerance=TOLERANCE,
            ),
            _table("table of exponentials in torch", table, leaves, g),
        ),
    )


def _table(
    name: str, table: Callable[[Parameters], Tensor], leaves: Parameters, g: Tensor
) -> Candidate:
    return Candidate(
        name=name,
        run=lambda: gradients(table(leaves), leaves, g),
        expected=lambda: _exact_table(table, leaves, g),
        tolerance=PEER_TOLERANCE,
        loose=PEER_LOOSE,
    )


def _exact_table(
    table: Callable[[Parameters], Tensor], leaves: Parameters, g: Tensor
) -> dict[str, Tensor]:
    """The same in float64."""
    wide = _copies(leaves, torch.float64)
    return gradients(table(wide), wide, g.to(torch.complex128 if g.is_complex() else torch.float64))


def _system(layer: S4, values: Parameters) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, P, B and C as complex numbers."""
    a = torch.complex(-layer.log_decay.to(values["frequency"].dtype).exp(), values["frequency"])
    P, B, C = (torch.view_as_complex(values[name]) for name in ("P", "B", "C"))
    return a, P, B, C


def _copies(values: Parameters, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Leaves of their own, in the precision of `dtype`."""
    made = {}
    for name, value in values.items():
        wanted = value.dtype if dtype is None else dtype
        if value.is_complex() and not wanted.is_complex:
            wanted = wanted.to_complex()
        made[name] = value.detach().to(wanted).clone().requires_grad_()
    return made


def _shape(parsed: argparse.Namespace) -> str:
    return f"L {parsed.length}, channels {parsed.channels}, N {parsed.state}"


if __name__ == "__main__":
    main()
