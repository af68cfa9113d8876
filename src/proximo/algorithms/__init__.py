"""One file, one algorithm; hyper-parameters are the fields of a frozen dataclass."""
