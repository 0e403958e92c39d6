"""What the compilers make of the GPU kernels, measured without a GPU: `python -m fastdiff.bench.code`."""
