"""``trimtab evaluate robustness`` as a job: ``ray job submit ... -- python jobs/evaluate_robustness.py ...``."""

from trimtab.cli import run_job

if __name__ == "__main__":
    run_job("evaluate robustness")
