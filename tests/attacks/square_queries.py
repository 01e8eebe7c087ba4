"""What the tests of Square ask of it: no savings, and every point of its queries."""

PLAIN = {"lookahead": 1, "remember": False}
"""Every query is a call of its own, and nothing is remembered."""


class Recorded:
    """A model that keeps the points of every call."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def __call__(self, points):
        self.calls.append(points.clone())
        return self.model(points)
