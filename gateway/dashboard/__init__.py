"""The dashboard: pages that show a mesh, and what they ask for; ``mesh dashboard`` alone loads it."""
