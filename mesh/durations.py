"""The old name of `mesh.values`."""

from mesh.values import parse_duration as parse_duration
from mesh.values import parse_size as parse_size
