"""The passes: each takes a `GraphModule` and earlier results, and runs alone in a `PassManager`."""
