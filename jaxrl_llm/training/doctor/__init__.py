"""`jaxrl doctor`: what would go wrong with a run, before its first step.

examination.py goes through the checks; machine.py, model.py and task.py hold
them. A check is a generator of Findings that reads a Subject.
"""
