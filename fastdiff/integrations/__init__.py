"""The kernels inside other people's libraries. Each module needs the library that it is named after."""
