"""``trimtab evaluate judge`` as a job: ``ray job submit ... -- python jobs/evaluate_judge.py --config FILE``."""

from trimtab.cli import run_job

if __name__ == "__main__":
    run_job("evaluate judge")
