"""Credit through activities: where weights meet activities, and how an evaluation is watched.

tape       one evaluation: sites, sums of sites, slopes of activations
synapses   how the credit of a site's outputs becomes an estimate for its weights
layout     which part of a tensor is a sample, a time step, a unit
families   all calls of one site, stacked: their trials, gains and credits
feedback   learned expectations: from outcomes back to units
credit     regrets, expectations, prediction errors and credits of one step
steps      how far the weights move: Adam's direction, or Gauss-Newton
"""
