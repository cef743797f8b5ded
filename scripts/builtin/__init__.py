"""Training and evaluation of the built-in recall model: data, network, training loop."""
