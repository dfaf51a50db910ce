"""From row programs to C++ for CPUs."""
