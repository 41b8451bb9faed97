"""Run one trial from its JSON file: `python -m mptune.worker trial.json`."""

from mptune.training.worker import main

if __name__ == "__main__":
    raise SystemExit(main())
