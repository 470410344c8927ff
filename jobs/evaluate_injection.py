"""``trimtab evaluate injection`` as a job: ``ray job submit ... -- python jobs/evaluate_injection.py ...``."""

from trimtab.cli import run_job

if __name__ == "__main__":
    run_job("evaluate injection")
