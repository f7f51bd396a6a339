"""Dynamic structure pruning (Park et al., AAAI 2023), readable with the paper beside it.

layers     the layers that are pruned, and their learned groups
groups     the penalty and its derivatives; `dose` is its sum over a training
learner    one step of group learning
fixed      groups that are not learned
selection  energies to plans; `per_cost` divides them by what a channel costs
method     the settings, as the suite reads them; `recipes` has those of each network
parity     `python -m dsp.parity DIR` compares all this with numbers of the released code, on its `released_network`
"""

from dsp.method import DSP

__all__ = ["DSP"]
