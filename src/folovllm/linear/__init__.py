"""How a linear layer is computed: one file a backend."""
