"""``trimtab evaluate ability`` as a job: ``ray job submit ... -- python jobs/evaluate_ability.py --tasks NAMES``."""

from trimtab.cli import run_job

if __name__ == "__main__":
    run_job("evaluate ability")
