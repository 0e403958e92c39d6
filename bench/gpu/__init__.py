"""The benchmark that `bench/gpu.sh` runs: `python -m fastdiff.bench.gpu`."""
