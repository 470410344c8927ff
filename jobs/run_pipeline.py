"""The whole loop as one job: ``ray job submit ... -- python jobs/run_pipeline.py --config jobs/configs/demo.yaml``."""

from trimtab.cli import run_job

if __name__ == "__main__":
    run_job("pipeline")
