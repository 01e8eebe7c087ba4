"""python -m robustssm."""

from robustssm.cli import main

if __name__ == "__main__":  # processes that share a task import this module too
    main()
