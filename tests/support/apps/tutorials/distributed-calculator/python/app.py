"""Multiplies."""

from web import serve

serve({"POST /multiply": lambda two: float(two["operandOne"]) * float(two["operandTwo"])})
