"""``trimtab export`` as a job: ``ray job submit ... -- python jobs/export_pairs.py --config FILE``."""

from trimtab.cli import run_job

if __name__ == "__main__":
    run_job("export")
