"""The paper's tables and figures again: its figures, the trainings behind them, what they reach.

`tools/paper_tables.py` is the driver.
"""
