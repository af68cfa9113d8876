"""An epoch of PPO for small networks in C++: PyTorch's numbers without its overhead."""
