"""The operator of a cluster: knows its resources, secrets and pods, and answers gateways over the backbone."""
