"""Times of the sequence operators, beside their memory floor and beside others' operators. Knows no terminal.

A figure is printed only for what was checked first: outputs, states and gradients against the reference in float64.
"""
