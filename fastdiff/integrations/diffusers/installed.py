"""Says how to get diffusers where it is missing; the package imports this first."""

from importlib.util import find_spec

from fastdiff.errors import MissingDependencyError

if find_spec("diffusers") is None:
    raise MissingDependencyError("this needs diffusers: pip install 'fastdiff-sampler[diffusers]'")
