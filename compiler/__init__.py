"""The ahead-of-time compiler: graph, quantizer, passes, code generation, plan, artifact."""
