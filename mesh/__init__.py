"""The core of brokermesh: values, contracts and decisions, with no broker client and no HTTP."""

__version__ = "0.1.0"
