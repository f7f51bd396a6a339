"""Dynamic structure pruning (Park et al., AAAI 2023), readable with the paper beside it.

groups     the penalty and its derivatives
learner    one step of group learning
fixed      groups that are not learned
selection  energies to plans
method     the settings, as the suite reads them; `recipes` has those of each network
parity     `python -m dsp.parity DIR` compares all this with numbers of the released code
"""

from dsp.method import DSP

__all__ = ["DSP"]
