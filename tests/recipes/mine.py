"""A recipe outside the package, as a user would write it."""

from dataclasses import replace

from robustssm.recipes import recipe


def quick():
    return replace(recipe("digits.s4_standard"), epochs=1)
