"""The paper's tables and figures again: its figures, the trainings behind them, what they reach.

`largesparse paper` is the command.
"""
