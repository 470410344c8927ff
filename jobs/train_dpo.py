"""``trimtab train`` as a job: ``ray job submit ... -- python jobs/train_dpo.py --config FILE``."""

from trimtab.cli import run_job

if __name__ == "__main__":
    run_job("train")
