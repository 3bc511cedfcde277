"""How properties are tried: a busy machine is no reason to fail one."""

from hypothesis import HealthCheck, settings

settings.register_profile("unit", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")
