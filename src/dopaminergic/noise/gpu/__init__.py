"""The same numbers as `reference`, on a GPU: one Triton launch adds directions to all parameters of
a combination.

Where the parameters lie is a table on the device, made once; all that changes from call to call
(step, directions, multiples) is one small buffer there, which a call overwrites without waiting for
the device. So the arguments of the launch never change, which is what a CUDA graph asks for.

Triton comes with torch's CUDA builds; what is here is imported only when a tensor on a GPU asks for
it.
"""
