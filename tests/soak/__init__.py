"""What takes too long for the suite: `python -m tests.soak load` and `python -m tests.soak faults`.

`load.py` keeps everything of discoro busy on one machine while faults happen, and looks at memory and descriptors; `faults.py`
repeats the rounds of `tests/support/killing.py`, of which the suite runs a few.
"""
