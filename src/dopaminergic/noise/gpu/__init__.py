"""The same numbers as `reference`, on a GPU.

One Triton launch adds directions to all parameters of a combination. A table on the device, made
once, says where the parameters lie. Step, directions and multiples change from call to call. They
are one small buffer on the device, which a call overwrites without waiting. So the arguments of the
launch never change, as a CUDA graph needs.

Triton comes with torch's CUDA builds. This package is imported only when a tensor on a GPU needs
it.
"""
