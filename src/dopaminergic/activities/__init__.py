"""Credit through activities: where weights meet activities, and what a trial of them teaches.

- `nodes`, `tape`: one evaluation, watched: sites, sums of sites, slopes of activations.
- `synapses`: how weights meet activities in torch's operations.
- `multiples`: functions of a weight alone that are weights too.
- `layout`, `separation`: which part of a tensor is a sample, a time step, a unit.
- `families`: all calls of one site, stacked.
- `evaluations`: of one step: as the network is, with perturbed units, at a trial.
- `feedback`, `credit`: learned expectations of regrets, and the credit of units.
- `estimates`: from credit to an estimate of the gradient of each weight.
- `eigen`: first-order steps.
- `alignment`, `jacobian`, `gauss_newton`: second-order steps.
"""
