"""Language models, of any service that has one."""
