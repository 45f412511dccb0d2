"""Holds a plan against the deployment that it planned: what was predicted beside what is measured.

`prediction` and `results` are pure; `cli_validate` runs the loads.
"""
