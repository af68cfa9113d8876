"""The papers: tensors in, tensors out. No configuration, modules, logging or device moves."""
