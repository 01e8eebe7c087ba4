"""python -m robustssm."""

from robustssm.cli import main

main()
